"""The replica of one node: tree, guest registry and database, changed together.

Only this module changes them. It applies a group of mutations in order, saves the group in one
transaction, and then calls the listeners. If saving fails, the *policy* decides. In local mode the
whole group is rolled back and each caller gets the errno, so tree and file stay equal. In a cluster
other nodes have applied the group, so it stays in RAM: the node is degraded, sends no changes of
its own, and brings the file up to date later.

``adopt`` replaces the tree by that of another node in one step.

Threads: callers hold the tree's lock, unless a method says otherwise. It is released during a long
save. Other threads can read the tree then, but a thread that wants to change it first waits in
``Replica.await_save``.
Contract: docs/spec/storage.md, "Writing"; cluster.md, "State machine", "Delivery to the tree" and
"Forks".
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Protocol, TypeAlias

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import Failed, NoCopy, PmxcfsError, StoreError
from pmxcfs.messages import (
    Create,
    Kind,
    Mutation,
    Record,
    Write,
)
from pmxcfs.replica.departures import Departures
from pmxcfs.replica.tickets import Ticket
from pmxcfs.replica.waiting import Yielding
from pmxcfs.storage import conflicts
from pmxcfs.storage.database import Database
from pmxcfs.storage.divergence import Removal
from pmxcfs.text import to_bytes
from pmxcfs.tree.adoption import Adoption, Reload, plan, record_of
from pmxcfs.tree.apply import Change, HalfRenamed, apply
from pmxcfs.tree.guests import Guests

_log = logging.getLogger("pmxcfs.dcdb")

LARGE_SAVE = 64 << 10  # unsaved bytes (about 0.3 ms); a larger save releases the tree's lock


class Policy(Enum):
    """What happens to changes that can't be saved."""

    ROLL_BACK = "roll back to the saved tree; the caller gets the errno"
    KEEP = "keep them in RAM, as other nodes have them; the caller gets success"


class Listener(Protocol):
    """A function that is called for each change after it was saved."""

    def __call__(self, change: Change, *, foreign: bool) -> None:
        """Handle *change*; *foreign* means that it was not made through this node's mount."""


# Called after a rollback with each restored entry and its path before it, and with the error.
# Strings, as Cython 0.29 can't subscript a class.
UndoListener: TypeAlias = "Callable[[Mapping[Entry, str], StoreError], None]"
# Called after the tree of another node was adopted, with what differs from the tree before.
ReloadListener: TypeAlias = "Callable[[Reload], None]"


