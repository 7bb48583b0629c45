"""Processes that use a mount, and how long their reads and saves take.

``python -m tests.clients.traffic ROOT NAME SECONDS`` reads and saves a file of its own until the
time is over, and prints the time of each operation, in microseconds, as JSON.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BEFORE_A_SAVE = 8  # reads between two saves, as users read more than they write
CONTENT = b"x" * 1024


class Traffic:
    """Running processes that use a mount."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def times(self) -> list[float]:
        """Wait for the processes' end; return the time of each operation, in microseconds."""
        outputs = [process.communicate(timeout=600)[0] for process in self._processes]
        assert not any(process.returncode for process in self._processes)
        return [value for output in outputs for value in json.loads(output)]


@contextmanager
def users(root: Path, *, count: int, seconds: float) -> Iterator[Traffic]:
    """Run *count* processes that read and save on the mount *root* for *seconds*."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.clients.traffic", root, f"user{n}", str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(count)
    ]
    try:
        yield Traffic(processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def p99(times: list[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(times, n=100)[-1]


def work(root: Path, name: str, seconds: float) -> list[float]:
    """Read and save a file for *seconds*; return the time of each operation in microseconds."""
    mine = root / name
    mine.write_bytes(CONTENT)
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        for step in range(BEFORE_A_SAVE + 1):
            start = time.perf_counter_ns()
            if step < BEFORE_A_SAVE:
                assert mine.read_bytes() == CONTENT
            else:
                mine.write_bytes(CONTENT)
            times.append((time.perf_counter_ns() - start) / 1000)
            time.sleep(0.0005)  # a pause, as this measures delays and not throughput
    return times


if __name__ == "__main__":
    print(json.dumps(work(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))))
