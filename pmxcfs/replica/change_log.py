"""The change log: the records of applied changes, from the tree to the journal.

A change is applied to the tree first, because only that tells whether it is refused. Its record
then waits here, in order, until a thread writes it: one ``Journal.append`` for all that wait. The
caller of the change is answered after that.

All other calls of the device are made by the thread ``room`` (``room_maker``): it makes room ahead
of need, so that a change mostly finds it. A change that finds none waits for that thread.

If the journal can't be written, ``failure`` says why; ``await_ready`` has it tried again. If only
room was missing, it lasts until there is as much as was refused, and changes that need less go on.
When records were lost on the way (the journal broke, or too many wait), those behind them would
lead nowhere. So nothing is written until the database has the whole tree; a new segment with a GAP
record goes on from that.

Threads: the methods of the first part need the tree's lock. Those of the second part are called
without it, because they block.
Contract: docs/spec/storage.md, "Writing".
"""

import contextlib
import errno
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator

from pmxcfs.errors import Stalled, StoreError
from pmxcfs.host.locking import Lock
from pmxcfs.host.outage import Outage
from pmxcfs.replica.room_maker import ATTEMPT_INTERVAL, RoomMaker
from pmxcfs.replica.waiting import NOT_INTERRUPTIBLE, Interruption
from pmxcfs.storage.journal import Journal, size_of
from pmxcfs.storage.mark import Position

_log = logging.getLogger("pmxcfs.database")

MAX_OWED = 8 << 20  # bytes of records that may wait while the journal can't be written
MAX_STALLED = 4 * MAX_OWED  # bytes of records that may wait while it does not fail
AHEAD = 256 << 10  # bytes; with less room more is made, before a change needs it
STALLED_AFTER = 0.25  # seconds that the device has not answered a thread that writes
_FULL = frozenset([errno.ENOSPC, errno.EDQUOT])


