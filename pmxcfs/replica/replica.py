"""The replica of one node: tree, guest registry and journal, changed together.

Only this module changes them. It applies a group of mutations in order, adds their records to the
change log, and then calls the listeners. If the records can't be written, the *policy* decides. In
local mode the whole group is rolled back and each caller gets the errno, so tree and journal stay
equal. In a cluster other nodes have applied the group, so it stays in RAM: the node is degraded,
sends no changes of its own, and writes later what it owes.

The database follows behind the journal: ``batches`` has what it lacks.

Threads: callers hold the tree's lock, unless a method says otherwise. In local mode it is released
while records are written. Other threads can read the tree then; one that wants to change it first
waits in ``Replica.await_ready``.
Contract: docs/spec/storage.md, "Writing"; cluster.md, "State machine", "Delivery to the tree" and
"Forks".
"""

import contextlib
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum

from pmxcfs._core import Tree
from pmxcfs.errors import Busy, Failed, NoCopy, PmxcfsError, Stalled, StoreError
from pmxcfs.host import clock
from pmxcfs.messages import Kind, Mutation, Record
from pmxcfs.replica.batches import Batches
from pmxcfs.replica.change_log import ChangeLog
from pmxcfs.replica.departures import Departures
from pmxcfs.replica.listeners import Listener, ReloadListener, UndoListener
from pmxcfs.replica.recording import (
    Applied,
    can_be_staged,
    is_configuration,
    record_notes,
    records_of,
    records_of_adoption,
    size_of,
)
from pmxcfs.replica.tickets import CONTENT_TIMEOUT, NAME_TIMEOUT, Ticket, timeout_for
from pmxcfs.replica.turn import Turn
from pmxcfs.replica.waiting import Yielding
from pmxcfs.storage import conflicts
from pmxcfs.storage.database import Database
from pmxcfs.storage.divergence import Note, Removal
from pmxcfs.storage.journal import Journal
from pmxcfs.storage.saver import Saver
from pmxcfs.text import to_bytes
from pmxcfs.tree.adoption import Adoption, plan, record_of
from pmxcfs.tree.apply import Change, HalfRenamed, apply
from pmxcfs.tree.guests import Guests

_log = logging.getLogger("pmxcfs.dcdb")

SAVE_TIMEOUT = 5.0  # seconds that a change waits for a save on which it depends


class Policy(Enum):
    """What happens to changes whose records can't be written."""

    ROLL_BACK = "undo them; the caller gets the errno"
    KEEP = "keep them in RAM, as other nodes have them; the caller gets success"


_KEEP, _ROLL_BACK = Policy.KEEP, Policy.ROLL_BACK  # Python 3.11 finds members slowly
_REMOVALS = (Kind.DELETE, Kind.UNLOCK)


