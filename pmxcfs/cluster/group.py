"""One process group of corosync's: the thread that owns its handle and does what ``Dfsm`` wants.

``GroupThread`` connects, joins, dispatches, sends and reconnects; it decides nothing. What a
message is about is left to a ``Content``, what this node wants to send comes from a ``Source``;
there is one of each for the tree's group and for the status group, and the two groups share
nothing, so the one never holds up the other.

libcpg blocks for as long as corosync is stopped, in any call. So the thread owns nothing that
others wait for: they leave messages in a ``Source`` and have deadlines of their own.

Changes that are delivered together reach the Content together, and share a transaction there.

Threads: one per group, a daemon thread, so that a corosync that hangs does not delay the end of the
process. ``wake``, ``dispatch_until``, ``stop_soon`` and ``close`` may be called from any thread. A
group's handle and state machine have one owner at a time, normally the group's thread. A request
thread that waits for its own change takes ownership while that thread sleeps, sends the change and
dispatches until it is delivered; that saves two thread switches a change. It goes on only while
this node is in sync; work that can take long is left to the group's thread. The ownership lock
comes before all other locks, the tree's included, and request threads take it only if it is free.
Contract: docs/spec/cluster.md.
"""

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from pmxcfs.host.outage import Outage
from pmxcfs.host.threads import STOP_TIMEOUT, BackgroundThread
from pmxcfs.messages import Group, Member, State
from pmxcfs.replica.waiting import RequestWatch

BURST = 256  # messages that are dispatched at most before something is sent, or a tick comes
# Messages that may be on their way where another thread sends one more: libcpg blocks once
# corosync, stopped, has left some 280 unread.
MANY_IN_FLIGHT = 64
TICK = 1.0  # seconds between two looks at the deadlines, at most
JOIN_PAUSE = 0.1  # seconds until a join is tried again that corosync was not ready for
LEAVE_TIMEOUT = 5.0  # seconds for the others to see us leave


class Content(Protocol):
    """What a group is about. All of it is called in turn, and without the tree's lock."""

    def state(self) -> bytes:
        """Return the payload of a STATE message."""

    def deliver(self, changes: Sequence[Deliver]) -> bool:
        """Apply changes in order; False if that may not be, because there is no quorum."""

    def on_members(self, members: Sequence[Member], *, me: Member) -> None:
        """The group has these members now, and we are *me*; none: we are in no group."""

    def on_synced(self) -> None:
        """From here on changes are delivered as they come."""

    def on_left(self) -> None:
        """What was sent and not delivered is lost, for all that we can know."""


class Handle(Protocol):
    """One connection to corosync's process groups, as ``_cpg.Cpg`` is."""

    def connect(self) -> None: ...
    def local_nodeid(self) -> int: ...
    def join(self, name: str) -> None: ...
    def leave(self, name: str) -> None: ...
    def mcast(self, data: bytes) -> None: ...
    def dispatch_one(self) -> bool: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


Connect = Callable[["GroupThread"], Handle]  # given who is called while it dispatches


class _Delivered(NamedTuple):
    """A message that was dispatched and not looked at yet."""

    sender: Member
    data: bytes


class _Changed(NamedTuple):
    """A membership that was dispatched and not looked at yet."""

    members: list[Member]
    joined: list[Member]


class Awaited(Protocol):
    """What a thread waits for."""

    is_done: bool


class _Line(NamedTuple):
    """A connection that is joined to the group."""

    handle: Handle
    poller: Poller


class _Leaving(Exception):
    """We are leaving the group; *for_good* until this node is updated."""

    def __init__(self, *, for_good: bool) -> None:
        super().__init__(for_good)
        self.for_good = for_good


