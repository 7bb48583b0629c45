"""A save of many changes through ``pmxcfs.storage.database`` against bare SQLite, alternating.

Nobody waits for a save. But it takes CPU time that requests could use.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.bare import SOME_TIME, bare_database
from bench.data import BIG, SMALL, many_files, variant
from bench.goals import Goal
from bench.populate import saved_tree
from bench.report import Report
from bench.turns import Benchmark, by_turns
from pmxcfs.storage.database import Batch
from pmxcfs.storage.mark import Mark, Position
from pmxcfs.storage.schema import entry_row, version_row

WITHIN = 1.5  # times bare SQLite, which writes the same rows and syncs and checkpoints, too


@pytest.mark.parametrize(
    ("name", "content", "count", "rounds", "batch"),
    [("save of 100 x 1 KiB", SMALL, 100, 20, 5), ("save of 8 x 1 MiB", BIG, 8, 10, 1)],
    ids=["1 KiB", "1 MiB"],
)
def bench_save(
    name: str,
    content: list[bytes],
    count: int,
    rounds: int,
    batch: int,
    workdir: Callable[[], Path],
    benchmark: Benchmark,
    report: Report,
) -> None:
    """Our side writes the changes that have waited, with a mark, and cuts the log."""
    path = workdir() / "config.db"
    with saved_tree(path, many_files(count)) as (database, tree), bare_database(workdir()) as bare:
        entries = [tree.find(f"d0/f{i}") for i in range(count)]

        def ours(number: int) -> None:
            data = variant(content, number)
            rows = []
            for entry in entries:
                assert entry is not None
                tree.write(entry, 0, data, truncate=True, writer=0, mtime=SOME_TIME)
                rows.append(entry_row(entry))
            mark = Mark(os.urandom(16), bytes(16), Position(1, 64, number))
            database.save(Batch(rows, (), version_row(tree.root)), mark)
            database.checkpoint()

        def base(number: int) -> None:
            data = variant(content, number)
            bare.save({1 + i: data for i in range(count)})

        pair = by_turns(benchmark, ours, base, rounds=rounds, batch=batch)
    report.add("database", name, unit="µs", ours=pair.ours, base=pair.base, goal=Goal(WITHIN))
