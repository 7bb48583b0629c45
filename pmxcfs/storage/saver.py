"""The thread that brings the database up to what the journal has, and when it does so.

A save is one transaction. Before it, the journal gets a SAVING record and is synced; behind it, a
SAVED record. So the next start knows from the save's id whether the journal goes on from the
database that it finds. Then the database's log is cut, so that the file alone is sound and current,
and the journal may let go of what the database has.

Nobody who changes a file waits for a save. If one fails, the changes are in the journal all the
same: the next one comes some seconds later, with everything since.

If a program keeps a read transaction of the database open, its log can't be cut. Then saves wait
until much has to be saved, or the log would grow with each.

Threads: ``saver``, which runs ``work``. ``save``, ``save_adoption`` and ``save_now`` are for any
thread, without the tree's lock: the source takes it. Lock order: one save at a time; the tree; the
condition; the journal's own.
Contract: docs/spec/storage.md, "Writing".
"""

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from pmxcfs.errors import StoreError
from pmxcfs.host.outage import Outage
from pmxcfs.host.process import program_name
from pmxcfs.host.threads import STOP_TIMEOUT, BackgroundThread
from pmxcfs.storage.database import Batch, Database, NeedsWhole
from pmxcfs.storage.divergence import Note
from pmxcfs.storage.journal import Journal, size_of
from pmxcfs.storage.mark import ID_SIZE, Mark, Position
from pmxcfs.storage.records import Check, Gap, Saved, Saving, encode
from pmxcfs.storage.repair import Row
from pmxcfs.storage.schedule import NEVER, NOW, SAVE_SIZE, Schedule
from pmxcfs.storage.schema import state_checksum
from pmxcfs.tree.adoption import Adoption

_log = logging.getLogger("pmxcfs.database")

OVERDUE_SIZE = 16 << 20  # bytes of journal to save or to let go of; then changes wait for a save
CHECK_INTERVAL = (
    3600.0  # seconds between checksums of the tree in the journal: hashing it takes long
)
CHECKPOINT_INTERVAL = 2.0  # seconds between attempts to cut the database's log
READER_TIMEOUT = 60.0  # seconds that a reader may keep the log from being cut unnoticed
_U64 = (1 << 64) - 1
RETRY_AFTER = 2.0  # seconds after a failed save; twice as long after each further one, up to:
MAX_RETRY_AFTER = 10.0


class Source(Protocol):
    """What has changes to save: the replica. Each method takes the tree's lock itself."""

    def take_batch(self, *, whole: bool, with_state: bool) -> tuple[Batch, Position | None] | None:
        """Return what is to be saved; None if nothing is unsaved and *whole* is false.

        *with_state*: its checksum is wanted, too, if that is cheap.

        The position in the journal is that behind the last record that the batch includes. It is
        None if the journal does not lead to the batch: then the batch is the whole tree, a new
        segment begins with it, and until ``batch_saved`` or ``batch_failed`` nobody appends.
        """

    def batch_saved(self) -> None:
        """Note that the database has the last batch."""

    def batch_failed(self) -> None:
        """Note that what was in the last batch is unsaved again."""


