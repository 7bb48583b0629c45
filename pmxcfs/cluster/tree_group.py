"""The tree's group: delivery of mutations to the tree, and sending of this node's proposals.

``TreeContent`` applies delivered mutations. ``TreeSource`` hands out the proposals of the outbox.
The two share ``Proposals``: those that were sent and are not delivered yet.

Threads: only the owner of the group calls these classes. They take the tree's lock for changes that
other threads can see, and never hold it during a call of libcpg. In a cluster, only the owner
changes the published tree. So it reads that without the lock, and no thread waits while it hashes a
large tree.

Contract: docs/spec/cluster.md, "Delivery to the tree" and "A mutation must not block forever".
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, suppress
from typing import NamedTuple, Protocol

from pmxcfs import messages
from pmxcfs._cpg import Cpg
from pmxcfs.cluster.group import Connect, Content, GroupThread
from pmxcfs.cluster.sender import Clock, Source
from pmxcfs.dfsm.effects import Commit, Deliver, Enter, Log, Mode, SendUpdates, TakeChecksum
from pmxcfs.errors import Busy, Failed, NoCopy, NoQuorum, PmxcfsError
from pmxcfs.host.callers import UNKNOWN
from pmxcfs.host.clock import seconds
from pmxcfs.host.outage import Outage
from pmxcfs.host.threads import Wakeup
from pmxcfs.replica.outbox import Outbox, Proposal
from pmxcfs.replica.replica import Replica
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage.incomplete import Incomplete
from pmxcfs.tree.index import below_all, records_needed

_log = logging.getLogger("pmxcfs.dcdb")

# Seconds out of the group after the first and after a later failure to copy this node's changes;
# the wait doubles each time. It ends as soon as an attempt to store a copy succeeds.
FIRST_COPY_WAIT, LONGEST_COPY_WAIT = 5.0, 300.0
TRIAL_INTERVAL = 5.0  # seconds between these attempts


class Quorum(Protocol):
    """The source of this node's quorum state."""

    def refresh(self) -> bool:
        """Dispatch pending events and return whether this node has quorum."""


class Proposals:
    """The proposals that were sent and are not delivered to this node yet, by message number."""

    def __init__(self) -> None:
        self._sent: dict[int, Proposal] = {}

    def add(self, serial: int, proposal: Proposal) -> None:
        """Note that a message of *proposal* was sent with the number *serial*."""
        self._sent[serial] = proposal

    def pop(self, serial: int) -> Proposal | None:
        """Remove and return the proposal of the delivered message *serial*, or None."""
        return self._sent.pop(serial, None)

    def take_all(self) -> list[Proposal]:
        """Remove and return all proposals: the group was left, so their delivery is unknown."""
        sent, self._sent = self._sent, {}
        return list(dict.fromkeys(sent.values()))


class TreeSource:
    """The ``Source`` of the tree's group: the proposals of the outbox."""

    def __init__(
        self, outbox: Outbox, proposals: Proposals, *, lock: AbstractContextManager[object]
    ) -> None:
        self._outbox = outbox
        self._proposals = proposals
        self._lock = lock
        self._current: Proposal | None = None
        self._taken_at = 0.0  # monotonic

    def take(self, *, now: float) -> messages.Body | None:
        """Return the next body to send, or None. *now* is monotonic.

        Proposals to which there is an objection are finished with it. Only the caller, which owns
        the group, changes the tree, so the objections need no lock.
        """
        self._taken_at = now
        while (proposal := self._outbox.next(now=now)) is not None:
            self._current = proposal
            objection = None if proposal.is_partly_sent else proposal.ticket.objection()
            if objection is None:
                return proposal.unsent[0]
            self.refused(objection)
        return None

    def sent(self, serial: int) -> None:
        """Note that the body was sent with the number *serial*."""
        proposal = self._taken()
        self._proposals.add(serial, proposal)
        self._outbox.sent(proposal)

    def not_sent(self) -> None:
        """Keep the proposal as the next one, or finish it if it was withdrawn."""
        proposal = self._taken()
        if not self._outbox.not_sent(proposal):
            refusal = proposal.refusal
            self._finish(proposal, refusal or Busy("corosync accepts no messages"))

    def refused(self, error: PmxcfsError) -> None:
        """Finish the proposal with *error*, or with Failed if a part of it was sent."""
        proposal = self._taken()
        self._outbox.drop(proposal)
        if proposal.is_partly_sent:
            error = Failed(f"only a part of the change was sent: {error}")
        self._finish(proposal, error)

    def _finish(self, proposal: Proposal, error: PmxcfsError) -> None:
        with self._lock:
            if proposal.ticket.is_done:
                return
            proposal.ticket.finish(error)
        if isinstance(error, Busy | Failed):  # else its content is at fault
            self._outbox.progress.failed(error, now=self._taken_at)

    def _taken(self) -> Proposal:
        proposal, self._current = self._current, None
        assert proposal is not None, "the proposal was returned by take"
        return proposal


