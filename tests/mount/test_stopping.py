"""End of llfuse's main loop by the signal thread, on an empty mount without a daemon."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pmxcfs.host.process import STOP_SIGNALS
from tests.harness import detach, is_mount
from tests.places import PROGRAMS

PROGRAM = PROGRAMS / "empty_mount.py"
STOPS = 20
BUSY_STOPS = 5
DEADLINE = 3.0  # seconds, of the contract; a stop that got stuck would last for ever
GRACE = 30.0  # seconds, for starting, and before a hanging process is killed

pytestmark = pytest.mark.needs_fuse


@contextmanager
def empty_mount(mountpoint: Path, workers: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the program once it is mounted; at the end, kill it and detach its mount."""
    command = [sys.executable, str(PROGRAM), str(mountpoint), str(workers)]
    with subprocess.Popen(command) as program:
        try:
            started = time.monotonic()
            while not is_mount(mountpoint):
                assert program.poll() is None
                assert time.monotonic() < started + GRACE
                time.sleep(0.001)
            yield program
        finally:
            program.kill()
            detach(mountpoint)


@contextmanager
def asked_without_pause(mountpoint: Path) -> Iterator[None]:
    """Let two threads send requests that the kernel can't answer from its caches."""
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            with suppress(OSError):  # when the mount is gone
                os.statvfs(mountpoint)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def stop(program: subprocess.Popen[bytes], number: int) -> float:
    """Send a signal; return the seconds until the program has ended, with status 0."""
    begin = time.monotonic()
    program.send_signal(number)
    assert program.wait(GRACE) == 0
    return time.monotonic() - begin


@pytest.mark.parametrize("workers", [1, 4])
def test_an_idle_main_loop_ends_at_once(workers: int, tmp_path: Path) -> None:
    numbers = sorted(STOP_SIGNALS)
    for attempt in range(STOPS):
        with empty_mount(tmp_path, workers) as program:
            assert stop(program, numbers[attempt % len(numbers)]) < DEADLINE
            assert not is_mount(tmp_path)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_busy_main_loop_ends_at_once(workers: int, tmp_path: Path) -> None:
    for _ in range(BUSY_STOPS):
        with empty_mount(tmp_path, workers) as program, asked_without_pause(tmp_path):
            assert stop(program, signal.SIGTERM) < DEADLINE
            assert not is_mount(tmp_path)


@pytest.mark.parametrize("workers", [1, 4])
def test_an_unmount_ends_the_main_loop(workers: int, tmp_path: Path) -> None:
    with empty_mount(tmp_path, workers) as program:
        detach(tmp_path)
        assert program.wait(GRACE) == 0
