"""A second daemon on a mountpoint that has a live mount: refused without covering the mount."""

import signal
import threading
from pathlib import Path

import pytest

from pmxcfs.host.mountpoint import owner_of
from pmxcfs.host.mounts import mounts_on
from tests.harness import Daemon, launch, mounted, wait_for

pytestmark = [pytest.mark.needs_fuse, pytest.mark.long]
DEADLINE = 30.0  # seconds; a second daemon waits 10 for the first to end


class Watch(threading.Thread):
    """Reads a file through the mount, and the list of mounts, as often as it can."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__()
        self.stopped = threading.Event()
        self.count = 0
        self.surprises: list[object] = []
        self._daemon = daemon
        self._mounts = mounts_on(daemon.path)

    def run(self) -> None:
        while not self.stopped.is_set():
            self.count += 1
            if (found := mounts_on(self._daemon.path)) != self._mounts:
                self.surprises.append(found)
            if (text := (self._daemon.path / "file").read_text()) != "first":
                self.surprises.append(text)


@pytest.mark.parametrize("lost", ["lock file", "state directory"])
def test_a_live_mount_is_never_covered(lost: str, tmp_path: Path) -> None:
    with mounted(tmp_path) as first:
        (first.path / "file").write_text("first")
        (mount,) = mounts_on(first.path)
        assert owner_of(mount, first.path) == first.process.pid
        watch = Watch(first)
        watch.start()
        if lost == "lock file":
            (first.state / ".pmxcfs.lockfile").unlink()
            second = launch(tmp_path)
        else:
            second = launch(
                tmp_path, "--statedir", tmp_path / "other", "--rundir", tmp_path / "run2"
            )
        try:
            assert second.process.wait(DEADLINE) == 1
        finally:
            second.process.kill()
            second.process.wait()
            watch.stopped.set()
            watch.join()
        text = second.log.read_text()
        assert (
            f"a pmxcfs is mounted on {first.path} by the pid {first.process.pid} (pmxcfs)" in text
        )
        assert (watch.surprises, watch.count > 100) == ([], True)
        assert (first.path / "file").read_text() == "first"


def test_a_daemon_that_hangs_is_named_and_not_covered(tmp_path: Path) -> None:
    with mounted(tmp_path) as first:
        (first.state / ".pmxcfs.lockfile").unlink()
        before = mounts_on(first.path)
        first.process.send_signal(signal.SIGSTOP)
        second = launch(tmp_path)
        try:
            assert second.process.wait(DEADLINE) == 1
            assert f"by the pid {first.process.pid} " in second.log.read_text()
            assert mounts_on(first.path) == before
        finally:
            second.process.kill()
            second.process.wait()
            first.process.send_signal(signal.SIGCONT)


def test_a_daemon_that_is_stopping_is_waited_for(tmp_path: Path) -> None:
    with mounted(tmp_path) as first:
        (first.path / "file").write_text("first")
        (first.state / ".pmxcfs.lockfile").unlink()
        second = launch(tmp_path)
        try:
            wait_for(lambda: (first.state / ".pmxcfs.lockfile").exists(), second)
            first.stop()
            wait_for(second.is_ready, second)
            assert (second.path / "file").read_text() == "first"
            second.stop()
        finally:
            second.process.kill()
            second.process.wait()