class _Delivery(NamedTuple):
    """The ticket of a mutation to apply, and the proposal, if this node sent it."""

    ticket: Ticket
    proposal: Proposal | None


def _ticket_of(
    sender: messages.Member, message: messages.Normal, proposal: Proposal | None
) -> Ticket:
    assert not isinstance(
        message.body, messages.UnlockRequest | messages.SetKey | messages.LogEntry
    ), "a mutation"
    return Ticket(
        message.body,
        writer=sender.nodeid,
        mtime=message.time,
        # A caller that gave up waiting got an error, so the kernel does not know of the change.
        foreign=proposal is None or proposal.ticket.is_done,
        caller=UNKNOWN if proposal is None else proposal.ticket.caller,
        made=None if proposal is None else proposal.ticket.made,
    )


class TreeContent:
    """The ``Replicated`` content of the tree's group."""

    def __init__(
        self,
        replica: Replica,
        outbox: Outbox,
        proposals: Proposals,
        *,
        lock: AbstractContextManager[object],
        quorum: Quorum,
        lock_has_expired: Callable[[str, bytes], bool],
        when_synced: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        incomplete: Incomplete | None = None,
    ) -> None:
        self._replica = replica
        self._incomplete = incomplete or Incomplete()  # whether our tree must not lead
        self._must_lead = False  # although it must not, as there is no better one
        self._nodes: frozenset[int] = frozenset()  # of the cluster's configuration
        self._clock = clock
        self._outbox = outbox
        self._proposals = proposals
        self._lock = lock
        self._quorum = quorum
        self._lock_has_expired = lock_has_expired
        self._when_synced = when_synced  # called with the lock held
        self._me = messages.Member(0, 0)
        self._members: Sequence[messages.Member] = ()

    def state(self) -> bytes:
        """Return the tree's index, the payload of a STATE message; as old if it must not lead."""
        state = self._replica.state()
        return below_all(state) if self._is_hidden else state

    @property
    def _is_hidden(self) -> bool:
        return self._incomplete.is_set and not self._must_lead

    def configure(self, nodes: Collection[int]) -> None:
        """Set the nodes of the cluster's configuration."""
        self._nodes = frozenset(nodes)

    def may_lead(self) -> bool:
        """Tell whether other members can adopt the tree that this node has announced.

        If not, it may be announced as it is from the next join on: no member has a better one.
        """
        if not self._is_hidden:
            return True
        self._must_lead = True
        return False

    def checksum(self) -> bytes:
        """Return the state checksum (32 bytes)."""
        return self._replica.checksum()

    def updates(self, effect: SendUpdates) -> list[messages.Record]:
        """Return the record of every entry that is missing or different on another member."""
        return self._replica.records_for(records_needed(effect.state, effect.states.values()))

    def commit(self, effect: Commit) -> None:
        """Adopt the leader's tree. Takes the tree's lock; raises PmxcfsError, unchanged then."""
        self._replica.adopt(
            effect.state,
            effect.records,
            side={member.nodeid for member in effect.agreed},
            now=seconds(),
            lock=self._lock,
        )
        self._incomplete.is_set = False

    def can_keep_copy(self) -> bool:
        """Try whether this node's database could be copied before an adoption. Blocks."""
        return self._replica.can_keep_copy()

    def on_members(self, members: Sequence[messages.Member], *, me: messages.Member) -> None:
        """Note the group's *members*, and this node's own entry *me*. Takes the tree's lock."""
        self._me, self._members = me, members
        nodes = {member.nodeid for member in members}
        with self._lock:
            version = self._replica.tree.version
            self._replica.departures.follow(nodes, me=me.nodeid, version=version, now=self._clock())
            self._replica.save_notes()
        self._outbox.progress.sync_began()
        if members:  # without quorum at the first change, this node would have to leave
            self._quorum.refresh()

    def on_synced(self, agreed: Collection[messages.Member]) -> None:
        """Note that the members *agreed* have our tree; others may still get their UPDATEs."""
        nodes = {member.nodeid for member in agreed}
        with self._lock:
            self._replica.departures.agree(nodes)
            self._replica.departures.remember(self._replica.tree.version, now=self._clock())
            self._replica.save_notes()
            self._when_synced()
        self._outbox.progress.synced()

    def on_tick(self, *, is_common: bool) -> None:
        """Note what other nodes have of the tree; *is_common*: all members have all of it."""
        now = self._clock()
        with self._lock:
            self._replica.departures.remember(self._replica.tree.version, now=now)
            self._replica.departures.settle(is_common=is_common, now=now)
            self._replica.save_notes()
        if self._incomplete.is_set and is_common and self._have_all_joined():
            self._incomplete.is_set = False
            _log.info("all nodes of the cluster have this node's tree, which lacked entries")

    def _have_all_joined(self) -> bool:
        return bool(self._nodes) and self._nodes <= {member.nodeid for member in self._members}

    def on_left(self) -> None:
        """Finish all sent proposals with Failed: their outcome is unknown."""
        error = Failed("the group was left before the change was delivered: its outcome is unknown")
        lost = self._proposals.take_all()
        self._outbox.progress.left()
        with self._lock:
            for proposal in lost:
                self._outbox.drop(proposal)
                if not proposal.ticket.is_done:
                    _log.warning(
                        "a change was sent but is not known to be delivered: the group was left"
                    )
                    proposal.ticket.finish(error)

    def deliver(self, changes: Sequence[Deliver]) -> bool:
        """Apply *changes* in as few transactions as possible; return False without quorum."""
        if not self._quorum.refresh():
            return False
        with self._lock:
            deliveries: list[_Delivery] = []
            for sender, message in changes:
                proposal = self._take_own(message.serial) if sender == self._me else None
                if isinstance(message.body, messages.UnlockRequest):
                    self._deliver(deliveries)
                    deliveries = []
                    self._on_unlock_request(message.body, proposal)
                else:
                    deliveries.append(_Delivery(_ticket_of(sender, message, proposal), proposal))
            self._deliver(deliveries)
        return True

    def _take_own(self, serial: int) -> Proposal | None:
        """Return the proposal of this node's delivered message *serial*."""
        proposal = self._proposals.pop(serial)
        if proposal is not None:
            self._outbox.progress.came_back(proposal)
        return proposal

    def _deliver(self, deliveries: Sequence[_Delivery]) -> None:
        if not deliveries:
            return
        self._replica.deliver([ticket for ticket, _ in deliveries])
        for ticket, proposal in deliveries:
            if proposal is not None:
                proposal.arrived(ticket.change, ticket.error)

    def _on_unlock_request(
        self, request: messages.UnlockRequest, proposal: Proposal | None
    ) -> None:
        """Send an UNLOCK if this is the lowest member and the lock has expired by its clock."""
        if proposal is not None:
            proposal.arrived(None, None)
        is_lowest = self._me == min(self._members, default=None)
        if is_lowest and self._lock_has_expired(request.path, request.checksum):
            unlock = messages.Unlock(request.path, request.checksum)
            with suppress(NoQuorum):  # the node that wants the lock requests it again
                self._outbox.put(Proposal(Ticket(unlock), [unlock]))


