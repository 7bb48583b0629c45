"""The limits of the benchmarks as data, and the rule that judges a measurement.

A limit is relative to the base, which is measured in the same run (``factor``), or ``absolute`` in
the row's own unit: bytes, memory, and deadlines of the contract. Nothing is scaled from figures of
another machine.
Contract: docs/spec/performance.md, "The rule".
"""

from typing import NamedTuple

KIB, MIB = 1 << 10, 1 << 20
NO_LIMIT = float("inf")


class Goal(NamedTuple):
    """The limits of one row; 0: none."""

    factor: float = 0.0  # times the base's median
    absolute: float = 0.0  # in the row's unit
    tail: float = 0.0  # of our 99th percentile, in the row's unit


class Figures(NamedTuple):
    """What one side takes for an operation, in the row's unit; None: not measured."""

    median: float
    p99: float | None = None
    cpu: float | None = None  # CPU time of the server's threads


class Row(NamedTuple):
    """One line of the report: the measurement and its limits."""

    section: str
    name: str
    unit: str
    ours: Figures
    base: Figures
    goal: Goal
    before: Figures | None = None  # of another checkout, if the run has one

    @property
    def ratio(self) -> float:
        """Ours divided by the base."""
        return self.ours.median / self.base.median


class Verdict(NamedTuple):
    """A row against its limits."""

    limit: float  # of our median, in the row's unit; infinity: none
    missed: str  # which limits are missed, and by how much; empty: none


def judge(row: Row) -> Verdict:
    """Return the limit of a row in its unit, and what it misses."""
    goal = row.goal
    limit = goal.absolute or goal.factor * row.base.median or NO_LIMIT
    missed = []
    if row.ours.median > limit:
        missed.append(f"by {row.ours.median / limit - 1:.0%}")
    if goal.tail and row.ours.p99 is not None and row.ours.p99 > goal.tail:
        missed.append(f"p99 by {row.ours.p99 / goal.tail - 1:.0%}")
    return Verdict(limit, ", ".join(missed))
