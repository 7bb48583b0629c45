"""The wall clock, as messages and the database can hold it.

The clock of a machine can be wrong, and can jump by any time in both directions. So it only dates
what happens: durations are measured with the monotonic clock (``time.monotonic``). A date has 32
bits without a sign in messages of the cluster and in the database.

Contract: docs/spec/cluster.md, "Clocks".
"""

import time

from pmxcfs.messages import MAX_TIME


def seconds() -> int:
    """Return the seconds since 1970, from 0 to MAX_TIME; earlier and later times are cut."""
    now = nanoseconds() // 1_000_000_000
    return min(now, MAX_TIME)


def nanoseconds() -> int:
    """Return the ns since 1970, for a time in the journal; 0 before that."""
    now = time.time_ns()
    return max(now, 0)
