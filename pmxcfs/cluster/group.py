"""A thread that is this node's member of one corosync process group and runs its state machine.

``GroupThread`` connects, joins, dispatches, sends and reconnects; ``Dfsm`` decides. A ``Content``
applies the delivered changes, and a ``Source`` holds the changes that this node wants to send. The
tree's group and the status group have a thread, a Content and a Source each, so neither delays
the other. They share one lock, held by ``_cpg`` while a handle connects.

Every call of libcpg can block for as long as corosync is stopped. So other threads queue their
changes in the Source, and wait for the group's thread only with a timeout.

Changes that are delivered together are given to the Content together, which applies them in one
transaction.

Threads: one per group, a daemon thread, so that a corosync that hangs does not delay the end of the
process. Any thread may call ``wake``, ``dispatch_until``, ``stop`` and ``close``.

Ownership: a group's handle and state machine have one owner at a time, normally the group's thread.
While that thread sleeps, a request thread that waits for its own change takes ownership, sends the
change and dispatches until the change is delivered; that saves two thread switches per change. The
request thread gives the ownership back when this node is no longer in sync, and it leaves work that
can take long to the group's thread.

Lock order: the ownership lock comes before all other locks, the tree's included. A request thread
takes it only if it is free.

Contract: docs/spec/cluster.md, "State machine" and "One owner of a handle".
"""

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from pmxcfs._cpg import Cpg, decode
from pmxcfs.cluster.poller import Poller
from pmxcfs.cluster.sender import Clock, Sender, Source
from pmxcfs.dfsm.effects import (
    Deliver,
    Effect,
    Enter,
    Leave,
    Log,
    Mode,
    Quit,
    Send,
    SendState,
)
from pmxcfs.dfsm.machine import Dfsm
from pmxcfs.dfsm.timeouts import Deadlines, Moment
from pmxcfs.errors import (
    BadMessage,
    ClusterError,
    OtherProtocol,
    TryAgain,
)
from pmxcfs.host.log_limit import LogLimit
from pmxcfs.host.outage import Outage
from pmxcfs.host.threads import STOP_TIMEOUT, BackgroundThread, Wakeup
from pmxcfs.messages import Group, Member, State
from pmxcfs.replica.waiting import RequestWatch

MAX_BURST = 256  # messages dispatched in a row before the thread sends and checks deadlines
MAX_TICK_INTERVAL = 1.0  # seconds between two checks of the deadlines
JOIN_PAUSE = 0.1  # seconds until a join is retried for which corosync was not ready
LEAVE_TIMEOUT = 5.0  # seconds to wait for the membership change that confirms a leave


class Content(Protocol):
    """The replicated content of a group. The group's owner calls it without the tree's lock."""

    def state(self) -> bytes:
        """Return the payload of a STATE message."""

    def deliver(self, changes: Sequence[Deliver]) -> bool:
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


Connect = Callable[["GroupThread"], Handle]  # its argument gets the dispatched events


class _Delivered(NamedTuple):
    """A message that was dispatched and is not processed yet."""

    sender: Member
    data: bytes


class _Changed(NamedTuple):
    """A membership change that was dispatched and is not processed yet."""

    members: list[Member]
    joined: list[Member]


class Awaited(Protocol):
    """An object that a thread waits for, such as a Ticket."""

    is_done: bool


class _Connection(NamedTuple):
    """A handle that has joined the group, and the poller of its descriptor."""

    handle: Handle
    poller: Poller


class _Loss(NamedTuple):
    """Why there is no connection to corosync."""

    error: ClusterError
    explanation: str  # of what keeps corosync from running, and what to do; empty if not known


class _Leaving(Exception):
    """Raised to leave the group; with *for_good*, the thread ends and does not join again."""

    def __init__(self, *, for_good: bool) -> None:
        super().__init__(for_good)
        self.for_good = for_good


