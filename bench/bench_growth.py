"""Latencies, start and memory with 100,000 files, which is far beyond any cluster, against 100."""

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.data import FEW, MANY, SMALL, many_files
from bench.files import CREATE, write_file
from bench.goals import KIB, MIB, Goal
from bench.placement import PLACEMENTS, scatter
from bench.populate import write_database
from bench.report import Report
from bench.servers import Server, pmxcfs_server
from bench.turns import times_us, typical

ROUNDS = 2 * PLACEMENTS  # each with a new daemon for FEW: its names are not cached
CREATED = 100  # files per round; with MANY, the content stays far below 128 MiB
FLAT = 1.3  # times the latency with FEW
MOST_SECONDS, MOST_MIB = 3, 250  # the limits of start and memory with MANY


@pytest.fixture(scope="module")
def many(workdir: Callable[[], Path]) -> Iterator[Server]:
    directory = workdir()
    write_database(directory / "state" / "config.db", many_files(MANY))
    with pmxcfs_server(directory) as server:
        yield server


@contextlib.contextmanager
def few(directory: Path) -> Iterator[Server]:
    """Run a daemon with FEW files."""
    write_database(directory / "state" / "config.db", many_files(FEW))
    with pmxcfs_server(directory) as server:
        yield server


def resident_mib(server: Server) -> float:
    """Return a server's resident memory in MiB."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return next(
        int(line.split()[1]) * KIB / MIB
        for line in status.splitlines()
        if line.startswith("VmRSS:")
    )


def latencies(server: Server, *, present: range, number: int) -> dict[str, list[float]]:
    """Time look-ups and creations; a new *number* gives new names for absent and created files."""
    scatter(number, server.tasks, lambda: os.statvfs(server.root))
    root = f"{server.root}/d0"
    unused = range(number * CREATED, (number + 1) * CREATED)
    for i in unused:
        os.path.lexists(f"{root}/warm{i}")
    return {
        "look-up": times_us(lambda i: os.stat(f"{root}/f{i}"), present),
        "look-up, absent": times_us(lambda i: os.path.lexists(f"{root}/y{i}"), unused),
        "create + write + close": times_us(
            lambda i: write_file(f"{root}/x{i}", CREATE, SMALL[0]), unused
        ),
    }


def bench_growth(many: Server, workdir: Callable[[], Path], report: Report) -> None:
    times: dict[str, tuple[list[list[float]], list[list[float]]]] = {}
    starts, resident = [], []
    for number in range(ROUNDS):
        spread = range(number, MANY, MANY // FEW)  # every thousandth file of the directory
        with few(workdir()) as server:
            starts.append(server.start_s)
            resident.append(resident_mib(server))
            base = latencies(server, present=range(FEW), number=number)
        ours = latencies(many, present=spread, number=number)
        for name in base:
            both = times.setdefault(name, ([], []))
            both[0].append(ours[name])
            both[1].append(base[name])
    for name, (grown, small) in times.items():
        report.add(
            "growth", f"{name}, 100,000 files", unit="µs",
            ours=typical(grown, kinds=PLACEMENTS), base=typical(small, kinds=PLACEMENTS),
            goal=Goal(FLAT),
        )  # fmt: skip
    report.add(
        "growth", "start, 100,000 files", unit="ms", ours=many.start_s * 1000,
        base=statistics.median(starts) * 1000, goal=Goal(absolute=MOST_SECONDS * 1000),
    )  # fmt: skip
    report.add(
        "growth", "resident, 100,000 files", unit="MiB", ours=resident_mib(many),
        base=statistics.median(resident), goal=Goal(absolute=MOST_MIB),
    )  # fmt: skip
