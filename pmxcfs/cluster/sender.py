"""What this node has to send in one group: what goes first, and how often it is tried.

What the rules of the group want sent goes first and for as long as it takes; a change of this
node's waits until nothing else does, is sent only while the node is SYNCED, and not tried for ever.

Threads: one at a time, the one whose turn it is in the group (``cluster``).
Contract: docs/spec/cluster.md, "A mutation must not block forever".
"""

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Protocol

from pmxcfs._cpg import encode
from pmxcfs.dfsm.effects import Mode
from pmxcfs.dfsm.machine import Dfsm
from pmxcfs.dfsm.timeouts import Moment
from pmxcfs.errors import Busy, ClusterError, Interrupted, Invalid, PmxcfsError, TryAgain
from pmxcfs.messages import Body, Group, Message, Normal, SyncStart

FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.05  # seconds until a send is tried again, doubling
SEND_RETRY_LIMIT = 10.0  # seconds of trying to send one change
_NEVER = float("inf")

Clock = Callable[[], Moment]


class Source(Protocol):
    """What this node wants to send, in order. ``take`` is followed by one of the others."""

    def take(self, *, now: float) -> Body | None:
        """Return what is to be sent next, if there is anything and it may be sent."""

    def sent(self, serial: int) -> None:
        """It was sent with this number."""

    def not_sent(self) -> None:
        """There was no room; it is to be taken once more."""

    def refused(self, error: PmxcfsError) -> None:
        """It will not be sent."""


class Sender:
    """Sends what the rules of a group want sent, and what a source holds."""

    def __init__(
        self,
        group: Group,
        dfsm: Dfsm,
        source: Source,
        *,
        clock: Clock,
    ) -> None:
        self.sent_bytes = 0  # by this process
        self.retry_at = _NEVER  # monotonic second to call ``send`` again, though all is quiet
        self.in_flight = 0  # messages that were sent and not seen coming back, on this connection
        self._group = group
        self._dfsm = dfsm
        self._source = source
        self._clock = clock
        self._queue: deque[Message] = deque()  # what the rules want sent
        self._pause = 0.0  # seconds, since the last attempt; 0: it went well
        self._trying_since: float | None = None  # monotonic; None: no change waits for room

    @property
    def is_retrying(self) -> bool:
        """Tell whether something waits for room."""
        return self.retry_at != _NEVER

    def put(self, message: Message) -> None:
        """Send *message* after all that was put before."""
        self._queue.append(message)

    def forget_round(self) -> None:
        """The round is over; what changes something stays, and goes out before the next STATE."""
        self._queue = deque(one for one in self._queue if isinstance(one, Normal))

    def echoed(self) -> None:
        """One of the messages that were sent was delivered to this node, too."""
        self.in_flight -= 1

    def reset(self) -> None:
        """There is another connection now, or none."""
        self.in_flight = 0
        self._queue.clear()
        self._end_pause()
        self._trying_since = None

    def send(self, mcast: Callable[[bytes], None]) -> None:
        """Send what there is, until corosync has no room any more. Raises ClusterError."""
        if self._pause and self._clock().monotonic < self.retry_at:
            return
        try:
            while self._queue:
                self._send_message(mcast)
            while self._dfsm.is_synced and self._send_change(mcast):
                pass
        except TryAgain:
            self._pause = min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            self.retry_at = self._clock().monotonic + self._pause
        else:
            self._end_pause()

    def _send_message(self, mcast: Callable[[bytes], None]) -> None:
        message = self._queue[0]
        if not self._is_late(message):
            with contextlib.suppress(Interrupted):  # its round is over
                self._mcast(mcast, encode(message, group=self._group))
        self._queue.popleft()

    def _is_late(self, message: Message) -> bool:
        """Tell whether *message* begins a round again that got on while there was no room for it.

        Members of the existing implementation that wait for updates would leave the group on it.
        """
        return isinstance(message, SyncStart) and self._dfsm.mode is not Mode.START_SYNC

    def _send_change(self, mcast: Callable[[bytes], None]) -> bool:
        """Send the next change of this node's; return whether there was one."""
        now = self._clock()
        body = self._source.take(now=now.monotonic)
        if body is None:
            self._trying_since = None
            return False
        message = self._dfsm.number(body, now.wall)
        try:
            self._mcast(mcast, encode(message, group=self._group))
        except (ValueError, OverflowError) as error:
            self._source.refused(Invalid(f"no message can say it: {error}"))
        except TryAgain as error:
            self._put_back(now.monotonic, error)
            raise
        except ClusterError:
            self._source.not_sent()
            raise
        else:
            self._trying_since = None
            self._source.sent(message.serial)
        return True

    def _mcast(self, mcast: Callable[[bytes], None], data: bytes) -> None:
        mcast(data)
        self.in_flight += 1
        self.sent_bytes += len(data)
        self._end_pause()

    def _put_back(self, now: float, error: TryAgain) -> None:
        """There was no room for a change: try again, but not for ever."""
        if self._trying_since is None:
            self._trying_since = now
        if now - self._trying_since < SEND_RETRY_LIMIT:
            self._source.not_sent()
        else:
            self._trying_since = None
            self._source.refused(Busy(f"corosync takes no messages: {error}"))

    def _end_pause(self) -> None:
        self._pause, self.retry_at = 0.0, _NEVER
