"""This node's changes on their way to the cluster: queued, and sent in order by another thread.

A ``Posting`` is what one caller wants: a ticket, and the messages that carry it. Whoever posts one
can withdraw it for as long as nothing of it was sent; after that only its delivery, the loss of the
group, or that the caller gives it up ends it.

Nothing is queued without quorum: ``put`` and ``next`` look, so a change can't slip in while the
quorum is being lost.

Threads: the outbox is for any thread, and only ``carry`` blocks. Tickets are finished with the
tree's lock held. Contract: spec cluster.md, "A mutation must not block forever".
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from pmxcfs.errors import NoQuorum, PmxcfsError
from pmxcfs.messages import Mutation, UnlockRequest
from pmxcfs.replica.tickets import Ticket
from pmxcfs.replica.waiting import Door
from pmxcfs.tree.apply import Change

Sendable = Mutation | UnlockRequest
Attend = Callable[[Ticket, float, Door], None]  # for some seconds at most


class Posting:
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
    """Postings in the order in which they are to be sent."""

    def __init__(self, *, is_quorate: Callable[[], bool]) -> None:
        self.is_held = False  # by a test: nothing is sent
        self.wake: Callable[[], None] = lambda: None  # the group's thread, once there is one
        # Do what that would, at once and for as long as a ticket is not done, or some seconds.
        self.attend: Attend = lambda ticket, seconds, door: self.wake()
        self._is_quorate = is_quorate
        self._lock = threading.Lock()
        self._postings: deque[Posting] = deque()

    def put(self, posting: Posting) -> None:
        """Queue *posting*. Raises NoQuorum."""
        self._queue(posting)
        self.wake()

    def carry(self, posting: Posting, seconds: float, door: Door) -> None:
        """Queue *posting*, and wait for it if that helps, some *seconds* at most, at the *door*.

        Raises NoQuorum. Not with the tree's lock held.
        """
        self._queue(posting)
        self.attend(posting.ticket, seconds, door)

    def _queue(self, posting: Posting) -> None:
        with self._lock:
            if not self._is_quorate():
                raise NoQuorum("no quorum, nothing may change")
            self._postings.append(posting)

    def withdraw(self, posting: Posting) -> bool:
        """Take *posting* back; tell whether that was possible: nothing of it was sent.

        One that is being sent right now is taken back by ``not_sent``, if it comes to that.
        """
        with self._lock:
            posting.is_wanted = False
            return not posting.sent_at and self._remove(posting)

    def next(self, *, now: float) -> Posting | None:
        """Begin to send the next message; return whose it is, None if none may be sent.

        For whoever acts for the group, and then calls ``sent`` or ``not_sent``.
        """
        if not self._postings:
            return None  # without the lock: ``put`` comes before the look that it asks for
        with self._lock:
            if not self._postings or self.is_held or not self._is_quorate():
                return None
            posting = self._postings[0]
            posting.sent_at = posting.sent_at or now
            return posting

    def not_sent(self, posting: Posting) -> bool:
        """There was no room for it; tell whether it is still to be sent."""
        with self._lock:
            if posting.is_partly_sent:
                return posting in self._postings
            posting.sent_at = 0.0
            if not posting.is_wanted:
                self._remove(posting)
            return posting in self._postings

    def sent(self, posting: Posting) -> None:
        """The next message of *posting* was sent."""
        with self._lock:
            posting.unsent.popleft()
            if not posting.unsent:
                self._remove(posting)

    def drop(self, posting: Posting) -> None:
        """Send nothing more of *posting*."""
        with self._lock:
            self._remove(posting)

    def clear(self) -> list[Posting]:
        """Send nothing more of what waits; return it, in order."""
        with self._lock:
            cleared = list(self._postings)
            self._postings.clear()
            return cleared

    def hold(self, *, on: bool) -> None:
        """Send nothing, or go on: for tests."""
        self.is_held = on
        self.wake()

    def _remove(self, posting: Posting) -> bool:
        """Take it out of the queue; tell whether it was there. Needs the lock."""
        if posting not in self._postings:
            return False
        self._postings.remove(posting)
        return True
