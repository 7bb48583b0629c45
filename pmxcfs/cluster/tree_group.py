"""The tree's group: what its messages do here, and how changes of this node get into it.

``TreeContent`` applies what is delivered, ``TreeSource`` hands out what the outbox holds, and the
two share the proposals that were sent and not delivered yet.

Threads: everything here is called by the one that acts for the group. It takes the tree's lock for
what others see, and holds it during no call of libcpg. In a cluster nothing else changes what is
published, so it reads that without the lock: hashing a large tree holds up nobody.
Contract: docs/spec/cluster.md, "Delivery to the tree", "A mutation must not block forever".
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import NamedTuple, Protocol

from pmxcfs._cpg import Cpg
from pmxcfs.cluster.group import Connect, Content, GroupThread
from pmxcfs.cluster.sender import Clock, Source
from pmxcfs.dfsm.effects import Commit, Deliver, SendUpdates, TakeChecksum
from pmxcfs.errors import Busy, Failed, NoQuorum, PmxcfsError
from pmxcfs.messages import (
    Body,
    Group,
    LogEntry,
    Member,
    Normal,
    Record,
    SetKey,
    Unlock,
    UnlockRequest,
    Update,
    UpdateComplete,
)
from pmxcfs.replica.outbox import Outbox, Proposal
from pmxcfs.replica.replica import Replica
from pmxcfs.replica.tickets import Ticket
from pmxcfs.tree.index import records_needed

_log = logging.getLogger("pmxcfs.dcdb")


class Quorum(Protocol):
    """Whether this node sees a majority."""

    def refresh(self) -> bool:
        """Look at what waits to be told, and tell."""


class Proposals:
    """What this node sent and has not seen delivered, by serial."""

    def __init__(self) -> None:
        self._sent: dict[int, Proposal] = {}

    def add(self, serial: int, proposal: Proposal) -> None:
        """*proposal* was sent as the message *serial*, or a part of it was."""
        self._sent[serial] = proposal

    def pop(self, serial: int) -> Proposal | None:
        """Return whose message *serial* is; it was delivered."""
        return self._sent.pop(serial, None)

    def take_all(self) -> list[Proposal]:
        """Return all, which will not be delivered, as far as anybody knows."""
        sent, self._sent = self._sent, {}
        return list(dict.fromkeys(sent.values()))


class TreeSource:
    """What the outbox holds, as ``cluster.Source``."""

    def __init__(
        self, outbox: Outbox, proposals: Proposals, *, lock: AbstractContextManager[object]
    ) -> None:
        self._outbox = outbox
        self._proposals = proposals
        self._lock = lock
        self._current: Proposal | None = None

    def take(self, *, now: float) -> Body | None:
        """Return the next message's body."""
        self._current = self._outbox.next(now=now)
        return self._current.unsent[0] if self._current else None

    def sent(self, serial: int) -> None:
        """It is on its way."""
        proposal = self._taken()
        self._proposals.add(serial, proposal)
        self._outbox.sent(proposal)

    def not_sent(self) -> None:
        """It is still the next, unless who waited for it has gone meanwhile."""
        proposal = self._taken()
        if not self._outbox.not_sent(proposal):
            self._finish(proposal, Busy("corosync takes no messages, nothing was changed"))

    def refused(self, error: PmxcfsError) -> None:
        """Nothing more of it will be sent."""
        proposal = self._taken()
        self._outbox.drop(proposal)
        if proposal.is_partly_sent:
            error = Failed(f"only a part of it was sent: {error}")
        self._finish(proposal, error)

    def _finish(self, proposal: Proposal, error: PmxcfsError) -> None:
        with self._lock:
            if not proposal.ticket.is_done:
                proposal.ticket.finish(error)

    def _taken(self) -> Proposal:
        proposal, self._current = self._current, None
        assert proposal is not None, "what is sent was taken before"
        return proposal


class _Arrival(NamedTuple):
    """A mutation to apply, and who waits for it, if that was this node."""

    ticket: Ticket
    proposal: Proposal | None


def _ticket_of(sender: Member, message: Normal, proposal: Proposal | None) -> Ticket:
    assert not isinstance(message.body, UnlockRequest | SetKey | LogEntry), "a mutation"
    return Ticket(
        message.body,
        writer=sender.nodeid,
        mtime=message.time,
        # Who gave up waiting was told nothing of it, and so was the kernel.
        foreign=proposal is None or proposal.ticket.is_done,
    )


