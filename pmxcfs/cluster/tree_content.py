"""Delivery of mutations to the tree, and the tree as the state of its group.

Threads: only the owner of the group calls ``TreeContent``. It takes the tree's lock for changes
that other threads can see, and never holds it during a call of libcpg. In a cluster, only the owner
changes the published tree. So it reads that without the lock, and no thread waits while it hashes a
large tree.

Contract: docs/spec/cluster.md, "Delivery to the tree".
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

from pmxcfs.cluster.loop import Delivery
from pmxcfs.cluster.tree_source import Proposals
from pmxcfs.dfsm.effects import Commit, SendUpdates
from pmxcfs.errors import Failed, NoQuorum
from pmxcfs.host.clock import seconds
from pmxcfs.messages import Member, Normal, Record, Unlock, UnlockRequest
from pmxcfs.replica.outbox import Outbox, Proposal
from pmxcfs.replica.replica import Replica
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage.incomplete import Incomplete
from pmxcfs.tree.index import below_all, records_needed

_log = logging.getLogger("pmxcfs.dcdb")


class Quorum(Protocol):
    """The source of this node's quorum state."""

    def refresh(self) -> bool:
        """Dispatch pending events and return whether this node has quorum."""


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
        self._me = Member(0, 0)
        self._members: Sequence[Member] = ()

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

    def updates(self, effect: SendUpdates) -> list[Record]:
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

    def on_members(self, members: Sequence[Member], *, me: Member) -> None:
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

    def on_synced(self, agreed: Collection[Member]) -> None:
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

    def deliver(self, changes: Sequence[Delivery]) -> bool:
        """Apply *changes* in as few transactions as possible; return False without quorum."""
        if not self._quorum.refresh():
            return False
        with self._lock:
            tickets: list[Ticket] = []
            proposals: list[Proposal | None] = []
            for sender, message in changes:
                body = message.body
                proposal = self._take_own(message.serial) if sender == self._me else None
                if isinstance(body, UnlockRequest):
                    self._deliver(tickets, proposals)
                    tickets, proposals = [], []
                    self._on_unlock_request(body, proposal)
                else:
                    tickets.append(_ticket_of(sender, message, proposal))
                    proposals.append(proposal)
            self._deliver(tickets, proposals)
        return True

    def _take_own(self, serial: int) -> Proposal | None:
        """Return the proposal of this node's delivered message *serial*."""
        proposal = self._proposals.pop(serial)
        if proposal is not None:
            self._outbox.progress.came_back(proposal)
        return proposal

    def _deliver(self, tickets: list[Ticket], proposals: list[Proposal | None]) -> None:
        """Apply *tickets*, each with its proposal in *proposals*; None: of another node."""
        if not tickets:
            return
        self._replica.deliver(tickets)
        for ticket, proposal in zip(tickets, proposals, strict=True):
            if proposal is not None:
                proposal.arrived(ticket.change, ticket.error)

    def _on_unlock_request(self, request: UnlockRequest, proposal: Proposal | None) -> None:
        """Send an UNLOCK if this is the lowest member and the lock has expired by its clock."""
        if proposal is not None:
            proposal.arrived(None, None)
        is_lowest = self._me == min(self._members, default=None)
        if is_lowest and self._lock_has_expired(request.path, request.checksum):
            unlock = Unlock(request.path, request.checksum)
            with suppress(NoQuorum):  # the node that wants the lock requests it again
                self._outbox.put(Proposal(Ticket(unlock), [unlock]))


def _ticket_of(sender: Member, message: Normal, proposal: Proposal | None) -> Ticket:
    """Return the ticket of the mutation in *message*; *proposal* is this node's that sent it."""
    body: Any = message.body  # a Mutation, as messages of the status group do not come here
    if proposal is None:
        return Ticket(body, writer=sender.nodeid, mtime=message.time, foreign=True)
    asked = proposal.ticket
    return Ticket(
        body,
        writer=sender.nodeid,
        mtime=message.time,
        # A caller that gave up waiting got an error, so the kernel does not know of the change.
        foreign=asked.is_done,
        caller=asked.caller,
        made=asked.made,
    )
