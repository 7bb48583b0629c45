"""Tree, guest registry and database as one thing, and the one place that announces changes.

Nothing else mutates them. A group of mutations is applied in order, saved in one transaction, and
then announced; if saving fails, all of it is taken back and everyone gets the errno, so the tree
in RAM and the file never part. Who wants to know of changes listens; who asked for one gets it
from ``LocalIssuer``.

Threads: everything here runs with the tree's lock held. ``LocalIssuer.submit`` gives it back for
as long as it waits.
Contract: spec storage.md, "Writing"; cluster.md, "Delivery to the tree".
"""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from pmxcfs._core import Entry, Tree
from pmxcfs.database import Database
from pmxcfs.delivery import Change, HalfRenamed, apply
from pmxcfs.errors import Busy, Failed, PmxcfsError, StoreError
from pmxcfs.guests import Guests
from pmxcfs.messages import Create, Delete, Mkdir, Mutation, Rename
from pmxcfs.tickets import Ticket

_log = logging.getLogger("pmxcfs.dcdb")

SHORT_PATIENCE = 2.0  # seconds that a change of a name may wait: the kernel locks its directory
LONG_PATIENCE = 10.0  # seconds for all others


class Listener(Protocol):
    """Someone who is told of every change, after it has been saved."""

    def __call__(self, change: Change, *, foreign: bool) -> None:
        """*foreign* changes did not come through this node's mount."""


class Replica:
    """This node's copy of the configuration."""

    def __init__(self, tree: Tree, guests: Guests, database: Database) -> None:
        self.tree = tree
        self.guests = guests
        self.listeners: list[Listener] = []
        self.undo_listeners: list[Callable[[list[Entry], StoreError], None]] = []
        self.transactions = 0  # saved since the start
        self._database = database

    @property
    def has_unsaved(self) -> bool:
        """Tell whether a creation waits to be saved."""
        return self.tree.has_unsaved

    @property
    def is_degraded(self) -> bool:
        """Tell whether the last attempt to write the database failed."""
        return self._database.degraded is not None

    def deliver(self, tickets: Sequence[Ticket]) -> None:
        """Apply *tickets* in order and save them in one transaction."""
        done = self._apply(tickets)
        if done and not self._save(tickets):
            done = []
        for ticket in tickets:
            ticket.finish()
        self._announce(done)

    def defer(self, ticket: Ticket) -> None:
        """Apply *ticket* now and leave it to the next save; what it made can vanish until then."""
        self._announce(self._apply([ticket]))

    def save(self) -> None:
        """Save what was deferred. Raise StoreError if that fails; it is taken back then."""
        if self.has_unsaved:
            self._write()

    def sync(self) -> None:
        """Have the database's log on the device; needs no lock. Raises StoreError."""
        self._database.sync()

    def _apply(self, tickets: Sequence[Ticket]) -> list[tuple[Change, bool]]:
        done = []
        for ticket in tickets:
            try:
                mutation = ticket.aimed(self.tree)
                ticket.change = apply(
                    self.tree, self.guests, mutation, writer=ticket.writer, mtime=ticket.mtime
                )
                done.append((ticket.change, ticket.foreign))
            except HalfRenamed as error:
                ticket.error = error
                done.append((error.change, ticket.foreign))
            except PmxcfsError as error:
                ticket.error = error
            except Exception:  # noqa: BLE001, as one bad mutation must not take the group with it
                _log.exception("a mutation could not be applied, which is a bug")
                ticket.error = Failed("it could not be applied")
        return done

    def _save(self, tickets: Sequence[Ticket]) -> bool:
        try:
            self._write()
        except StoreError as error:
            for ticket in tickets:
                ticket.error = ticket.error or error
            return False
        return True

    def _write(self) -> None:
        """Save all that is unsaved, or take it back and raise StoreError."""
        try:
            self._database.save(self.tree)
        except StoreError as error:
            self._take_back(error)
            raise
        self.tree.settle()
        self.guests.settle()
        self.transactions += 1

    def _take_back(self, error: StoreError) -> None:
        undone = self.tree.rollback()
        self.guests.rollback()
        for listener in self.undo_listeners:
            listener(undone, error)

    def _announce(self, done: Sequence[tuple[Change, bool]]) -> None:
        for change, foreign in done:
            for listener in self.listeners:
                listener(change, foreign=foreign)


class Yielding(Protocol):
    """How a thread that holds the tree's lock lets others have it for a while."""

    def give_way(self) -> None:
        """Let requests that are ready run first; they may join this group."""

    def released(self) -> AbstractContextManager[None]:
        """Give the lock back until the block ends, to wait for a device."""

    def waiting(self) -> AbstractContextManager[None]:
        """Give the lock back until the block ends; raise Busy if too many wait already."""


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
        if not ticket.is_done:
            self._deliver_queue()
        return ticket.result()

    def wait(self, ticket: Ticket) -> Change:
        """Return once *ticket*, which another thread carries out, is done. Gives the lock back."""
        if not ticket.is_done:
            self._deliver_queue()
        if not ticket.is_done:
            done = ticket.done()
            with self._yielding.waiting():
                done.wait(LONG_PATIENCE)
        if not ticket.is_done:
            raise Busy("an earlier change of the same file is still on its way")
        return ticket.result()

    def _wait_at_gate(self, ticket: Ticket) -> None:
        try:
            with self._yielding.waiting():
                self._gate.wait(_patience(ticket.mutation))
        except Busy as error:
            ticket.finish(error)
            raise

    def _deliver_queue(self) -> None:
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

    def inject(self, mutation: Mutation, *, writer: int, mtime: int) -> Change:
        """Apply *mutation* as if another node had sent it."""
        ticket = Ticket(mutation, writer=writer, mtime=mtime, foreign=True)
        self._replica.deliver([ticket])
        return ticket.result()

    def hold(self) -> None:
        """Make mutations wait, as a cluster that is not in sync does."""
        self._gate.close()

    def resume(self) -> None:
        """Let the waiting mutations go on."""
        self._gate.open()

    def refuse(self) -> None:
        """Answer Busy to everyone who waits: the daemon stops."""
        self._gate.refuse()


def _patience(mutation: Mutation) -> float:
    holds_directory = isinstance(mutation, Mkdir | Create | Delete | Rename)
    return SHORT_PATIENCE if holds_directory else LONG_PATIENCE


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

    def wait(self, patience: float) -> None:
        """Return once the gate is open; raise Busy after *patience* seconds or when refusing."""
        with self._changed:
            self._changed.wait_for(lambda: not self.is_closed or self._is_refusing, patience)
            if self.is_closed:
                raise Busy("the file system is being held, nothing was changed")
