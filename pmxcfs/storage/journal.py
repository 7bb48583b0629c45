"""The journal: every change is appended here before it counts; the database follows later.

A journal is a directory of segments. Records go to the end of the newest one; it is for the owner
to say when the next one begins and what they mean. Records that nobody needs on the device soon can
be staged (``staging``): they count like all others, and are written to the segment ahead of the
next record, at a sync, and at the segment's end. After a failed write or sync nothing that was
written since can be trusted: the journal is broken until ``begin_segment``, and the owner must have
the tree saved, or write what the database lacks again, before it tells anybody of success.

Threads: any. ``has_room``, ``can_take``, ``is_full``, ``is_broken``, ``is_sync_due``, ``failure``,
``position``, ``appended`` and ``size_since`` wait for no lock and make no system call, so that a
device that stands still stops only those who write. All else blocks. Errors are StoreError, with
the errno of the device.
Contract: docs/spec/storage.md, "Journal".
"""

import contextlib
import errno
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path

from pmxcfs.errors import Stalled, StoreError
from pmxcfs.host.directories import open_directory
from pmxcfs.host.files import make_private_directory, sync_directory
from pmxcfs.host.locking import Lock
from pmxcfs.storage._journal import FRAME_SIZE, frame
from pmxcfs.storage.history import History
from pmxcfs.storage.mark import Position
from pmxcfs.storage.segment_file import SegmentFile
from pmxcfs.storage.segments import HEADER_SIZE, Header, name_of, read, scan
from pmxcfs.storage.sqlite_errors import translate
from pmxcfs.storage.staging import StagingFile, forget_staged

SEGMENT_LIMIT = 4 << 20  # bytes; a segment that has as many is full
SPARE = 1 << 20  # bytes that stay reserved beyond what is asked for
ATTEMPT_INTERVAL = 0.5  # seconds between attempts to have room after one has failed
FLUSH_AFTER = 50.0  # seconds that a record is staged at most
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.log\.new")
_NO_ROOM = -1
_TOLD = frozenset([errno.ENOSPC, errno.EROFS, errno.EIO, errno.EBUSY])  # others become EIO
_FULL = frozenset([errno.ENOSPC, errno.EDQUOT])


def size_of(bodies: Collection[bytes]) -> int:
    """Return the bytes that *bodies* take in a segment, for ``has_room`` and ``make_room``."""
    size = FRAME_SIZE * len(bodies)
    for body in bodies:
        size += len(body)
    return size


