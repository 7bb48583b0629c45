"""The issuer of local mode: applies and records mutations on this node, in groups.

Threads: callers hold the tree's lock. It is released while a mutation waits.
Contract: docs/spec/storage.md, "Writing"; fuse.md, "Waiting".
"""

import math
import threading
import time
from collections.abc import Callable

from pmxcfs.errors import Busy, Failed, PmxcfsError, Signaled, StoreError
from pmxcfs.host.callers import UNKNOWN, Caller
from pmxcfs.messages import Create, Mtime, Mutation, Unlock
from pmxcfs.replica.replica import Replica
from pmxcfs.replica.tickets import Announcement, Ticket, timeout_for
from pmxcfs.replica.waiting import Interruption, Yielding, await_done
from pmxcfs.tree.apply import Change


class LocalIssuer:
    """Carries out mutations on this node. Mutations queued at the same time are one group.

    While the records of one group are written, with the tree's lock released, other threads queue
    their tickets. The first of them that gets the lock after that delivers all queued tickets, or
    only its own if there is no room for all; the other threads then find their tickets done.

    All methods need the tree's lock and release it while they wait.
    """

    def __init__(self, replica: Replica, *, clock: Callable[[], int], yielding: Yielding) -> None:
        self._replica = replica
        self._clock = clock  # seconds since 1970
        self._yielding = yielding
        self._queue: list[Ticket] = []
        self._hold = _Hold()

    def submit(self, mutation: Mutation) -> Change:
        """Apply and record *mutation*; return the change. Blocks. Raises PmxcfsError."""
        return self.carry_out(Ticket(mutation))

    def carry_out(self, ticket: Ticket) -> Change:
        """Apply and record the mutation of *ticket*; other threads can wait for it. Blocks."""
        if self._hold.is_closed:
            self._wait_at_gate(ticket)
            self._check(ticket)
        ticket.mtime = self._clock()
        ticket.is_queued = True
        self._queue.append(ticket)
        self._deliver_queue(ticket, timeout_for(ticket))
        return ticket.result()

    def expire_lock(
        self, path: str, checksum: bytes, *, has_expired: bool, caller: Caller = UNKNOWN
    ) -> Change:
        """Remove the lock at *path* if it has expired, else raise the error of a refused utime."""
        mutation = Unlock(path, checksum) if has_expired else Mtime(path, 0)
        return self.carry_out(Ticket(mutation, caller=caller))

    def wait(self, ticket: Ticket, seconds: float) -> None:
        """Wait for *ticket*, which another thread carries out; raise its error. Blocks.

        Raises Busy after *seconds*, and Signaled.
        """
        if not await_done(ticket, seconds, self._yielding):
            raise Busy("an earlier change of the same file is still in progress")
        ticket.check()

    def refusal(self, size: int = 0) -> PmxcfsError | None:
        """Return the error by which a change with *size* bytes can't be stored, or None. Blocks.

        Tries to make room for it first.
        """
        try:
            self._replica.check_writable(size)
        except PmxcfsError as error:
            return error
        return None

    def _wait_at_gate(self, ticket: Ticket) -> None:
        try:
            interruption = self._yielding.interruptible(self._hold.wake)
            with interruption, self._yielding.waiting():
                self._hold.wait(timeout_for(ticket), interruption)
        except (Busy, Signaled) as error:
            ticket.finish(error)
            raise

    def _check(self, ticket: Ticket) -> None:
        """Raise the objection to *ticket*, after it has waited."""
        objection = ticket.objection()
        if objection is not None:
            ticket.finish(objection)
            raise objection

    def _deliver_queue(self, ticket: Ticket, seconds: float) -> None:
        """Deliver all queued tickets, or wait until another thread has finished *ticket*. Blocks.

        A ticket that still waits after *seconds*, for which there is no room, or whose program has
        got a signal, is taken back. Raises Busy, StoreError and Signaled then.
        """
        until = 0.0  # monotonic second; not known before the first wait
        try:
            while not ticket.is_done:
                if not ticket.is_queued:  # another thread carries it out
                    self._await(ticket)
                elif self._replica.is_ready(self._queue):
                    self._deliver(self._queue)
                elif self._replica.is_ready([ticket]):
                    self._deliver([ticket])  # another one waits for more room
                else:
                    until = until or time.monotonic() + seconds
                    self._replica.await_ready([ticket], until - time.monotonic())
        except (Busy, Signaled, StoreError) as error:
            if self._take_back(ticket, error):
                raise
            if not ticket.is_done:  # another thread has taken it meanwhile
                self._await(ticket)
        except Exception:
            self._take_back(ticket, Failed("the change could not be made, by a bug"))
            raise

    def _take_back(self, ticket: Ticket, error: PmxcfsError) -> bool:
        """Finish *ticket* with *error* if it is still queued; tell whether it was."""
        if not ticket.is_queued:
            return False
        self._queue.remove(ticket)
        ticket.is_queued = False
        ticket.finish(error)
        return True

    def _deliver(self, group: list[Ticket]) -> None:
        if group is self._queue:
            self._queue = []
        else:
            self._queue = [ticket for ticket in self._queue if ticket not in group]
        for ticket in group:
            ticket.is_queued = False
        self._replica.deliver(group)

    def _await(self, ticket: Ticket) -> None:
        done = ticket.done()
        with self._yielding.waiting(must=True):
            done.wait(math.inf)

    def create(self, mutation: Create, caller: Caller = UNKNOWN) -> Change:
        """Apply *mutation*; it is written together with the file's first content, or within 1 s."""
        ticket = Ticket(mutation, mtime=int(self._clock()), caller=caller)
        if self._hold.is_closed or not self._replica.is_ready([ticket]):
            return self.carry_out(ticket)
        self._replica.defer(ticket)
        return ticket.result()

    def can_announce_later(self) -> bool:
        """Return False: there is nobody to announce a file to."""
        return False

    def announce(self, ticket: Announcement) -> None:
        """Fail: no file is announced later."""
        raise Failed("a file of this node alone is not announced")

    def save(self) -> None:
        """Write creations that are not written yet. Blocks.

        Raises StoreError; Busy and Signaled, after which they wait on.
        """
        self._replica.flush()

    def sync(self) -> None:
        """Bring all changes to the device. Blocks. Raises StoreError, and Busy if many wait."""
        with self._yielding.waiting():
            self._replica.sync()

    def hold(self) -> None:
        """Make new mutations wait, as in a cluster that is not in sync. For tests."""
        self._hold.close()

    def resume(self) -> None:
        """Carry out the mutations that ``hold`` made wait. For tests."""
        self._hold.open()

    def refuse(self) -> None:
        """Answer Busy to waiting mutations: the daemon stops."""
        self._hold.refuse()

    def abandon(self) -> None:
        """Do nothing: no mutation waits after ``refuse``."""


class _Hold:
    """A flag for ``hold``: mutations wait while it is closed. Needs no lock; ``wait`` blocks."""

    def __init__(self) -> None:
        self.is_closed = False
        self._is_refusing = False
        self._changed = threading.Condition()

    def close(self) -> None:
        with self._changed:
            self.is_closed = True

    def open(self) -> None:
        with self._changed:
            self.is_closed = False
            self._changed.notify_all()

    def refuse(self) -> None:
        with self._changed:
            self._is_refusing = True
            self._changed.notify_all()

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait(self, timeout: float, interruption: Interruption) -> None:
        """Wait until the gate is open. Raises Busy after *timeout* seconds, or once refusing.

        Raises Signaled when *interruption* is given and ``wake`` called.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: not self.is_closed or self._is_refusing or interruption.is_given, timeout
            )
            if self.is_closed:
                interruption.check()
                raise Busy("changes are on hold, nothing was changed")
