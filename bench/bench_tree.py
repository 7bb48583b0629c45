"""Look-up and getattr in the compiled inode table against the tests' plain-Python oracle.

The kernel looks up a name in a directory; mutations carry whole paths. The oracle knows only paths,
so a look-up by name includes the joining of a path there.
"""

from collections.abc import Callable

import pytest

from bench.data import HOME, NODE, guest_files
from bench.goals import Goal
from bench.populate import add_file
from bench.report import Report
from bench.turns import Benchmark, by_turns
from pmxcfs._core import Entry, Tree
from pmxcfs.messages import Create, Mkdir, Write
from tests.fakes.models.oracle import Oracle, is_private

GOAL = Goal(1 / 5)  # five times as fast
ROUNDS, BATCH = (
    20,
    4,
)  # an operation looks up all guests, as a single look-up is too short for the clock

DIRECTORY = HOME  # the directory with most look-ups
PATHS = [path for path, _ in guest_files()]
NAMES = [path.rpartition("/")[2] for path in PATHS]

Attributes = tuple[int, bool, int, int, bool]
LookUp = Callable[[str], Attributes]


@pytest.fixture(scope="module")
def tree() -> Tree:
    tree = Tree()
    for path, content in guest_files():
        add_file(tree, path, content, now=0)
    tree.mark_written()
    return tree


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    oracle = Oracle()
    for path in ("nodes", f"nodes/{NODE}", DIRECTORY):
        oracle.apply(Mkdir(path), writer=0, mtime=0)
    for path, content in guest_files():
        oracle.apply(Create(path), writer=0, mtime=0)
        oracle.apply(Write(path, 0, content, truncate=True), writer=0, mtime=0)
    return oracle


def attributes(entry: Entry | None) -> Attributes:
    """Return the attributes that getattr needs."""
    assert entry is not None
    return entry.inode, entry.is_directory, entry.mtime, entry.visible_size, entry.private


def oracle_attributes(oracle: Oracle, path: str) -> Attributes:
    """Look up a path in the oracle; return the attributes that getattr needs."""
    node = oracle.find(path)
    assert node is not None
    return (
        node.inode, node.is_directory, node.published.mtime, len(node.visible), is_private(path)
    )  # fmt: skip


def compare(
    ours: LookUp, base: LookUp, keys: list[str], benchmark: Benchmark
) -> tuple[float, float]:
    """Return the time of one look-up on each side, in microseconds."""
    assert [ours(key)[1:] for key in keys] == [base(key)[1:] for key in keys]

    def all_keys(look_up: LookUp) -> None:
        for key in keys:
            look_up(key)

    pair = by_turns(
        benchmark, lambda _: all_keys(ours), lambda _: all_keys(base), rounds=ROUNDS, batch=BATCH
    )
    return pair.ours / len(keys), pair.base / len(keys)


def bench_by_name(tree: Tree, oracle: Oracle, benchmark: Benchmark, report: Report) -> None:
    directory = tree.find(DIRECTORY)
    assert directory is not None
    ours, base = compare(
        lambda name: attributes(directory.child(name)),
        lambda name: oracle_attributes(oracle, f"{DIRECTORY}/{name}"),
        NAMES,
        benchmark,
    )
    add(report, "look-up by name + getattr", ours, base)


def bench_by_path(tree: Tree, oracle: Oracle, benchmark: Benchmark, report: Report) -> None:
    ours, base = compare(
        lambda path: attributes(tree.find(path)),
        lambda path: oracle_attributes(oracle, path),
        PATHS,
        benchmark,
    )
    add(report, "look-up by path + getattr", ours, base)


def add(report: Report, name: str, ours: float, base: float) -> None:
    """Put a row into the report."""
    report.add("tree", name, unit="ns", ours=ours * 1000, base=base * 1000, goal=GOAL)