class Replicated(Content, Protocol):
    """A group's content of which the leader's copy replaces the other members' copies."""

    def updates(self, effect: SendUpdates) -> Sequence[messages.Record]:
        """Return the records that the other members need to get the leader's copy."""

    def commit(self, effect: Commit) -> None:
        """Adopt the leader's copy. Raises PmxcfsError and changes nothing then.

        NoCopy means that this node's own changes would be lost, and could not be copied.
        """

    def may_lead(self) -> bool:
        """Tell whether other members can adopt the copy that this node has announced."""

    def can_keep_copy(self) -> bool:
        """Try whether this node's changes could be copied now."""

    def checksum(self) -> bytes:
        """Return the checksum (32 bytes) that a verification compares."""

    def on_tick(self, *, is_common: bool) -> None:
        """Note that time has passed; *is_common*: all members have the leader's copy."""


class TreeGroup(GroupThread):
    """This node's membership in the tree's group."""

    def __init__(
        self,
        content: Replicated,
        source: Source,
        *,
        wakeup: Wakeup,
        connect: Connect = Cpg,
        clock: Clock | None = None,
        explain: Callable[[], str] = lambda: "",
    ) -> None:
        log = logging.getLogger("pmxcfs.dcdb")
        super().__init__(
            messages.Group.TREE,
            content,
            source,
            log=log,
            wakeup=wakeup,
            connect=connect,
            clock=clock,
            explain=explain,
        )
        self._tree = content
        self._copying: Outage[NoCopy] = Outage(log, describe=_describe_no_copy)
        self._copy_wait = 0.0  # seconds out of the group after the last failure to copy
        self._executors |= {
            SendUpdates: self._send_updates,
            Commit: self._commit,
            TakeChecksum: self._take_checksum,
        }

    @property
    def copy_error(self) -> str:
        """Why this node's own changes can't be copied, so that it stays out of the group; or ""."""
        return str(self._copying.cause or "")

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + self._copy_wait
        super()._rest(seconds)
        while self._copying.cause is not None and (left := until - time.monotonic()) > 0:
            if self.pause(min(left, TRIAL_INTERVAL)) or self._tree.can_keep_copy():
                return

    def _enter(self, effect: Enter) -> None:
        if effect.mode is Mode.SYNCED:
            self._copying.works()
            self._copy_wait = 0.0
        super()._enter(effect)

    def _on_tick(self) -> None:
        super()._on_tick()
        self._tree.on_tick(is_common=self.dfsm.is_common)

    def _send_updates(self, effect: SendUpdates) -> None:
        if len(effect.states) > 1 and not self._tree.may_lead():
            reason = "no member has a tree with all its entries, so this node's is to lead"
            self._carry_out(self.dfsm.leave(reason))
        for record in self._tree.updates(effect):
            self._sender.put(messages.Update(effect.time, effect.epoch, record))
        self._sender.put(messages.UpdateComplete(effect.time, effect.epoch))

    def _commit(self, effect: Commit) -> None:
        try:
            self._tree.commit(effect)
        except NoCopy as error:
            self._copying.fails(error)
            self._copy_wait = min(2 * self._copy_wait or FIRST_COPY_WAIT, LONGEST_COPY_WAIT)
            effects = self.dfsm.on_committed(ok=False)  # its lines would come every time
            self._carry_out(effect for effect in effects if not isinstance(effect, Log))
        except PmxcfsError as error:
            self._log.error("the tree of member %s could not be adopted: %s", effect.leader, error)
            self._carry_out(self.dfsm.on_committed(ok=False))
        else:
            self._carry_out(self.dfsm.on_committed(ok=True))

    def _take_checksum(self, effect: TakeChecksum) -> None:
        self._carry_out(self.dfsm.on_checksum(self._tree.checksum(), at=self._now()))


def _describe_no_copy(error: NoCopy) -> str:
    return (
        "the cluster's tree would replace changes that only this node has, and they can't be "
        f"copied: {error}; staying out of the cluster until they can"
    )
