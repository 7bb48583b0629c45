"""Latency of readers while another process saves files of the largest size."""

from collections.abc import Callable
from pathlib import Path

from bench.clients import read_times_us
from bench.data import mounted_files
from bench.goals import Goal
from bench.places import FloorPlace, Place
from bench.populate import write_database
from bench.report import Report
from bench.servers import Session, floor_server, pmxcfs_server
from bench.turns import p99

READERS = 2
TURNS, SECONDS = 4, 1.0  # alternating: without a writer, and with each kind of writer
TIMES_IDLE = 5  # limit for a reader's p99, as a multiple of the p99 without a writer
# Seconds between two saves. 20 a second is more than the largest clusters write.
WRITERS = {"back to back": 0.0, "20 a second": 0.05}


def waits(place: Place) -> tuple[float, dict[str, float]]:
    """Return the readers' p99 in microseconds, without a writer and beside each kind of writer."""
    alone: list[float] = []
    beside: dict[str, list[float]] = {name: [] for name in WRITERS}
    for _ in range(TURNS):
        alone += read_times_us(place, readers=READERS, seconds=SECONDS, pause=None)
        for name, pause in WRITERS.items():
            beside[name] += read_times_us(place, readers=READERS, seconds=SECONDS, pause=pause)
    return p99(alone), {name: p99(times) for name, times in beside.items()}


def bench_readers_beside_writer(workdir: Callable[[], Path], report: Report) -> None:
    directory = workdir()
    write_database(directory / "state" / "config.db", mounted_files())
    with pmxcfs_server(directory) as server:
        add(report, "p99 beside 1 MiB saves", waits(Place(server.root)), Goal(TIMES_IDLE))


def bench_floor_beside_writer(
    workdir: Callable[[], Path], session: Session, report: Report
) -> None:
    """The same load on the floor, which shows the effect of the scheduler alone; no limit."""
    with floor_server(session, workdir()) as server:
        add(report, "floor: p99 beside 1 MiB saves", waits(FloorPlace(server.root)), Goal())


def add(report: Report, name: str, waits: tuple[float, dict[str, float]], goal: Goal) -> None:
    """Put a row per kind of writer into the report."""
    alone, beside = waits
    for writer, wait in beside.items():
        report.add("load", f"{name}, {writer}", unit="µs", ours=wait, base=alone, goal=goal)