class ChangeLog:
    """The records of one node's changes, on their way into *journal*.

    With *is_kept*, changes whose records can't be written stay, and their records are owed.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        save: Callable[[], None],
        consequence: str,
        has_gap: bool,
        is_kept: bool,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self.segment = 1  # counts the segments: rows before changes are recorded once in each
        self.has_gap = has_gap  # records are missing: the tree is saved before others follow
        self._journal = journal
        self._save = save  # has the tree saved into the database; blocks, raises StoreError
        self._is_kept = is_kept
        self._monotonic = monotonic
        # A number stands for the begin of a segment, at this version of the tree.
        self._pending: deque[bytes | int] = deque()
        self._has_marker = False
        self._version = 0  # of the tree, when room was last asked for
        # Of the tree, when a full segment was last found, of which the next can begin: -1 if not.
        self._version_when_full = -1
        # Bytes of records; the first is set with the tree's lock held, the second with the mutex.
        self._added = self._written = 0
        self._ordinary = 0  # bytes of records up to the last one that is not of heartbeats
        self._mutex = Lock()  # held by the thread that writes
        self._busy_since = 0.0  # monotonic seconds since when it is; 0 if it is not
        self._maker = RoomMaker(self._attempt, monotonic=monotonic, pause=pause)
        self._has_gap_again = False  # since the tree was taken to be saved
        self._refused = 0  # bytes for which there was no room, if that is the failure
        self._ahead_at = 0.0  # monotonic seconds; before, no room is made ahead again
        self._outage: Outage[StoreError] = Outage(
            _log,
            describe=lambda error: f"{error}; {consequence}",
            over="changes can be stored again",
            kind=lambda error: error.errno,
        )
        if journal.failure is not None:  # it could not be written when it was started
            self._outage.fails(journal.failure)

    @property
    def failure(self) -> StoreError | None:
        """Why changes can't be stored now; None if they can."""
        return self._outage.cause

    @property
    def is_writable(self) -> bool:
        """Whether records can be written, as far as is known."""
        return self._outage.cause is None and not self.has_gap and not self._journal.is_broken

    @property
    def position(self) -> Position:
        """The position of the next record in the journal."""
        return self._journal.position

    def is_waiting(self) -> bool:
        """Tell whether a record waits to be written."""
        return bool(self._pending)

    def _waiting_size(self) -> int:
        return self._added - self._written

    # With the tree's lock.

    def is_ready(self, size: int) -> bool:
        """Tell whether records of *size* bytes can be added and written without ``await_ready``."""
        if self.has_gap or (self._outage.cause is not None and not self._refused):
            return False
        if self._journal.is_full() and not self._pending:
            return False  # a new segment is to begin
        if self._busy_since and self._monotonic() - self._busy_since > STALLED_AFTER:
            return False
        return self._journal.has_room(self._waiting_size() + size)

    def prepare(self, version: int) -> None:
        """Let a new segment begin in ``await_ready``, if that is needed; *version* is the tree's.

        Rows before changes are recorded anew from now on.
        """
        if self._journal.is_full() and not self._pending:
            self.segment += 1
            self._version_when_full = version

    def add(self, bodies: Collection[bytes]) -> None:
        """Append records, in order."""
        self._add(bodies, True)

    def add_heartbeats(self, bodies: Collection[bytes]) -> None:
        """Append records that the journal may stage, in order."""
        self._add(bodies, False)

    def _add(self, bodies: Collection[bytes], is_ordinary: bool) -> None:
        # The numbers ahead of the records, which another thread may write at once.
        self._added += size_of(bodies)
        if is_ordinary:
            self._ordinary = self._added
        self._pending.extend(bodies)
        waiting = self._waiting_size()
        if waiting > MAX_OWED and (waiting > MAX_STALLED or self._outage.cause is not None):
            self._forget()
            self.has_gap = self._has_gap_again = True

    def begin_segment_if_full(self, version: int) -> None:
        """Have the next record begin a new segment if the current one is long enough.

        *version* is the tree's before it. Changes that can be undone are all undone together, so
        none of them must be in the journal if the new segment can't begin: those that wait are
        written with the next ones, to the current segment.
        """
        if self._journal.is_full() and (self._is_kept or not self._pending):
            self.begin_segment_with((), version=version)

    def begin_segment_with(self, bodies: Collection[bytes], *, version: int) -> None:
        """Have a new segment begin with the records *bodies*; *version* is the tree's before."""
        if not self.has_gap:  # else the segment begins when the tree has been saved
            if not self._has_marker:
                self._has_marker = True
                self._pending.append(version)
                self.segment += 1
            self.add(bodies)

    def discard(self) -> None:
        """Forget the records that wait: their changes are undone."""
        self._forget()
        self.segment += 1  # the rows before these changes are not in the journal

    def lose(self) -> None:
        """Note that a record is missing, by a bug: the tree must be saved before others follow."""
        self.has_gap = self._has_gap_again = True

    @contextlib.contextmanager
    def paused(self) -> Iterator[bool]:
        """Let no thread write during the block, unless one writes now: then it gets False."""
        is_paused = self._mutex.acquire(False)
        try:
            yield is_paused
        finally:
            if is_paused:
                self._mutex.release()

    def check(self) -> None:
        """Raise the failure if there is one."""
        if self._outage.cause is not None:
            raise self._why_not()

    def begin_bridge(self) -> bool:
        """Return whether records are missing; then the caller has the tree saved as it is now.

        The caller has ``paused`` writing. The next segment goes on from that tree, when
        ``end_bridge`` was called.
        """
        if not self.has_gap and not self._journal.is_broken:
            return False
        self.has_gap, self._has_gap_again = True, False
        self._forget()
        self._added = self._written  # also if a bug lost records on the way
        self.segment += 1
        return True

    def end_bridge(self, *, is_saved: bool) -> None:
        """Note whether the tree was saved that ``begin_bridge`` was about."""
        self.has_gap = self._has_gap_again or not is_saved

    def _forget(self) -> None:
        with contextlib.suppress(IndexError):  # another thread may take some of them
            while True:
                body = self._pending.popleft()
                if isinstance(body, bytes):
                    self._added -= size_of([body])
        self._has_marker = False

    # Without the tree's lock.

    @property
    def has_unwritten(self) -> bool:
        """Whether a record waits to be written or is just being written. Never blocks."""
        return bool(self._pending) or self._mutex.locked()  # in this order: a writer takes first

    def write(self, seconds: float = math.inf) -> None:
        """Write all records that wait. Blocks. Raises StoreError; they wait on then.

        Raises Stalled if that could not begin within *seconds*.
        """
        until = self._monotonic() + seconds
        while not self._write_what_fits(until):
            self._maker.wait(self._maker.ask(0), until - self._monotonic())

    def sync_if_due(self) -> None:
        """Bring staged records to the device if it is time. Blocks; a failure is noted."""
        if self._journal.is_sync_due:
            try:
                self._journal.sync()
            except StoreError as error:
                self._note_failure(error, 0)

    def await_writer(self) -> None:
        """Wait for the thread that writes, if one does. Blocks."""
        with self._mutex:
            pass

    def sync(self, *, version: int) -> None:
        """Bring all written records to the device. Blocks. Raises StoreError.

        If that fails, or if records are missing, the tree is saved into the database instead.
        *version* is the tree's.
        """
        try:
            self._journal.sync()
            if not self.has_gap:
                return
        except StoreError as error:
            self._note_failure(error, 0)
        self.await_ready(0, version=version)

    def await_ready(
        self,
        size: int,
        *,
        version: int,
        seconds: float = math.inf,
        interruption: Interruption = NOT_INTERRUPTIBLE,
    ) -> None:
        """Have room made for records of *size* bytes; after a failure, have it tried again. Blocks.

        At most two attempts a second are made; a call in between waits for the next one. *version*
        is the tree's. Raises StoreError, Stalled after *seconds*, and Signaled when *interruption*
        is given and ``wake_waiting`` called.
        """
        self._version = version
        self._maker.wait(self._maker.ask(size), seconds, interruption)

    def wake_waiting(self) -> None:
        """Let the threads that wait for room look whether they were interrupted. Never blocks."""
        self._maker.wake()

    def _write_what_fits(self, until: float) -> bool:
        """Write the records for which there is room; tell whether that was all. Raises StoreError.

        Raises Stalled if that can't begin until then.
        """
        self._begin_writing(until)
        try:
            while self._pending:
                self._check_complete()
                bodies = self._take()
                size = size_of(bodies)
                if not bodies or not self._has_room(size):
                    self._put_back(bodies)
                    return not self._pending  # the begin of a segment, or too many records
                self._append(bodies, size, until)
        finally:
            self._end_writing()
        if not self._journal.has_room(AHEAD) and self._monotonic() >= self._ahead_at:
            self._maker.ask(0)
        return True

    def _begin_writing(self, until: float) -> None:
        if not self._mutex.acquire(False):  # mostly it is free
            left = until - self._monotonic()
            if not self._mutex.acquire(True, max(left, 0.0)):
                raise Stalled
        self._busy_since = self._monotonic()

    def _end_writing(self) -> None:
        self._busy_since = 0.0
        self._mutex.release()

    def _has_room(self, size: int) -> bool:
        """Tell whether there is room for *size* bytes that wait.

        For changes that can be refused, room was made before they were applied; if the saver has
        used some of it meanwhile, there is spare room, which else is for the saver.
        """
        return self._journal.has_room(size) if self._is_kept else self._journal.can_take(size)

    def _take(self) -> list[bytes]:
        """Take the records up to the begin of a segment."""
        bodies: list[bytes] = []
        pending = self._pending
        try:
            while pending:
                body = pending.popleft()
                if isinstance(body, int):
                    pending.appendleft(body)
                    break
                bodies.append(body)
        except IndexError:  # another thread has forgotten the rest meanwhile
            return bodies
        return bodies

    def _put_back(self, bodies: list[bytes]) -> None:
        self._pending.extendleft(reversed(bodies))

    def _append(self, bodies: list[bytes], size: int, until: float) -> None:
        """Append the records that were taken; put them back if that fails. Raises StoreError.

        They take *size* bytes in the journal.
        """
        try:
            seconds = max(until - self._busy_since, 0.0)
            if self._written < self._ordinary:
                self._journal.append(bodies, seconds)
            else:
                self._journal.stage(bodies, seconds)
            self._written += size
        except Stalled:
            self._put_back(bodies)
            raise
        except StoreError as error:
            self._put_back(bodies)
            self._note_failure(error, 0)
            raise
        except Exception:
            self.lose()  # as these records are gone
            raise

    # In the thread that makes room.

    def _attempt(self, size: int) -> None:
        """Make ready for records of *size* bytes. Raises StoreError."""
        try:
            if self._journal.is_broken or self.has_gap:
                self._save()
            with self._writing():
                self._make_ready(size)
        except StoreError as error:
            self._note_failure(error, size)
            raise
        if not self._refused or self._journal.has_room(self._refused):
            self._refused = 0
            self._outage.works()

    def _note_failure(self, error: StoreError, size: int) -> None:
        if error.errno == errno.ESHUTDOWN:  # the journal was closed: the daemon ends
            return
        is_only_room = error.errno in _FULL and not (self.has_gap or self._journal.is_broken)
        self._refused = max(self._refused, self._waiting_size() + size, 1) if is_only_room else 0
        self._outage.fails(error)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Let no other thread write during the block."""
        self._begin_writing(math.inf)
        try:
            yield
        finally:
            self._end_writing()

    def _make_ready(self, size: int) -> None:
        """Begin the segment that is due, make room, and write what is owed. Raises StoreError."""
        if self._version_when_full >= 0 and not self._pending:
            self._begin_after_full()
        while True:
            self._begin_next()
            self._journal.make_room(self._waiting_size() + size, version=self._version)
            if not (self._pending and self._is_kept and self._outage.cause is not None):
                break
            self._check_complete()
            bodies = self._take()
            owed = size_of(bodies)
            if self._journal.has_room(owed):
                self._append(bodies, owed, math.inf)
            else:  # records were added meanwhile
                self._put_back(bodies)
        if not self._journal.has_room(max(AHEAD, self._refused)):
            self._journal.make_room_ahead(max(2 * AHEAD, self._refused))
            self._ahead_at = self._monotonic() + ATTEMPT_INTERVAL

    def _begin_after_full(self) -> None:
        """Begin the segment behind a full one. Without room for it, the full one takes more."""
        version, self._version_when_full = self._version_when_full, -1
        if not (self._journal.is_full() or (self._outage.cause is not None and not self._refused)):
            return
        try:
            self._journal.begin_segment(version=version, sync=False)
        except StoreError as error:
            if error.errno not in _FULL:
                self._version_when_full = version  # no attempt succeeds without that
            raise

    def _begin_next(self) -> None:
        """Begin a segment if the records that wait are to be its first."""
        with contextlib.suppress(IndexError):  # another thread may forget them meanwhile
            first = self._pending[0]
            if isinstance(first, int):
                self._journal.begin_segment(version=first, sync=False)
                if self._pending[0] is first:
                    self._pending.popleft()
                    self._has_marker = False

    def _check_complete(self) -> None:
        """Raise StoreError if nothing may follow what the journal has."""
        if self.has_gap or self._journal.is_broken:
            raise self._why_not()

    def _why_not(self) -> StoreError:
        """Return the error for a record that can't be written before the tree is saved."""
        if self._outage.cause is not None:
            return self._outage.cause.with_traceback(None)
        return StoreError("changes can't be stored before the whole tree has been saved")
