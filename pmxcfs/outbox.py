"""This node's changes on their way to the cluster: queued, and sent in order by another thread.

A ``Posting`` is what one caller wants: a ticket, and the messages that carry it. Whoever posts one
can withdraw it for as long as nothing of it was sent; after that only its delivery, or the loss of
the group, ends it.

Threads: the outbox is for any thread and never blocks. Tickets are finished with the tree's lock
held. Contract: spec cluster.md, "A mutation must not block forever".
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from pmxcfs.delivery import Change
from pmxcfs.errors import PmxcfsError
from pmxcfs.messages import Mutation, UnlockRequest
from pmxcfs.tickets import Ticket

Sendable = Mutation | UnlockRequest


class Posting:
    """One ticket and the messages that carry it, which go out back to back."""

    __slots__ = ("_outstanding", "sent_at", "ticket", "unsent")

    def __init__(self, ticket: Ticket, bodies: Sequence[Sendable]) -> None:
        self.ticket = ticket
        self.unsent = deque(bodies)
        self.sent_at = 0.0  # monotonic second of its first sending; 0 while it can be withdrawn
        self._outstanding = len(bodies)

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

    def __init__(self) -> None:
        self.is_held = False  # by a test: nothing is sent
        self.wake: Callable[[], None] = lambda: None  # the group's thread, once there is one
        self._lock = threading.Lock()
        self._postings: deque[Posting] = deque()

    def put(self, posting: Posting) -> None:
        """Queue *posting*."""
        with self._lock:
            self._postings.append(posting)
        self.wake()

    def withdraw(self, posting: Posting) -> bool:
        """Take *posting* back; tell whether that was possible: nothing of it was sent."""
        with self._lock:
            if posting.sent_at or posting not in self._postings:
                return False
            self._postings.remove(posting)
            return True

    def head(self) -> Posting | None:
        """Return whose next message is to be sent, or None. For the group's thread."""
        with self._lock:
            return self._postings[0] if self._postings and not self.is_held else None

    def begin(self, posting: Posting, *, now: float) -> bool:
        """Note that its next message is being sent; False if *posting* was withdrawn meanwhile."""
        with self._lock:
            if not self._postings or self._postings[0] is not posting:
                return False
            posting.sent_at = posting.sent_at or now
            return True

    def not_sent(self, posting: Posting, *, is_first: bool) -> None:
        """Corosync had no room for it: *posting* stays at the head of the queue."""
        with self._lock:
            if is_first:
                posting.sent_at = 0.0

    def sent(self, posting: Posting) -> None:
        """The next message of *posting* was sent."""
        with self._lock:
            posting.unsent.popleft()
            if not posting.unsent:
                self._postings.popleft()

    def drop(self, posting: Posting) -> None:
        """Send nothing more of *posting*."""
        with self._lock:
            if posting in self._postings:
                self._postings.remove(posting)

    def unsent(self) -> list[Posting]:
        """Return what waits, in order."""
        with self._lock:
            return list(self._postings)

    def hold(self, *, on: bool) -> None:
        """Send nothing, or go on: for tests."""
        self.is_held = on
        self.wake()
