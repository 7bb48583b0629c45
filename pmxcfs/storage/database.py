"""The tree on disk: one SQLite file in WAL mode, in the format of the existing implementation.

``save`` brings the file to the state of a tree in one transaction, so the file always equals a
state that the tree was in. A failure raises StoreError with an errno for the caller and leaves the
file unchanged. After an I/O error the connection is suspect, because its cached pages may differ
from the file. Then the next save opens the file again, compares every row with the tree and writes
the difference.

Only the -wal file is opened outside SQLite, for ``sync``: closing any descriptor of the database
file itself would drop SQLite's POSIX locks on it.

Threads: only one thread at a time may call ``load``, ``save`` and ``close``. ``sync`` and
``checkpoint`` may run beside them and do not wait for a writer. This module reads no clock: callers
give the time in seconds since 1970.
Contract: docs/spec/storage.md, "The database", "Loading" and "Writing".
"""

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.host.files import make_file, make_numbered_file, make_private, sync_directory
from pmxcfs.host.outage import Outage
from pmxcfs.messages import EntryType, Record
from pmxcfs.storage import divergence
from pmxcfs.storage._sqlite import Writer
from pmxcfs.storage.connect import (
    BUSY_TIMEOUT,
    WRITING,
    check_library,
    connect,
    reader,
    real,
    settings,
)
from pmxcfs.storage.divergence import Execute, Note, Removal
from pmxcfs.storage.repair import FRESH_VERSION, VERSION_NAME, Row, repair
from pmxcfs.storage.schema import (
    DELETE,
    SELECT_ROWS,
    SELECT_STATE,
    TABLE,
    WRITE,
    check_format,
    check_written,
    entries,
    entry_row,
    is_blank,
    record_row,
    signed,
    version_row,
)
from pmxcfs.storage.sqlite_errors import (
    CORRUPT_ADVICE,
    FAILURES,
    is_busy,
    is_harmless,
    translate,
    translated,
)
from pmxcfs.tree.adoption import Adoption
from pmxcfs.tree.guests import vmid_of

_log = logging.getLogger("pmxcfs.database")

CHECKPOINT_AFTER = 4 << 20  # bytes of log after which a checkpoint is due
LOG_LIMIT = 4 * CHECKPOINT_AFTER  # bytes of log; above this the end of a checkpoint blocks writers
PAGE_SIZE = 1024  # bytes, in a new file: most changes are small, and each logs two pages or more
_FRAME_HEADER = 24  # bytes in the log before each page
CACHE_KIB = 8192  # page cache; the old and new pages of the largest file fit several times
_LOG_SUFFIX = "-wal"
COMPANIONS = ("", _LOG_SUFFIX, "-shm", "-journal")


_FILE = int(EntryType.FILE)


class Loaded(NamedTuple):
    """The tree that a file holds."""

    records: list[Record]  # the root first, then by ascending inode
    repairs: list[str]  # one line per repair


