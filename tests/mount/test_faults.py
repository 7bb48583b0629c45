"""Failures of the device under the database: reads succeed, changes fail with its errno."""

import errno
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from pmxcfs._core import Tree
from pmxcfs.ipc.client import IpcClient
from pmxcfs.storage import database
from pmxcfs.storage.database import find_damage, inspect
from tests.fakes.programs import careless
from tests.harness import GRACE, PROGRAM, Daemon, ipc_name, launch, mounted, wait_for
from tests.mount.devices import Ext4, ext4, filled, make_immutable, needs_loop, tmpfs

SMALL_DISK = 6 << 20  # bytes; more than the log grows to
LONGEST_STOP = 3.0  # seconds
DEVICE_ERRORS = frozenset({errno.EIO, errno.EROFS})
REFUSED = r"config\.db can't be written: .*; reads go on, changes are refused"
NOT_THERE = r"config\.db can't be (written|checkpointed): "
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


def assert_unchanged(daemon: Daemon) -> None:
    """Assert that users see the entries of ``fill_tree``, whatever the kernel has cached."""
    root = daemon.path
    wait_for(lambda: (root / "file").read_text() == "as it was\n", daemon)
    assert (root / "directory" / "other").read_text() == "other\n"
    wait_for(lambda: not (root / "new-file").exists(), daemon)
    assert {name for name in os.listdir(root) if name[0] != "."} == {
        *("directory", "empty", "file"),
        *("local", "lxc", "openvz", "qemu-server"),
    }
    assert os.listdir(root / "empty") == []


