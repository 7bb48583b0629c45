"""What the owner of a group does again and again: dispatch, have changes applied, and send.

``GroupLoop`` is the part of a node's membership that runs for every message of the group; what is
rarer is the business of ``Membership``. Changes that are delivered together are given to the
Content together, which applies them in one transaction.

Ownership: a group's handle and state machine have one owner at a time, normally the group's thread.
While that thread sleeps, a request thread that waits for its own change takes ownership, sends the
change and dispatches until the change is delivered; that saves two thread switches per change. The
request thread gives the ownership back when this node is no longer in sync, and it leaves work that
can take long to the group's thread.

Threads: the group's thread calls ``serve``, and ``has_left`` and ``clear`` after it; request
threads call ``dispatch_until``. Any thread may call ``tick_soon``; only the owner calls the rest.
Lock order: the ownership lock comes before all other locks, the tree's included. A request thread
takes it only if it is free.

Contract: docs/spec/cluster.md, "State machine" and "One owner of a handle".
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from time import monotonic
from typing import Protocol, TypeAlias

from pmxcfs._cpg import decode
from pmxcfs.cluster.poller import Poller
from pmxcfs.cluster.sender import Clock, Sender
from pmxcfs.dfsm.effects import Deliver, Effect, Mode
from pmxcfs.dfsm.machine import Dfsm
from pmxcfs.dfsm.timeouts import Moment
from pmxcfs.errors import BadMessage, OtherProtocol
from pmxcfs.host.locking import Lock
from pmxcfs.host.threads import Wakeup
from pmxcfs.messages import Group, Member, Normal
from pmxcfs.replica.waiting import RequestWatch

MAX_BURST = 256  # messages dispatched in a row before the owner sends and checks deadlines
MAX_TICK_INTERVAL = 1.0  # seconds between two checks of the deadlines
_SYNCED = Mode.SYNCED  # Python 3.11 finds members of an Enum slowly

# A delivered change and its sender. A string, as Cython 0.29 can't subscript a class.
Delivery: TypeAlias = "tuple[Member, Normal]"


class Content(Protocol):
    """The replicated content of a group. The group's owner calls it without the tree's lock."""

    def state(self) -> bytes:
        """Return the payload of a STATE message."""

    def deliver(self, changes: Sequence[Delivery]) -> bool:
        """Apply *changes* in order; return False, and apply none, if the node has no quorum."""

    def on_members(self, members: Sequence[Member], *, me: Member) -> None:
        """Note the group's *members*, and this node's own entry *me*. No members: it has left."""

    def on_synced(self, agreed: Collection[Member]) -> None:
        """Note that this node is SYNCED: changes are delivered at once from now on.

        The members in *agreed* surely have the same content; others may still get it.
        """

    def on_left(self) -> None:
        """Note that the group was left: the outcome of sent, undelivered changes is unknown."""


class Handle(Protocol):
    """A connection to corosync's process groups, such as ``_cpg.Cpg``."""

    def connect(self) -> None: ...
    def local_nodeid(self) -> int: ...
    def join(self, name: str) -> None: ...
    def leave(self, name: str) -> None: ...
    def mcast(self, data: bytes) -> None: ...
    def dispatch_one(self) -> bool: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Awaited(Protocol):
    """An object that a thread waits for, such as a Ticket."""

    is_done: bool


class Membership(Protocol):
    """What the loop leaves to others, as it does not happen for every message."""

    def execute(self, effect: Effect) -> None:
        """Execute *effect*, which is not a delivery. Can take long."""

    def on_members(self, members: Sequence[Member], joined: Sequence[Member]) -> Iterable[Effect]:
        """Handle a membership change; *joined* are the new ones of *members*."""

    def on_undecodable(self, sender: Member, error: BadMessage) -> None:
        """Note that a message of *sender* was dropped because of *error*."""

    def on_tick(self) -> None:
        """Check the deadlines of the state machine."""


class Delivered:
    """A message that was dispatched and is not processed yet."""

    def __init__(self, sender: Member, data: bytes) -> None:
        self.sender = sender
        self.data = data


class Changed:
    """A membership change that was dispatched and is not processed yet."""

    def __init__(self, members: Sequence[Member], joined: Sequence[Member]) -> None:
        self.members = members
        self.joined = joined


