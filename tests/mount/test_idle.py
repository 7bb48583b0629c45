"""The processor time of a daemon that nobody asks, or that is asked now and then."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Daemon, mounted

pytestmark = pytest.mark.needs_fuse

IDLE = 0.01  # of a CPU
RARE = 0.05
INTERVAL = 0.01  # seconds between two requests
BURST = 5000  # requests without a pause, so that the session looks for the next one


def cpu_seconds(daemon: Daemon) -> float:
    """Return the processor time of all threads so far, in seconds."""
    tasks = Path(f"/proc/{daemon.process.pid}/task")
    spent = (int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())
    return sum(spent) / 1e9


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.long)])
def test_an_idle_daemon_uses_next_to_no_processor_time(
    tmp_path: Path, seconds: int, report: Callable[[object], None]
) -> None:
    with mounted(tmp_path) as mount:
        for number in range(BURST):
            os.path.exists(mount.path / f"absent{number}")
        (mount.path / "file").write_text("content")
        time.sleep(3)  # until the database has followed
        before = cpu_seconds(mount)
        time.sleep(seconds)
        idle = (cpu_seconds(mount) - before) / seconds
        begin, before = time.monotonic(), cpu_seconds(mount)
        for number in range(int(seconds / INTERVAL)):
            os.path.exists(mount.path / f"rare{number}")
            time.sleep(INTERVAL)
        rare = (cpu_seconds(mount) - before) / (time.monotonic() - begin)
    report(f"over {seconds} s: idle {idle:.3%} of a CPU, with 100 requests a second {rare:.2%}")
    assert idle < IDLE
    assert rare < RARE
