"""Failures of the device under journal and database: reads succeed, changes fail with its errno."""

import contextlib
import errno
import itertools
import json
import os
import shutil
import string
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from pmxcfs.ipc.client import IpcClient
from pmxcfs.storage.integrity import find_damage
from pmxcfs.storage.recovery import inspect
from tests.fakes.programs import careless
from tests.fakes.programs.mortal import Plan
from tests.harness import PROGRAM, Daemon, ipc_name, is_loud, mounted, wait_for
from tests.mount.devices import Ext4, ext4, filled, make_immutable, needs_loop, tmpfs

SMALL_DISK = 16 << 20  # bytes
LONGEST_STOP = 3.0  # seconds
DEVICE_ERRORS = frozenset({errno.EIO, errno.EROFS})
REFUSED = r"journal\S* can't be (written|synced): .*; changes are refused"
NOT_SAVED = r"(config\.db|journal)\S* can't be \w+: .*"  # by the thread that saves
NOT_STOPPED = r"the last changes are in \S+ only; pmxcfs checkpoint brings them into the database"
NEVER_SAVING = Plan(pause=3600.0).program()
BEFORE = ("before0", "before1", "before2", "before3", "before4")
AFTER = ("after0", "after1", "after2", "after3", "after4")
CREATION_LOST = r"new files could not be saved and were removed"
WRITES_LOST = r"the last writes to \S+ are lost: E(NOSPC|IO|ROFS|NOENT)$"

pytestmark = pytest.mark.needs_fuse


def errno_of(operation: Callable[[], object]) -> int:
    """Return the errno that *operation* fails with, 0 if it succeeds."""
    try:
        operation()
    except OSError as error:
        return error.errno or 0
    return 0


def fill_tree(root: Path) -> None:
    """Make an entry of each kind to be changed or read."""
    (root / "directory").mkdir()
    (root / "empty").mkdir()
    (root / "file").write_text("as it was\n")
    (root / "directory" / "other").write_text("other\n")


def overwrite(path: Path, content: bytes = b"new\n") -> None:
    """Open with O_TRUNC, write and close, without Python's buffer in between."""
    with path.open("wb", buffering=0) as file:
        file.write(content)