class GroupLoop:
    """The loop of one group. ``is_stopping`` tells whether the group's thread is to end."""

    def __init__(
        self,
        group: Group,
        dfsm: Dfsm,
        content: Content,
        sender: Sender,
        membership: Membership,
        *,
        clock: Clock,
        wakeup: Wakeup,
        is_stopping: Callable[[], bool],
    ) -> None:
        self.ownership = Lock()  # held by the thread that acts for the group
        self._group = group
        self._dfsm = dfsm
        self._content = content
        self._sender = sender
        self._membership = membership
        self._clock = clock
        self._wakeup = wakeup
        self._is_stopping = is_stopping
        # The connection; None: other threads must not take ownership.
        self._handle: Handle | None = None
        self._poller: Poller | None = None
        self._watch: RequestWatch | None = None  # of the request thread that is the owner
        self._failure: Exception | None = None  # of another owner, for the group's thread to raise
        self._events: list[Delivered | Changed] = []
        self._batch: list[Delivery] = []  # to be delivered, and not applied yet
        self._tick_at = 0.0  # monotonic second of the next check of the deadlines

    # Callbacks of libcpg while it dispatches: they only queue the event.

    def on_deliver(self, sender: Member, data: bytes) -> None:
        """Queue a message that was delivered."""
        self._events.append(Delivered(sender, data))

    def on_confchg(self, members: list[Member], left: list[Member], joined: list[Member]) -> None:
        """Queue a membership change."""
        self._events.append(Changed(members, joined))

    # The group's thread.

    def serve(self, handle: Handle) -> None:
        """Dispatch and send until the thread is to stop. Blocks.

        Raises ClusterError, and what ``Membership.execute`` raises.
        """
        with contextlib.closing(Poller(handle.fileno(), self._wakeup.fileno())) as poller:
            try:
                while not self._is_stopping():
                    poller.sleep(self._sleep_seconds())
                    self.ownership.acquire()
                    try:
                        self._serve_once(handle, poller)
                    finally:
                        self.ownership.release()
            finally:
                with self.ownership:
                    self._handle = None

    def _serve_once(self, handle: Handle, poller: Poller) -> None:
        """Dispatch and apply pending messages, check the deadlines, and send what is queued."""
        self._handle = None  # in case of an exception
        self._raise_failure()
        count = self._dispatch(handle)
        if not count:
            poller.listen(0.0)  # consumes a wake-up, which may have ended the sleep
        self.flush()
        if count < MAX_BURST:
            self._tick()
        self._sender.send(handle.mcast)
        self._handle, self._poller = handle, poller

    def _raise_failure(self) -> None:
        """Raise the exception that ended the ownership of a request thread, if any."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def has_left(self, me: Member) -> bool:
        """Return whether one of the events is a membership without *me*; drop all events."""
        events, self._events = self._events, []
        changes = [event for event in events if isinstance(event, Changed)]
        return any([me not in change.members for change in changes])

    def clear(self) -> None:
        """Drop all events and deliveries: the membership has ended."""
        self._events.clear()
        self._batch.clear()

    def tick_soon(self) -> None:
        """Check the deadlines at the next wake-up, as they were replaced."""
        self._tick_at = 0.0

    # A request thread that owns the group for a while.

    def dispatch_until(self, awaited: Awaited, seconds: float, watch: RequestWatch) -> None:
        """Own the group until *awaited* is done or *seconds* are over, if its thread sleeps.

        Blocks, and sends and dispatches meanwhile. Stops the *watch* when the kernel sends a
        request. May return earlier, even at once; the group's thread then does the work. The caller
        must not hold the tree's lock.
        """
        if not self.ownership.acquire(False):
            self._wakeup.set()
            return
        try:
            is_finished = self._dispatch_until(awaited, monotonic() + seconds, watch)
        finally:
            self.ownership.release()
        if not is_finished:
            self._wakeup.set()

    def _dispatch_until(self, awaited: Awaited, until: float, watch: RequestWatch) -> bool:
        """Dispatch and send until *awaited* is done or the monotonic second *until*.

        Return False if the group's thread has to go on.
        """
        handle, poller = self._handle, self._poller
        if handle is None or poller is None:
            return False
        poller.mute()
        self._watch = watch
        try:
            seconds = 0.0
            while self._dispatch_and_send_briefly(handle, poller, seconds):
                left = until - monotonic()
                if awaited.is_done or left <= 0:
                    return True
                seconds = min(left, self._sleep_seconds())
        except Exception as failure:  # noqa: BLE001, as the group's thread raises it again
            self._handle, self._failure = None, failure
        finally:
            self._watch = None
            poller.unmute()
        return False

    def _dispatch_and_send_briefly(self, handle: Handle, poller: Poller, seconds: float) -> bool:
        """Wait for an event for *seconds* at most, then dispatch and send as far as that is brief.

        Return False if the group's thread has to go on.
        """
        if poller.listen(seconds, self._watch):
            self._dispatch_until_echoed(handle)
            self.flush()
        if not self._is_quiet():
            return False
        self._tick()
        self._sender.send(handle.mcast)
        return not (self._sender.is_retrying or self._sender.has_messages)

    def _is_quiet(self) -> bool:
        """Return whether a request thread may own the group: in sync, and no urgent work."""
        sender = self._sender
        if sender.is_retrying or sender.has_messages or self._is_stopping():
            return False
        return self._dfsm.mode is _SYNCED

    # What both do.

    def _sleep_seconds(self) -> float:
        """Return the seconds until a deadline or a retry is due without an event."""
        until = min(self._tick_at, self._sender.retry_at)
        return max(0.0, until - monotonic())

    def _tick(self) -> None:
        now = monotonic()
        if now >= self._tick_at:
            self._tick_at = now + self._tick_interval()
            self._membership.on_tick()

    def _tick_interval(self) -> float:
        limits = self._dfsm.deadlines
        return min(
            MAX_TICK_INTERVAL,
            limits.verification / 4,
            limits.after_updates,
            limits.updates / 4,
            limits.restarts[0] / 4,
        )

    def _dispatch(self, handle: Handle) -> int:
        """Dispatch and process at most MAX_BURST pending events; return their number."""
        count = 0
        while count < MAX_BURST and handle.dispatch_one():
            count += 1
            self._take_events()
        return count

    def _dispatch_until_echoed(self, handle: Handle) -> None:
        """Dispatch pending events until the node is out of sync or has no message in flight."""
        for _ in range(MAX_BURST):
            if self._dfsm.mode is not _SYNCED or not handle.dispatch_one():
                return
            self._take_events()
            if not self._sender.in_flight:
                return

    def _take_events(self) -> None:
        while self._events:
            event = self._events.pop(0)
            if isinstance(event, Delivered):
                self._take_message(event)
            else:
                self.flush()
                self.carry_out(self._membership.on_members(event.members, event.joined))

    def _take_message(self, event: Delivered) -> None:
        dfsm, sender = self._dfsm, event.sender
        if sender == dfsm.me:
            self._sender.echoed()
        try:
            message = decode(event.data, self._group)
        except OtherProtocol as error:
            self.carry_out(dfsm.on_other_protocol(sender, is_newer=error.is_newer))
            return
        except BadMessage as error:
            self._membership.on_undecodable(sender, error)
            return
        if not isinstance(message, Normal):
            self.carry_out(dfsm.on_message(sender, message, at=self.now()))
        elif dfsm.takes_change(sender, message):
            self._batch.append((sender, message))

    def now(self) -> Moment:
        """Return the time of an event."""
        return Moment(self._clock.wall(), self._clock.monotonic())

    def carry_out(self, effects: Iterable[Effect]) -> None:
        """Execute *effects* in order; deliveries of changes wait for ``flush``, or another one."""
        for effect in effects:
            if isinstance(effect, Deliver):
                self._batch.append((effect.sender, effect.message))
            else:
                self.flush()
                if self._watch is not None:
                    self._watch.stop()  # as the effect may take long, for example a checksum
                self._membership.execute(effect)

    def flush(self) -> None:
        """Apply the delivered changes together."""
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        if not self._content.deliver(batch):
            self.carry_out(self._dfsm.leave("a change was delivered to a node without quorum"))
