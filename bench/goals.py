"""The limits of the benchmarks as data, and the rule that judges a measurement.

A row of the report has up to two limits and must keep both.

*goal*, relative to the base: ``factor`` x the base's time in the same run (on a mount: the floor
server's), plus the time of ``commits`` bare SQLite commits of ``commit_bytes`` in the same run.
*must*, relative to the original: microseconds on the machine where the original was measured. The
limit is scaled to this machine by floor now / floor then. ``base_then`` is the floor in the
original's session (the lower end, if it is a range). Rows without ``base_then`` are scaled by the
*pace* of the run, the median of that quotient over all rows; rows whose time is not spent on one
CPU have a ``pace`` of their own. The limit is never below AT_THE_FLOOR x the base, because no
server can save the kernel's own time. Limits for bytes, memory, deadlines of the contract, and
large files in a cluster are ``absolute`` and not scaled.
Contract: docs/spec/performance.md, "The rule".
"""

import statistics
from collections.abc import Iterable
from typing import NamedTuple

KIB, MIB = 1 << 10, 1 << 20
AT_THE_FLOOR = 1.1  # two measurements of the same operation differ by less


class Goal(NamedTuple):
    """The limits of one operation. Times are in microseconds."""

    factor: float = 0.0  # times the base; 0: no limit by the base
    commits: int = 0  # bare SQLite commits to add
    commit_bytes: int = KIB  # bytes of content in each commit
    must: float = 0.0  # in the original's session; 0: no limit by the original
    base_then: float = 0.0  # the floor in that session; 0: not known
    pace: float = 0.0  # floor now / floor then, measured for this row; 0: none
    absolute: float = 0.0  # instead of must: in the row's own unit, on any machine


class Row(NamedTuple):
    """One line of the report: the measurement and its limits."""

    section: str
    name: str
    unit: str
    ours: float
    base: float
    goal: Goal
    commit_us: float = 0.0  # time of all commits of the goal in bare SQLite

    @property
    def ratio(self) -> float:
        """Ours divided by the base."""
        return self.ours / self.base


class Verdict(NamedTuple):
    """A row against its two limits, in the row's unit; infinity where there is none."""

    goal: float
    must: float
    missed: str  # names of the missed limits; empty: none

    @property
    def limit(self) -> float:
        """The tighter limit."""
        return min(self.goal, self.must)


def pace(rows: Iterable[Row]) -> float:
    """Return the slowness of this machine, relative to the machine of the original's session."""
    factors = [row.base / row.goal.base_then for row in rows if row.goal.base_then]
    return statistics.median(factors) if factors else 1.0


def judge(row: Row, pace: float) -> Verdict:
    """Return the limits of a row in its unit, and which of them it misses."""
    goal, nothing = row.goal, float("inf")
    by_base = goal.factor * row.base + row.commit_us if goal.factor else nothing
    own_pace = goal.pace or (row.base / goal.base_then if goal.base_then else pace)
    scaled = max(goal.must * own_pace, AT_THE_FLOOR * row.base) if goal.must else nothing
    must = goal.absolute or scaled
    missed = ["goal"] * (row.ours > by_base) + ["must"] * (row.ours > must)
    return Verdict(by_base, must, " and ".join(missed))
