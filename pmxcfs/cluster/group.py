"""A thread that is this node's member of one corosync process group and runs its state machine.

``GroupThread`` connects, joins, leaves and reconnects, and its ``GroupLoop`` dispatches and sends;
``Dfsm`` decides. A ``Content`` applies the delivered changes, and a ``Source`` holds the changes
that this node wants to send. The tree's group and the status group have a thread, a Content and a
Source each, so neither delays the other. They share one lock, held by ``_cpg`` while a handle
connects.

Every call of libcpg can block for as long as corosync is stopped. So other threads queue their
changes in the Source, and wait for the group's thread only with a timeout.

Threads: one per group, a daemon thread, so that a corosync that hangs does not delay the end of the
process. Any thread may call ``wake``, ``dispatch_until``, ``stop`` and ``close``. What the loop
calls runs in the owner of the group (see ``loop``).

Contract: docs/spec/cluster.md, "State machine".
"""

import contextlib
import logging
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pmxcfs._cpg import Cpg
from pmxcfs.cluster.loop import Content, GroupLoop, Handle
from pmxcfs.cluster.sender import Clock, Sender, Source
from pmxcfs.dfsm.effects import Effect, Enter, Leave, Log, Mode, Quit, Send, SendState
from pmxcfs.dfsm.machine import Dfsm
from pmxcfs.dfsm.timeouts import Deadlines
from pmxcfs.errors import BadMessage, ClusterError, TryAgain
from pmxcfs.host.locking import Lock
from pmxcfs.host.log_limit import LogLimit
from pmxcfs.host.outage import Outage
from pmxcfs.host.threads import STOP_TIMEOUT, BackgroundThread, Wakeup
from pmxcfs.messages import Group, Member, State

JOIN_PAUSE = 0.1  # seconds until a join is retried for which corosync was not ready
LEAVE_TIMEOUT = 5.0  # seconds to wait for the membership change that confirms a leave


Connect = Callable[[GroupLoop], Handle]  # its argument gets the dispatched events


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
        self._loop = GroupLoop(
            group,
            self.dfsm,
            content,
            self._sender,
            self,
            clock=self._clock,
            wakeup=wakeup,
            is_stopping=self._stop.is_set,
        )
        # For a request thread: sends and dispatches until its change is delivered. Blocks.
        self.dispatch_until = self._loop.dispatch_until
        self._connect = connect
        self._log = log
        self._log_limit = LogLimit(log)  # of what other members can cause at will
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
        self._executors: dict[type, Callable[[Any], None]] = {
            Send: self._send_later,
            SendState: self._send_state,
            Enter: self._enter,
            Leave: self._leave,
            Quit: self._quit,
            Log: self._write_log,
        }

    # For other threads.

    @property
    def ownership(self) -> Lock:
        """The lock that the owner of the group holds."""
        return self._loop.ownership

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
        self._loop.tick_soon()
        self.wake()

    def wake(self) -> None:
        """Have the group's thread look at the source again. Never blocks; for any thread."""
        self._wakeup.set()

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
        with contextlib.closing(self._connect(self._loop)) as handle, self._membership():
            handle.connect()
            self.dfsm.join(Member(handle.local_nodeid(), os.getpid()))
            self._join(handle)
            try:
                self._loop.serve(handle)
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
            self._loop.clear()
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
            while not self._loop.has_left(me) and (left := deadline - time.monotonic()) > 0:
                if not handle.dispatch_one():
                    poll.poll(left * 1000)
        except ClusterError as error:
            self._log.debug("leaving the group: %s", error)

    # What the loop leaves to others.

    def execute(self, effect: Effect) -> None:
        """Execute *effect*, which is not a delivery. Can take long."""
        self._executors[type(effect)](effect)

    def on_members(self, members: Sequence[Member], joined: Sequence[Member]) -> list[Effect]:
        """Handle a membership change; *joined* are the new ones of *members*."""
        self._outage.works()
        self._sender.forget_round()
        effects = self.dfsm.on_membership(members, joined=joined, at=self._loop.now())
        self._content.on_members(self.dfsm.members, me=self.dfsm.me)
        return effects

    def on_undecodable(self, sender: Member, error: BadMessage) -> None:
        """Count a message of *sender* that was dropped because of *error*, and log it."""
        self.dropped += 1
        text = f"dropped a message of member {sender}: {error}"
        self._log_limit.warn(sender.nodeid, text)

    def on_tick(self) -> None:
        """Check the deadlines of the state machine."""
        self._loop.carry_out(self.dfsm.on_tick(self._loop.now()))

    # Effects.

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