def synced(path: Path, content: bytes) -> None:
    """Overwrite with an fsync before the close."""
    with path.open("wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())


def append(path: Path, content: bytes) -> None:
    """Write behind the end and close."""
    with path.open("ab", buffering=0) as file:
        file.write(content)


# Each is one operation on what ``fill_tree`` made.
CHANGES: dict[str, Callable[[Path], object]] = {
    "overwrite": lambda root: overwrite(root / "file"),
    "append": lambda root: append(root / "file", b"more"),
    "fsync": lambda root: synced(root / "file", b"new\n"),
    "truncate": lambda root: os.truncate(root / "file", 2),
    "utime": lambda root: os.utime(root / "file", (1, 1)),
    "unlink": lambda root: (root / "file").unlink(),
    "rename": lambda root: (root / "file").rename(root / "renamed"),
    "replace": lambda root: (root / "file").rename(root / "directory" / "other"),
    "mkdir": lambda root: (root / "new").mkdir(),
    "rmdir": lambda root: (root / "empty").rmdir(),
    "create": lambda root: overwrite(root / "new-file"),
}


def refusals(root: Path) -> dict[str, int]:
    """Try every change; return the errno of each."""
    return {name: errno_of(partial(change, root)) for name, change in CHANGES.items()}


@contextlib.contextmanager
def exhausted(daemon: Daemon, disk: Path) -> Iterator[None]:
    """Fill *disk*, and use up what the journal has reserved, until the block ends.

    The daemon is one of ``NEVER_SAVING``, as a save gives some of that back.
    """
    padding = daemon.path / "padding"
    padding.mkdir()
    with filled(disk):
        for size in (100_000, 10_000, 1000, 100):
            for number in itertools.count():
                if errno_of(partial(synced, padding / f"{size}.{number}", bytes(size))):
                    break
        for pair in itertools.product(string.ascii_letters, repeat=2):  # the smallest changes
            if errno_of((daemon.path / f"~{''.join(pair)}").mkdir):
                break
        yield


def assert_unchanged(daemon: Daemon) -> None:
    """Assert that users see the entries of ``fill_tree``, whatever the kernel has cached."""
    root = daemon.path
    wait_for(lambda: (root / "file").read_text() == "as it was\n", daemon)
    assert (root / "directory" / "other").read_text() == "other\n"
    wait_for(lambda: not (root / "new-file").exists(), daemon)
    assert {name for name in os.listdir(root) if name[0] not in ".~"} - {"padding"} == {
        *("directory", "empty", "file"),
        *("local", "lxc", "openvz", "qemu-server"),
    }
    assert os.listdir(root / "empty") == []


def checksum_in_file(state: Path) -> str:
    """Return the checksum of the tree in database and journal; nothing in it needs repair."""
    recovered = inspect(state / "config.db")
    assert list(recovered.repairs) == []
    assert recovered.left_over is None
    assert find_damage(state / "config.db") == []
    return recovered.tree.checksum().hex()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A state directory on a file system that is soon full."""
    with tmpfs(tmp_path / "state", size=SMALL_DISK):
        yield tmp_path / "state"


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Ext4]:
    """The file system of the state directory."""
    with ext4(tmp_path / "state") as device:
        yield device


# A full disk


def test_a_full_disk_refuses_every_change_until_there_is_space(
    tmp_path: Path, small_disk: Path
) -> None:
    with mounted(tmp_path, "--test-control", program=NEVER_SAVING, expect_log=[REFUSED]) as daemon:
        fill_tree(daemon.path)
        with exhausted(daemon, small_disk):
            before = daemon.control("info")
            assert refusals(daemon.path) == dict.fromkeys(CHANGES, errno.ENOSPC)
            assert_unchanged(daemon)
            full = daemon.control("info")
            assert (full["version"], full["checksum"]) == (before["version"], before["checksum"])
            assert full["degraded"]
        wait_for(lambda: daemon.log_count("changes are refused") > 0, daemon)
        assert refusals(daemon.path)["overwrite"] == 0
        after = daemon.control("info")
        assert not after["degraded"]
        wait_for(lambda: daemon.log_count("changes can be stored again") > 0, daemon)
    assert checksum_in_file(small_disk) == after["checksum"]


def test_a_full_disk_is_told_at_the_open_or_the_write(tmp_path: Path, small_disk: Path) -> None:
    """A shell ignores what close answers."""
    with mounted(tmp_path, program=NEVER_SAVING, expect_log=[REFUSED]) as daemon:
        fill_tree(daemon.path)
        file = daemon.path / "file"
        kept = os.open(file, os.O_RDWR)
        with exhausted(daemon, small_disk):
            for name in ("file", "new"):
                shell = ["bash", "-c", f"echo new > {name}"]
                done = subprocess.run(
                    shell, cwd=daemon.path, capture_output=True, text=True, check=False
                )
                assert done.returncode != 0
                assert os.strerror(errno.ENOSPC) in done.stderr
            assert errno_of(lambda: os.pwrite(kept, b"X", 0)) == errno.ENOSPC
            assert errno_of(lambda: os.close(kept)) == errno.ENOSPC
            assert file.read_text() == "as it was\n"
            assert not (daemon.path / "new").exists()
        subprocess.run(["sh", "-c", "echo new > file"], cwd=daemon.path, check=True)
        assert file.read_text() == "new\n"


def test_the_status_tells_of_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    with mounted(tmp_path, program=NEVER_SAVING, expect_log=[REFUSED]) as daemon:
        fill_tree(daemon.path)
        with exhausted(daemon, small_disk):
            assert "No space left on device" in reason(tmp_path)
        overwrite(daemon.path / "file")
        wait_for(lambda: "No space left" not in reason(tmp_path), daemon)


def reason(workdir: Path) -> str:
    """Return why the daemon is not well, for the worst thing; "" if it is."""
    with IpcClient(ipc_name(workdir)) as client:
        findings = json.loads(client.report())["findings"]
    return str(findings[0]["reason"]) if findings else ""


def test_what_was_written_before_the_device_failed_is_lost_at_the_close(
    tmp_path: Path, device: Ext4
) -> None:
    with mounted(tmp_path, "--test-control", expect_log=[REFUSED, WRITES_LOST]) as daemon:
        daemon.publish_only_on_request()
        expect_a_failed_stop(daemon)
        guests = daemon.path / "nodes" / "n" / "qemu-server"
        guests.mkdir(parents=True)
        new = guests / "100.conf"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        assert '"100"' in (daemon.path / ".vmlist").read_text()
        os.write(descriptor, b"x")
        device.fail()
        assert errno_of(lambda: os.close(descriptor)) in DEVICE_ERRORS
        wait_for(lambda: errno_of(new.stat) == errno.ENOENT, daemon)
        assert os.listdir(guests) == []
        # The counter changes once the kernel has been notified, by a thread of its own.
        wait_for(lambda: '"100"' not in (daemon.path / ".vmlist").read_text(), daemon)


def test_a_creation_that_can_not_be_saved_is_undone_by_the_timer(
    tmp_path: Path, device: Ext4
) -> None:
    with mounted(tmp_path, "--test-control", expect_log=[REFUSED, CREATION_LOST]) as daemon:
        expect_a_failed_stop(daemon)
        overwrite(daemon.path / "first")  # reserves space, so that a creation can wait
        new = daemon.path / "new"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        device.fail()
        wait_for(lambda: errno_of(new.stat) == errno.ENOENT, daemon)
        assert daemon.control("info")["entries"] == 1
        assert errno_of(lambda: os.close(descriptor)) in DEVICE_ERRORS
        assert errno_of(lambda: new.touch(exist_ok=False)) in DEVICE_ERRORS


def test_a_creation_is_undone_together_with_a_change_that_could_not_be_saved(
    tmp_path: Path, device: Ext4
) -> None:
    with mounted(tmp_path, "--test-control", expect_log=[REFUSED]) as daemon:
        expect_a_failed_stop(daemon)
        daemon.publish_only_on_request()
        overwrite(daemon.path / "first")  # reserves space, so that a creation can wait
        new = daemon.path / "new"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        device.fail()
        assert errno_of((daemon.path / "other").mkdir) in DEVICE_ERRORS
        assert errno_of(lambda: os.write(descriptor, b"x")) in DEVICE_ERRORS
        assert errno_of(lambda: os.close(descriptor)) in DEVICE_ERRORS
        wait_for(lambda: errno_of(new.stat) == errno.ENOENT, daemon)


def test_a_write_that_the_timer_lost_is_reported_by_the_close(tmp_path: Path, device: Ext4) -> None:
    with mounted(tmp_path, expect_log=[REFUSED, WRITES_LOST]) as daemon:
        expect_a_failed_stop(daemon)
        fill_tree(daemon.path)
        descriptor = os.open(daemon.path / "file", os.O_WRONLY)
        os.pwrite(descriptor, b"lost", 0)
        device.fail()
        daemon.wait_for_log("the last writes to file are lost")
        assert errno_of(lambda: os.pwrite(descriptor, b"more", 4)) in DEVICE_ERRORS
        assert errno_of(lambda: os.close(descriptor)) in DEVICE_ERRORS
        wait_for(lambda: (daemon.path / "file").read_text() == "as it was\n", daemon)


def expect_a_failed_stop(daemon: Daemon) -> None:
    """Declare that the database can't be brought up to date at the end."""
    daemon.expect_log(NOT_SAVED)
    daemon.expect_log(NOT_STOPPED)
    daemon.exit_status = 1


# A device that fails


@needs_loop
def test_a_device_error_refuses_every_change(tmp_path: Path, device: Ext4) -> None:
    with mounted(tmp_path, "--test-control", expect_log=[REFUSED, WRITES_LOST]) as daemon:
        expect_a_failed_stop(daemon)
        fill_tree(daemon.path)
        version = daemon.control("info")["version"]
        device.fail()
        assert set(refusals(daemon.path).values()) <= DEVICE_ERRORS
        assert_unchanged(daemon)
        assert daemon.control("info")["version"] == version
        daemon.wait_for_log("changes are refused")
        daemon.stop(grace=LONGEST_STOP)
        device.unmount()


def names_after_power_cut(
    workdir: Path, device: Ext4, *, program: Sequence[str | Path] = PROGRAM
) -> list[str]:
    """Make files, with one fsync among them; return those that are left after a power cut."""
    with mounted(workdir, program=program) as daemon:
        for name in BEFORE:
            overwrite(daemon.path / name)
        synced(daemon.path / "synced", b"new\n")
        for name in AFTER:
            overwrite(daemon.path / name)
        device.fail()
        daemon.kill()
    device.replace()
    with mounted(workdir) as daemon:  # which insists that nothing had to be repaired
        left = [name for name in (*BEFORE, "synced", *AFTER) if (daemon.path / name).exists()]
        assert {(daemon.path / name).read_text() for name in left} <= {"new\n"}
    return left


@needs_loop
def test_a_file_that_was_fsynced_survives_a_power_cut(tmp_path: Path, device: Ext4) -> None:
    left = names_after_power_cut(tmp_path, device)
    assert left[:6] == [*BEFORE, "synced"]
    assert tuple(left[6:]) == AFTER[: len(left) - 6], "a later change without an earlier one"


@needs_loop
def test_a_daemon_that_does_not_sync_is_found(tmp_path: Path, device: Ext4) -> None:
    left = names_after_power_cut(tmp_path, device, program=(careless.__file__, "forget-to-sync"))
    assert "synced" not in left


@needs_loop
def test_a_replaced_device_gets_the_tree_in_memory(tmp_path: Path, device: Ext4) -> None:
    with mounted(tmp_path, "--test-control", expect_log=[REFUSED]) as daemon:
        daemon.expect_log(NOT_SAVED)
        fill_tree(daemon.path)
        synced(daemon.path / "synced", b"on the device\n")
        for number in range(10):
            overwrite(daemon.path / f"unsynced{number}", bytes(5000))
        (daemon.path / "directory" / "other").unlink()
        device.fail()
        assert errno_of((daemon.path / "new").mkdir) in DEVICE_ERRORS
        device.replace()
        # The first attempt finds out that the database must be opened again.
        wait_for(lambda: errno_of((daemon.path / "new").mkdir) == 0, daemon)
        info = daemon.control("info")
        assert not info["degraded"]
    assert checksum_in_file(tmp_path / "state") == info["checksum"]


# Nothing to write on from the start


@needs_loop
def test_a_read_only_database_gets_changes_later(tmp_path: Path, device: Ext4) -> None:
    database = tmp_path / "state" / "config.db"
    with mounted(tmp_path) as daemon:
        fill_tree(daemon.path)
    make_immutable(database)
    with mounted(tmp_path, "--test-control") as daemon:
        expect_a_failed_stop(daemon)
        assert_unchanged(daemon)
        wait_for(lambda: "config.db" in reason(tmp_path), daemon)
        assert "make it and its directory writable" in reason(tmp_path)
        overwrite(daemon.path / "new-file")
        checksum = daemon.control("info")["checksum"]
        daemon.stop()
        make_immutable(database, undo=True)
    with mounted(tmp_path) as daemon:
        assert (daemon.path / "new-file").read_text() == "new\n"
    assert checksum_in_file(tmp_path / "state") == checksum


@needs_loop
def test_a_read_only_state_directory_is_served(tmp_path: Path, device: Ext4) -> None:
    with mounted(tmp_path) as daemon:
        fill_tree(daemon.path)
    device.mount_read_only()
    with mounted(tmp_path, expect_log=["Read-only file system"]) as daemon:
        assert_unchanged(daemon)
        assert refusals(daemon.path) == dict.fromkeys(CHANGES, errno.EROFS)
        assert_unchanged(daemon)
        assert sum(map(is_loud, daemon.log_text().splitlines())) == 1
        daemon.stop(grace=LONGEST_STOP)


def test_a_full_disk_is_served(tmp_path: Path, small_disk: Path) -> None:
    with mounted(tmp_path) as daemon:
        fill_tree(daemon.path)
    with filled(small_disk), mounted(tmp_path, expect_log=["No space left"]) as daemon:
        assert_unchanged(daemon)
        assert refusals(daemon.path) == dict.fromkeys(CHANGES, errno.ENOSPC)
        assert sum(map(is_loud, daemon.log_text().splitlines())) == 1
    with mounted(tmp_path) as daemon:
        assert_unchanged(daemon)


# The state directory goes away


def fill_journal(daemon: Daemon) -> None:
    """Write until that fails: the directory is missing, or its segments can't be dropped."""
    content, gone = bytes(1 << 20), {errno.EIO, errno.ENOSPC}
    wait_for(lambda: errno_of(lambda: overwrite(daemon.path / "big", content)) in gone, daemon)


def test_a_removed_state_directory_is_noticed(tmp_path: Path) -> None:
    with mounted(tmp_path, expect_log=[REFUSED, NOT_SAVED]) as daemon:
        fill_tree(daemon.path)
        shutil.rmtree(daemon.state)
        fill_journal(daemon)
        assert (daemon.path / "file").read_text() == "as it was\n"
        assert refusals(daemon.path) == dict.fromkeys(CHANGES, errno.EIO)
        daemon.stop(grace=LONGEST_STOP)
        daemon.wait_for_log("changes are refused")


@needs_loop
def test_a_state_directory_that_is_unmounted_and_mounted_again_is_used_again(
    tmp_path: Path, device: Ext4
) -> None:
    with mounted(tmp_path, "--test-control", expect_log=[REFUSED]) as daemon:
        daemon.expect_log(NOT_SAVED)
        fill_tree(daemon.path)
        device.unmount()
        fill_journal(daemon)
        assert (daemon.path / "file").read_text() == "as it was\n"
        device.mount()
        wait_for(lambda: errno_of((daemon.path / "new").mkdir) == 0, daemon)
        checksum = daemon.control("info")["checksum"]
    assert checksum_in_file(tmp_path / "state") == checksum
