"""This node's changes on their way to the cluster: queued, and sent in order by another thread.

A ``Proposal`` is what one caller wants: a ticket, and the messages that carry it. Whoever posts one
can withdraw it for as long as nothing of it was sent; after that only its delivery, the loss of the
group, or that the caller gives it up ends it.

Nothing is queued without quorum: ``put`` and ``next`` look, so a change can't slip in while the
quorum is being lost.

Threads: the outbox is for any thread, and only ``send_and_wait`` blocks. Tickets are finished with
the tree's lock held. Contract: docs/spec/cluster.md, "A mutation must not block forever".
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from pmxcfs.errors import NoQuorum, PmxcfsError
from pmxcfs.messages import Mutation, UnlockRequest
from pmxcfs.replica.tickets import Ticket
from pmxcfs.replica.waiting import RequestWatch
from pmxcfs.tree.apply import Change

Sendable = Mutation | UnlockRequest
DispatchUntil = Callable[[Ticket, float, RequestWatch], None]  # for some seconds at most


class Proposal:
    """One ticket and the messages that carry it, which go out back to back."""

    __slots__ = ("_count", "_outstanding", "is_wanted", "sent_at", "ticket", "unsent")

    def __init__(self, ticket: Ticket, bodies: Sequence[Sendable]) -> None:
        self.ticket = ticket
        self.unsent = deque(bodies)
        self.sent_at = 0.0  # monotonic second of its first sending; 0: nothing was sent
        self.is_wanted = True  # until somebody wanted to withdraw it
        self._count = self._outstanding = len(bodies)

    @property
    def is_partly_sent(self) -> bool:
        """Tell whether a part of it is on its way for certain."""
        return len(self.unsent) < self._count

    def arrived(self, change: Change | None, error: PmxcfsError | None) -> None:
        """One of the messages was delivered, with this result. Needs the tree's lock.

        The ticket tells the first error, or else what the last message changed.
        """
        self._outstanding -= 1
        self.ticket.error = self.ticket.error or error
        self.ticket.change = change
        if not self._outstanding:
            self.ticket.finish()


class Outbox:
    """Proposals in the order in which they are to be sent."""

    def __init__(self, *, is_quorate: Callable[[], bool]) -> None:
        self.is_held = False  # by a test: nothing is sent
        self.wake: Callable[[], None] = lambda: None  # the group's thread, once there is one
        # Do what that would, at once and for as long as a ticket is not done, or some seconds.
        self.dispatch_until: DispatchUntil = lambda ticket, seconds, watch: self.wake()
        self._is_quorate = is_quorate
        self._lock = threading.Lock()
        self._proposals: deque[Proposal] = deque()

    def put(self, proposal: Proposal) -> None:
        """Queue *proposal*. Raises NoQuorum."""
        self._queue(proposal)
        self.wake()

    def send_and_wait(self, proposal: Proposal, seconds: float, watch: RequestWatch) -> None:
        """Queue *proposal*, and wait for it if that helps, some *seconds* at most, at the *watch*.

        Raises NoQuorum. Not with the tree's lock held.
        """
        self._queue(proposal)
        self.dispatch_until(proposal.ticket, seconds, watch)

    def _queue(self, proposal: Proposal) -> None:
        with self._lock:
            if not self._is_quorate():
                raise NoQuorum("no quorum, nothing may change")
            self._proposals.append(proposal)

    def withdraw(self, proposal: Proposal) -> bool:
        """Take *proposal* back; tell whether that was possible: nothing of it was sent.

        One that is being sent right now is taken back by ``not_sent``, if it comes to that.
        """
        with self._lock:
            proposal.is_wanted = False
            return not proposal.sent_at and self._remove(proposal)

    def next(self, *, now: float) -> Proposal | None:
        """Begin to send the next message; return whose it is, None if none may be sent.

        For whoever acts for the group, and then calls ``sent`` or ``not_sent``.
        """
        if not self._proposals:
            return None  # without the lock: ``put`` comes before the look that it asks for
        with self._lock:
            if not self._proposals or self.is_held or not self._is_quorate():
                return None
            proposal = self._proposals[0]
            proposal.sent_at = proposal.sent_at or now
            return proposal

    def not_sent(self, proposal: Proposal) -> bool:
        """There was no room for it; tell whether it is still to be sent."""
        with self._lock:
            if proposal.is_partly_sent:
                return proposal in self._proposals
            proposal.sent_at = 0.0
            if not proposal.is_wanted:
                self._remove(proposal)
            return proposal in self._proposals

    def sent(self, proposal: Proposal) -> None:
        """The next message of *proposal* was sent."""
        with self._lock:
            proposal.unsent.popleft()
            if not proposal.unsent:
                self._remove(proposal)

    def drop(self, proposal: Proposal) -> None:
        """Send nothing more of *proposal*."""
        with self._lock:
            self._remove(proposal)

    def clear(self) -> list[Proposal]:
        """Send nothing more of what waits; return it, in order."""
        with self._lock:
            cleared = list(self._proposals)
            self._proposals.clear()
            return cleared

    def hold(self, *, on: bool) -> None:
        """Send nothing, or go on: for tests."""
        self.is_held = on
        self.wake()

    def _remove(self, proposal: Proposal) -> bool:
        """Take it out of the queue; tell whether it was there. Needs the lock."""
        if proposal not in self._proposals:
            return False
        self._proposals.remove(proposal)
        return True
