"""Whether this node's changes come back to it: which are in flight, and whether the node is stuck.

A change that was sent comes back to its sender. One that has not done so for OVERDUE seconds is
overdue; nothing more is sent until it is delivered, so what waits behind it can still be refused as
not begun.

The node is stuck from the moment a change was answered with an error because it could not be sent
or was not delivered in time. Then all changes are refused at once, until the node is in sync and a
message of its own has come back. With the end of a synchronization both are true, as this node's
STATE was a part of it. If the node is in sync and nothing is overdue, no message can be expected to
come back. Then a change is let through after ATTEMPT_INTERVAL seconds, to find out.

Threads: only the owner of the group calls ``sent``, ``came_back``, ``sync_began``, ``synced`` and
``left``. Any thread may call the others. None blocks. Times are monotonic seconds.
Contract: docs/spec/filesystem.md, "When the cluster is stuck".
"""

import logging

from pmxcfs.errors import PmxcfsError
from pmxcfs.host.locking import Lock
from pmxcfs.host.outage import Outage

_log = logging.getLogger("pmxcfs.dcdb")

OVERDUE = 2.0  # seconds in flight after which nothing more is sent
ATTEMPT_INTERVAL = 1.0  # seconds from one failure to the next attempt, if nothing is overdue
ATTEMPT_TIMEOUT = 0.5  # seconds for an attempt to be sent


class Progress:
    """The changes in flight, and the state *stuck*."""

    def __init__(self) -> None:
        self.cause: PmxcfsError | None = None  # of the last failure, if no change came back since
        self.oldest = 0.0  # when the oldest change in flight was sent; 0 if none is in flight
        self._in_flight: dict[object, float] = {}  # when each change was sent, in order
        self._is_in_sync = False
        self._attempt_at = 0.0  # when a stuck node that has nothing overdue lets a change through
        self._lock = Lock()  # for what a failure changes
        self._outage: Outage[PmxcfsError] = Outage(
            _log,
            describe=lambda cause: f"changes are refused until the cluster delivers them: {cause}",
            over="the cluster delivers this node's changes again",
            level=logging.WARNING,
        )

    # Events

    def sent(self, change: object, at: float) -> None:
        """Note that a message of *change* was sent; its first one at the second *at*."""
        self._in_flight.setdefault(change, at)
        self._note_oldest()

    def came_back(self, change: object) -> None:
        """Note that a message of *change* was delivered to this node, which is in sync."""
        self._in_flight.pop(change, None)
        self._note_oldest()
        self._works()

    def sync_began(self) -> None:
        """Note that the members have begun to synchronize."""
        self._is_in_sync = False

    def synced(self) -> None:
        """Note that this node is in sync."""
        self._is_in_sync = True
        self._works()

    def left(self) -> None:
        """Note that the group was left: what was in flight does not come back."""
        self._is_in_sync = False
        self._in_flight.clear()
        self._note_oldest()

    def failed(self, error: PmxcfsError, now: float) -> None:
        """Note that a change was answered with *error*, as it was not sent or not delivered."""
        with self._lock:
            self._attempt_at = now + ATTEMPT_INTERVAL
            self.cause = error
            self._outage.fails(error)

    def _note_oldest(self) -> None:
        oldest = 0.0
        for sent_at in self._in_flight.values():
            oldest = sent_at
            break
        self.oldest = oldest

    def _works(self) -> None:
        if self.cause is not None:
            with self._lock:
                self.cause = None
                self._outage.works()

    # Questions: each has the same answer before an event or after it, while that is being noted.

    def is_stuck(self) -> bool:
        """Return whether the last change failed and none has come back since."""
        return self.cause is not None

    def is_overdue(self, now: float) -> bool:
        """Return whether a change is in flight for more than OVERDUE seconds."""
        oldest = self.oldest
        return oldest > 0 and now - oldest > OVERDUE

    def is_moving(self, now: float) -> bool:
        """Return whether this node is in sync, and all its changes come back in time."""
        return self._is_in_sync and self.cause is None and not self.is_overdue(now)

    def refuses(self, now: float) -> bool:
        """Return whether a change is to be refused at once."""
        if self.cause is None:
            return False
        return not self._is_in_sync or self.is_overdue(now) or now < self._attempt_at
