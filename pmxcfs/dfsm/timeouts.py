"""How long a round of synchronization may be quiet before somebody does something about it.

Values only, and the clock reading that events carry. Contract: docs/spec/cluster.md, "A round must not
wait forever".
"""

from dataclasses import dataclass
from typing import NamedTuple


class Moment(NamedTuple):
    """When an event happens, by this node's two clocks."""

    wall: int  # seconds since 1970, for the headers of messages and for epochs
    monotonic: float  # seconds since whenever, for deadlines


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """All in seconds; tests shorten them."""

    # START_SYNC, the lowest member: without a STATE for so long it starts the round again, at the
    # second time after the second value, and so on; the last one stays.
    restarts: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0, 60.0)
    silence: float = (
        90.0  # START_SYNC, all others: without a message of the round, leave and rejoin
    )
    updates: float = 15.0  # UPDATE: without an UPDATE for so long, leave and rejoin
    leave_interval: float = 60.0  # between two leaves that a deadline causes
    rejoin: float = 5.0  # between two joins, whatever the reason; corosync needs it
    verification: float = 3600.0  # between two verifications of the tree