class Replica:
    """The tree of this node with its guests and its records.

    *unsaved* are inodes that *database* lacks at the start; with *must_save_all*, *journal* does
    not lead to *tree*, which has to be saved before anything is recorded.
    All methods need the tree's lock unless they say otherwise.
    """

    def __init__(
        self,
        tree: Tree,
        guests: Guests,
        database: Database,
        journal: Journal,
        *,
        departures: Departures,
        policy: Policy,
        yielding: Yielding,
        lock: AbstractContextManager[object],
        on_pending: Callable[[], None],
        unsaved: Iterable[int] = (),
        must_save_all: bool = False,
        wall_clock_ns: Callable[[], int] = clock.nanoseconds,
    ) -> None:
        self.tree = tree
        self.guests = guests
        tree.mark_written()  # what was replayed is in the journal: a rollback must not undo it
        guests.mark_written()
        self.policy = policy
        self.departures = departures  # which changes other nodes miss
        self._log = ChangeLog(
            journal,
            save=self._save_soon,
            consequence="this node sends no changes" if policy is _KEEP else "changes are refused",
            has_gap=must_save_all,
            is_kept=policy is _KEEP,
        )
        self.sync_if_due = self._log.sync_if_due  # blocks; needs no lock
        self._batches = Batches(
            tree,
            departures,
            self._log,
            lock=lock,
            settle=self._settle,
            write_out=self.write_out,
            keep=self._keep,
            unsaved=unsaved,
            must_save_all=must_save_all,
            saved_notes=database.notes,
        )
        self.saver = Saver(database, journal, self._batches)
        if self._batches.has_unsaved:
            self.saver.note_change(True)
        self._database = database
        self.writes = 0  # groups of records written since the start, in local mode
        self._yielding = yielding
        self._on_pending = on_pending  # called when a record waits for ``write_out``
        self._wall_clock_ns = wall_clock_ns
        self._turn = Turn(yielding)  # of a thread that writes records with the lock released
        self._has_configuration = False  # whether a deferred change is one of configuration
        self._on_applied: list[Listener] = []
        self._on_change: list[Listener] = []
        self._on_undone: list[UndoListener] = []
        self._on_reload: list[ReloadListener] = []

    def subscribe(
        self,
        *,
        on_applied: Listener | None = None,
        on_change: Listener | None = None,
        on_undone: UndoListener | None = None,
        on_reload: ReloadListener | None = None,
    ) -> None:
        """Add listeners, which are called in the order of subscription with the tree's lock held.

        *on_applied* gets every change right after it was applied, before the next one is, and may
        exchange its entry. *on_change* gets every change that was made. *on_undone* is called after
        a rollback, as writing failed; it gets each affected entry with the path that it had until
        then, and the error. *on_reload* gets the differences after another node's tree was adopted.
        """
        if on_applied is not None:
            self._on_applied.append(on_applied)
        if on_change is not None:
            self._on_change.append(on_change)
        if on_undone is not None:
            self._on_undone.append(on_undone)
        if on_reload is not None:
            self._on_reload.append(on_reload)

    @property
    def store_error(self) -> StoreError | None:
        """Why changes can't be stored now; None if they can."""
        return self._log.failure

    @property
    def is_degraded(self) -> bool:
        """Tell whether changes can't be stored now."""
        return not self._log.is_writable

    @property
    def save_error(self) -> StoreError | None:
        """Why the database can't follow the journal now; None if it can."""
        return self.saver.error

    # Changes

    def deliver(self, tickets: Sequence[Ticket]) -> None:
        """Apply *tickets* in order, record them, finish them, and announce the changes.

        In local mode ``is_ready`` was true, and this blocks until the records are written, with the
        lock released meanwhile. In a cluster it does not block: ``write_out`` writes them.
        """
        if self.policy is _KEEP:
            done = self._apply(tickets)
            self._record_for_good(done)
            self._mark_written(done)
            for ticket in tickets:
                ticket.finish()
        else:
            done = self._deliver_locally(tickets)
        self._announce(done)

    def _deliver_locally(self, tickets: Sequence[Ticket]) -> list[Applied]:
        """Apply *tickets*, and undo all of them if they can't be written. Blocks."""
        done: list[Applied] = []
        error: PmxcfsError | None = None
        is_explained = False  # else *error* is made below: an exception costs more than the rest
        try:
            done = self._apply(tickets)
            self._record(done)
            self._write(self._shortest(tickets))
            self._mark_written(done)
            is_explained = True
        except (Stalled, StoreError) as cause:
            error, is_explained = cause, True
        finally:
            if not is_explained:
                error = Failed("the change could not be stored, by a bug")
            if error is not None:
                done = []
            try:
                self._undo(error)
            finally:
                for ticket in tickets:
                    ticket.finish(error)
        return done

    def _shortest(self, tickets: Sequence[Ticket]) -> float:
        """Return the seconds that the most urgent one of *tickets* may wait."""
        seconds = timeout_for(tickets[0])
        for ticket in tickets:
            seconds = min(seconds, timeout_for(ticket))
        return seconds

    def _undo(self, error: PmxcfsError | None) -> None:
        """Undo what *error* has kept from being written."""
        if error is not None:
            if not isinstance(error, Stalled | StoreError):
                self._log.lose()  # as it is not known whether the records were written
            self._roll_back(StoreError(str(error), error.errno))

    def is_ready(self, tickets: Sequence[Ticket]) -> bool:
        """Tell whether *tickets* can be delivered in local mode without waiting first."""
        if self._turn.is_taken or self.saver.is_overdue:
            return False
        return self._log.is_ready(self._size_of(tickets))

    def await_ready(self, tickets: Sequence[Ticket], seconds: float) -> None:
        """Wait for one of the things that keep *tickets* from being delivered. Blocks.

        Raises Stalled after *seconds*, StoreError, Busy, and Signaled.
        """
        if self._turn.is_taken:
            self._turn.await_end(seconds)
        elif self.saver.is_overdue:
            self.await_saver()
        else:
            try:
                self._await_room(self._size_of(tickets), seconds)
            except StoreError as error:
                if not self._turn.is_taken:  # else the deferred changes are part of another group
                    self._roll_back(error)  # the deferred changes, which can't be written either
                raise

    def _size_of(self, tickets: Sequence[Ticket]) -> int:
        size = 0
        for ticket in tickets:
            size += size_of(ticket.mutation, self.tree)
        return size

    def _await_room(self, size: int, seconds: float) -> None:
        log, version = self._log, self.tree.version
        log.prepare(version)
        with self._yielding.interruptible(log.wake_waiting) as found, self._yielding.waiting():
            log.await_ready(size, version=version, seconds=seconds, interruption=found)

    def await_saver(self) -> None:
        """Let the database catch up if too much waits to be saved. Blocks. Raises Busy."""
        if self.saver.is_overdue:
            with self._yielding.waiting():
                self.saver.await_save(timeout=NAME_TIMEOUT)
            if self.saver.is_overdue:
                raise Busy("too many changes wait to be saved, nothing was changed")

    def _write(self, seconds: float) -> None:
        """Write the records that wait, with the lock released. Raises StoreError and Stalled."""
        if self._log.is_waiting():
            self._turn.begin()
            try:
                watch = self._yielding.begin_write()
                try:
                    self._log.write(seconds)
                finally:
                    self._yielding.end_write(watch)
            finally:
                self._turn.end()
            self.writes += 1

    def inject(self, mutation: Mutation, *, writer: int, mtime: int) -> Change:
        """Apply *mutation* as if *writer* had sent it; return its change. Raises PmxcfsError."""
        ticket = Ticket(mutation, writer=writer, mtime=mtime, foreign=True)
        while self.policy is _ROLL_BACK and not self.is_ready([ticket]):
            self.await_ready([ticket], timeout_for(ticket))
        self.deliver([ticket])
        return ticket.result()

    def defer(self, ticket: Ticket) -> None:
        """Apply *ticket*, if ``is_ready``; it is written with the next change, or by ``flush``.

        A crash before loses the change.
        """
        try:
            done = self._apply([ticket])
            self._record(done)
        except BaseException:
            self._roll_back(StoreError("a new file could not be stored, by a bug"))
            raise
        self._has_configuration = self._has_configuration or is_configuration(done)
        self._announce(done)

    def flush(self) -> None:
        """Write deferred changes. Blocks. Raises StoreError and undoes them; Busy, Signaled."""
        if self.policy is _ROLL_BACK:
            self._turn.await_end(NAME_TIMEOUT)
            if self._log.is_waiting():
                self._deliver_deferred()
            elif self._log.has_gap:  # the tree is to be saved instead of their records
                self._await_room(0, NAME_TIMEOUT)

    def _deliver_deferred(self) -> None:
        try:
            self._write(NAME_TIMEOUT)
        except (Stalled, StoreError) as error:
            self._undo(error)
            raise
        self._mark_written([])

    def _settle(self) -> None:
        """For the saver: let no group be half written, and write deferred changes if possible.

        Blocks. Raises StoreError, also if that lasts too long.
        """
        try:
            if self._log.is_writable:
                self.flush()
            else:
                self._turn.await_end(NAME_TIMEOUT)
        except Busy as error:
            raise StoreError(str(error), error.errno) from error

    def _keep(self) -> None:
        """Let all that was applied so far stay; it is in the batch that is being taken."""
        self._batches.note_changed()
        self.tree.mark_written()
        self.guests.mark_written()

    @property
    def has_unwritten(self) -> bool:
        """Whether the record of a change that was delivered may not be written yet."""
        return self._log.has_unwritten

    def write_out(self, seconds: float = math.inf) -> bool:
        """Write what waits; in a cluster a failure degrades this node. Blocks. Needs no lock.

        Return False if that could not begin within *seconds*.
        """
        if self.policy is _KEEP:
            try:
                self._log.write(seconds)
            except Stalled:
                return False
            except StoreError:
                pass  # which the log has noted
            except Exception:  # noqa: BLE001, as other nodes have the changes
                _log.exception("records could not be written, which is a bug: the tree is saved")
        return True

    def sync(self) -> None:
        """Bring all changes to the device. Blocks. Needs no lock. Raises StoreError."""
        if self.policy is _KEEP:
            self._log.write()
        self._log.sync(version=self.tree.version)

    def check_writable(self, size: int = 0, seconds: float = CONTENT_TIMEOUT) -> None:
        """Raise StoreError if a change with *size* bytes can't be stored now. Blocks.

        Has room made, or a failure tried again, with the lock released; raises Stalled if that
        takes *seconds*, and Signaled. A node of a cluster that is degraded must send no changes.
        """
        if not self._turn.is_taken and not self._log.is_ready(size):
            self._await_room(size, seconds)

    def try_again(self) -> bool:
        """Try to write what is owed; tell whether that succeeded. Blocks. Needs no lock."""
        with contextlib.suppress(StoreError):
            self._log.await_ready(0, version=self.tree.version)
            return True
        return False

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

        The caller must deliver nothing meanwhile, and must not hold the tree's *lock*: it is taken
        only to replace the tree, so requests are answered while the adoption is planned and saved.
        """
        is_current = self._save_ours()
        with lock:
            note = self.departures.begin_adoption(self.tree.version, side=side)
        adoption = plan(self.tree, leader, records)
        removals = self._removals() if note is not None else ()
        lost = conflicts.lost_by(adoption, self.tree, note=note, removals=removals)
        if lost.is_fork or lost.older:
            self._keep_copy(lost, now=now, is_current=is_current)
        bodies = records_of_adoption(adoption, self.tree)
        fork = lost.fork if lost.is_fork else None
        with self.saver.alone():  # or our tree could be saved over the leader's
            with lock:
                notes = self.departures.after_adoption(side=side, fork=fork)
            is_saved = is_current and self._save_adoption(adoption, notes)
            with lock:
                version = self.tree.version
                self.departures.adopted(side=side, fork=fork)
                self._swap(adoption, notes, is_saved=is_saved)
                self._log.begin_segment_with(bodies, version=version)
        self._on_pending()

    def can_keep_copy(self) -> bool:
        """Try whether an adoption could copy the database first. Blocks. Needs no lock."""
        return self.try_again() and conflicts.can_keep_copy(self._database)

    def _save_soon(self) -> None:
        """Have the tree saved, and wait for that. Blocks. Needs no lock. Raises StoreError."""
        self.saver.save_now(timeout=SAVE_TIMEOUT)

    def _save_ours(self) -> bool:
        """Save our tree, so that the database has it; return whether that succeeded. Blocks."""
        try:
            self.saver.save()
        except StoreError:
            if self.policy is _ROLL_BACK:
                raise
            return False
        return True

    def _keep_copy(self, lost: conflicts.Lost, *, now: int, is_current: bool) -> None:
        if not is_current:  # the copy would lack changes that are in RAM or in the journal only
            reason = self.save_error or self.store_error
            raise NoCopy(str(reason or "the database lacks changes of this node"))
        try:
            conflicts.keep_copy(self._database, lost, now=now)
        except StoreError as error:
            raise NoCopy(str(error), error.errno) from error

    def _removals(self) -> Sequence[Removal]:
        """Return the removals that other nodes may miss, saved or not. Blocks."""
        saved: Sequence[Removal] = ()
        with contextlib.suppress(StoreError):
            saved = self._database.read_removals()
        return [*saved, *self.departures.removals]

    def _save_adoption(self, adoption: Adoption, notes: Mapping[int, Note]) -> bool:
        """Save *adoption* before the tree is replaced; return whether that succeeded.

        Raises StoreError if the policy is ROLL_BACK. Blocks. Needs no lock.
        """
        try:
            self.saver.save_adoption(adoption, notes=notes)
        except StoreError:
            if self.policy is _ROLL_BACK:
                raise
            return False
        return True

    def _swap(self, adoption: Adoption, notes: Mapping[int, Note], *, is_saved: bool) -> None:
        reload = adoption.apply()
        self.guests.rebuild(self.tree)
        self.tree.mark_written()
        self._batches.adopted(notes, is_saved=is_saved)
        if not is_saved:
            self._log.lose()
        for listener in self._on_reload:
            listener(reload)

    def save_notes(self) -> None:
        """Record what is noted of other nodes, if that has changed, ahead of later changes."""
        if not self.departures.is_saved:
            self.departures.is_saved = True
            self._log.add([record_notes(self.departures)])
            self._on_pending()

    def _apply(self, tickets: Sequence[Ticket]) -> list[Applied]:
        if self.departures.is_due:
            self.departures.note_absent(self.tree.version)
        self.save_notes()
        done: list[Applied] = []
        for ticket in tickets:
            mutation, version = ticket.mutation, self.tree.version
            try:
                mutation = ticket.with_current_path(self.tree)
                ticket.change = apply(self.tree, self.guests, mutation, ticket.writer, ticket.mtime)
                for listener in self._on_applied:
                    listener(ticket.change, ticket.foreign)
                if ticket.made is not None and ticket.change.entry is not ticket.made:
                    ticket.foreign = True
                done.append(Applied(ticket, mutation, ticket.change, self.tree.version))
            except HalfRenamed as error:
                ticket.error = error
                done.append(Applied(ticket, mutation, error.change, self.tree.version))
            except PmxcfsError as error:
                ticket.error = error
            except Exception:
                _log.exception("a mutation could not be applied, which is a bug")
                ticket.error = Failed("the change could not be applied")
                if self.tree.version != version:  # no record leads to the tree as it is now
                    if self.policy is _ROLL_BACK:
                        raise
                    self._log.lose()
        self._note_removals(done)
        return done

    def _note_removals(self, done: Sequence[Applied]) -> None:
        """Note which entries are gone, also by a RENAME onto them."""
        for applied in done:
            change = applied.change
            gone = change.entry if change.kind in _REMOVALS else change.replaced
            if gone is not None:
                self.departures.remove(gone.inode, to_bytes(change.path), version=applied.version)

    def _record(self, done: Sequence[Applied]) -> None:
        """Add the records of *done* to the change log, and the rows before them."""
        if done:
            is_half = done[0].ticket.error is not None  # it did not raise the version
            self._log.begin_segment_if_full(done[0].version - (not is_half))
            bodies = records_of(done, self.tree, self._log.segment, self._wall_clock_ns())
            if can_be_staged(done):
                self._log.add_heartbeats(bodies)
            else:
                self._log.add(bodies)
            if self.policy is _KEEP:
                self._on_pending()

    def _record_for_good(self, done: Sequence[Applied]) -> None:
        """Add the records of *done*, which stays in any case, as other nodes have it."""
        try:
            self._record(done)
        except Exception:  # noqa: BLE001, as the tree must be saved in spite of a bug
            _log.exception("a change could not be recorded, which is a bug: the tree is saved")
            self._log.lose()
            self._on_pending()

    def _mark_written(self, done: Sequence[Applied]) -> None:
        """Note that what was applied so far stays; the database is to follow."""
        is_soon = self._has_configuration or is_configuration(done)
        self._has_configuration = False
        self.saver.note_change(is_soon)
        self._keep()

    def _roll_back(self, error: StoreError) -> None:
        """Undo all changes that were not written."""
        self._log.discard()
        self._has_configuration = False
        undone = self.tree.rollback()
        self.guests.rollback()
        kept = [gone for gone in self.departures.removals if gone.version <= self.tree.version]
        self.departures.removals = kept
        self.departures.is_saved = False  # their record may be among those discarded
        for listener in self._on_undone:
            listener(undone, error)

    def _announce(self, done: Sequence[Applied]) -> None:
        for applied in done:
            is_foreign = applied.ticket.foreign or applied.ticket.error is not None
            for listener in self._on_change:
                listener(applied.change, is_foreign)