def checksum_in_file(state: Path) -> str:
    """Return the checksum of the tree that a database holds; nothing in it needs repair."""
    loaded = inspect(state / "config.db")
    assert loaded.repairs == []
    assert find_damage(state / "config.db") == []
    tree = Tree()
    tree.load(loaded.records)
    return tree.checksum().hex()


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory on a file system that is soon full.

    The database's pages are those of a tmpfs, so that every change needs another one.
    """
    monkeypatch.setattr(database, "PAGE_SIZE", mmap.PAGESIZE)
    with tmpfs(tmp_path / "state", size=SMALL_DISK):
        database.Database.open(tmp_path / "state" / "config.db", now=0).close()
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
    with mounted(tmp_path, "--test-control", expect_log=[REFUSED, WRITES_LOST]) as daemon:
        fill_tree(daemon.path)
        before = daemon.control("info")
        with filled(small_disk):
            assert refusals(daemon.path) == dict.fromkeys(CHANGES, errno.ENOSPC)
            assert_unchanged(daemon)
            full = daemon.control("info")
            assert (full["version"], full["checksum"]) == (before["version"], before["checksum"])
            assert full["degraded"]
        daemon.wait_for_log("changes are refused")
        assert refusals(daemon.path)["overwrite"] == 0
        after = daemon.control("info")
        assert not after["degraded"]
        daemon.wait_for_log("can be written again")
    assert checksum_in_file(small_disk) == after["checksum"]


def test_a_creation_that_can_not_be_saved_is_undone_by_the_close(
    tmp_path: Path, small_disk: Path
) -> None:
    with mounted(tmp_path, "--test-control", expect_log=[REFUSED, WRITES_LOST]) as daemon:
        daemon.publish_only_on_request()
        new = daemon.path / "new"
        with filled(small_disk):
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            assert new.stat().st_size == 0
            os.write(descriptor, b"x")
            assert errno_of(lambda: os.close(descriptor)) == errno.ENOSPC
            wait_for(lambda: errno_of(new.stat) == errno.ENOENT, daemon)
            assert "new" not in os.listdir(daemon.path)
            assert daemon.control("info")["entries"] == 0
        overwrite(new, b"now there is space")
        checksum = daemon.control("info")["checksum"]
    assert checksum_in_file(small_disk) == checksum


def test_a_guest_that_could_not_be_saved_is_not_listed(tmp_path: Path, small_disk: Path) -> None:
    with mounted(tmp_path, "--test-control", expect_log=[REFUSED, WRITES_LOST]) as daemon:
        daemon.publish_only_on_request()
        guests = daemon.path / "nodes" / "n" / "qemu-server"
        guests.mkdir(parents=True)
        with filled(small_disk):
            descriptor = os.open(guests / "100.conf", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            assert '"100"' in (daemon.path / ".vmlist").read_text()
            os.write(descriptor, b"x")
            assert errno_of(lambda: os.close(descriptor)) == errno.ENOSPC
            # The counter changes once the kernel has been notified, by a thread of its own.
            wait_for(lambda: '"100"' not in (daemon.path / ".vmlist").read_text(), daemon)


def test_a_creation_that_can_not_be_saved_is_undone_by_the_timer(
    tmp_path: Path, small_disk: Path
) -> None:
    with mounted(tmp_path, "--test-control", expect_log=[REFUSED, CREATION_LOST]) as daemon:
        new = daemon.path / "new"
        with filled(small_disk):
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            wait_for(lambda: errno_of(new.stat) == errno.ENOENT, daemon)
            assert daemon.control("info")["entries"] == 0
            assert errno_of(lambda: os.close(descriptor)) == errno.ENOSPC
            assert errno_of(lambda: new.touch(exist_ok=False)) == errno.ENOSPC
        new.touch(exist_ok=False)


def test_a_creation_is_undone_together_with_a_change_that_could_not_be_saved(
    tmp_path: Path, small_disk: Path
) -> None:
    with mounted(tmp_path, "--test-control", expect_log=[REFUSED]) as daemon:
        daemon.publish_only_on_request()
        new = daemon.path / "new"
        with filled(small_disk):
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            assert errno_of((daemon.path / "other").mkdir) == errno.ENOSPC
            assert errno_of(lambda: os.write(descriptor, b"x")) == errno.ENOSPC
            assert errno_of(lambda: os.close(descriptor)) == errno.ENOSPC
            wait_for(lambda: errno_of(new.stat) == errno.ENOENT, daemon)


def test_a_write_that_the_timer_lost_is_reported_by_the_close(
    tmp_path: Path, small_disk: Path
) -> None:
    with mounted(tmp_path, expect_log=[REFUSED, WRITES_LOST]) as daemon:
        fill_tree(daemon.path)
        descriptor = os.open(daemon.path / "file", os.O_WRONLY)
        with filled(small_disk):
            os.pwrite(descriptor, b"lost", 0)
            daemon.wait_for_log("the last writes to file are lost")
        assert errno_of(lambda: os.pwrite(descriptor, b"more", 4)) == errno.ENOSPC
        assert errno_of(lambda: os.close(descriptor)) == errno.ENOSPC
        wait_for(lambda: (daemon.path / "file").read_text() == "as it was\n", daemon)


# A device that fails


@needs_loop
def test_a_device_error_refuses_every_change(tmp_path: Path, device: Ext4) -> None:
    with mounted(tmp_path, "--test-control", expect_log=[REFUSED, WRITES_LOST]) as daemon:
        fill_tree(daemon.path)
        version = daemon.control("info")["version"]
        device.fail()
        assert set(refusals(daemon.path).values()) <= DEVICE_ERRORS
        assert_unchanged(daemon)
        assert daemon.control("info")["version"] == version
        daemon.wait_for_log("changes are refused")
        daemon.stop(grace=LONGEST_STOP)
        assert daemon.process.returncode == 0
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
        fill_tree(daemon.path)
        synced(daemon.path / "synced", b"on the device\n")
        for number in range(10):
            overwrite(daemon.path / f"unsynced{number}", bytes(5000))
        (daemon.path / "directory" / "other").unlink()
        device.fail()
        assert errno_of((daemon.path / "new").mkdir) in DEVICE_ERRORS
        device.replace()
        (daemon.path / "new").mkdir()
        info = daemon.control("info")
        assert not info["degraded"]
    assert checksum_in_file(tmp_path / "state") == info["checksum"]


# Nothing to write on from the start


@needs_loop
def test_a_read_only_database_is_served(tmp_path: Path, device: Ext4) -> None:
    with mounted(tmp_path) as daemon:
        fill_tree(daemon.path)
    make_immutable(tmp_path / "state" / "config.db")
    with mounted(tmp_path, expect_log=[REFUSED, WRITES_LOST]) as daemon:
        assert_unchanged(daemon)
        wait_for(lambda: "config.db is read-only: make it" in reason(tmp_path), daemon)
        assert refusals(daemon.path) == dict.fromkeys(CHANGES, errno.EROFS)
        assert_unchanged(daemon)
        daemon.wait_for_log("changes are refused")
        daemon.stop(grace=LONGEST_STOP)
        device.unmount()  # with the log, which can't be copied into the file


def reason(workdir: Path) -> str:
    """Return why the daemon is not well, for the worst thing; "" if it is."""
    with IpcClient(ipc_name(workdir)) as client:
        findings = json.loads(client.report())["findings"]
    return str(findings[0]["reason"]) if findings else ""


def reason_not_to_start(workdir: Path) -> str:
    """Start a daemon that can't; return the one line that says why."""
    daemon = launch(workdir)
    try:
        assert daemon.process.wait(GRACE) == 1
    finally:
        daemon.kill()
    (line,) = daemon.log_text().splitlines()
    return line