class Replica:
    """The tree of this node with its guests and its database.

    All methods need the tree's lock unless they say otherwise.
    """

    def __init__(
        self,
        tree: Tree,
        guests: Guests,
        database: Database,
        *,
        policy: Policy = Policy.ROLL_BACK,
        yielding: Yielding | None = None,
    ) -> None:
        self.tree = tree
        self.guests = guests
        self.policy = policy
        self.departures = Departures(database.notes)  # which changes other nodes miss
        self._on_change: list[Listener] = []
        self._on_undone: list[UndoListener] = []
        self._on_reload: list[ReloadListener] = []
        self.transactions = 0  # transactions saved since the start
        # Releases the lock during a long save; other threads may then read changes that are rolled
        # back later. None in a cluster: the lock is kept during a save.
        self._yielding = yielding
        self._saving: threading.Event | None = None  # set when the running save has ended
        self._database = database

    def subscribe(
        self,
        *,
        on_change: Listener | None = None,
        on_undone: UndoListener | None = None,
        on_reload: ReloadListener | None = None,
    ) -> None:
        """Add listeners, which are called in the order of subscription with the tree's lock held.

        *on_change* gets every change after it was saved. *on_undone* is called after a rollback, as
        saving failed; it gets each affected entry with the path that it had until then, and the
        error. *on_reload* gets the differences after another node's tree was adopted.
        """
        if on_change is not None:
            self._on_change.append(on_change)
        if on_undone is not None:
            self._on_undone.append(on_undone)
        if on_reload is not None:
            self._on_reload.append(on_reload)

    @property
    def has_unsaved(self) -> bool:
        """Tell whether an applied mutation is not saved yet."""
        return self.tree.has_unsaved

    @property
    def store_error(self) -> StoreError | None:
        """Why the last attempt to write the database failed; None if it did not."""
        return self._database.degraded

    @property
    def is_degraded(self) -> bool:
        """Tell whether the last attempt to write the database failed."""
        return self._database.degraded is not None

    def deliver(self, tickets: Sequence[Ticket]) -> None:
        """Apply *tickets* in order, save them in one transaction, and finish them. Blocks."""
        self.await_save()
        done = self._apply(tickets)
        if done and not self._save(tickets):
            done = []
        for ticket in tickets:
            ticket.finish()
        self._announce(done)

    def inject(self, mutation: Mutation, *, writer: int, mtime: int) -> Change:
        """Apply *mutation* as if the node *writer* had sent it; return the change. Blocks.

        Raises PmxcfsError.
        """
        ticket = Ticket(mutation, writer=writer, mtime=mtime, foreign=True)
        self.deliver([ticket])
        return ticket.result()

    def defer(self, ticket: Ticket) -> None:
        """Apply *ticket* now and leave saving to the next save. A crash before loses the change."""
        self.await_save()
        self._announce(self._apply([ticket]))

    def save(self) -> None:
        """Save deferred changes. Blocks. Raises StoreError after rolling them back."""
        self.await_save()
        if self.has_unsaved:
            self._write()

    def await_save(self) -> None:
        """Wait until no save is running; the tree must not be changed before. Blocks.

        Releases the tree's lock while it waits, so other threads may have changed the tree.
        """
        while self._saving is not None:
            assert self._yielding is not None, "the lock is kept during a save"
            saving = self._saving
            with self._yielding.released():
                saving.wait()

    def sync(self) -> None:
        """Write the database's log to the device. Blocks. Needs no lock. Raises StoreError."""
        if self.policy is Policy.KEEP:
            self.check_writable()  # a degraded node has changes in RAM only
        self._database.sync()

    # Between nodes.

    def state(self) -> bytes:
        """Return the index of the tree, the payload of a STATE message."""
        return self.tree.index()

    def checksum(self) -> bytes:
        """Return the state checksum (32 bytes). Takes time in proportion to the tree's size."""
        return self.tree.checksum()

    def records_for(self, inodes: Iterable[int]) -> list[Record]:
        """Return the records for the UPDATE messages of *inodes*.

        Raises ValueError if an inode is not in the tree.
        """
        entries = [(inode, self.tree.get(inode)) for inode in inodes]
        missing = [inode for inode, entry in entries if entry is None]
        if missing:
            raise ValueError(f"entry {missing[0]} is not in the tree")
        return [record_of(entry) for _, entry in entries if entry is not None]

    def adopt(
        self,
        leader: bytes,
        records: Iterable[Record],
        *,
        side: Collection[int],
        now: int,
        lock: AbstractContextManager[object],
    ) -> None:
        """Replace the tree by the leader's, which has the index *leader*. Blocks.

        *records* are the entries that the leader sent; *side* are the ids of the nodes that had the
        leader's tree before. If changes are lost that they never had, the database is copied first
        (*now*: seconds since 1970). Raises BadMessage if *records* do not lead to the leader's
        tree, and NoCopy if the copy can't be made; then nothing has changed. If the adoption
        can't be saved, the policy decides.

        The caller must not hold the tree's lock *lock*, and must deliver nothing meanwhile. *lock*
        is taken only to replace the tree, so requests are answered while the adoption is planned
        and saved.
        """
        with lock:
            is_current = self.catch_up()
            note = self.departures.begin_adoption(self.tree.version, side=side)
        adoption = plan(self.tree, leader, records)
        removals = self._saved_removals() if note is not None else ()
        lost = conflicts.lost_by(adoption, self.tree, note=note, removals=removals)
        if lost.is_fork or lost.older:
            self._keep_copy(lost, now=now)
        with lock:
            self.departures.adopted(side=side, fork=lost.fork if lost.is_fork else None)
        is_saved = self._save_adoption(adoption, is_current=is_current)
        with lock:
            self._swap(adoption, is_saved=is_saved)

    def can_keep_copy(self) -> bool:
        """Try whether an adoption could copy the database first. Blocks. Needs no lock."""
        return not self.is_degraded and conflicts.can_keep_copy(self._database)

    def _keep_copy(self, lost: conflicts.Lost, *, now: int) -> None:
        try:
            self.check_writable()  # or the copy would lack changes that are in RAM only
            conflicts.keep_copy(self._database, lost, now=now)
        except StoreError as error:
            raise NoCopy(str(error), error.errno) from error

    def _saved_removals(self) -> Sequence[Removal]:
        """Return the removals in the database; none if it can't be read. Blocks."""
        with contextlib.suppress(StoreError):
            return self._database.read_removals()
        return ()

    def _swap(self, adoption: Adoption, *, is_saved: bool) -> None:
        reload = adoption.apply()
        self.guests.rebuild(self.tree)
        if is_saved:
            self.tree.mark_saved()
        elif not self.is_degraded:  # a timer has saved the old tree meanwhile
            self.catch_up()
        for listener in self._on_reload:
            listener(reload)

    def _save_adoption(self, adoption: Adoption, *, is_current: bool) -> bool:
        """Save *adoption* before the tree is replaced; return whether that succeeded.

        Raises StoreError if the policy is ROLL_BACK. Blocks. Needs no lock.
        """
        try:
            if not is_current:
                self.check_writable()
            notes = self.departures.notes
            self._database.adopt(adoption, notes=notes)
        except StoreError:
            if self.policy is Policy.ROLL_BACK:
                raise
            return False
        self.departures.is_saved = notes is self.departures.notes
        self.transactions += 1
        return True

    def save_notes(self) -> None:
        """Save what is noted of other nodes, if that has changed. Blocks.

        After a failure, the next save of a change writes it, or fails as well.
        """
        if not self.departures.is_saved and not self.is_degraded:
            with contextlib.suppress(StoreError):
                self._write_notes()

    def import_configuration(self, content: bytes, *, now: int) -> None:
        """Import the host's ``corosync.conf`` into a fresh tree, to join a cluster. Blocks.

        A sync with a real cluster must replace this tree, so the import adds only two mutations, a
        create and a write with writer 0. Other nodes miss nothing of them.
        Raises TooBig and StoreError.
        """
        path = "corosync.conf"
        mutations = Create(path), Write(path, 0, content, truncate=True)
        tickets = [Ticket(mutation, mtime=now) for mutation in mutations]
        self.departures.is_due = False
        self.deliver(tickets)
        self.departures.is_due = True
        for ticket in tickets:
            ticket.result()

    def check_writable(self) -> None:
        """Raise StoreError if this node is degraded; it must not send changes of its own then."""
        if self._database.degraded is not None:
            # Without the frames of earlier requests, which hold the data of their changes.
            raise self._database.degraded.with_traceback(None)

    def catch_up(self) -> bool:
        """Save the tree if the database does not hold it; return whether it does now. Blocks.

        Cheap if nothing is unsaved. A timer calls it while the node is degraded.
        """
        self.await_save()
        if not self.has_unsaved and self._database.is_sound:
            return True
        try:
            self._save_all()
        except StoreError as error:
            self._apply_policy(error)
            return False
        return True

    def _apply(self, tickets: Sequence[Ticket]) -> list[tuple[Change, bool]]:
        if self.departures.is_due:
            self.departures.note_absent(self.tree.version)
        done = []
        for ticket in tickets:
            try:
                mutation = ticket.with_current_path(self.tree)
                ticket.change = apply(
                    self.tree, self.guests, mutation, writer=ticket.writer, mtime=ticket.mtime
                )
                done.append((ticket.change, ticket.foreign))
            except HalfRenamed as error:
                ticket.error = error
                done.append((error.change, True))  # the reply reports only the failure
            except PmxcfsError as error:
                ticket.error = error
            except Exception:  # noqa: BLE001, as one bad mutation must not fail the whole group
                _log.exception("a mutation could not be applied, which is a bug")
                ticket.error = Failed("the change could not be applied")
        self._note_removals(done)
        return done

    def _note_removals(self, done: Sequence[tuple[Change, bool]]) -> None:
        """Note which entries are gone, also by a RENAME onto them."""
        for change, _ in done:
            is_removal = change.kind in (Kind.DELETE, Kind.UNLOCK)
            gone = change.entry if is_removal else change.replaced
            if gone is not None:
                path = to_bytes(change.path)
                self.departures.remove(gone.inode, path, version=self.tree.version)

    def _save(self, tickets: Sequence[Ticket]) -> bool:
        try:
            self._write()
        except StoreError as error:
            for ticket in tickets:
                ticket.error = ticket.error or error
            return False
        return True

    def _write(self) -> None:
        """Save all unsaved changes. Raises StoreError after rolling them back."""
        if self.policy is Policy.KEEP and self.is_degraded:
            return  # a timer calls catch_up, which is slow: it compares every row
        try:
            self._save_all()
        except StoreError as error:
            self._apply_policy(error)
            if self.policy is Policy.ROLL_BACK:
                raise

    def _save_all(self) -> None:
        if not self.departures.is_saved:
            self._write_notes()
        removals = self.departures.removals
        is_large = self.tree.unsaved_bytes > LARGE_SAVE
        if is_large or not self._database.save(self.tree, removals, patient=False):
            self._save_long(removals)
        self.tree.mark_saved()
        self.guests.mark_saved()
        if removals:
            self.departures.removals = []
        self.transactions += 1

    def _save_long(self, removals: Sequence[Removal]) -> None:
        """Save with the tree's lock released; ``await_save`` stops changes meanwhile."""
        if self._yielding is None:
            self._database.save(self.tree, removals)
            return
        self._saving = saving = threading.Event()
        try:
            self._yielding.aside(functools.partial(self._database.save, self.tree, removals))
        finally:  # the lock is held again until the save is marked or rolled back
            self._saving = None
            saving.set()

    def _write_notes(self) -> None:
        notes = self.departures.notes
        self._database.write_notes(notes, self.departures.removals)
        self.departures.removals = []
        self.departures.is_saved = notes is self.departures.notes

    def _apply_policy(self, error: StoreError) -> None:
        """Roll back unsaved changes if the policy is ROLL_BACK."""
        if self.policy is Policy.ROLL_BACK:
            self._roll_back(error)

    def _roll_back(self, error: StoreError) -> None:
        undone = self.tree.rollback()
        self.guests.rollback()
        self.departures.removals = []
        for listener in self._on_undone:
            listener(undone, error)

    def _announce(self, done: Sequence[tuple[Change, bool]]) -> None:
        for change, foreign in done:
            for listener in self._on_change:
                listener(change, foreign=foreign)
