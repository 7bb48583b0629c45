"""Sending in one group: the order of this node's messages, and their retries.

Messages of the state machine (``dfsm``) are sent in order and retried without limit. A change of
this node is sent only while the node is SYNCED, and retried for at most SEND_RETRY_LIMIT seconds.

Changes wait for all queued messages of the state machine but a leader's UPDATEs, which can be
100,000: changes go out between lots of them. The leader is SYNCED then, so every other member
either delivers its changes at once or keeps them until it has adopted the leader's tree.

The messages of the state machine that are in flight (sent, and not delivered to this node yet) are
limited, so that a change does not wait long behind them. They are sent in bulk: a lot is encoded
before its first message is sent, and none is sent until FEW_IN_FLIGHT are left. The faster they
follow one another, the more of them corosync packs into a packet; a packet with one message costs
corosync as much CPU time as a full one. While a change is in flight, a call of ``send`` ends after
MOST_LOTS, so that the owner can dispatch the change.

Threads: only the owner of the group (see ``loop``) uses a Sender.
Contract: docs/spec/cluster.md, "A mutation must not block forever".
"""

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from pmxcfs._cpg import encode
from pmxcfs.dfsm.effects import Mode
from pmxcfs.dfsm.machine import Dfsm
from pmxcfs.errors import Busy, ClusterError, Interrupted, Invalid, PmxcfsError, TryAgain
from pmxcfs.host.clock import seconds
from pmxcfs.messages import Body, Group, Message, Normal, SyncStart, Update, UpdateComplete

FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.05  # seconds until a retry; the pause doubles each time
SEND_RETRY_LIMIT = 10.0  # seconds for which sending one change is retried
MOST_IN_FLIGHT, FEW_IN_FLIGHT = 1000, 250  # messages of the state machine: most, and for more
MOST_BYTES_IN_FLIGHT = 1 << 20  # of messages of the state machine, and one more lot
MOST_CHANGES_IN_FLIGHT = 32
MOST_LOTS = 2  # sent in one call while a change is in flight
LOT, LOT_BYTES = 32, 1 << 14  # UPDATEs sent without a look at the changes, and their bytes
_NEVER = math.inf
_BEHIND_CHANGES = (Update, UpdateComplete)  # messages that changes do not wait for
_START_SYNC, _SYNCED = Mode.START_SYNC, Mode.SYNCED  # Python 3.11 finds members slowly


class Clock:
    """The clocks of this machine. A test has its own."""

    def monotonic(self) -> float:
        """Return seconds from any point in time."""
        return monotonic()

    def wall(self) -> int:
        """Return the seconds since 1970, as a message can hold them."""
        return seconds()


class Source(Protocol):
    """The queue of this node's changes. Each ``take`` is followed by one call of another method."""

    def take(self, now: float) -> Body | None:
        """Return the next body, or None if there is none to send at the monotonic second *now*."""

    def sent(self, serial: int) -> None:
        """Note that the body was sent as this node's message number *serial*."""

    def not_sent(self) -> None:
        """Put the body back, to be taken again: corosync had no room for it."""

    def refused(self, error: PmxcfsError) -> None:
        """Give the body up because of *error*: it will not be sent."""


