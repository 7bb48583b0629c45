"""Where client and server begin a batch, if nothing is pinned.

The scheduler leaves a thread where it has run. So by chance one side of a row has client and server
on one CPU throughout, which takes half as long, and the other side has not. Each batch begins with
another of the PLACEMENTS, on all sides in the same order, and the threads go where the scheduler
lets them go.
"""

import contextlib
import os
from pathlib import Path

PLACEMENTS = 4  # of client and server on two CPUs
PROCESSOR = 36  # index of the field in /proc/PID/stat, after the name


def scatter(turn: int, tasks: Path) -> None:
    """Put this process and the threads of a server each on one of two CPUs, by *turn*."""
    cpus = sorted(os.sched_getaffinity(0))
    places = cpus[0], cpus[-1]
    for thread in tasks.iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            if os.sched_getaffinity(int(thread.name)) == set(cpus):  # it is bound to no CPU
                _visit(int(thread.name), places[turn // 2 % 2])
    _visit(0, places[turn % 2])


def fetch(process: int) -> None:
    """Put another client where this process is."""
    fields = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
    _visit(process, int(fields[PROCESSOR]))


def _visit(thread: int, cpu: int) -> None:
    cpus = os.sched_getaffinity(thread)
    os.sched_setaffinity(thread, {cpu})
    os.sched_setaffinity(thread, cpus)