class GroupThread(BackgroundThread):
    """This node's membership in one group. A subclass adds what only its group needs."""

    def __init__(
        self,
        group: Group,
        content: Content,
        source: Source,
        *,
        log: logging.Logger,
        wakeup: Wakeup,
        connect: Connect = Cpg,
        clock: Clock | None = None,
        explain: Callable[[], str] = lambda: "",
    ) -> None:
        """*explain* tells why corosync does not run, "" if it does not know. It must not block."""
        super().__init__(group.cpg_name)
        self.dfsm = Dfsm(group)
        self.dropped = 0  # messages of peers that could not be decoded
        self._group = group
        self._content = content
        self._clock = clock or Clock()
        self._sender = Sender(group, self.dfsm, source, clock=self._clock)
        self._connect = connect
        self._log = log
        self._log_limit = LogLimit(log)  # of what other members can cause at will
        self.ownership = threading.Lock()  # held by the thread that acts for the group
        self._connection: _Connection | None = None  # None: other threads must not take ownership
        self._watch: RequestWatch | None = None  # of the request thread that is the owner
        self._failure: Exception | None = None  # of another owner, for the group's thread to raise
        self._wakeup = wakeup
        self._explain = explain
        self._outage: Outage[_Loss] = Outage(
            log,
            describe=self._describe_outage,
            over="connected to corosync again",
            kind=lambda loss: loss.explanation,
        )
        self._joined_at = float("-inf")  # monotonic
        self._unsynced_since: float | None = time.monotonic()  # None while in sync
        self._events: deque[_Delivered | _Changed] = deque()
        self._batch: list[Deliver] = []  # changes delivered by the state machine, not applied yet
        self._tick_at = 0.0  # monotonic second of the next check of the deadlines
        self._executors: dict[type, Callable[[Any], None]] = {
            Send: self._send_later,
            SendState: self._send_state,
            Enter: self._enter,
            Leave: self._leave,
            Quit: self._quit,
            Log: self._write_log,
        }

    def _now(self) -> Moment:
        return Moment(self._clock.wall(), self._clock.monotonic())

    # For other threads.

    @property
    def sent_bytes(self) -> int:
        """Bytes that this node has sent to the group since it was started."""
        return self._sender.sent_bytes

    @property
    def mode(self) -> Mode:
        """The mode of the state machine."""
        return self.dfsm.mode

    @property
    def seconds_out_of_sync(self) -> float:
        """Seconds since the state machine was SYNCED last; 0 if it is."""
        since = self._unsynced_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def corosync_error(self) -> str:
        """Why there is no connection to corosync; empty if there is one, or none was tried."""
        loss = self._outage.cause
        return str(loss.error) if loss else ""

    @property
    def members(self) -> Sequence[Member]:
        """The members of the group that this node knows of."""
        return self.dfsm.members

    def set_deadlines(self, deadlines: Deadlines) -> None:
        """Use other *deadlines* from now on. For tests."""
        self.dfsm.deadlines = deadlines
        self._tick_at = 0.0
        self.wake()

    def wake(self) -> None:
        """Have the group's thread look at the source again. Never blocks; for any thread."""
        self._wakeup.set()

    def dispatch_until(self, awaited: Awaited, seconds: float, watch: RequestWatch) -> None:
        """Own the group until *awaited* is done or *seconds* are over, if its thread sleeps.

        Blocks, and sends and dispatches meanwhile. Stops the *watch* when the kernel sends a
        request. May return earlier, even at once; the group's thread then does the work. The caller
        must not hold the tree's lock.
        """
        if not self.ownership.acquire(blocking=False):
            self.wake()
            return
        try:
            is_finished = self._dispatch_until(awaited, time.monotonic() + seconds, watch)
        finally:
            self.ownership.release()
        if not is_finished:
            self.wake()

    # The handle's life.

    def run(self) -> None:
        """Join the group, and join again after each loss of the membership, until ``stop``."""
        while not self.is_stopping:
            try:
                self._be_member()
            except _Leaving as left:
                if left.for_good:
                    return
            except ClusterError as error:
                self._outage.fails(_Loss(error, self._explain()))
            except Exception:  # noqa: BLE001, as a bug must not end the membership
                self._log.exception("the group's thread failed, which is a bug")
            wait = self._joined_at + self.dfsm.deadlines.rejoin - time.monotonic()
            self._rest(max(wait, 0.0))

    def _rest(self, seconds: float) -> None:
        """Wait *seconds* between a leave and the next join; a subclass can wait for longer."""
        self.pause(seconds)

    def _be_member(self) -> None:
        """Join the group and serve it until the membership ends. Raises _Leaving, ClusterError."""
        self._joined_at = time.monotonic()
        with contextlib.closing(self._connect(self)) as handle, self._membership():
            handle.connect()
            self.dfsm.join(Member(handle.local_nodeid(), os.getpid()))
            self._join(handle)
            try:
                self._serve(handle)
            except _Leaving:
                self._leave_group(handle, LEAVE_TIMEOUT)
                raise
            self._leave_group(handle, STOP_TIMEOUT)

    def _join(self, handle: Handle) -> None:
        """Join the group; retry as long as corosync is not ready for a join."""
        while not self.is_stopping:
            self._joined_at = time.monotonic()  # connecting may have taken long
            try:
                handle.join(self._group.cpg_name)
            except TryAgain:
                self.pause(JOIN_PAUSE)
            else:
                return

    @contextlib.contextmanager
    def _membership(self) -> Iterator[None]:
        """Clear all state of this membership at its end, also after an exception."""
        try:
            yield
        finally:
            self.dfsm.on_disconnected()
            self._note_mode()
            self._events.clear()
            self._batch.clear()
            self._sender.reset()
            self._content.on_members((), me=self.dfsm.me)
            self._content.on_left()

    def _describe_outage(self, loss: _Loss) -> str:
        again = f"connecting again every {self.dfsm.deadlines.rejoin:.0f} s"
        return "; ".join(filter(None, (str(loss.error), loss.explanation, again)))

    def _leave_group(self, handle: Handle, timeout: float) -> None:
        """Leave, and wait *timeout* seconds for the membership change that confirms it.

        Until that change, the other members count this node as a member.
        """
        deadline = time.monotonic() + timeout
        poll = select.poll()  # select(2) can't have descriptors from 1024 on
        poll.register(handle, select.POLLIN)
        me = self.dfsm.me
        try:
            handle.leave(self._group.cpg_name)
            while not self._has_left(me) and (left := deadline - time.monotonic()) > 0:
                if not handle.dispatch_one():
                    poll.poll(left * 1000)
        except ClusterError as error:
            self._log.debug("leaving the group: %s", error)

    def _has_left(self, me: Member) -> bool:
        """Return whether one of the events is a membership without *me*; drop all events."""
        events = list(self._events)
        self._events.clear()
        return any(isinstance(event, _Changed) and me not in event.members for event in events)

    # The loop.

    def _serve(self, handle: Handle) -> None:
        with contextlib.closing(Poller(handle.fileno(), self._wakeup.fileno())) as poller:
            connection = _Connection(handle, poller)
            try:
                while not self.is_stopping:
                    poller.sleep(self._sleep_seconds())
                    with self.ownership:
                        self._connection = None  # in case of an exception
                        self._raise_failure()
                        self._dispatch_and_send(connection)
                        self._connection = connection
            finally:
                with self.ownership:
                    self._connection = None

    def _dispatch_and_send(self, connection: _Connection) -> None:
        """Dispatch and apply pending messages, check the deadlines, and send what is queued."""
        count = self._dispatch(connection.handle)
        if not count:
            connection.poller.listen(0.0)  # consumes a wake-up, which may have ended the sleep
        self._flush()
        if count < MAX_BURST:
            self._tick()
        self._sender.send(connection.handle.mcast)

    # The loop of a request thread that owns the group for a while.

    @property
    def _is_quiet(self) -> bool:
        """Whether a request thread may own the group: it is in sync and has no urgent work."""
        return (
            self.dfsm.is_synced
            and not self.is_stopping
            and not self._sender.is_retrying
            and not self._sender.has_messages
        )

    def _dispatch_until(self, awaited: Awaited, until: float, watch: RequestWatch) -> bool:
        """Dispatch and send in a request thread until *awaited* is done or the second *until*.

        Return False if the group's thread has to go on. *until* is monotonic.
        """
        connection = self._connection
        if connection is None:
            return False
        connection.poller.mute()
        self._watch = watch
        try:
            seconds = 0.0
            while self._dispatch_and_send_briefly(connection, seconds):
                left = until - time.monotonic()
                if awaited.is_done or left <= 0:
                    return True
                seconds = min(left, self._sleep_seconds())
        except Exception as failure:  # noqa: BLE001, as the group's thread raises it again
            self._connection, self._failure = None, failure
        finally:
            self._watch = None
            connection.poller.unmute()
        return False

    def _dispatch_and_send_briefly(self, connection: _Connection, seconds: float) -> bool:
        """Wait for an event for *seconds* at most, then dispatch and send as far as that is brief.

        Return False if the group's thread has to go on.
        """
        if connection.poller.listen(seconds, self._watch):
            self._dispatch_until_echoed(connection.handle)
            self._flush()
        if not self._is_quiet:
            return False
        self._tick()
        self._sender.send(connection.handle.mcast)
        return not (self._sender.is_retrying or self._sender.has_messages)

    def _raise_failure(self) -> None:
        """Raise the exception that ended the ownership of a request thread, if any."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _sleep_seconds(self) -> float:
        """Return the seconds until a deadline or a retry is due without an event."""
        now = time.monotonic()
        until = min(self._tick_at, self._sender.retry_at)
        return max(0.0, until - now)

    def _tick_interval(self) -> float:
        limits = self.dfsm.deadlines
        return min(
            MAX_TICK_INTERVAL,
            limits.verification / 4,
            limits.after_updates,
            limits.updates / 4,
            limits.restarts[0] / 4,
        )

    def _tick(self) -> None:
        if time.monotonic() >= self._tick_at:
            self._tick_at = time.monotonic() + self._tick_interval()
            self._on_tick()

    def _on_tick(self) -> None:
        self._carry_out(self.dfsm.on_tick(self._now()))

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
            if not self.dfsm.is_synced or not handle.dispatch_one():
                return
            self._take_events()
            if not self._sender.in_flight:
                return

    def _take_events(self) -> None:
        while self._events:
            event = self._events.popleft()
            if isinstance(event, _Delivered):
                self._carry_out(self._on_bytes(event.sender, event.data))
            else:
                self._carry_out(self._on_membership(event))

    # Callbacks of libcpg while it dispatches: they only queue the event.

    def on_deliver(self, sender: Member, data: bytes) -> None:
        """Queue a message that was delivered."""
        self._events.append(_Delivered(sender, data))

    def on_confchg(self, members: list[Member], left: list[Member], joined: list[Member]) -> None:
        """Queue a membership change."""
        self._events.append(_Changed(members, joined))

    def _on_bytes(self, sender: Member, data: bytes) -> list[Effect]:
        if sender == self.dfsm.me:
            self._sender.echoed()
        try:
            message = decode(data, group=self._group)
        except OtherProtocol as error:
            return self.dfsm.on_other_protocol(sender, is_newer=error.is_newer)
        except BadMessage as error:
            self.dropped += 1
            text = f"dropped a message of member {sender}: {error}"
            self._log_limit.warn(sender.nodeid, text)
            return []
        return self.dfsm.on_message(sender, message, at=self._now())

    def _on_membership(self, change: _Changed) -> list[Effect]:
        self._flush()
        self._outage.works()
        self._sender.forget_round()
        effects = self.dfsm.on_membership(change.members, joined=change.joined, at=self._now())
        self._content.on_members(self.dfsm.members, me=self.dfsm.me)
        return effects

    # Effects.

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Deliver):
                self._batch.append(effect)
            else:
                self._flush()
                if self._watch is not None:
                    self._watch.stop()  # as the effect may take long, for example a checksum
                self._executors[type(effect)](effect)

    def _flush(self) -> None:
        """Apply the delivered changes together."""
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        if not self._content.deliver(batch):
            self._carry_out(self.dfsm.leave("a change was delivered to a node without quorum"))

    def _write_log(self, effect: Log) -> None:
        if effect.kind:
            self._log_limit.log(effect.level, effect.kind, effect.text)
        else:
            self._log.log(effect.level, "%s", effect.text)

    def _enter(self, effect: Enter) -> None:
        self._log.debug("state machine enters mode %s", effect.mode.value)
        self._note_mode()
        if effect.mode is Mode.SYNCED:
            self._content.on_synced(self.dfsm.agreed)

    def _note_mode(self) -> None:
        """Note since when this node is out of sync."""
        if self.dfsm.is_synced:
            self._unsynced_since = None
        elif self._unsynced_since is None:
            self._unsynced_since = time.monotonic()

    def _send_later(self, effect: Send) -> None:
        self._sender.put(effect.message)

    def _send_state(self, effect: SendState) -> None:
        self._sender.put(State(effect.time, effect.epoch, self._content.state()))

    def _leave(self, effect: Leave) -> None:
        raise _Leaving(for_good=False)

    def _quit(self, effect: Quit) -> None:
        raise _Leaving(for_good=True)