class GroupThread(BackgroundThread):
    """This node's membership in one group; a subclass knows what only its group has."""

    def __init__(
        self,
        group: Group,
        content: Content,
        source: Source,
        *,
        log: logging.Logger,
        connect: Connect = Cpg,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(group.cpg_name)
        self.dfsm = Dfsm(group)
        self.dropped = 0  # messages of peers that were none
        self._group = group
        self._content = content
        self._clock = clock or now
        self._sender = Sender(group, self.dfsm, source, clock=self._clock)
        self._connect = connect
        self._log = log
        self.ownership = threading.Lock()  # held by the thread that acts for the group
        self._line: _Line | None = None  # for others to act through; None: they can't
        self._watch: RequestWatch | None = None  # of the one that does
        self._failure: Exception | None = None  # theirs, for the group's thread to cope with
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._outage: Outage[ClusterError] = Outage(
            log, describe=self._describe_outage, over="connected to corosync again"
        )
        self._joined_at = float("-inf")  # monotonic
        self._events: deque[_Delivered | _Changed] = deque()
        self._batch: list[Deliver] = []  # delivered, not applied
        self._tick_at = 0.0  # monotonic
        self._executors: dict[type, Callable[[Any], None]] = {
            Send: self._send_later,
            SendState: self._send_state,
            Enter: self._enter,
            Leave: self._leave,
            Quit: self._quit,
            Log: self._tell,
        }

    def __del__(self) -> None:
        # Not before: the thread, and whoever wakes it, may use the descriptor until nobody can.
        os.close(self._wakeup)

    # For other threads.

    @property
    def sent_bytes(self) -> int:
        """What this node has sent to the group since it was started."""
        return self._sender.sent_bytes

    @property
    def mode(self) -> Mode:
        """Where this node stands in the group."""
        return self.dfsm.mode

    @property
    def members(self) -> Sequence[Member]:
        """Who is in the group, as far as this node knows."""
        return self.dfsm.members

    def set_deadlines(self, deadlines: Deadlines) -> None:
        """Use other deadlines from now on: for tests."""
        self.dfsm.deadlines = deadlines
        self._tick_at = 0.0
        self.wake()

    def wake(self) -> None:
        """Look at the source again. Never blocks; for any thread."""
        os.eventfd_write(self._wakeup, 1)

    def dispatch_until(self, awaited: Awaited, seconds: float, watch: RequestWatch) -> None:
        """Act for the group until *awaited* is done or *seconds* are over, if its thread sleeps.

        Stops the *watch* when a request comes. May return sooner, and at once; the thread then goes
        on. Not with the tree's lock held.
        """
        if not self.ownership.acquire(blocking=False):
            self.wake()
            return
        try:
            is_settled = self._act_until(awaited, time.monotonic() + seconds, watch)
        finally:
            self.ownership.release()
        if not is_settled:
            self.wake()

    # The handle's life.

    def run(self) -> None:
        """Be a member of the group, again and again."""
        while not self.is_stopping:
            try:
                self._be_member()
            except _Leaving as left:
                if left.for_good:
                    return
            except ClusterError as error:
                self._outage.fails(error)
            except Exception:  # noqa: BLE001, as a bug must not end the membership
                self._log.exception("the group's thread failed, which is a bug")
            wait = self._joined_at + self.dfsm.deadlines.rejoin - time.monotonic()
            self.pause(max(wait, 0.0))

    def _be_member(self) -> None:
        """Join and stay until something ends it."""
        self._joined_at = time.monotonic()
        with contextlib.closing(self._connect(self)) as handle, self._membership():
            handle.connect()
            self.dfsm.join(Member(handle.local_nodeid(), os.getpid()))
            self._join(handle)
            try:
                self._serve(handle)
            except _Leaving:
                self._part(handle, LEAVE_TIMEOUT)
                raise
            self._part(handle, STOP_TIMEOUT)

    def _join(self, handle: Handle) -> None:
        """Join, as soon as corosync has made out who is there."""
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
        """Whatever happens: nothing of this membership is left for the next one."""
        try:
            yield
        finally:
            self.dfsm.on_disconnected()
            self._events.clear()
            self._batch.clear()
            self._sender.reset()
            self._content.on_members((), me=self.dfsm.me)
            self._content.on_left()

    def _describe_outage(self, error: ClusterError) -> str:
        return f"{error}; connecting again every {self.dfsm.deadlines.rejoin:.0f} s"

    def _part(self, handle: Handle, timeout: float) -> None:
        """Leave, and see that happen: until then others may take us for a member."""
        deadline = time.monotonic() + timeout
        me = self.dfsm.me
        try:
            handle.leave(self._group.cpg_name)
            while not self._saw_end_of(me) and (left := deadline - time.monotonic()) > 0:
                if not handle.dispatch_one():
                    select.select([handle], [], [], left)
        except ClusterError as error:
            self._log.debug("leaving the group: %s", error)

    def _saw_end_of(self, me: Member) -> bool:
        """Tell whether one of the events is a membership without *me*. All others are void."""
        events = list(self._events)
        self._events.clear()
        return any(isinstance(event, _Changed) and me not in event.members for event in events)

    # The loop.

    def _serve(self, handle: Handle) -> None:
        with contextlib.closing(Poller(handle.fileno(), self._wakeup)) as poller:
            line = _Line(handle, poller)
            try:
                while not self.is_stopping:
                    poller.sleep(self._sleep())
                    with self.ownership:
                        self._line = None  # unless all goes well
                        self._raise_failure()
                        self._act(line)
                        self._line = line
            finally:
                with self.ownership:
                    self._line = None

    def _act(self, line: _Line) -> None:
        """Take what the group says by now, and send what there is to be sent."""
        count = self._dispatch(line.handle)
        if not count:
            line.poller.listen(0.0)  # a wake-up is settled by that, which a message need not be
        self._flush()
        if count < BURST:
            self._tick()
        self._sender.send(line.handle.mcast)

    # The same in another thread.

    @property
    def _is_quiet(self) -> bool:
        """Tell whether there is nothing to do that another thread should not do."""
        return (
            self.dfsm.is_synced
            and not self.is_stopping
            and not self._sender.is_retrying
            and self._sender.in_flight < MANY_IN_FLIGHT
        )

    def _act_until(self, awaited: Awaited, until: float, watch: RequestWatch) -> bool:
        """Act as ``dispatch_until`` says; return whether the thread has nothing left to do."""
        line = self._line
        if line is None:
            return False
        line.poller.mute()
        self._watch = watch
        try:
            seconds = 0.0
            while self._act_quietly(line, seconds):
                left = until - time.monotonic()
                if awaited.is_done or left <= 0:
                    return True
                seconds = min(left, self._sleep())
        except Exception as failure:  # noqa: BLE001, as the group's thread copes with all of them
            self._line, self._failure = None, failure
        finally:
            self._watch = None
            line.poller.unmute()
        return False

    def _act_quietly(self, line: _Line, seconds: float) -> bool:
        """Do what ``_act`` does, after some *seconds* at most; return whether all is quiet."""
        if line.poller.listen(seconds, self._watch):
            self._dispatch_quietly(line.handle)
            self._flush()
        if not self._is_quiet:
            return False
        self._tick()
        self._sender.send(line.handle.mcast)
        return not self._sender.is_retrying

    def _raise_failure(self) -> None:
        """Raise what went wrong there."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _sleep(self) -> float:
        """Return the seconds until something is to be done without being woken."""
        now = time.monotonic()
        until = min(self._tick_at, self._sender.retry_at)
        return max(0.0, until - now)

    def _tick_interval(self) -> float:
        limits = self.dfsm.deadlines
        return min(TICK, limits.verification / 4, limits.updates / 4, limits.restarts[0] / 4)

    def _tick(self) -> None:
        if time.monotonic() >= self._tick_at:
            at = self._clock()
            self._tick_at = at.monotonic + self._tick_interval()
            self._carry_out(self.dfsm.on_tick(at))

    def _dispatch(self, handle: Handle) -> int:
        """Look at what the group says, a burst at most; return how many events that was."""
        count = 0
        while count < BURST and handle.dispatch_one():
            count += 1
            self._take_events()
        return count

    def _dispatch_quietly(self, handle: Handle) -> None:
        """Do the same while this node is in sync, and until no message of its own is awaited."""
        for _ in range(BURST):
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

    # What libcpg calls, while it dispatches: only to note it.

    def on_deliver(self, sender: Member, data: bytes) -> None:
        """A message was delivered."""
        self._events.append(_Delivered(sender, data))

    def on_confchg(self, members: list[Member], left: list[Member], joined: list[Member]) -> None:
        """The group has other members from here on."""
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
            self._log.warning("dropped a message of member %s: %s", sender, error)
            return []
        return self.dfsm.on_message(sender, message, at=self._clock())

    def _on_membership(self, change: _Changed) -> list[Effect]:
        self._flush()
        self._outage.works()
        self._sender.forget_round()
        effects = self.dfsm.on_membership(change.members, joined=change.joined, at=self._clock())
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
                    self._watch.stop()  # it may take long, such as a checksum
                self._executors[type(effect)](effect)

    def _flush(self) -> None:
        """Apply what was delivered, together."""
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        if not self._content.deliver(batch):
            self._carry_out(self.dfsm.leave("a change was delivered to a node without quorum"))

    def _tell(self, effect: Log) -> None:
        self._log.log(effect.level, "%s", effect.text)

    def _enter(self, effect: Enter) -> None:
        self._log.debug("mode %s", effect.mode.value)
        if effect.mode is Mode.SYNCED:
            self._content.on_synced()

    def _send_later(self, effect: Send) -> None:
        self._sender.put(effect.message)

    def _send_state(self, effect: SendState) -> None:
        self._sender.put(State(effect.time, effect.epoch, self._content.state()))

    def _leave(self, effect: Leave) -> None:
        raise _Leaving(for_good=False)

    def _quit(self, effect: Quit) -> None:
        raise _Leaving(for_good=True)


def now() -> Moment:
    """Return the present time by both clocks."""
    return Moment(int(time.time()), time.monotonic())
