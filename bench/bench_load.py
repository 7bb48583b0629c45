"""How long a reader waits at worst while somebody saves the largest file there can be."""

import statistics
from collections.abc import Callable
from pathlib import Path

from bench.clients import read_times_us
from bench.data import mounted_files
from bench.goals import Goal
from bench.populate import write_database
from bench.report import Report
from bench.servers import Server, floor_server, on_all_cpus, pmxcfs_server

READERS = 2
TURNS, SECONDS = 4, 1.0  # without a writer and with one, by turns
TIMES_IDLE = 5  # what a reader's p99 may grow to


def p99(times: list[float]) -> float:
    """Return the time that one in a hundred exceeds."""
    return statistics.quantiles(times, n=100)[-1]


def waits(server: Server) -> tuple[float, float]:
    """Return the readers' p99 in microseconds beside a writer, and without one."""
    times: dict[bool, list[float]] = {True: [], False: []}
    with on_all_cpus(server):
        for writer in [False, True] * TURNS:
            times[writer] += read_times_us(
                server.root, readers=READERS, seconds=SECONDS, writer=writer
            )
    return p99(times[True]), p99(times[False])


def bench_readers_beside_writer(workdir: Callable[[], Path], report: Report) -> None:
    directory = workdir()
    write_database(directory / "state" / "config.db", mounted_files())
    with pmxcfs_server(directory) as server:
        loaded, idle = waits(server)
    name = "open + read + close, p99 beside a 1 MiB writer"
    report.add("load", name, unit="µs", ours=loaded, base=idle, goal=Goal(TIMES_IDLE))


def bench_floor_beside_writer(workdir: Callable[[], Path], floor: Path, report: Report) -> None:
    """What the kernel's scheduler alone makes of three clients and a server; no limit."""
    with floor_server(floor, workdir()) as server:
        loaded, idle = waits(server)
    report.add("load", "the same on the floor", unit="µs", ours=loaded, base=idle, goal=Goal())