class Sender:
    """Sends the messages of a group's state machine, and the changes of a source."""

    def __init__(
        self,
        group: Group,
        dfsm: Dfsm,
        source: Source,
        *,
        clock: Clock,
    ) -> None:
        self.sent_bytes = 0  # by this process
        self.retry_at = _NEVER  # monotonic second at which ``send`` must be called
        self._group = group
        self._dfsm = dfsm
        self._source = source
        self._clock = clock
        self._queue: deque[Message] = deque()  # of the state machine
        self._in_flight: deque[int] = deque()  # in order: the bytes of each message, 0 for a change
        self._changes_in_flight = 0
        self._bytes_in_flight = 0  # of messages of the state machine
        self._is_filling = True  # until so many of them are in flight that it is to wait for few
        self._pause = 0.0  # seconds until the next attempt; 0: the last one succeeded
        self._trying_since: float | None = None  # monotonic; None: no change is being retried

    @property
    def is_retrying(self) -> bool:
        """Whether a message waits until corosync has room."""
        return self.retry_at != _NEVER

    @property
    def in_flight(self) -> int:
        """The messages sent on this connection that were not delivered to this node yet."""
        return len(self._in_flight)

    @property
    def has_messages(self) -> bool:
        """Whether messages of the state machine wait, for room or for earlier deliveries."""
        return bool(self._queue)

    def put(self, message: Message) -> None:
        """Queue *message* behind all messages that were put before."""
        self._queue.append(message)

    def forget_round(self) -> None:
        """Drop the messages of a round that is over; keep changes, to go before the next STATE."""
        self._queue = deque([one for one in self._queue if isinstance(one, Normal)])

    def echoed(self) -> None:
        """Note that the oldest message in flight was delivered to this node."""
        if self._in_flight:
            size = self._in_flight.popleft()
            self._bytes_in_flight -= size
            self._changes_in_flight -= not size

    def reset(self) -> None:
        """Forget everything about the connection, which was closed or replaced."""
        self._in_flight.clear()
        self._changes_in_flight = self._bytes_in_flight = 0
        self._queue.clear()
        self._end_pause()
        self._trying_since = None

    def send(self, mcast: Callable[[bytes], None]) -> None:
        """Send what is queued, as far as it may be in flight and corosync has room.

        Call it again after each delivery, and at ``retry_at``. May block; raises ClusterError.
        """
        if self._pause and self._clock.monotonic() < self.retry_at:
            return
        try:
            self._send_changes(mcast)
            lots = 0
            while self._queue and self._may_send_next(lots):
                self._send_lot(mcast)
                self._send_changes(mcast)
                lots += 1
        except TryAgain:
            self._pause = min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            self.retry_at = self._clock.monotonic() + self._pause
        else:
            self._end_pause()

    def _may_send_next(self, lots: int) -> bool:
        """Return whether to send the next message of the queue, after *lots* in this call."""
        if not isinstance(self._queue[0], Update):
            return True
        if self._changes_in_flight and lots >= MOST_LOTS:
            return False
        count = self.in_flight - self._changes_in_flight
        if count <= FEW_IN_FLIGHT and self._bytes_in_flight <= MOST_BYTES_IN_FLIGHT // 2:
            self._is_filling = True
        elif count >= MOST_IN_FLIGHT or self._bytes_in_flight >= MOST_BYTES_IN_FLIGHT:
            self._is_filling = False
        return self._is_filling

    def _send_lot(self, mcast: Callable[[bytes], None]) -> None:
        """Send the next message of the state machine, or the next UPDATEs in a row."""
        if self._is_late(self._queue[0]):
            self._queue.popleft()
            return
        for data in self._next_lot():
            with contextlib.suppress(Interrupted):  # by a membership change: its round is over
                self._mcast(mcast, data, False)
            self._queue.popleft()

    def _next_lot(self) -> list[bytes]:
        """Return the next messages of the queue, encoded. They stay in the queue."""
        lot: list[bytes] = []
        size = 0
        for message in itertools.islice(self._queue, LOT):
            if lot and (size >= LOT_BYTES or not isinstance(message, Update)):
                break
            lot.append(encode(message, self._group))
            size += len(lot[-1])
            if not isinstance(message, Update):
                break
        return lot

    def _is_late(self, message: Message) -> bool:
        """Return whether *message* restarts a round that has moved on while corosync had no room.

        A member of the existing implementation that is in UPDATE would leave the group on it.
        """
        return isinstance(message, SyncStart) and self._dfsm.mode is not _START_SYNC

    def _send_changes(self, mcast: Callable[[bytes], None]) -> None:
        while self._may_send_change() and self._send_change(mcast):
            pass

    def _may_send_change(self) -> bool:
        """Return whether a change of this node may be the next message."""
        if self._dfsm.mode is not _SYNCED or self._changes_in_flight >= MOST_CHANGES_IN_FLIGHT:
            return False
        return not self._queue or isinstance(self._queue[0], _BEHIND_CHANGES)

    def _send_change(self, mcast: Callable[[bytes], None]) -> bool:
        """Send the next change of this node; return whether there was one."""
        now = self._clock.monotonic()
        body = self._source.take(now)
        if body is None:
            self._trying_since = None
            return False
        message = self._dfsm.number(body, self._clock.wall())
        try:
            self._mcast(mcast, encode(message, self._group), True)
        except (ValueError, OverflowError) as error:
            self._source.refused(Invalid(f"the change can't be encoded as a message: {error}"))
        except TryAgain as error:
            self._retry_or_refuse(now, error)
            raise
        except ClusterError:
            self._source.not_sent()
            raise
        else:
            self._trying_since = None
            self._source.sent(message.serial)
        return True

    def _mcast(self, mcast: Callable[[bytes], None], data: bytes, is_change: bool) -> None:
        mcast(data)
        size = 0 if is_change else len(data)
        self._in_flight.append(size)
        self._bytes_in_flight += size
        self._changes_in_flight += is_change
        self.sent_bytes += len(data)
        self._end_pause()

    def _retry_or_refuse(self, now: float, error: TryAgain) -> None:
        """Have the change retried, or refuse it once SEND_RETRY_LIMIT seconds are over."""
        if self._trying_since is None:
            self._trying_since = now
        if now - self._trying_since < SEND_RETRY_LIMIT:
            self._source.not_sent()
        else:
            self._trying_since = None
            self._source.refused(Busy(f"corosync accepts no messages: {error}"))

    def _end_pause(self) -> None:
        self._pause, self.retry_at = 0.0, _NEVER
