"""On which CPUs clients and servers run.

Unpinned is what users have: the scheduler chooses. A message then often wakes a sleeping CPU, which
takes several times as long as the message itself on a virtual machine. With client and server on
one CPU there are only context switches: what is left is the work per message.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.comparisons import Comparison
from bench.goals import Goal

FIRST, NORMAL = "-20", "0"  # nice values of a session


class Condition(NamedTuple):
    """One of the conditions of the rows on a mount."""

    name: str
    section: str  # of the report
    is_pinned: bool = False
    has_load: bool = False

    def goal(self, case: Comparison) -> Goal:
        """Return the limits of a row under this condition."""
        if self.has_load:
            return Goal()
        return case.limits.one_cpu if self.is_pinned else case.limits.unpinned


ONE_CPU = Condition("one-cpu", "mount, one CPU", is_pinned=True)
CONDITIONS = (
    Condition("unpinned", "mount"),
    ONE_CPU,
    Condition("load", "mount, a load", has_load=True),
)


@contextlib.contextmanager
def placed(condition: Condition) -> Iterator[None]:
    """Set the condition for this process and all that it starts within the block."""
    cpus = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        if condition.has_load:
            stack.enter_context(_busy(min(cpus)))
        if condition.is_pinned:
            stack.callback(os.sched_setaffinity, 0, cpus)
            os.sched_setaffinity(0, {max(cpus)})
        yield


@contextlib.contextmanager
def favored(process: Path = Path("/proc/self")) -> Iterator[None]:
    """Give the session of a process the CPUs before all sessions that are not favored.

    With autogroups the kernel shares the CPUs between sessions first. Among the processes of one
    session, clients and servers and the load, nothing changes; nor on a machine that does nothing
    else.
    """
    group = process / "autogroup"
    if not group.exists():
        yield
        return
    group.write_text(FIRST)
    try:
        yield
    finally:
        group.write_text(NORMAL)


@contextlib.contextmanager
def _busy(cpu: int) -> Iterator[None]:
    """Keep one CPU busy with a process that has the priority of all others."""
    loop = ["taskset", "--cpu-list", str(cpu), "sh", "-c", "while :; do :; done"]
    with subprocess.Popen(loop) as process:
        try:
            yield
        finally:
            process.kill()