class Database:
    """An open database file, with a second, faster connection for ``save``. Made by ``open``."""

    def __init__(self, path: Path, *, alone: bool, on_growth: Callable[[], None] | None) -> None:
        self._on_growth = on_growth  # called when a checkpoint is due
        self._path = path
        self._alone = alone
        self._is_open = True
        self._suspect = False
        self._backup_time: int | None = None  # of the copy to make before the next write
        self._writing = _outage(
            "reads go on, changes are refused", over=f"{path} can be written again"
        )
        self._checkpoints = _outage(
            "its write-ahead log grows meanwhile",
            over=f"the write-ahead log of {path} shrinks again",
        )
        # Lock order as here. The first is held during a checkpoint and while the file is opened
        # again, the second during a commit, the third while _log_fd is used or replaced.
        self._checkpoint_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._sync_lock = threading.Lock()
        # Bytes of log since the start: written so far, at the last attempt of a checkpoint, and at
        # the last complete checkpoint. Each is set by one thread only.
        self._written = self._tried = self._copied = 0
        self.notes: Mapping[int, Note] = {}  # by nodeid, as of the last opening
        # PRAGMA data_version of the Writer's connection after the last commit on _connection.
        self._known_commits = 0
        self._log_fd = -1
        self._frame = _FRAME_HEADER + PAGE_SIZE  # bytes of log per page
        self._connection = connect(path, timeout=0 if alone else BUSY_TIMEOUT, options=WRITING)
        self._writer: Writer | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        now: int,
        alone: bool = False,
        on_growth: Callable[[], None] | None = None,
    ) -> "Database":
        """Open the file; create it with an empty tree of mtime *now* if it is missing. Blocks.

        With *alone*, the file is locked exclusively: opening fails while another process has it
        open, and other processes can't open it. *on_growth* is called whenever the log is so long
        that ``checkpoint`` is due; it must not block. Raises StoreError.
        """
        check_library(path)
        with translated(path, "opened"):
            with contextlib.suppress(FileExistsError):
                make_file(path)
            database = cls(real(path), alone=alone, on_growth=on_growth)
            try:
                database._prepare(now)
            except BaseException:
                database._disconnect()
                raise
        return database

    @property
    def degraded(self) -> StoreError | None:
        """The error of the last attempt to write; None if it succeeded."""
        return self._writing.cause

    @property
    def incomplete(self) -> StoreError | None:
        """The error of the last checkpoint, so the file may lack commits; None if it succeeded."""
        return self._checkpoints.cause

    @property
    def path(self) -> Path:
        """The path of the file, with links resolved."""
        return self._path

    @property
    def is_sound(self) -> bool:
        """Tell whether no failure requires another save."""
        return not self._suspect and self._writing.cause is None

    @property
    def wal_size(self) -> int:
        """The approximate number of bytes in the log that a checkpoint would copy."""
        return self._written - self._copied

    def load(self, *, now: int) -> Loaded:
        """Return the tree. If it is damaged, repair it in RAM and in the file. Blocks.

        The damaged file is copied to ``<file>.bak-<now>`` first. If the copy or the repair can't be
        written, the returned tree is repaired all the same, and the next save writes both. Logs
        each repair. Raises StoreError if the file can't be read.
        """
        loaded, copy = self.mend(now=now)
        for line in loaded.repairs:
            _log.warning("repaired %s: %s", self._path, line)
        if copy:
            _log.warning("a copy of %s before the repair is kept as %s", self._path, copy)
        return loaded

    def mend(self, *, now: int) -> tuple[Loaded, Path | None]:
        """Return the tree, after repairs in RAM and file, and the path of the file's copy. Blocks.

        The path is None if no copy was made. Repairs are not logged. Raises StoreError if the file
        can't be read.
        """
        with translated(self._path, "read"):
            loaded = _read(self._connection, self._path)
        copy = None
        if loaded.repairs:
            try:
                copy = self._back_up(now)
                self._write_difference(map(record_row, loaded.records))
            except FAILURES as exc:
                self._backup_time = None if copy else now
                self._suspect = True
                self._writing.fails(translate(self._path, "repaired", exc))
        return loaded, copy

    def save(self, tree: Tree, removals: Sequence[Removal] = (), *, patient: bool = True) -> bool:
        """Commit the unsaved entries of *tree* and its version in one transaction. Blocks.

        It also adds *removals*. Returns True. A save that is not *patient* changes nothing and
        returns False if it would have to wait for another process or a checkpoint, to compare the
        whole file, or to add *removals*. Raises StoreError; the file is then in the state before,
        or will be after the next save.
        """
        try:
            if (self._suspect or removals) and not patient:
                return False
            if self._suspect:
                self._catch_up(tree, removals)
            elif tree.has_unsaved or self._writing.cause is not None:
                if not self._write_lock.acquire(blocking=patient):
                    return False
                try:
                    self._save(tree, removals, patient=patient)
                finally:
                    self._write_lock.release()
        except FAILURES as exc:
            if is_busy(exc) and not patient:
                return False
            raise self._failed(exc) from exc
        self._worked()
        return True

    def adopt(self, adoption: Adoption, *, notes: Mapping[int, Note]) -> None:
        """Replace our tree by another node's, and the notes, in one transaction. Blocks.

        The file must hold our tree (``is_sound``). The written rows are read back before the
        commit. All other rows are known to be right, unless another process wrote to the file,
        which is an error. Raises StoreError; the file is then in the state before.
        """
        rows = [record_row(adoption.stored(inode)) for inode in adoption.written if inode != 0]
        rows.append(version_row(adoption.root, kind=EntryType.DIRECTORY))
        gone = [signed(entry.inode) for entry in adoption.deleted]
        with self._transaction(weight=self._weight(rows, gone)) as execute:
            for inode in gone:
                execute(DELETE, (inode,))
            for row in rows:
                execute(WRITE, row)
            divergence.write_notes(execute, notes)
            check_written(execute, self._path, rows=rows, count=adoption.count + 1)
            if self._others_commits() != self._known_commits:
                raise StoreError(f"{self._path} was written by another process: stop that process")

    def write_notes(self, notes: Mapping[int, Note], removals: Iterable[Removal] = ()) -> None:
        """Replace all notes of what other nodes miss; add *removals*. Blocks. Raises StoreError."""
        with self._transaction() as execute:
            divergence.write_notes(execute, notes, removals)

    def read_removals(self) -> Sequence[Removal]:
        """Return the removals that other nodes may miss. Blocks. Raises StoreError."""
        with translated(self._path, "read"):
            return divergence.read_removals(self._connection.execute)

    def copy_to(self, path: Path) -> Path:
        """Copy the committed state to *path*, or to a numbered name if *path* exists. Blocks.

        Return the path of the copy. Raises StoreError.
        """
        with translated(path, "written"):
            return self._copy_to(path)

    @contextlib.contextmanager
    def _transaction(self, *, weight: int = 0) -> Iterator[Execute]:
        """Run the block in a transaction that adds about *weight* bytes to the log. Blocks.

        Commit after the block. On a failure roll back and raise StoreError.
        """
        try:
            if self._suspect:
                self._open_again()
            with self._write_lock:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection.execute
                    self._connection.execute("COMMIT")
                except BaseException:
                    self._roll_back()
                    raise
                self._known_commits = self._others_commits()
        except FAILURES as exc:
            raise self._failed(exc) from exc
        self._written += weight
        self._worked()

    def _others_commits(self) -> int:
        """Return a number that changes with each commit that is not made by ``save``."""
        return 0 if self._writer is None else self._writer.others_commits()

    def _failed(self, exc: Exception) -> StoreError:
        """Record that a write failed with *exc*; return the StoreError to raise."""
        is_stuck = self._writer is not None and self._writer.is_stuck
        self._suspect = self._suspect or is_stuck or not is_harmless(exc)
        error = translate(self._path, "written", exc)
        self._writing.fails(error)
        return error

    def _worked(self) -> None:
        self._writing.works()
        if self._on_growth is not None and self._written - self._tried >= CHECKPOINT_AFTER:
            self._on_growth()

    def sync(self) -> None:
        """Write all commits to the device (fdatasync of the log). Blocks. Raises StoreError.

        For any thread, with or without the tree's lock.
        """
        with self._sync_lock:
            if self._log_fd < 0:
                raise StoreError(f"{self._path} can't be synced: it is not open")
            try:
                os.fdatasync(self._log_fd)
            except OSError as exc:
                self._suspect = True  # the kernel may drop dirty pages that it failed to write
                error = translate(self._path, "synced", exc)
                self._writing.fails(error)
                raise error from exc

    def checkpoint(self) -> None:
        """Copy the log into the file, on a separate connection. Blocks. Logs a failure.

        Writers are not blocked. So under constant writing the log would never be copied to its end
        and would grow without limit: above LOG_LIMIT, writers wait while the last, short part of it
        is copied.
        """
        with self._checkpoint_lock:
            if self._suspect:
                return  # the log can't be trusted, or is closed
            self._tried = before = self._written
            try:
                if self._copy_log():
                    self._copied = before
            except FAILURES as exc:
                self._suspect = self._suspect or not is_harmless(exc)
                self._checkpoints.fails(translate(self._path, "checkpointed", exc))
            else:
                self._checkpoints.works()

    def _copy_log(self) -> bool:
        """Copy the log on a separate connection; return whether all of it was copied."""
        with contextlib.closing(connect(self._path, timeout=0)) as connection:
            connection.execute("PRAGMA synchronous = NORMAL")  # this also opens the log
            self._release_snapshot()
            is_complete = _checkpoint(connection)
            if is_complete or self.wal_size <= LOG_LIMIT:
                self._release_snapshot()  # so that the next save can restart the log
                return is_complete
            _checkpoint(connection)  # copies what was written during the first pass
            with self._write_lock:
                if self._writer is not None:
                    self._writer.release_snapshot()
                return _checkpoint(connection)

    def _release_snapshot(self) -> None:
        with self._write_lock:
            if self._writer is not None:
                self._writer.release_snapshot()

    def close(self) -> None:
        """Checkpoint and close the file; no log remains beside it, unless that fails. Blocks.

        Can be repeated. Logs a failure.
        """
        with self._checkpoint_lock:
            if not self._is_open:
                return
            self._is_open = False
            try:
                if not self._suspect:
                    self._release_snapshot()
                    self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except FAILURES as exc:
                self._suspect = True
                self._checkpoints.fails(translate(self._path, "checkpointed", exc))
            self._disconnect()
            self._suspect = True  # so that a later save finds the file closed

    # Opening and closing.

    def _prepare(self, now: int) -> None:
        execute = self._connection.execute
        if self._alone:
            execute("PRAGMA locking_mode = EXCLUSIVE")
        is_new = is_blank(execute)
        if not is_new:
            check_format(execute, self._path)
        else:
            execute(f"PRAGMA page_size = {PAGE_SIZE}")
        if execute("PRAGMA journal_mode = WAL").fetchone()[0] != b"wal":
            raise StoreError(f"{self._path} can't have a write-ahead log: put it on a local disk")
        self._frame = _FRAME_HEADER + execute("PRAGMA page_size").fetchone()[0]
        for setting in settings(log_limit=LOG_LIMIT):
            execute(setting)
        if is_new:
            self._create(now)
        execute("SELECT 1 FROM tree LIMIT 1").fetchall()  # creates the log if there is none
        for suffix in COMPANIONS:
            make_private(Path(f"{self._path}{suffix}"))
        sync_directory(self._path.parent)  # or the log's directory entry could be lost
        with self._sync_lock:
            self._log_fd = os.open(f"{self._path}{_LOG_SUFFIX}", os.O_RDONLY)
        if not self._alone:
            self._writer = _open_writer(self._path)
        self._written = os.fstat(self._log_fd).st_size
        self._tried = self._copied = 0
        self.notes = divergence.read_notes(execute)
        self._known_commits = self._others_commits()

    def _create(self, now: int) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(TABLE)
        version = (0, 0, FRESH_VERSION, 0, now, _FILE, VERSION_NAME, None)
        self._connection.execute(WRITE, version)
        self._connection.execute("COMMIT")

    def _disconnect(self) -> None:
        """Close both connections; if they are suspect, without copying the log into the file.

        SQLite checkpoints when the last connection closes, and does not verify the checksums in the
        log then: it would copy pages that the kernel failed to write. A read-only connection that
        is closed last prevents that.
        """
        guard = None
        if self._suspect:
            with contextlib.suppress(sqlite3.Error):
                guard = connect(self._path, timeout=0, options="mode=ro")
                guard.execute("SELECT 1 FROM tree LIMIT 1").fetchall()
        if self._writer is not None:
            self._writer.close()
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        if guard is not None:
            guard.close()
        with self._sync_lock:
            if self._log_fd >= 0:
                os.close(self._log_fd)
                self._log_fd = -1

    def _open_again(self) -> None:
        if not self._is_open:
            raise ValueError(f"{self._path} is closed")
        with self._checkpoint_lock:
            self._disconnect()
            self._connection = connect(self._path, timeout=BUSY_TIMEOUT, options=WRITING)
            self._prepare(0)

    # Writing.

    def _save(self, tree: Tree, removals: Sequence[Removal], *, patient: bool) -> None:
        if self._writer is not None and not removals:
            count, size = self._writer.save(tree, patient=patient)
            self._written += self._frame * count + size
            return
        unsaved = tree.unsaved()
        rows = [entry_row(entry) for entry in unsaved.values() if entry is not None]
        gone = [signed(inode) for inode, entry in unsaved.items() if entry is None]
        self._commit([*rows, version_row(tree.root)], gone, removals)

    def _catch_up(self, tree: Tree, removals: Sequence[Removal]) -> None:
        """Open the file again and bring it to the state of *tree*. Blocks."""
        self._open_again()
        if self._backup_time is not None:
            copy = self._back_up(self._backup_time)
            _log.warning("a copy of %s before the repair is kept as %s", self._path, copy)
            self._backup_time = None
        rows = [version_row(tree.root), *map(entry_row, entries(tree))]
        # A row of an unsaved entry can be left from a commit that reported a failure. It may have
        # the version and size of the entry but other content, so it is written in any case.
        self._write_difference(rows, removals, always=tree.unsaved())
        self._suspect = False

    def _write_difference(
        self, rows: Iterable[Row], removals: Sequence[Removal] = (), *, always: Iterable[int] = ()
    ) -> None:
        """Commit the differences between the file and *rows*, the rows of the whole tree.

        Rows are compared by all columns, but only by the size of data. Rows with an inode in
        *always* are written in any case. Rows that are not in *rows* are deleted.
        """
        present = {row[0]: row for row in self._connection.execute(SELECT_STATE)}
        forced = {signed(inode) for inode in always}
        changed = []
        for row in rows:
            found = present.pop(row[0], None)
            if found != (*row[:7], len(row[7] or b"")) or row[0] in forced:
                changed.append(row)
        self._commit(changed, present, removals)

    def _commit(
        self, rows: Sequence[Row], gone: Collection[int], removals: Sequence[Removal]
    ) -> None:
        """Write *rows*, delete the inodes *gone* (signed), add *removals*, in one transaction."""
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            for inode in gone:
                execute(DELETE, (inode,))
            for row in rows:
                execute(WRITE, row)
            if removals:
                divergence.add_removals(execute, removals)
            execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        self._known_commits = self._others_commits()
        self._written += self._weight(rows, gone)

    def _weight(self, rows: Sequence[Row], gone: Collection[int]) -> int:
        """Return the approximate bytes of log for writing *rows* and deleting *gone*."""
        return self._frame * (len(rows) + len(gone)) + sum(len(row[7] or b"") for row in rows)

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._suspect = True

    def _back_up(self, now: int) -> Path:
        """Copy the file, with the commits in its log, to ``<file>.bak-<now>``."""
        return self._copy_to(self._path.with_name(f"{self._path.name}.bak-{now}"))

    def _copy_to(self, path: Path) -> Path:
        copy = make_numbered_file(path)
        try:
            with contextlib.closing(connect(copy, timeout=0)) as target:
                self._connection.backup(target)
        except BaseException:
            copy.unlink()
            raise
        return copy