class TreeContent:
    """The tree as ``cluster.Replicated``."""

    def __init__(
        self,
        replica: Replica,
        outbox: Outbox,
        proposals: Proposals,
        *,
        lock: AbstractContextManager[object],
        quorum: Quorum,
        lock_has_expired: Callable[[str, bytes], bool],
    ) -> None:
        # Told whenever the tree is the members' common one, with the tree's lock held.
        self.on_common: Callable[[Sequence[Member]], None] = lambda members: None
        self._replica = replica
        self._outbox = outbox
        self._proposals = proposals
        self._lock = lock
        self._quorum = quorum
        self._lock_has_expired = lock_has_expired
        self._me = Member(0, 0)
        self._members: Sequence[Member] = ()

    def state(self) -> bytes:
        """Return the tree's index."""
        return self._replica.state()

    def checksum(self) -> bytes:
        """Return the state checksum."""
        return self._replica.checksum()

    def updates(self, effect: SendUpdates) -> list[Record]:
        """Return every entry that another member lacks or has otherwise, the root included."""
        return self._replica.records_for(records_needed(effect.state, effect.states.values()))

    def commit(self, effect: Commit) -> None:
        """Become the leader's tree."""
        now = int(time.time())
        self._replica.adopt(effect.state, effect.records, now=now, lock=self._lock)

    def on_members(self, members: Sequence[Member], *, me: Member) -> None:
        """Other members are there now."""
        self._me, self._members = me, members
        if members:  # the quorum must be known before the first change, or we have to leave
            self._quorum.refresh()

    def on_synced(self) -> None:
        """The members have the same tree now, or are about to get it."""
        with self._lock:
            self.on_common(self._members)

    def on_left(self) -> None:
        """Whoever waits for what was sent is told that nobody knows what comes of it."""
        error = Failed("the group was left before it was delivered: its outcome is unknown")
        lost = self._proposals.take_all()
        with self._lock:
            for proposal in lost:
                self._outbox.drop(proposal)
                if not proposal.ticket.is_done:
                    _log.warning("a change was sent, and is not known to be delivered")
                    proposal.ticket.finish(error)

    def deliver(self, changes: Sequence[Deliver]) -> bool:
        """Apply mutations, as many as come together in one transaction."""
        if not self._quorum.refresh():
            return False
        with self._lock:
            arriving: list[_Arrival] = []
            for sender, message in changes:
                proposal = self._proposals.pop(message.serial) if sender == self._me else None
                if isinstance(message.body, UnlockRequest):
                    self._deliver(arriving)
                    arriving = []
                    self._on_unlock_request(message.body, proposal)
                else:
                    arriving.append(_Arrival(_ticket_of(sender, message, proposal), proposal))
            self._deliver(arriving)
        return True

    def _deliver(self, arriving: Sequence[_Arrival]) -> None:
        if not arriving:
            return
        self._replica.deliver([ticket for ticket, _ in arriving])
        for ticket, proposal in arriving:
            if proposal is not None:
                proposal.arrived(ticket.change, ticket.error)

    def _on_unlock_request(self, request: UnlockRequest, proposal: Proposal | None) -> None:
        """Remove an expired lock, as the member that decides it by its own clock."""
        if proposal is not None:
            proposal.arrived(None, None)
        is_lowest = self._me == min(self._members, default=None)
        if is_lowest and self._lock_has_expired(request.path, request.checksum):
            unlock = Unlock(request.path, request.checksum)
            with suppress(NoQuorum):  # then whoever wants the lock asks again
                self._outbox.put(Proposal(Ticket(unlock), [unlock]))


class Replicated(Content, Protocol):
    """A content of which one member's copy wins."""

    def updates(self, effect: SendUpdates) -> Sequence[Record]:
        """Return the records that the other members need."""

    def commit(self, effect: Commit) -> None:
        """Become what the leader has. Raises PmxcfsError; nothing has changed then."""

    def checksum(self) -> bytes:
        """Return the checksum that verifications compare (32 bytes)."""


class TreeGroup(GroupThread):
    """This node in the group of the tree."""

    def __init__(
        self,
        content: Replicated,
        source: Source,
        *,
        connect: Connect = Cpg,
        clock: Clock | None = None,
    ) -> None:
        log = logging.getLogger("pmxcfs.dcdb")
        super().__init__(Group.TREE, content, source, log=log, connect=connect, clock=clock)
        self._tree = content
        self._executors |= {
            SendUpdates: self._send_updates,
            Commit: self._commit,
            TakeChecksum: self._take_checksum,
        }

    def _send_updates(self, effect: SendUpdates) -> None:
        for record in self._tree.updates(effect):
            self._sender.put(Update(effect.time, effect.epoch, record))
        self._sender.put(UpdateComplete(effect.time, effect.epoch))

    def _commit(self, effect: Commit) -> None:
        try:
            self._tree.commit(effect)
        except PmxcfsError as error:
            self._log.error("the tree of member %s was not taken: %s", effect.leader, error)
            self._carry_out(self.dfsm.on_committed(ok=False))
        else:
            self._carry_out(self.dfsm.on_committed(ok=True))

    def _take_checksum(self, effect: TakeChecksum) -> None:
        self._carry_out(self.dfsm.on_checksum(self._tree.checksum(), at=self._clock()))
