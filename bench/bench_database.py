"""One commit through ``pmxcfs.storage.database`` against bare SQLite, alternating in one run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.bare import SOME_TIME, bare_database
from bench.data import BIG, REWRITTEN, SMALL, many_files, variant
from bench.goals import Goal
from bench.populate import saved_tree
from bench.report import Report
from bench.turns import Benchmark, by_turns
from pmxcfs.storage.checkpointer import Checkpointer

WITHIN = 1.5  # times bare SQLite, which writes both rows of a mutation, too


@pytest.mark.parametrize(
    ("name", "content", "rounds", "batch"),
    [("commit of 1 KiB", SMALL, 30, 50), ("commit of 1 MiB", BIG, 15, 4)],
    ids=["1 KiB", "1 MiB"],
)
def bench_commit(
    name: str,
    content: list[bytes],
    rounds: int,
    batch: int,
    workdir: Callable[[], Path],
    benchmark: Benchmark,
    report: Report,
) -> None:
    """Our side changes the file in the tree, saves it and marks it saved, as local mode does."""
    path, files = workdir() / "config.db", many_files(REWRITTEN)
    checkpointer = Checkpointer()  # as in the daemon; bare SQLite checkpoints in a commit
    with (
        saved_tree(path, files, on_growth=checkpointer.request) as (database, tree),
        bare_database(workdir()) as bare,
    ):
        checkpointer.start(database)
        entries = [tree.find(f"d0/f{i}") for i in range(REWRITTEN)]

        def ours(number: int) -> None:
            entry = entries[number % REWRITTEN]
            assert entry is not None
            data = variant(content, number // REWRITTEN)
            tree.write(entry, 0, data, truncate=True, writer=0, mtime=SOME_TIME)
            database.save(tree)
            tree.mark_saved()

        def base(number: int) -> None:
            bare.commit(1 + number % REWRITTEN, variant(content, number // REWRITTEN))

        try:
            pair = by_turns(benchmark, ours, base, rounds=rounds, batch=batch)
        finally:
            checkpointer.close()
    report.add("database", name, unit="µs", ours=pair.ours, base=pair.base, goal=Goal(WITHIN))
