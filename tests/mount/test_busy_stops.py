"""An orderly end of a busy daemon: under load, with files open, by an unmount."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pmxcfs.storage.database import inspect
from tests.harness import GRACE, Daemon, is_mount, mounted, wait_for

pytestmark = pytest.mark.needs_fuse

STOPS, MANY_STOPS = 50, 100  # for each number of workers
STOP = 3.0  # seconds until the daemon must have gone
ENOUGH = 10  # operations of each kind before a stop
# What an operation ends with when the daemon, or its test control, goes away.
ENDED = frozenset(
    {
        errno.ENOTCONN,
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EPIPE,
        errno.EIO,
        errno.ENOENT,
        errno.EINVAL,
    }
)


class Load:
    """Threads that write, replace, read and list, and one that injects foreign changes."""

    def __init__(self, mount: Daemon) -> None:
        # By descriptor: once the mount is gone, a path would lead into the directory below.
        self._root = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
        self._control = mount.connect()
        self._is_over = threading.Event()
        self.counts: dict[str, int] = {}
        self.surprises: list[BaseException] = []
        work = (self._write, self._replace, self._read, self._change)
        self._threads = [threading.Thread(target=self._repeat, args=(step,)) for step in work]
        for thread in self._threads:
            thread.start()

    def is_under_way(self) -> bool:
        """Tell whether every thread has done something."""
        return len(self.counts) == 4 and min(self.counts.values()) > ENOUGH

    def end(self) -> None:
        """Wait for the threads."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(GRACE)
        os.close(self._root)
        self._control.__exit__()

    def _repeat(self, step: Callable[[int], None]) -> None:
        number = 0
        try:
            while not self._is_over.is_set():
                number += 1
                step(number)
                self.counts[step.__name__] = number
        except OSError as error:
            if error.errno not in ENDED:
                self.surprises.append(error)
        except ValueError as error:  # the control's connection ended
            if step != self._change:
                self.surprises.append(error)

    def _put(self, name: str, content: bytes) -> None:
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        descriptor = os.open(name, flags, dir_fd=self._root)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)

    def _write(self, number: int) -> None:
        self._put(f"file{number % 5}", b"x" * number)

    def _replace(self, number: int) -> None:
        self._put("saved.tmp", b"y" * number)
        os.rename("saved.tmp", "saved", src_dir_fd=self._root, dst_dir_fd=self._root)

    def _read(self, number: int) -> None:
        for name in os.listdir(self._root):
            with contextlib.suppress(FileNotFoundError):
                os.stat(name, dir_fd=self._root)
        with open(os.open(".version", os.O_RDONLY, dir_fd=self._root), "rb") as file:
            file.read()

    def _change(self, number: int) -> None:
        with contextlib.suppress(FileExistsError):
            self._control("inject", kind="create", path="foreign")
        self._control("inject", kind="write", path="foreign", data=str(number))
        self._control("inject", kind="rename", path="foreign", to=f"foreign{number % 3}")


@contextlib.contextmanager
def load_on(mount: Daemon) -> Iterator[Load]:
    """Run the threads while the block runs."""
    load = Load(mount)
    try:
        wait_for(load.is_under_way, mount)
        yield load
    finally:
        load.end()


def stop_often(workdir: Path, workers: int, count: int) -> list[float]:
    """Stop a daemon under load *count* times; return the seconds that each stop took."""
    taken = []
    for number in range(count):
        with mounted(workdir, "--test-control", "--workers", str(workers)) as mount:
            with load_on(mount) as load:
                begin = time.monotonic()
                mount.stop(signal.SIGTERM if number % 4 else signal.SIGINT)
                taken.append(time.monotonic() - begin)
            assert load.surprises == []
        assert inspect(mount.state / "config.db").repairs == []
    return taken


@pytest.mark.parametrize("count", [STOPS, pytest.param(MANY_STOPS, marks=pytest.mark.long)])
def test_each_of_many_stops_under_load_is_quick(
    tmp_path: Path, count: int, report: Callable[[object], None]
) -> None:
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(stop_often, tmp_path / str(n), n, count) for n in (8, 16)]
        taken = [seconds for run in runs for seconds in run.result()]
    report(f"{len(taken)} stops under load, the longest {max(taken):.2f} s")
    assert len(taken) == 2 * count
    assert max(taken) < STOP


@pytest.mark.parametrize("workers", ["8", "16"])
def test_an_unmount_under_load_ends_the_daemon_once_no_file_is_open(
    tmp_path: Path, workers: str
) -> None:
    with mounted(tmp_path, "--test-control", "--workers", workers) as mount:
        with load_on(mount) as load:
            subprocess.run(["umount", "--lazy", mount.path], check=True)
            before = min(load.counts.values())
            wait_for(lambda: min(load.counts.values()) > before + ENOUGH, mount)
        assert load.surprises == []
        assert mount.process.wait(GRACE) == 0
    assert inspect(mount.state / "config.db").repairs == []


USER = """
import mmap, os, sys
os.chdir(sys.argv[1] + "/d")
file = open("f", "r+b")
pages = mmap.mmap(file.fileno(), 0)
file.write(b"unpublished")
file.flush()
directory = os.open(".", os.O_RDONLY)
print("using it", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("workers", ["8", "16"])
def test_open_files_do_not_delay_the_end(tmp_path: Path, workers: str) -> None:
    with mounted(tmp_path, "--workers", workers) as mount:
        (mount.path / "d").mkdir()
        (mount.path / "d" / "f").write_bytes(b"published, and more")
        command = [sys.executable, "-c", USER, str(mount.path)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as user:
            assert user.stdout is not None
            assert user.stdout.readline() == "using it\n"
            mount.stop(grace=STOP)
            assert not is_mount(mount.path)
            user.communicate("")
    with mounted(tmp_path) as mount:
        assert (mount.path / "d" / "f").read_bytes() == b"unpublishedand more"


def test_a_killed_daemon_that_was_notifying_the_kernel_can_be_replaced(tmp_path: Path) -> None:
    with mounted(tmp_path, "--test-control", "--workers", "16") as mount:
        (mount.path / "d").mkdir()
        mount.control("hold")
        blocked = threading.Thread(target=make_quietly, args=(mount.path / "d" / "new",))
        blocked.start()
        wait_for(lambda: mount.control("info")["waiting"] == 1, mount)
        mount.control("inject", kind="create", path="d/foreign")  # its notification must wait
        mount.was_killed = True
        mount.process.kill()
        # The kernel may not have ended the connection of the killed process yet.
        stale = "removing the (stale mount|mount of a daemon that is ending)"
        with mounted(tmp_path, expect_log=[stale]) as again:
            blocked.join(GRACE)
            assert not blocked.is_alive()
            assert (again.path / "d" / "foreign").exists()


def make_quietly(path: Path) -> None:
    """Make a directory on a mount that goes away; ignore errors."""
    with contextlib.suppress(OSError):
        path.mkdir()
