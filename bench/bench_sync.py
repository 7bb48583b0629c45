"""The cost of a membership change for a node whose tree equals the leader's, or nearly so.

Compares building the index with the oracle, which hashes every entry each time; and adopting a tree
with one different entry with loading all entries. The trees have MANY files.
"""

import pytest

from bench.data import MANY, many_files
from bench.goals import Goal
from bench.populate import add_file
from bench.report import Report
from bench.turns import Benchmark, by_turns
from pmxcfs._core import Tree
from pmxcfs.messages import EntryType, Record
from pmxcfs.tree.adoption import plan, record_of
from tests.fakes.models.oracle import Node, Oracle, Stamped

INDEX_GOAL = Goal(1 / 20)  # only changed entries are hashed
ADOPTION_GOAL = Goal(1 / 2)  # every digest of the index is compared
ROUNDS = 5
ROOT = Record(0, 0, MANY * 4, 1, 1, EntryType.DIRECTORY, b"", None)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    tree = Tree()
    for path, content in many_files(MANY):
        add_file(tree, path, content, now=0)
    entries = tree.root.children()
    for entry in entries:
        entries += entry.children()
    return [record_of(entry) for entry in entries]


def loaded(records: list[Record], root: Record) -> Tree:
    tree = Tree()
    tree.load([root, *records])
    return tree


def oracle_of(tree: Tree) -> Oracle:
    """Copy the entries of *tree* into an oracle, which is faster than mutations."""
    oracle = Oracle()
    root = tree.root
    oracle.root.published = Stamped(root.version, root.writer, root.mtime, b"", 0)
    entries = root.children()
    for entry in entries:
        stamped = Stamped(entry.version, entry.writer, entry.mtime, entry.content, entry.size)
        oracle.nodes[entry.path] = Node(entry.inode, entry.is_directory, published=stamped)
        entries += entry.children()
    return oracle


def bench_index(records: list[Record], benchmark: Benchmark, report: Report) -> None:
    tree = loaded(records, ROOT)
    oracle = oracle_of(tree)
    assert tree.index() == oracle.index()
    changed = tree.get(records[-1].inode)
    assert changed is not None

    def index_after_a_change(number: int) -> None:
        tree.touch(changed, writer=1, mtime=number)
        tree.index()

    pair = by_turns(
        benchmark, index_after_a_change, lambda _: oracle.index(), rounds=ROUNDS, batch=1
    )
    add(report, f"index of {MANY}, one changed", pair.ours, pair.base, INDEX_GOAL)


def bench_adoption(records: list[Record], benchmark: Benchmark, report: Report) -> None:
    tree = loaded(records, ROOT)
    last = records[-1]
    steps = [
        (ROOT._replace(version=ROOT.version + n), last._replace(mtime=n)) for n in range(ROUNDS * 2)
    ]
    leaders = [loaded([*records[:-1], entry], root).index() for root, entry in steps]

    def adopt(number: int) -> None:
        plan(tree, leaders[number], steps[number]).apply()

    def load(number: int) -> None:
        loaded([*records[:-1], steps[number][1]], steps[number][0])

    pair = by_turns(benchmark, adopt, load, rounds=ROUNDS, batch=1)
    assert tree.index() in leaders
    add(report, f"adoption of 1 in {MANY}", pair.ours, pair.base, ADOPTION_GOAL)


def add(report: Report, name: str, ours: float, base: float, goal: Goal) -> None:
    """Put a row into the report."""
    report.add("sync", name, unit="us", ours=ours, base=base, goal=goal)
