"""The rows that are measured on a mount: an operation, the floor's operation, and the limits.

Contract: docs/spec/performance.md, "The goals".
"""

from typing import NamedTuple

from bench import operations as do
from bench.data import GUESTS, LISTINGS, REPLACED, UNSEEN, UNSEEN_BIG
from bench.goals import KIB, MIB, Goal
from bench.operations import Prepare


class Limits(NamedTuple):
    """The limits of a row by condition, as multiples of the base; 0: none."""

    unpinned: Goal = Goal()
    one_cpu: Goal = Goal()


class Comparison(NamedTuple):
    """One row. Every side gets the same numbers, below (rounds + 1) x batch."""

    name: str
    operation: Prepare
    base: Prepare  # the floor's operation
    limits: Limits
    rounds: int
    batch: int
    each: int = 1  # operations per number, for the CPU time of one
    is_cached: bool = False  # the kernel answers alone: the base is tmpfs, not the floor


READING = Limits(Goal(1.3), Goal(1.5))
STATUS = Limits(Goal(1.3))  # against a file that the kernel has never seen
CHANGING = Limits(Goal(1.5), Goal(1.5))
REPLACING = Limits(Goal(1.6, tail=1000), Goal(1.5))
TOGETHER = Limits(Goal(1 / 0.9))  # 0.9 times as many operations in a second
CACHED = Limits(Goal(1.1))
NONE = Limits()


def _alike(name: str, operation: Prepare, limits: Limits, rounds: int, batch: int) -> Comparison:
    """Return a row with the same operation on the floor."""
    return Comparison(name, operation, operation, limits, rounds, batch)


def _cached(name: str, operation: Prepare, rounds: int, batch: int) -> Comparison:
    """Return a row that no server sees."""
    return Comparison(name, operation, operation, CACHED, rounds, batch, is_cached=True)


COMPARISONS = (
    _cached("stat, seen > 1 s ago", do.stat_seen, 20, 250),
    _cached("pread 4 KiB, cached", do.pread(4 * KIB), 20, 250),
    _cached("pread 1 MiB, cached", do.pread(MIB), 20, 20),
    _alike("open + read 1 KiB + close", do.open_read_close, READING, 40, 50),
    _alike("stat, first time", do.stat_unseen, READING, UNSEEN // 100 - 1, 100),
    _alike("stat, absent, first time", do.stat_absent, READING, 20, 100),
    _alike("statvfs", do.statvfs, READING, 20, 100),
    _alike(f"listdir of {GUESTS}", do.list_directory, READING, 40, 10),
    _alike(f"listdir + stat of {GUESTS}", do.list_and_stat_seen, READING, 20, 5),
    _alike(
        f"listdir + stat of {GUESTS}, first time", do.list_and_stat_unseen, READING,
        LISTINGS - 1, 1,
    ),
    _alike("read 1 MiB, first time", do.read_big_unseen, READING, UNSEEN_BIG // 4 - 1, 4),
    Comparison(
        "read .version", do.read_version, do.read_unseen("d90"), STATUS, 40, 25
    ),
    Comparison(
        f"read .vmlist, {GUESTS} guests", do.read_guest_list, do.read_unseen("d91"), STATUS, 40, 25
    ),
    Comparison(
        f"{do.PROCESSES} processes: open + read + close, each of all", do.parallel_reads,
        do.parallel_reads, TOGETHER, 6, 1, each=do.PROCESSES * do.READS,
    ),
    _alike("overwrite 1 KiB", do.overwrite, CHANGING, 200, 10),
    _alike("tmp + write 1 KiB + close + rename", do.replace, REPLACING, REPLACED // 10 - 1, 10),
    _alike(
        "the same by file_set_contents, Perl", do.set_contents, REPLACING,
        REPLACED // 10 - 1, 10,
    ),
    _alike("mkdir + rmdir", do.make_and_remove, CHANGING, 200, 10),
    _alike("create + write 1 KiB + close", do.create, CHANGING, 200, 10),
    _alike("write 1 MiB + close", do.write_big, NONE, 20, 4),
    _alike("1000 x write 512 B, close", do.write_sectors, NONE, 16, 1),
    _alike("open + read 1 KiB + close, after writes", do.open_read_close, READING, 40, 50),
)  # fmt: skip
