"""Where client and server begin a batch, if nothing is pinned.

The scheduler leaves a thread where it has run. So by chance one side of a row has client and server
on one CPU throughout, which takes half as long, and the other side has not. Each batch begins with
another of the PLACEMENTS, on all sides in the same order, and the threads go where the scheduler
lets them go.
"""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

PLACEMENTS = 4  # of client and server on two CPUs
PROCESSOR = 36  # index of the field in /proc/PID/stat, after the name


def scatter(turn: int, tasks: Path, wake: Callable[[], object]) -> None:
    """Put this process and a server each on one of two CPUs, by *turn*.

    *wake* is a request to the server, because a thread that sleeps moves when it is woken.
    """
    cpus = os.sched_getaffinity(0)
    places = min(cpus), max(cpus)
    threads = [int(thread.name) for thread in tasks.iterdir()]
    free = [thread for thread in threads if _allowed(thread) == cpus]  # others have their CPU
    _allow(free, {places[turn // 2 % 2]})
    wake()
    _allow(free, cpus)
    _visit(0, places[turn % 2])


def fetch(process: int) -> None:
    """Put another client, which runs, where this process is."""
    fields = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
    _visit(process, int(fields[PROCESSOR]))


def _visit(thread: int, cpu: int) -> None:
    """Move a running thread, and let it go."""
    cpus = os.sched_getaffinity(thread)
    _allow([thread], {cpu})
    _allow([thread], cpus)


def _allowed(thread: int) -> set[int]:
    with contextlib.suppress(ProcessLookupError):
        return os.sched_getaffinity(thread)
    return set()


def _allow(threads: Iterable[int], cpus: set[int]) -> None:
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(thread, cpus)