class Saver:
    """The saves of one database."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        source: Source,
        *,
        clock: Callable[[], float] = time.monotonic,
        new_id: Callable[[], bytes] = lambda: os.urandom(ID_SIZE),
    ) -> None:
        self._database = database
        self._journal = journal
        self._source = source
        self._clock = clock  # monotonic seconds
        self._new_id = new_id
        self._mutex = threading.RLock()  # held during a save
        self._condition = threading.Condition()  # guards the following; told when a save has ended
        self._schedule = Schedule()
        self._saved = journal.position  # from here on, the journal's bytes wait to be saved
        # What the journal has appended when so much waits, about, that a save is due: each change
        # compares it. The thread looks at the real size.
        self._large_at = journal.appended + SAVE_SIZE - self._waiting_size()
        self._released = journal.position  # as of the last save that let go of segments
        self._wakes_at = NOW  # when the thread looks again by itself; NOW: it works
        self._requests = self._answered = 0  # calls of save_now
        self._outcome: StoreError | None = None  # of the last save
        self._is_saving = False
        # A segment has begun for a batch without position, which is not saved yet: nobody appends.
        self._is_in_gap = False
        self._retry_at = NOW
        self._failures = 0  # in a row
        self._check_at = NOW  # of the next checksum
        self._checkpoint_at = NEVER  # of the next attempt to cut the log
        self._blocked_since = NEVER  # since when the log can't be cut
        self._is_reader_named = False
        self._saves = _outage("changes are kept in the journal", over=f"{database.path} is written")
        self._checkpoints = _outage(
            "a copy of it alone is older", over=f"the write-ahead log of {database.path} is cut"
        )
        self._releases = _outage(
            "the next save lets go of what the journal need not have",
            over="the journal has let go of what it need not have",
        )
        if database.unwritten is not None:
            if journal.failure is not None:
                self._saves.cause = database.unwritten  # one warning, the journal's, is enough
            else:
                self._saves.fails(database.unwritten)
        self._thread = BackgroundThread("saver", self._run)
        self._thread.wake = self._wake  # type: ignore[method-assign]

    @property
    def error(self) -> StoreError | None:
        """Why the last save failed; None if it did not."""
        return self._saves.cause

    @property
    def is_blocked(self) -> bool:
        """Whether a copy of the file alone is older than the last save."""
        return self._blocked_since != NEVER

    @property
    def is_overdue(self) -> bool:
        """Whether so much waits that changes are to wait for the save that runs. Never blocks.

        What the running save has in the database counts until its segments are history: until then
        they take as much of the disk.
        """
        return self._is_saving and self._journal.size_since(self._released) > OVERDUE_SIZE

    @property
    def waiting_bytes(self) -> int:
        """The bytes of journal that the database does not have yet. Never blocks."""
        return self._waiting_size()

    def note_change(self, is_configuration: bool) -> None:
        """Note that a change was written to the journal. For any thread; never blocks long.

        *is_configuration*: its file is none of those that change all the time.
        """
        now = self._clock()
        is_small = self._journal.appended < self._large_at
        if is_small and self._schedule.touch(now, is_configuration):
            return
        with self._condition:
            self._schedule.note_change(now, is_configuration)
            if self._due_at() < self._wakes_at:
                self._condition.notify_all()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout: float | None = STOP_TIMEOUT) -> None:
        """End the thread; wait up to *timeout* seconds for it. What is unsaved stays unsaved."""
        self._thread.close(timeout)

    def save_now(self, *, timeout: float) -> None:
        """Have the thread save all that is unsaved; wait for up to *timeout* seconds.

        Raises StoreError if that fails, or lasts longer.
        """
        with self._condition:
            self._requests += 1
            mine = self._requests
            self._condition.notify_all()
            if not self._condition.wait_for(lambda: self._answered >= mine, timeout):
                raise StoreError(
                    f"{self._database.path} could not be written within {timeout:g} s: its device "
                    "or another program keeps it from that",
                    errno.EBUSY,
                )
            if self._outcome is not None:
                raise self._outcome.with_traceback(None)

    def await_save(self, *, timeout: float) -> None:
        """Wait until no change has to wait for the save that runs, for up to *timeout* seconds."""
        with self._condition:
            self._condition.wait_for(lambda: not self.is_overdue, timeout)

    def work(self) -> None:
        """Do what is due. In the thread; a test without the thread calls it, too. Blocks."""
        now = self._clock()
        with self._condition:
            is_save_due, is_checkpoint_due = self._save_at() <= now, self._checkpoint_at <= now
        if is_save_due:
            try:
                self.save()
            except StoreError:
                pass  # save has noted it
            except Exception:  # noqa: BLE001, as the thread must outlive a bug
                _log.exception("the tree could not be saved, which is a bug")
        elif is_checkpoint_due:
            with self._mutex:
                self._checkpoint()

    def save(self, *, whole: bool = False) -> None:
        """Save all that is unsaved, or the *whole* tree, on this thread. Blocks.

        Raises StoreError; the changes are unsaved again then.
        """
        with self._mutex:
            answering = self._begin()
            error: Exception | None = StoreError("the save was interrupted")
            try:
                self._save(whole=whole or self._database.needs_whole)
                self._failures, self._retry_at = 0, NOW
                self._checkpoint()
                error = None
            except Exception as exc:
                error = exc
                raise
            finally:
                self._end(error, answering)

    def alone(self) -> AbstractContextManager[object]:
        """Keep other threads from saving until the block ends. Waits for the save that runs."""
        return self._mutex

    def save_adoption(self, adoption: Adoption, *, notes: Mapping[int, Note]) -> None:
        """Save another node's tree in place of ours, of which nothing is unsaved. Blocks.

        Raises StoreError; the database holds our tree then.
        """
        root = adoption.root
        with self._mutex:
            try:
                position = self._journal.position
                mark = self._announce(root.version, root.writer, root.mtime, position)
                self._database.adopt(adoption, notes=notes, mark=mark)
            except StoreError as error:
                self._saves.fails(error)
                raise
            self._conclude(mark)
            self._checkpoint()

    # Saving. All need the mutex.

    def _begin(self) -> int:
        """Note that a save begins; return how many requests it answers."""
        with self._condition:
            self._is_saving = True
            self._schedule.begin()
            return self._requests

    def _end(self, error: Exception | None, answering: int) -> None:
        """Note that a save has ended, with an *error* or None."""
        with self._condition:
            self._is_saving = False
            self._answered = answering
            if error is None:
                self._outcome = None
                self._saves.works()
            else:
                if not isinstance(error, StoreError):
                    error = StoreError(f"{self._database.path} can't be written: {error!r}")
                self._outcome = error
                self._schedule.fail()
                pause = min(RETRY_AFTER * 2**self._failures, MAX_RETRY_AFTER)
                self._failures, self._retry_at = self._failures + 1, self._clock() + pause
                if self._journal.failure is None:  # else the change log has told it
                    self._saves.fails(error)
            self._condition.notify_all()

    def _save(self, *, whole: bool) -> None:
        try:
            self._save_batch(whole=whole)
        except NeedsWhole:
            self._save_batch(whole=True)

    def _save_batch(self, *, whole: bool) -> None:
        end = self._journal.position
        is_check_due = self._clock() >= self._check_at
        taken = self._source.take_batch(whole=whole, with_state=is_check_due)
        if taken is None:
            self._note_saved(end)
            return
        batch, position = taken
        try:
            mark = self._announce(*_stamp(batch), position)
            self._database.save(batch, mark)
            self._is_in_gap = False
        except BaseException:
            self._source.batch_failed()
            raise
        self._source.batch_saved()
        self._conclude(mark)
        if batch.state is not None:
            self._append_check(batch.version_row, batch.state)

    def _announce(self, version: int, writer: int, mtime: int, position: Position | None) -> Mark:
        """Write to the journal's device that a save of this version begins; return its mark.

        Without a *position*, a segment begins for which the records before it do not matter.
        """
        save_id = self._new_id()
        saving = encode(Saving(save_id, version, writer, mtime))
        if position is None:
            if self._journal.is_broken or not self._is_in_gap:
                self._journal.begin_segment(version=version)
                self._is_in_gap = True
            position = self._journal.position
            self._journal.append([encode(Gap(version)), saving])
        else:
            self._try_to_have_room(size_of([saving]), version=version)
            self._journal.append([saving])  # if there is none, in the spare room
        self._journal.sync()
        return Mark(save_id, self._journal.lineage, position)

    def _try_to_have_room(self, size: int, *, version: int) -> None:
        if not self._journal.has_room(size):
            with contextlib.suppress(StoreError):  # which the journal has noted
                self._journal.make_room(size, version=version, wait=False)

    def _append_check(self, root: Row, rows: Sequence[Row]) -> None:
        """Write to the journal the checksum of the tree that was saved."""
        self._check_at = self._clock() + CHECK_INTERVAL
        check = Check(root[2] & _U64, state_checksum(rows, root))
        with contextlib.suppress(StoreError):  # which the next change meets
            self._journal.append([encode(check)])

    def _conclude(self, mark: Mark) -> None:
        """Write to the journal that the database has *mark*; let go of old segments.

        A failure is the journal's: the save is on the device.
        """
        self._note_saved(mark.position)
        try:
            self._journal.append([encode(Saved(mark.save_id))])
            self._journal.release(mark.position, progress=self._note_released)
            self._releases.works()
        except StoreError as error:
            self._releases.fails(error)
        self._note_released(mark.position)

    def _note_released(self, position: Position) -> None:
        """Note that segments before *position* are let go of, and answer who waits for that."""
        with self._condition:
            self._released = max(self._released, position)
            self._condition.notify_all()

    def _note_saved(self, position: Position) -> None:
        with self._condition:
            self._saved = position
            self._large_at = self._journal.appended + SAVE_SIZE - self._waiting_size()

    def _checkpoint(self) -> None:
        """Cut the database's log; if that is not possible, have the thread try again."""
        try:
            is_complete = self._database.checkpoint()
            failure = None
        except StoreError as error:
            is_complete, failure = False, error
        now = self._clock()
        with self._condition:
            if failure is not None:  # the next save may have to write the whole tree
                self._checkpoints.fails(failure)
                self._retry_at = now + MAX_RETRY_AFTER
            if is_complete:
                self._checkpoint_at = self._blocked_since = NEVER
                self._is_reader_named = False
                self._checkpoints.works()
                return
            self._checkpoint_at = now + CHECKPOINT_INTERVAL
            self._blocked_since = min(self._blocked_since, now)
            is_long = now - self._blocked_since >= READER_TIMEOUT
        if is_long and not self._is_reader_named:
            self._is_reader_named = True
            self._name_reader()

    def _name_reader(self) -> None:
        pid = self._database.blocking_pid()
        if pid is not None:
            _log.warning(
                "%s (pid %d) has kept a read transaction of %s open for %d s: a copy of that file "
                "alone is older until it ends",
                program_name(pid),
                pid,
                self._database.path,
                READER_TIMEOUT,
            )

    # The thread.

    def _run(self) -> None:
        while not self._thread.is_stopping:
            self.work()
            with self._condition:
                self._wakes_at = self._due_at()
                seconds = self._wakes_at - self._clock()
                if seconds > 0 and not self._thread.is_stopping:
                    self._condition.wait(min(seconds, threading.TIMEOUT_MAX))
                self._wakes_at = NOW

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify_all()

    def _due_at(self) -> float:
        """Return when there is something to do; needs the condition."""
        return min(self._save_at(), self._checkpoint_at)

    def _save_at(self) -> float:
        """Return when the next save is due; needs the condition."""
        if self._requests > self._answered:
            return NOW
        if self._database.needs_whole:
            return self._retry_at
        due = self._schedule.due_at(self._waiting_size(), is_blocked=self.is_blocked)
        return max(due, self._retry_at)

    def _waiting_size(self) -> int:
        return self._journal.size_since(self._saved)


def _stamp(batch: Batch) -> tuple[int, int, int]:
    """Return version, writer and mtime of the tree in *batch*."""
    version, writer, mtime = batch.version_row[2:5]
    return version & _U64, writer, mtime


def _outage(consequence: str, *, over: str) -> Outage[StoreError]:
    """Return an outage that is logged anew when the errno of its cause changes."""
    return Outage(
        _log,
        describe=lambda error: f"{error}; {consequence}",
        over=over,
        level=logging.WARNING,
        kind=lambda error: error.errno,
    )