@needs_loop
def test_a_read_only_state_directory_prevents_the_start(tmp_path: Path, device: Ext4) -> None:
    with mounted(tmp_path) as daemon:
        fill_tree(daemon.path)
    device.mount_read_only()
    reason = reason_not_to_start(tmp_path)
    assert reason.startswith(f"pmxcfs: can't open lock file {daemon.state}/")
    assert reason.endswith(": Read-only file system")


def test_a_full_disk_prevents_the_start(tmp_path: Path, small_disk: Path) -> None:
    with mounted(tmp_path) as daemon:
        fill_tree(daemon.path)
    with filled(small_disk):
        reason = reason_not_to_start(tmp_path)
    assert reason.startswith(f"pmxcfs: {daemon.state}/config.db can't be opened: ")
    assert reason.endswith(": free some space")
    with mounted(tmp_path) as daemon:
        assert_unchanged(daemon)


# The state directory goes away


def fill_log(daemon: Daemon) -> None:
    """Write until the checkpointer finds that the database file is missing."""
    content = bytes(1 << 20)
    wait_for(lambda: errno_of(lambda: overwrite(daemon.path / "big", content)) == errno.EIO, daemon)


def test_a_removed_state_directory_is_noticed(tmp_path: Path) -> None:
    with mounted(tmp_path, expect_log=[REFUSED, NOT_THERE, WRITES_LOST]) as daemon:
        fill_tree(daemon.path)
        shutil.rmtree(daemon.state)
        fill_log(daemon)
        assert (daemon.path / "file").read_text() == "as it was\n"
        assert refusals(daemon.path) == dict.fromkeys(CHANGES, errno.EIO)
        daemon.stop(grace=LONGEST_STOP)
        daemon.wait_for_log("changes are refused")


@needs_loop
def test_a_state_directory_that_is_unmounted_and_mounted_again_is_used_again(
    tmp_path: Path, device: Ext4
) -> None:
    expected = [REFUSED, NOT_THERE, WRITES_LOST]
    with mounted(tmp_path, "--test-control", expect_log=expected) as daemon:
        fill_tree(daemon.path)
        device.unmount()
        fill_log(daemon)
        assert (daemon.path / "file").read_text() == "as it was\n"
        device.mount()
        (daemon.path / "new").mkdir()
        checksum = daemon.control("info")["checksum"]
    assert checksum_in_file(tmp_path / "state") == checksum