class Journal:
    """The journal in one directory. Made by ``start``."""

    def __init__(
        self,
        directory: Path,
        *,
        lineage: bytes,
        sequence: int,
        history: History | None,
        prepare: Callable[[], object] | None,
        is_staging: bool = False,
    ) -> None:
        self.lineage = lineage
        self._first, self._end, self._sequence = sequence, HEADER_SIZE, sequence
        self.failure: StoreError | None = None  # of the last attempt; None if it succeeded
        self.is_broken = False
        self._directory = directory
        self._history = history
        self._prepare = prepare  # None: it has returned
        self._descriptor = -1  # of the directory, owned; -1 if it could not be opened
        self._left: list[int] = []  # descriptors of the directory in use before
        self._is_staging = is_staging
        self._staging: StagingFile | None = None  # for the directory, once that is open
        self._flush_at = 0.0  # monotonic seconds; when to write what is staged; 0 if nothing is
        self._current: SegmentFile | None = None
        self._room = _NO_ROOM  # bytes for which there is room in the current segment
        self._starts: dict[int, int] = {}  # bytes before each segment, by its first number
        self._total = 0  # bytes of all segments so far
        self.appended = 0  # bytes of records since the start, frames included
        self._sealed: list[SegmentFile] = []  # ended, but not on the device yet; the oldest first
        self._untrusted: list[SegmentFile] = []  # of which a write or sync has failed
        self._is_listed = True  # the directory's entries are on the device
        self._synced = 0  # records with a lower number are on the device
        self._attempts = 0  # to have room, so far
        self._retry_at = 0.0  # monotonic seconds before which no attempt is made again
        self._is_closed = False
        self._sync_lock = threading.Lock()  # one sync at a time; taken before _lock
        self._lock = Lock()  # held while the current segment is written
        self._tried = threading.Condition(self._lock)  # type: ignore[arg-type] # has its methods

    @classmethod
    def start(
        cls,
        directory: Path,
        *,
        lineage: bytes,
        sequence: int,
        version: int,
        history: History | None = None,
        prepare: Callable[[], object] | None = None,
        is_staging: bool = False,
    ) -> "Journal":
        """Begin a segment in *directory*, which is made if it is missing. Blocks.

        *sequence* is that of the first record, above those of all records that the directory has;
        *version* is the tree's. Without a *history* segments are dropped when the database does not
        need them any more. *prepare* is called before anything is written; while it raises
        StoreError, nothing is. If nothing can be written, ``failure`` is set, and ``make_room``
        tries again. Without *is_staging* records are staged nowhere.
        """
        journal = cls(
            directory,
            lineage=lineage,
            sequence=sequence,
            history=history,
            prepare=prepare,
            is_staging=is_staging,
        )
        with contextlib.suppress(StoreError):
            journal.make_room(0, version=version)
        return journal

    # What waits for nothing.

    @property
    def position(self) -> Position:
        """The place of the next record."""
        return Position(self._first, self._end, self._sequence)

    def has_room(self, size: int) -> bool:
        """Tell whether *size* bytes, frames included, and 1 MiB more are reserved."""
        return size <= self._room

    def can_take(self, size: int) -> bool:
        """Tell whether *size* bytes are reserved, the 1 MiB more included."""
        return self._current is not None and size <= self._room + SPARE

    def is_full(self) -> bool:
        """Tell whether the owner should begin a new segment ahead of the next group.

        False for half a second after that has failed: the old one takes more.
        """
        current = self._current
        if current is None or current.end < SEGMENT_LIMIT:
            return False
        return self.failure is None or time.monotonic() >= self._retry_at

    @property
    def is_sync_due(self) -> bool:
        """Whether a record has been staged for so long that it is time for a ``sync``."""
        return 0.0 < self._flush_at <= time.monotonic()

    def size_since(self, position: Position) -> int:
        """Return the bytes from *position* to the end. All, if its segment is not known."""
        segment, offset, _ = position
        start = self._starts.get(segment)
        if start is None:
            return self._total - min(self._starts.values(), default=0)
        return max(self._total - start - offset, 0)

    # What blocks.

    def make_room(self, size: int, *, version: int, wait: bool = True) -> None:
        """Reserve *size* bytes, frames included, and 1 MiB more; begin a segment if there is none.

        Blocks. *version* is the tree's ahead of what will be appended. After a failure it is tried
        at most twice a second: a thread that comes in between waits for the next attempt and gets
        its result, or with *wait* false the last error. Raises StoreError.
        """
        with self._tried:
            seen = self._attempts
            while size > self._room:
                self._check_usable()
                delay = self._retry_at - time.monotonic() if self.failure else 0.0
                if delay <= 0:
                    self._attempt(size, version)
                elif not wait or self._attempts > seen:
                    raise self._same_failure()
                else:
                    self._tried.wait(delay)

    def make_room_ahead(self, size: int) -> None:
        """Reserve *size* bytes and 1 MiB more if that is possible now; else nothing fails. Blocks.

        Needs a segment, and lets no history go.
        """
        with self._lock:
            current = self._current
            if current is None or self.is_broken or size <= self._room:
                return
            with contextlib.suppress(OSError):
                current.reserve(size + SPARE)
                self._room = current.room - SPARE

    def append(self, bodies: list[bytes], seconds: float = -1.0) -> None:
        """Append the records with these bodies, with one system call. Blocks.

        Raises StoreError; then none of them counts, and the journal is broken. Raises Stalled if
        another thread has kept it from beginning for *seconds*, which are without limit if they are
        -1; then nothing has happened.
        """
        self._append(bodies, seconds, False)

    def stage(self, bodies: list[bytes], seconds: float = -1.0) -> None:
        """Append records that may be staged: nobody needs them on the device soon. Blocks.

        Raises what ``append`` raises.
        """
        self._append(bodies, seconds, True)

    def _append(self, bodies: list[bytes], seconds: float, may_stage: bool) -> None:
        if not self._lock.acquire(True, seconds):
            raise Stalled
        try:
            if self.is_broken or self._is_closed:
                self._check_usable()
            current = self._current
            if current is None:
                raise self._same_failure()
            data = frame(bodies, self._sequence)
            if may_stage and current.stage(data):
                if not self._flush_at:
                    self._flush_at = time.monotonic() + FLUSH_AFTER
            else:
                self._write(current, data)
            self._room -= len(data)
            self._total += len(data)
            self.appended += len(data)
            self._sequence += len(bodies)
            self._first, self._end = current.first, current.end
        finally:
            self._lock.release()

    def begin_segment(self, *, version: int, sync: bool = True) -> None:
        """End the current segment and begin a new one; *version* is the tree's. Blocks.

        The end is cut off behind the last record and synced. A broken journal can be used again
        afterwards: the owner has had the tree saved, or writes again what the database lacks. With
        *sync* false the next ``sync`` does that, and a broken journal stays so. Raises StoreError.
        """
        with self._lock:
            self._check_open()
            if not sync:
                self._check_usable()
            try:
                self._with_room(partial(self._begin, version))
            except (OSError, StoreError) as error:
                raise self._failed(error) from None
        if sync:
            self.sync()

    def sync(self) -> None:
        """Have all that was appended so far on the device when this returns. Blocks.

        Raises StoreError; then the journal is broken. Appending goes on meanwhile. One that has
        waited for the sync of another thread needs none of its own if that began late enough.
        """
        wanted = covered = self._sequence  # *covered* may be more: it is read again with the lock
        directory, was_listed = -1, True
        with self._sync_lock:
            with self._lock:
                self._check_usable()
                if self._synced >= wanted and self._is_listed:
                    return
                self._flush()
                covered = self._sequence
                sealed, current = self._sealed.copy(), self._current
                directory = self._descriptor
                was_listed, self._is_listed = self._is_listed, True
            path = self._directory
            try:
                for segment in [*sealed, current] if current else sealed:
                    path = segment.path
                    segment.sync()
                path = self._directory
                if not was_listed:
                    os.fsync(directory)
            except OSError as error:
                with self._lock:
                    self._is_listed = False
                    raise self._broken(error, path, "synced") from error
            with self._lock:
                self._sealed = [segment for segment in self._sealed if segment not in sealed]
                self._synced = covered
                self._close_unused()
            for segment in sealed:
                segment.close()

    def release(
        self, position: Position, progress: Callable[[Position], None] = lambda position: None
    ) -> None:
        """Give the segments before that of *position* to the history, or drop them. Blocks.

        Called when the database has been saved with *position*, and is on the device. *progress* is
        called behind each segment, with the position up to which there is none any more. Raises
        StoreError; what could not be rewritten is tried again at the next call.
        """
        with self._lock:
            self._check_open()
            known = sorted(self._starts)
        failure: StoreError | None = None
        for first, following in zip(known, [*known[1:], position.segment], strict=True):
            if first >= position.segment:
                break
            try:
                self._retire(first, before=following)
            except StoreError as error:
                failure = error  # what it concerns must not keep the others
            if failure is None:
                progress(Position(following, HEADER_SIZE, following))
        if self._history is not None:
            self._history.trim()
        if failure is not None:
            raise failure

    def _retire(self, first: int, *, before: int) -> None:
        """Give a segment to the history, or drop it. Needs no lock. Raises StoreError."""
        if self._history is not None:
            self._history.take(first, before=before)
        else:
            self._drop(first)
        with self._lock:
            self._starts.pop(first, None)

    def _drop(self, first: int) -> None:
        path = self._directory / name_of(first)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise translate(path, "removed", error) from error

    def close(self) -> None:
        """End the current segment and have all on the device. Blocks; can be called twice.

        Raises StoreError if a sync fails. Nothing can be appended afterwards.
        """
        try:
            with self._lock:
                is_usable = not (self._is_closed or self.is_broken)
                if self._current is not None and is_usable:
                    self._flush()
                    self._current.cut()
            if is_usable:
                self.sync()
                if self._staging is not None:
                    forget_staged(self._directory)
        finally:
            with self._sync_lock, self._lock:
                self._is_closed, self._room = True, _NO_ROOM
                ended = [*self._sealed, *self._untrusted, self._current]
                self._sealed, self._untrusted, self._current = [], [], None
                for segment in filter(None, ended):
                    segment.close()
                left, self._left = [*self._left, self._descriptor], []
                self._descriptor = -1
                _close(left)
                if self._staging is not None:
                    self._staging.close()

    # Below, _lock is held, except where it says otherwise.

    def _write(self, current: SegmentFile, data: bytes) -> None:
        """Write what is staged, and *data*. Raises StoreError; the journal is broken then."""
        try:
            current.append(data)
        except OSError as error:
            raise self._broken(error, current.path) from error
        self._flush_at = 0.0

    def _flush(self) -> None:
        """Write what is staged, unless it is too late for that. Raises StoreError."""
        if self._current is not None and self._current.has_staged and not self.is_broken:
            self._write(self._current, b"")

    def _attempt(self, size: int, version: int) -> None:
        """Try to have room. Raises StoreError, and sets the time of the next attempt."""
        self._attempts += 1
        try:
            self._with_room(partial(self._reserve, size, version))
        except (OSError, StoreError) as error:
            raise self._failed(error) from None
        finally:
            self._tried.notify_all()
        self.failure = None

    def _with_room(self, action: Callable[[], None]) -> None:
        """Call *action*, again and again as long as it fails for room and history can give way."""
        while True:
            try:
                return action()
            except OSError as error:
                history = self._history
                if error.errno not in _FULL or history is None or not history.drop_oldest():
                    raise

    def _reserve(self, size: int, version: int) -> None:
        """Reserve *size* bytes and the spare space. Raises OSError, StoreError."""
        if self._current is None:
            self._begin(version)
        assert self._current is not None
        self._current.reserve(size + SPARE)
        self._room = self._current.room - SPARE

    def _begin(self, version: int) -> None:
        """End the current segment without a sync, and begin one. Raises OSError, StoreError."""
        self._flush()
        if self._descriptor < 0 or self.is_broken or self.failure is not None:
            self._open()  # another file system may be there now
        old, sequence = self._current, self._sequence
        if old is not None and old.is_empty:
            self._drop_current(old)  # the new one gets the same name
            old = None
        self._make_way(sequence)
        path = self._directory / name_of(sequence)
        flags = 0 if self._history is None else self._history.flags
        header = Header(self.lineage, sequence, version, flags)
        current = SegmentFile.make(path, header, directory=self._descriptor, staging=self._staging)
        self._is_listed = False
        if old is not None:
            old.cut()
            self._sealed.append(old)
        if self.is_broken:
            self._untrusted += self._sealed
            self._sealed = []
        self._starts[sequence] = self._total
        self._total += HEADER_SIZE
        self._first, self._end, self._sequence = sequence, HEADER_SIZE, sequence
        self._current, self._room = current, current.room - SPARE
        self.is_broken, self.failure = False, None
        self._close_what_no_sync_uses()

    def _open(self) -> None:
        """Open the directory, and note the segments that it has. Raises OSError, StoreError."""
        if self._prepare is not None:
            self._prepare()
            self._prepare = None
        make_private_directory(self._directory)
        sync_directory(self._directory.parent)
        found = scan(self._directory)
        for path in found.foreign:
            if _TEMPORARY.fullmatch(path.name):  # a crash while a segment was rewritten
                path.unlink()
        self._starts, self._total = {}, 0
        for place in found.segments:
            if self._history is not None and place.header and place.header.is_history:
                self._history.note(place)
            else:
                self._starts[place.first] = self._total
                self._total += place.size
        descriptor = open_directory(self._directory)
        self._left.append(self._descriptor)
        self._descriptor = descriptor
        if self._staging is not None:
            self._staging.move(descriptor)
        elif self._is_staging:
            self._staging = StagingFile(descriptor)
        self._close_what_no_sync_uses()

    def _drop_current(self, old: SegmentFile) -> None:
        """Remove the current segment, which has no records."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(old.path.name, dir_fd=self._descriptor)
        self._untrusted.append(old)  # a sync may still use the descriptor
        self._current, self._room = None, _NO_ROOM
        self._total = self._starts.pop(old.first, self._total)

    def _make_way(self, sequence: int) -> None:
        """Remove a segment that a start has left without a record. Raises OSError, StoreError."""
        path = self._directory / name_of(sequence)
        if not path.exists():
            return
        found = read(path)
        if not found.is_unused:
            raise StoreError(
                f"{path} is where the next record belongs, and {found.verdict.value}: "
                "move it to another directory"
            )
        os.unlink(path.name, dir_fd=self._descriptor)
        self._starts.pop(sequence, None)

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError(f"{self._directory} is closed, as the daemon ends", errno.ESHUTDOWN)

    def _check_usable(self) -> None:
        """Raise the failure if the journal is broken."""
        self._check_open()
        if self.is_broken:
            raise self._same_failure()

    def _same_failure(self) -> StoreError:
        """Return a copy of the failure: what several threads raise would collect their frames."""
        failure = self.failure or StoreError(f"{self._directory} has no segment to write to")
        return StoreError(str(failure), failure.errno)

    def _failed(self, error: OSError | StoreError) -> StoreError:
        """Note a failure after which what was written still counts, and return what to raise."""
        failure = _failure(self._directory, "written", error)
        self._retry_at = time.monotonic() + ATTEMPT_INTERVAL
        if not self.is_broken:
            self.failure = failure
        return StoreError(str(failure), failure.errno)

    def _broken(self, error: OSError, path: Path, attempt: str = "written") -> StoreError:
        """Note a failure after which nothing can be trusted, and return what to raise."""
        self.failure = _failure(path, attempt, error)
        self.is_broken, self._room, self._flush_at = True, _NO_ROOM, 0.0
        return self._same_failure()

    def _close_what_no_sync_uses(self) -> None:
        """Close what is of no use, unless a sync runs, which does that when it succeeds."""
        if self._sync_lock.acquire(blocking=False):
            try:
                self._close_unused()
            finally:
                self._sync_lock.release()

    def _close_unused(self) -> None:
        """Close the segments and descriptors that are of no use. Needs _sync_lock, too."""
        untrusted, self._untrusted = self._untrusted, []
        left, self._left = self._left, []
        _close(left)
        for segment in untrusted:
            segment.close()


def _failure(path: Path, attempt: str, error: OSError | StoreError) -> StoreError:
    """Return the failure of an attempt, with an errno that does not mislead users of the mount."""
    failure = translate(path, attempt, error)
    code = failure.errno if failure.errno in _TOLD else errno.EIO
    return StoreError(str(failure), code)


def _close(descriptors: Iterable[int]) -> None:
    """Close those of *descriptors* that are open."""
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)
