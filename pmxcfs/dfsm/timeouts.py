"""Timeouts of a synchronization round, and the clock reading that each event carries.

Contract: docs/spec/cluster.md, "A round must not wait forever" and "Verification".
"""

from dataclasses import dataclass
from typing import NamedTuple


class Moment(NamedTuple):
    """The time of an event, by this node's two clocks."""

    wall: int  # seconds since 1970, for the headers of messages and for epochs
    monotonic: float  # seconds since an arbitrary start, for deadlines


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """The timeouts, in seconds."""

    # START_SYNC, lowest member: the n-th restart of a round comes when no STATE has arrived for the
    # n-th value; after that, the last value is used.
    restarts: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0, 60.0)
    # START_SYNC, other members: leave and rejoin after this time without a message of the round.
    silence: float = 90.0
    updates: float = 15.0  # UPDATE: leave and rejoin after this time without an UPDATE
    # SYNCED: leave and rejoin when all others have waited for this long in a round of their own.
    other_round: float = 2.5
    leave_interval: float = 60.0  # minimum between two leaves caused by a deadline
    rejoin: float = 5.0  # minimum between two joins, for any reason; corosync needs it
    verification: float = 3600.0  # between two verifications of the tree
    after_updates: float = 3.0  # from the end of a round with UPDATEs to a verification
