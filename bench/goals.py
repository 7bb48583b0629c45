"""The goals as data: what an operation may cost, and the rule that judges a measurement.

A row of the report has up to two limits and must keep both.

*goal*, by the base: ``factor`` x what the base took in the same run (on a mount: the floor server),
plus one bare SQLite commit of ``commit_bytes``, measured in the same run too, per ``commits``.
*must*, by the original: the figure that was set to beat the original implementation, in
microseconds of the session in which the original was measured. Machines differ, so it is
multiplied by floor now / floor then, where ``base_then`` tells the floor of that session (of a
range its lower end); elsewhere by the *pace* of the run, the median of that quotient over all
rows, or by a ``pace`` of the row's own, where its time is not spent on one CPU. It is never below
AT_THE_FLOOR x the base: where all the time is the kernel's, no server can do better. Bytes, memory,
contract deadlines and large files in a cluster are ``absolute`` and not scaled.
"""

import statistics
from collections.abc import Iterable
from typing import NamedTuple

KIB, MIB = 1 << 10, 1 << 20
AT_THE_FLOOR = 1.1  # two measurements of one thing differ by less


class Goal(NamedTuple):
    """What one operation may cost. Times are in microseconds."""

    factor: float = 0.0  # times the base; 0: no limit by the base
    commits: int = 0  # SQLite commits on top
    commit_bytes: int = KIB  # content in each of them
    must: float = 0.0  # in the original's session; 0: no limit by the original
    base_then: float = 0.0  # the floor in that session; 0: not known
    pace: float = 0.0  # floor now / floor then, measured for this row; 0: as above
    absolute: float = 0.0  # instead of must: in the row's own unit, on any machine


class Row(NamedTuple):
    """One line of the report: what was measured, and what it is held against."""

    section: str
    name: str
    unit: str
    ours: float
    base: float
    goal: Goal
    commit_us: float = 0.0  # what all commits of the goal took together, bare

    @property
    def ratio(self) -> float:
        """How many times the base ours is."""
        return self.ours / self.base


class Verdict(NamedTuple):
    """A row against its two limits, in the row's unit; infinity where there is none."""

    goal: float
    must: float
    missed: str  # which limit was missed, in words; empty: none

    @property
    def limit(self) -> float:
        """The tighter limit."""
        return min(self.goal, self.must)


def pace(rows: Iterable[Row]) -> float:
    """Return how slow this run's machine is, relative to where the original was measured."""
    factors = [row.base / row.goal.base_then for row in rows if row.goal.base_then]
    return statistics.median(factors) if factors else 1.0


def judge(row: Row, pace: float) -> Verdict:
    """Hold a row against both of its limits."""
    goal, nothing = row.goal, float("inf")
    by_base = goal.factor * row.base + row.commit_us if goal.factor else nothing
    own_pace = goal.pace or (row.base / goal.base_then if goal.base_then else pace)
    scaled = max(goal.must * own_pace, AT_THE_FLOOR * row.base) if goal.must else nothing
    must = goal.absolute or scaled
    missed = ["goal"] * (row.ours > by_base) + ["must"] * (row.ours > must)
    return Verdict(by_base, must, " and ".join(missed))
