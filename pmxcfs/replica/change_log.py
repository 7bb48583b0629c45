"""The change log: the records of applied changes, from the tree to the journal.

A change is applied to the tree first, because only that tells whether it is refused. Its record
then waits here, in order, until a thread writes it: one ``Journal.append`` for all that wait. The
caller of the change is answered after that.

If the journal can't be written, ``failure`` says why. ``make_ready`` tries again, at most twice a
second. When records were lost on the way (the journal broke, or too many wait), those behind them
would lead nowhere. So nothing is written until the database has the whole tree; a new segment with
a GAP record goes on from that.

Threads: the methods of the first part need the tree's lock. Those of the second part are called
without it, because they block for as long as the device does.
Contract: docs/spec/storage.md, "Writing".
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from pmxcfs.errors import StoreError
from pmxcfs.host.outage import Outage
from pmxcfs.storage.journal import Journal, size_of
from pmxcfs.storage.mark import Position

_log = logging.getLogger("pmxcfs.database")

MAX_OWED = 8 << 20  # bytes of records that may wait while the journal can't be written
MAX_STALLED = 4 * MAX_OWED  # bytes of records that may wait while it does not fail
ATTEMPT_INTERVAL = 0.5  # seconds between attempts to write again


class ChangeLog:
    """The records of one node's changes, on their way into *journal*."""

    def __init__(
        self,
        journal: Journal,
        *,
        save: Callable[[], None],
        consequence: str,
        has_gap: bool,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self.segment = 1  # counts the segments: rows before changes are recorded once in each
        self.has_gap = has_gap  # records are missing: the tree is saved before others follow
        self._journal = journal
        self._save = save  # has the tree saved into the database; blocks, raises StoreError
        self._monotonic = monotonic
        self._pause = pause
        # A number stands for the begin of a segment, at this version of the tree.
        self._pending: deque[bytes | int] = deque()
        self._has_marker = False
        self._version = 0  # of the tree, at the begin of the segment
        # Bytes of records; the first is set with the tree's lock held, the second with the mutex.
        self._added = self._written = 0
        self._mutex = threading.Lock()  # held by the thread that writes
        self._attempt = threading.Lock()  # held by the thread that tries to write again
        self._has_gap_again = False  # since the tree was taken to be saved
        self._attempts = 0
        self._next_attempt = 0.0  # monotonic seconds
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

    @property
    def is_waiting(self) -> bool:
        """Whether a record waits to be written."""
        return bool(self._pending)

    @property
    def _waiting_size(self) -> int:
        return self._added - self._written

    # With the tree's lock.

    def is_ready(self, size: int) -> bool:
        """Tell whether records of *size* bytes can be added and written without ``make_ready``."""
        if self._outage.cause is not None or self.has_gap:
            return False
        if self._journal.is_full and not self._pending:
            return False  # a new segment is to begin
        return self._journal.has_room(self._waiting_size + size)

    def add(self, bodies: Iterable[bytes]) -> None:
        """Append records, in order."""
        for body in bodies:
            self._pending.append(body)
            self._added += size_of([body])
        limit = MAX_STALLED if self._outage.cause is None else MAX_OWED
        if self._waiting_size > limit:
            self._forget()
            self.has_gap = self._has_gap_again = True

    def begin_segment_if_full(self, version: int) -> None:
        """Have the next record begin a new segment if the current one is long enough.

        *version* is the tree's now.
        """
        if self._journal.is_full:
            self.begin_segment_with((), version=version)

    def begin_segment_with(self, bodies: Iterable[bytes], *, version: int) -> None:
        """Have a new segment begin with the records *bodies*; *version* is the tree's now."""
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
        is_paused = self._mutex.acquire(blocking=False)
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

    def write(self) -> None:
        """Write all records that wait. Blocks. Raises StoreError; they wait on then."""
        with self._mutex:
            self._write()

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
            self._outage.fails(error)
        self.make_ready(0, version=version)

    def make_ready(self, size: int, *, version: int) -> None:
        """Make room for records of *size* bytes; after a failure, write what is owed. Blocks.

        At most two attempts a second are made; a call in between waits for the next one. *version*
        is the tree's. Raises StoreError.
        """
        before = self._attempts
        with self._attempt:
            if self._attempts != before and self._outage.cause is not None:
                raise self._outage.cause.with_traceback(None)
            if self._outage.cause is not None:
                self._pause(max(0.0, self._next_attempt - self._monotonic()))
            self._attempts += 1
            try:
                self._make_ready(size, version)
            except StoreError as error:
                self._next_attempt = self._monotonic() + ATTEMPT_INTERVAL
                self._outage.fails(error)
                raise
            self._outage.works()

    def _make_ready(self, size: int, version: int) -> None:
        if self._journal.is_broken or self.has_gap:
            self._save()
        with self._mutex:
            if self._journal.is_full and not self._pending:
                self._begin_segment(version)
            self._journal.make_room(self._waiting_size + size, version=version)
            if self._outage.cause is not None:
                self._write()

    def _begin_segment(self, version: int) -> None:
        self._journal.begin_segment(version=version, sync=False)
        self.segment += 1

    def _write(self) -> None:
        """Write the records that wait; the caller holds the mutex."""
        while self._pending:
            if self.has_gap or self._journal.is_broken:
                raise self._why_not()
            bodies: list[bytes] = []
            try:
                bodies = self._take()
                size = size_of(bodies)
                if not self._journal.has_room(size):
                    self._journal.make_room(size, version=self._version)
                self._journal.append(bodies)
            except StoreError as error:
                self._pending.extendleft(reversed(bodies))
                self._outage.fails(error)
                raise
            except Exception:
                self.lose()  # as these records are gone
                raise
            self._written += size

    def _take(self) -> list[bytes]:
        """Take the records up to the next segment; begin it if they are its first ones."""
        first = self._pending[0]
        if isinstance(first, int):
            self._version = first
            self._journal.begin_segment(version=first, sync=False)
        bodies: list[bytes] = []
        with contextlib.suppress(IndexError):  # another thread may have forgotten all of them
            if self._pending[0] is first and isinstance(first, int):
                self._pending.popleft()
                self._has_marker = False
            while isinstance(self._pending[0], bytes):
                bodies.append(cast(bytes, self._pending.popleft()))
        return bodies

    def _why_not(self) -> StoreError:
        """Return the error for a record that can't be written before the tree is saved."""
        if self._outage.cause is not None:
            return self._outage.cause.with_traceback(None)
        return StoreError("changes can't be stored before the whole tree has been saved")
