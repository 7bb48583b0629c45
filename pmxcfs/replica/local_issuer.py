"""Mutations in local mode: applied and saved on this node, several that are ready at once together.

Threads: everything here runs with the tree's lock held, and gives it back while it waits.
Contract: docs/spec/storage.md, "Writing"; fuse.md, "Waiting".
"""

import threading
from collections.abc import Callable

from pmxcfs.errors import Busy
from pmxcfs.messages import Create, Mtime, Mutation, Unlock
from pmxcfs.replica.replica import Replica
from pmxcfs.replica.tickets import Ticket, timeout_for
from pmxcfs.replica.waiting import Yielding
from pmxcfs.tree.apply import Change


class LocalIssuer:
    """Mutations in local mode: applied and saved here, several that are ready at once together.

    Whoever gets the tree's lock first commits what all have queued; the others then find their
    ticket done. So there is no leader to elect and nobody to wake.
    """

    def __init__(self, replica: Replica, *, clock: Callable[[], float], yielding: Yielding) -> None:
        self._replica = replica
        self._clock = clock  # seconds since 1970
        self._yielding = yielding
        self._queue: list[Ticket] = []
        self._gate = _Gate()
        replica.yielding = yielding

    def submit(self, mutation: Mutation) -> Change:
        """Apply and save *mutation*; return what changed. Gives the tree's lock back meanwhile."""
        return self.carry_out(Ticket(mutation))

    def carry_out(self, ticket: Ticket) -> Change:
        """Do the same with a ticket that others can wait for."""
        if self._gate.is_closed:
            self._wait_at_gate(ticket)
        ticket.mtime = int(self._clock())
        self._queue.append(ticket)
        self._yielding.give_way()
        self._deliver_queue(ticket)
        return ticket.result()

    def expire_lock(self, path: str, checksum: bytes, *, has_expired: bool) -> Change:
        """Remove a lock that has expired; refuse it as delivery does otherwise."""
        return self.submit(Unlock(path, checksum) if has_expired else Mtime(path, 0))

    def wait(self, ticket: Ticket, seconds: float) -> Change:
        """Return once *ticket*, which another thread carries out, is done. Gives the lock back."""
        self._deliver_queue(ticket)
        if not ticket.is_done:
            done = ticket.done()
            with self._yielding.waiting():
                done.wait(seconds)
        if not ticket.is_done:
            raise Busy("an earlier change of the same file is still on its way")
        return ticket.result()

    def _wait_at_gate(self, ticket: Ticket) -> None:
        try:
            with self._yielding.waiting():
                self._gate.wait(timeout_for(ticket))
        except Busy as error:
            ticket.finish(error)
            raise

    def _deliver_queue(self, ticket: Ticket) -> None:
        """Carry out all that is queued, unless somebody else has done *ticket* by then."""
        if not ticket.is_done:
            self._replica.await_save()
        if not ticket.is_done:
            group, self._queue = self._queue, []
            self._replica.deliver(group)

    def create(self, mutation: Create) -> Change:
        """Apply *mutation* and let it be saved with the file's first content, or within 1 s."""
        if self._gate.is_closed or self._replica.is_degraded:
            return self.submit(mutation)
        ticket = Ticket(mutation, mtime=int(self._clock()))
        self._replica.defer(ticket)
        return ticket.result()

    def save(self) -> None:
        """Save creations that still wait for it. Raises StoreError."""
        self._replica.save()

    def sync(self) -> None:
        """Have all that was saved on the device. Raises StoreError. Gives the lock back."""
        with self._yielding.released():
            self._replica.sync()

    def hold(self) -> None:
        """Make mutations wait, as a cluster that is not in sync does."""
        self._gate.close()

    def resume(self) -> None:
        """Let the waiting mutations go on."""
        self._gate.open()

    def on_quorum_lost(self) -> None:
        """Nothing: alone there is no quorum to lose, except in tests."""

    def refuse(self) -> None:
        """Answer Busy to everyone who waits: the daemon stops."""
        self._gate.refuse()

    def abandon(self) -> None:
        """Nothing: nobody waits any more."""


class _Gate:
    """Where mutations wait while they are held. Used without the tree's lock, but for looking."""

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

    def wait(self, timeout: float) -> None:
        """Return once the gate is open; raise Busy after *timeout* seconds or when refusing."""
        with self._changed:
            self._changed.wait_for(lambda: not self.is_closed or self._is_refusing, timeout)
            if self.is_closed:
                raise Busy("the file system is being held, nothing was changed")
