"""The queue of this node's proposals, which the owner of the group sends in order.

A ``Proposal`` is one change: its ticket and the messages to send for it. Its caller can withdraw it
until its first message is sent. After that it ends by its delivery, by the loss of the group, or
when the caller gives it up.

Nothing is queued or sent without quorum: ``queue`` and ``next`` check it, so no change can be
sent while the quorum is being lost. While a change in flight is overdue (``progress``), no other
one is sent.

Threads: any thread may use the outbox; no method blocks. Tickets are finished with the tree's lock
held. Contract: docs/spec/cluster.md, "A mutation must not block forever".
"""

from collections.abc import Callable, Sequence

from pmxcfs.errors import Failed, NoQuorum, PmxcfsError
from pmxcfs.host.locking import Lock
from pmxcfs.messages import Mutation, UnlockRequest
from pmxcfs.replica.progress import Progress
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.replica.tickets import Ticket
from pmxcfs.tree.apply import Change

Sendable = Mutation | UnlockRequest


class Proposal:
    """A ticket and its messages, which are sent one directly after the other."""

    def __init__(self, ticket: Ticket, bodies: Sequence[Sendable]) -> None:
        self.ticket = ticket
        self.unsent = list(bodies)
        self.is_partly_sent = False  # whether at least one message was sent
        self.sent_at = 0.0  # monotonic seconds when the first message was sent; 0 if none was
        # Why it was to be withdrawn, once it was: it ends with that unless something was sent.
        self.refusal: PmxcfsError | None = None
        self._part = 0  # the number of messages that were delivered
        self._count = len(self.unsent)

    def arrived(self, change: Change | None, error: PmxcfsError | None) -> None:
        """Record the delivery of one message and its result. Needs the tree's lock.

        The ticket gets the first error, or the change of the last message.
        """
        ticket = self.ticket
        error = ticket.judge(error, self._part)
        if ticket.error is None:
            ticket.error = error
        ticket.change = change
        self._part += 1
        if self._part == self._count:
            ticket.finish()


class Outbox:
    """The queue of proposals, in the order of sending."""

    def __init__(self, quorum: QuorumFlag, *, wake: Callable[[], None]) -> None:
        self.is_held = False  # set by tests: nothing is sent
        self.wake = wake  # lets the group's thread check the outbox; never blocks
        self.progress = Progress()  # of what was sent
        self._quorum = quorum
        self._lock = Lock()  # for what follows; a with statement would cost more than the rest
        self._proposals: list[Proposal] = []

    def put(self, proposal: Proposal) -> None:
        """Queue *proposal* and wake the thread that sends it. Raises NoQuorum."""
        self.queue(proposal)
        self.wake()

    def queue(self, proposal: Proposal) -> None:
        """Queue *proposal* without waking the group's thread.

        Raises NoQuorum, or the error with which it was withdrawn before.
        """
        self._lock.acquire()
        try:
            if proposal.refusal is not None:
                raise proposal.refusal
            if not self._quorum.is_quorate:
                raise NoQuorum("no quorum: the file system is read-only")
            self._proposals.append(proposal)
        finally:
            self._lock.release()

    def withdraw(self, proposal: Proposal, error: PmxcfsError) -> bool:
        """Withdraw *proposal*; tell whether it was queued, and nothing of it sent.

        If its first message is just being sent and that fails, ``not_sent`` withdraws it; if it is
        queued later, ``queue`` raises *error*.
        """
        with self._lock:
            proposal.refusal = error
            return not proposal.sent_at and self._remove(proposal)

    def next(self, now: float) -> Proposal | None:
        """Return the proposal whose next message is to be sent now; None if none may be sent.

        *now* is monotonic, in seconds. Only the owner of the group calls this, and then ``sent`` or
        ``not_sent``.
        """
        if not self._proposals:
            return None  # without the lock: a thread that queues wakes the owner or becomes it
        self._lock.acquire()
        try:
            if not self._proposals or self.is_held or not self._quorum.is_quorate:
                return None
            proposal = self._proposals[0]
            if not proposal.is_partly_sent and self.progress.is_overdue(now):
                return None
            if not proposal.sent_at:
                proposal.sent_at = now
            return proposal
        finally:
            self._lock.release()

    def not_sent(self, proposal: Proposal) -> bool:
        """Record that corosync did not take the message; tell whether to send it again."""
        with self._lock:
            if proposal.is_partly_sent:
                return proposal in self._proposals
            proposal.sent_at = 0.0
            if proposal.refusal is not None:
                self._remove(proposal)
            return proposal in self._proposals

    def sent(self, proposal: Proposal) -> None:
        """Record that the next message of *proposal* was sent."""
        self._lock.acquire()
        try:
            self.progress.sent(proposal, proposal.sent_at)
            proposal.is_partly_sent = True
            del proposal.unsent[0]
            if not proposal.unsent:
                self._remove(proposal)
        finally:
            self._lock.release()

    def drop(self, proposal: Proposal) -> None:
        """Remove *proposal* from the queue: send no further message of it."""
        with self._lock:
            self._remove(proposal)

    def clear(self) -> list[Proposal]:
        """Remove all proposals from the queue; return them in order."""
        with self._lock:
            cleared, self._proposals = self._proposals, []
            return cleared

    def refuse_unsent(self) -> None:
        """Remove all proposals and finish their tickets with an error: the quorum was lost."""
        for proposal in self.clear():
            if proposal.sent_at:
                proposal.ticket.finish(outcome_unknown("the quorum was lost"))
            else:
                proposal.ticket.finish(NoQuorum("the quorum was lost, nothing was changed"))
        self.wake()  # also wakes a request thread that owns the group and waits for one of these

    def may_send(self, now: float) -> bool:
        """Tell whether a change could be sent now (monotonic seconds), as far as is known here."""
        return self._quorum.is_quorate and not self.is_held and self.progress.is_moving(now)

    def hold(self, *, on: bool) -> None:
        """Stop sending (*on*), or send again. For tests."""
        self.is_held = on
        self.wake()

    def _remove(self, proposal: Proposal) -> bool:
        """Remove *proposal* from the queue; tell whether it was there. Needs self._lock."""
        if proposal not in self._proposals:
            return False
        self._proposals.remove(proposal)
        return True


def outcome_unknown(reason: str) -> Failed:
    """Return the error for a change that was sent and whose delivery is not known."""
    return Failed(f"{reason} after the change was sent: its outcome is unknown")
