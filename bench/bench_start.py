"""The start with a large database and a long history.

The journal's segments are history and are not read at a start, except for their headers and
indexes; only what the database lacks is replayed.
"""

import os
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.data import File
from bench.files import CREATE, write_file
from bench.goals import KIB, MIB, Goal
from bench.populate import write_database
from bench.report import Report
from bench.servers import pmxcfs_server

DATABASE_FILES = 480  # of 64 KiB each: 30 MiB
HISTORY_FILES = 64  # of 1 MiB each, which can't be compressed
STARTS = 5
MOST_SECONDS = 3


def files() -> Iterator[File]:
    content = random.Random(1)
    yield from ((f"d0/f{i}", content.randbytes(64 * KIB)) for i in range(DATABASE_FILES))


def fill_journal(state: Path, workdir: Path) -> None:
    """Have a daemon leave a history of 64 MiB, of one file that is removed at the end."""
    content = random.Random(2)
    with pmxcfs_server(workdir, statedir=state) as server:
        for number in range(HISTORY_FILES):
            path = f"{server.root}/F{number}"
            write_file(path, CREATE, content.randbytes(MIB))
            os.unlink(path)


def start_s(state: Path, workdir: Callable[[], Path]) -> float:
    """Return the median seconds from the start of the process until the mount answers."""
    times = []
    for _ in range(STARTS):
        with pmxcfs_server(workdir(), statedir=state) as server:
            times.append(server.start_s)
    return statistics.median(times)


def bench_start(workdir: Callable[[], Path], report: Report) -> None:
    state, bare = workdir() / "state", workdir() / "state"
    for directory in (state, bare):
        write_database(directory / "config.db", files())
    fill_journal(state, workdir())
    size = sum(path.stat().st_size for path in (state / "journal").iterdir())
    ours, base = start_s(state, workdir), start_s(bare, workdir)
    report.add(
        "start", f"30 MiB of files, {size / MIB:.0f} MiB of journal", unit="ms",
        ours=ours * 1000, base=base * 1000, goal=Goal(absolute=MOST_SECONDS * 1000),
    )  # fmt: skip
