"""A start with a state directory that is read-only or full: everything is read, nothing changed."""

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pmxcfs.storage.recovery import inspect
from pmxcfs.storage.segments import read
from tests.harness import PROGRAM, Daemon, ipc_name, is_loud, mounted
from tests.mount.devices import Ext4, ext4, filled, needs_loop, tmpfs

SMALL_DISK = 16 << 20  # bytes
REFUSED = "; changes are refused"
CONTENT = {"file": b"as it was\n", "directory/other": b"other\n"}

pytestmark = pytest.mark.needs_fuse


class Disk:
    """The file system of a state directory, and the errno of changes while it is unwritable."""

    def __init__(
        self, code: int, unwritable: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self.code = code
        self.unwritable = unwritable


@contextlib.contextmanager
def read_only(device: Ext4) -> Iterator[None]:
    device.mount_read_only()
    try:
        yield
    finally:
        device.mount_writable()


@pytest.fixture(params=[pytest.param("read-only", marks=needs_loop), "full"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    state = tmp_path / "state"
    if request.param == "full":
        with tmpfs(state, size=SMALL_DISK):
            yield Disk(errno.ENOSPC, partial(filled, state))
    else:
        with ext4(state) as device:
            yield Disk(errno.EROFS, partial(read_only, device))


def fill_tree(root: Path) -> None:
    (root / "directory").mkdir()
    for name, content in CONTENT.items():
        (root / name).write_bytes(content)


def overwrite(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(b"new\n")


CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda root: overwrite(root / "new-file"),
    "mkdir": lambda root: (root / "new").mkdir(),
    "overwrite": lambda root: overwrite(root / "file"),
    "rename": lambda root: (root / "file").rename(root / "renamed"),
    "truncate": lambda root: os.truncate(root / "file", 2),
    "unlink": lambda root: (root / "file").unlink(),
    "utime": lambda root: os.utime(root / "file", (1, 1)),
}


def errno_of(operation: Callable[[], object]) -> int:
    """Return the errno that *operation* fails with, 0 if it succeeds."""
    try:
        operation()
    except OSError as error:
        return error.errno or 0
    return 0


def refusals(root: Path) -> set[int]:
    """Return the errnos of all changes."""
    return {errno_of(partial(change, root)) for change in CHANGES.values()}


def assert_unchanged(root: Path) -> None:
    assert {name: (root / name).read_bytes() for name in CONTENT} == CONTENT
    assert {*os.listdir(root)} >= {"directory", "file"}
    assert {*os.listdir(root)}.isdisjoint({"new", "new-file", "renamed"})


def assert_one_warning(daemon: Daemon) -> None:
    loud = [line for line in daemon.log_text().splitlines() if is_loud(line)]
    assert len(loud) == 1, loud
    assert loud[0].endswith(REFUSED)


def content_in_files(state: Path) -> dict[str, bytes]:
    """Return the files that database and journal have together; nothing is left over."""
    recovered = inspect(state / "config.db")
    assert list(recovered.repairs) == []
    assert recovered.left_over is None
    paths = {name: recovered.tree.find(name) for name in ("file", "directory/other", "later")}
    return {name: entry.content for name, entry in paths.items() if entry is not None}


def give_back(state: Path) -> None:
    """Free what the journal of a killed daemon has reserved, as the next start does."""
    for path in (state / "journal").iterdir():
        os.truncate(path, read(path).end)


def pmxcfs(command: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, *PROGRAM, command, *options]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_the_tree_of_a_stopped_daemon_is_served(tmp_path: Path, disk: Disk) -> None:
    with mounted(tmp_path) as daemon:
        fill_tree(daemon.path)
    with disk.unwritable(), mounted(tmp_path, expect_log=[REFUSED]) as daemon:
        assert_unchanged(daemon.path)
        assert refusals(daemon.path) == {disk.code}
        assert_unchanged(daemon.path)
        assert_one_warning(daemon)
        daemon.stop()
        assert_one_warning(daemon)
    assert content_in_files(daemon.state) == CONTENT


@pytest.mark.parametrize("lost", ["nothing", "the index of the log"])
def test_the_tree_of_a_killed_daemon_is_served(tmp_path: Path, disk: Disk, lost: str) -> None:
    with mounted(tmp_path) as daemon:
        fill_tree(daemon.path)
        daemon.kill()
    give_back(daemon.state)
    if lost != "nothing":
        (daemon.state / "config.db-shm").unlink()
    with disk.unwritable(), mounted(tmp_path, expect_log=[REFUSED]) as daemon:
        assert_unchanged(daemon.path)
        assert refusals(daemon.path) == {disk.code}
        assert_unchanged(daemon.path)
        assert_one_warning(daemon)
        daemon.kill()
    assert content_in_files(daemon.state) == CONTENT
    with mounted(tmp_path) as daemon:
        assert_unchanged(daemon.path)


def test_without_a_database_an_empty_tree_is_served(tmp_path: Path, disk: Disk) -> None:
    with disk.unwritable(), mounted(tmp_path, expect_log=[REFUSED]) as daemon:
        assert "file" not in os.listdir(daemon.path)
        assert errno_of((daemon.path / "new").mkdir) == disk.code
        daemon.stop()  # nothing is lost by that
        assert_one_warning(daemon)
    with mounted(tmp_path) as daemon:  # and nothing was in use before
        fill_tree(daemon.path)
    assert content_in_files(daemon.state) == CONTENT


@pytest.mark.parametrize("end", ["stopped", "killed", "new"])
def test_the_first_change_with_a_writable_disk_succeeds(
    tmp_path: Path, disk: Disk, end: str
) -> None:
    expected = {} if end == "new" else CONTENT
    if end != "new":
        with mounted(tmp_path) as daemon:
            fill_tree(daemon.path)
            if end == "killed":
                daemon.kill()
                give_back(daemon.state)
    with contextlib.ExitStack() as unwritable:
        unwritable.enter_context(disk.unwritable())
        with mounted(tmp_path, expect_log=[REFUSED]) as daemon:
            assert errno_of((daemon.path / "new").mkdir) == disk.code
            unwritable.close()
            (daemon.path / "later").write_bytes(b"later\n")
            daemon.wait_for_log("changes can be stored again")
            assert_one_warning(daemon)
            daemon.stop()  # the database gets it
            assert_one_warning(daemon)
    assert content_in_files(daemon.state) == {**expected, "later": b"later\n"}
    with mounted(tmp_path) as daemon:
        assert (daemon.path / "later").read_bytes() == b"later\n"


def test_the_status_tells_the_reason_before_a_change(tmp_path: Path, disk: Disk) -> None:
    with mounted(tmp_path) as daemon:
        fill_tree(daemon.path)
    with disk.unwritable(), mounted(tmp_path, expect_log=[REFUSED]) as daemon:
        said = pmxcfs("status", "--ipc-name", ipc_name(tmp_path))
        assert said.returncode == 2
        assert f"changes are refused: {daemon.state}" in said.stdout
        assert os.strerror(disk.code) in said.stdout


def test_a_second_daemon_is_refused(tmp_path: Path, disk: Disk) -> None:
    """Also one that starts when the directory can be written again."""
    with mounted(tmp_path) as daemon:
        fill_tree(daemon.path)
    (daemon.state / ".pmxcfs.lockfile").unlink()
    with contextlib.ExitStack() as unwritable:
        unwritable.enter_context(disk.unwritable())
        with mounted(tmp_path, expect_log=[REFUSED]) as daemon:
            for _ in range(2):
                options = ("--statedir", daemon.state, "--ipc-name", "test-nobody")
                said = pmxcfs("checkpoint", *options)
                assert said.returncode != 0
                assert "in use by the daemon with pid" in said.stderr
                unwritable.close()
            daemon.kill()


def test_another_database_that_appears_is_left_alone(tmp_path: Path, disk: Disk) -> None:
    with mounted(tmp_path / "other") as other:
        fill_tree(other.path)
    database = other.state / "config.db"
    with contextlib.ExitStack() as unwritable:
        unwritable.enter_context(disk.unwritable())
        warnings = [REFUSED, "restart the daemon"]
        with mounted(tmp_path, expect_log=warnings) as daemon:
            unwritable.close()
            (daemon.state / "config.db").write_bytes(database.read_bytes())
            assert errno_of((daemon.path / "new").mkdir) == errno.EIO
            daemon.stop()
    assert content_in_files(daemon.state) == CONTENT
