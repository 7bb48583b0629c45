"""Processor time of a daemon that nobody asks, or that is asked 100 times a second.

The native session looks for the next request before it sleeps, if requests come promptly. At this
rate they do not, so looking may cost nothing, neither the processor nor another process on it.
Contract: docs/spec/session.md, "Looking".
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.conditions import CONDITIONS, Condition, placed
from bench.goals import Figures, Goal
from bench.report import Report
from bench.servers import Server, Session, cpu_us, floor_server, pmxcfs_server
from bench.turns import p99, times_us

IDLE_SECONDS, ASKED_SECONDS = 60.0, 10.0
SETTLE = 3.0  # seconds until the database has followed
INTERVAL = 0.01  # seconds between two requests
BURST = 2000  # look-ups without a pause, so that the session looks
MOST_IDLE, MOST_ASKED = 1.0, 5.0  # % of a CPU
LEAST = 0.01  # % of a CPU, in place of what can't be measured
UNPINNED = [condition for condition in CONDITIONS if not condition.is_pinned]
SLEEPING = Session("native", ["floor_native", "-n"])  # the floor that never looks


def percent(server: Server, run: Callable[[], object]) -> float:
    """Return the server's CPU time during *run*, in % of a CPU."""
    start, before = time.monotonic(), cpu_us(server.tasks)
    run()
    return max((cpu_us(server.tasks) - before) / (time.monotonic() - start) / 1e4, LEAST)


def look_up(server: Server, kind: str) -> Callable[[int], bool]:
    """Return an operation that looks up a name that the kernel has not cached."""
    return lambda number: os.path.lexists(f"{server.root}/{kind}{number}")


def asked(server: Server) -> Figures:
    """Return what look-ups take when there are 100 of them a second, with the CPU time in %."""
    times: list[float] = []

    def run() -> None:
        for number in range(int(ASKED_SECONDS / INTERVAL)):
            times.extend(times_us(look_up(server, "rare"), [number]))
            time.sleep(INTERVAL)

    cpu = percent(server, run)
    return Figures(sorted(times)[len(times) // 2], p99(times), cpu)


def bench_idle(
    workdir: Callable[[], Path], session: Session, options: list[str], report: Report
) -> None:
    with (
        pmxcfs_server(workdir(), options=options) as ours,
        floor_server(session, workdir()) as base,
    ):
        for server in (ours, base):
            times_us(look_up(server, "burst"), range(BURST))
        time.sleep(SETTLE)
        spent = [percent(server, lambda: time.sleep(IDLE_SECONDS)) for server in (ours, base)]
    report.add(
        "cpu", "idle, after a burst", unit="%", ours=spent[0], base=spent[1],
        goal=Goal(absolute=MOST_IDLE),
    )  # fmt: skip


@pytest.mark.parametrize("condition", UNPINNED, ids=lambda condition: condition.name)
def bench_asked(
    condition: Condition, workdir: Callable[[], Path], options: list[str], report: Report
) -> None:
    with (
        placed(condition),
        pmxcfs_server(workdir(), options=options) as ours,
        floor_server(SLEEPING, workdir()) as base,
    ):
        found = [asked(server) for server in (ours, base)]
    beside = ", a load on one CPU" if condition.has_load else ""
    report.compare(
        "cpu", f"a look-up every 10 ms{beside}", unit="µs", ours=found[0], base=found[1],
        goal=Goal(),
    )  # fmt: skip
    report.add(
        "cpu", f"its CPU time{beside}", unit="%", ours=found[0].cpu or 0.0,
        base=found[1].cpu or LEAST, goal=Goal(absolute=MOST_ASKED),
    )  # fmt: skip