def inspect(path: Path) -> Loaded:
    """Return the tree of a file, repaired in RAM only. Blocks. Raises StoreError.

    The file is not changed, and its other users are not blocked.
    """
    with reader(path) as connection:
        return _read(connection, path)


def find_damage(path: Path) -> list[str]:
    """Return the result of SQLite's integrity check: one line per error. Blocks.

    Raises StoreError.
    """
    with reader(path) as connection:
        lines = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    return [line.decode("utf-8", "replace") for line in lines if line != b"ok"]


def _outage(consequence: str, *, over: str) -> Outage[StoreError]:
    """Return an outage that is logged anew when the errno of its cause changes."""
    return Outage(
        _log,
        describe=lambda error: f"{error}; {consequence}",
        over=over,
        kind=lambda error: error.errno,
    )


def _open_writer(path: Path) -> Writer:
    return Writer(
        os.fsencode(path),
        write=WRITE,
        delete=DELETE,
        settings=(*settings(log_limit=LOG_LIMIT), f"PRAGMA cache_size = {-CACHE_KIB}"),
        version_name=VERSION_NAME,
        timeout_ms=round(BUSY_TIMEOUT * 1000),
    )


def _read(connection: sqlite3.Connection, path: Path) -> Loaded:
    rows = connection.execute(SELECT_ROWS).fetchall()
    inodes = [row[0] for row in rows]
    if any(one >= other for one, other in pairwise(inodes)):
        raise StoreError(f"{path} can't be read: its rows are out of order: {CORRUPT_ADVICE}")
    return Loaded(*repair(rows, vmid_of=vmid_of))


def _checkpoint(connection: sqlite3.Connection) -> bool:
    """Copy the current log into the file; return whether all of it was copied."""
    is_busy, frames, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return not is_busy and copied == frames >= 0
