"""Users of a mount, each a process: how long their reads and saves take.

``python -m tests.clients.traffic ROOT NAME SECONDS`` saves and reads its own file and a guest's
configuration until the time is over; prints the times of all operations, in microseconds, as JSON.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BEFORE_A_SAVE = 8  # reads; people and daemons read more than they write
CONTENT = b"x" * 1024


class Traffic:
    """Users that are at work."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def times(self) -> list[float]:
        """Wait until they are done; return how long each operation took, in microseconds."""
        outputs = [process.communicate(timeout=600)[0] for process in self._processes]
        assert not any(process.returncode for process in self._processes)
        return [value for output in outputs for value in json.loads(output)]


@contextmanager
def users(root: Path, *, count: int, seconds: float) -> Iterator[Traffic]:
    """Let *count* users work on a mount for so long."""
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
    """Return the time that one in a hundred exceeds."""
    return statistics.quantiles(times, n=100)[-1]


def work(root: Path, name: str, seconds: float) -> list[float]:
    """Save and read a file for so long; return the times."""
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
            time.sleep(0.0005)  # nobody saves without a pause: this is to show delays, not load
    return times


if __name__ == "__main__":
    print(json.dumps(work(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))))
