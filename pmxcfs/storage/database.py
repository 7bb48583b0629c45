"""The tree on disk: one SQLite file in WAL mode, in the format of the existing implementation.

The journal has each change before it is answered; the file follows in steps. ``save`` is such a
step: one transaction, after which the file equals the tree at one version, and says in its *mark*
from where the journal goes on. The commit is on the device before ``save`` returns. A failure
raises StoreError and leaves the file unchanged.

``save`` writes what has changed since the last save. That is not enough if the file can differ
from the tree in other rows: after an I/O error, because the connection's pages may differ from the
file; after a repair of the rows; or if another program has written another version. Then
``needs_whole`` is true, and the next save gets the whole tree, compares it with every row of the
file, and writes the difference. After an I/O error it also opens the file again.

A file that can only be read at the start, as its directory is read-only or full, is read into RAM
by ``open_unwritable``. The next save opens it. It goes on only from what was read: another file
that is there by then is left alone.

No descriptor of the file, its log or its -shm file is closed outside SQLite while SQLite has them
open: that would drop SQLite's POSIX locks.

Threads: any; each method but ``open`` waits for the one that runs. This module reads no clock:
callers give the time in seconds since 1970.
Contract: docs/spec/storage.md, "The database", "Loading" and "Writing".
"""

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError, UnreadableDatabase
from pmxcfs.host.files import make_file, make_private, sync_directory
from pmxcfs.messages import EntryType, Record
from pmxcfs.storage import divergence
from pmxcfs.storage.connect import BUSY_TIMEOUT, COMPANIONS, SETTINGS, connect, reader, real
from pmxcfs.storage.copying import copy_to, put_in_place
from pmxcfs.storage.divergence import Execute, Note, Removal
from pmxcfs.storage.incomplete import Incomplete
from pmxcfs.storage.log_index import LogIndex, check_room
from pmxcfs.storage.mark import Mark, read_mark, write_mark
from pmxcfs.storage.repair import FRESH_VERSION, VERSION_NAME, Row, has_version, repair
from pmxcfs.storage.schema import (
    SELECT_ROW,
    SELECT_ROWS,
    TABLE,
    WRITE,
    check_format,
    check_written,
    data_version,
    difference,
    entries,
    entry_row,
    is_blank,
    record_row,
    signed,
    version_row,
    write_rows,
)
from pmxcfs.storage.sqlite_errors import (
    FAILURES,
    is_harmless,
    out_of_order,
    translate,
    translated,
)
from pmxcfs.storage.unwritable import has_log, in_memory, read_into_memory
from pmxcfs.tree.adoption import Adoption
from pmxcfs.tree.guests import vmid_of

_log = logging.getLogger("pmxcfs.database")

PAGE_SIZE = 1024  # bytes, in a new file: most changes are small, and a save logs whole pages
CLOSE_TIMEOUT = 0.5  # seconds
_NO_WAIT = 0.0  # seconds that a checkpoint waits for readers and writers
_STAMP = slice(2, 5)  # of the version row: version, writer and mtime of the tree


class NeedsWhole(StoreError):
    """The file can differ from the tree in any row, so a batch of the changes is not enough."""


class Loaded(NamedTuple):
    """The tree that a file holds."""

    records: list[Record]  # the root first, then by ascending inode
    repairs: list[str]  # one line per repair


class Batch(NamedTuple):
    """What one save writes. With it, the file equals the tree at one version."""

    rows: Sequence[Row]  # of entries; not the version row
    gone: Sequence[int]  # inodes as stored (signed) to delete; none if *is_whole*
    version_row: Row
    notes: Mapping[int, Note] | None = None  # of what other nodes miss; None: as they are
    removals: Sequence[Removal] = ()  # to add
    is_whole: bool = False  # *rows* are the whole tree
    state: Sequence[Row] | None = None  # the rows of the whole tree, to be checksummed


def whole_batch(tree: Tree) -> Batch:
    """Return the batch that makes a file equal to *tree*."""
    return Batch([*map(entry_row, entries(tree))], (), version_row(tree.root), is_whole=True)


class Database:
    """An open database file. Made by ``open``."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, alone: bool = False) -> None:
        self._path = path
        self._alone = alone
        self._is_open = True
        self._is_suspect = False  # the connection's pages may differ from the file
        self._is_different = False  # the file's rows may differ from the tree
        self._backup_time: int | None = None  # of the copy to make before the next write
        self._has_warned = False  # of another program's writes
        self._lock = threading.Lock()  # held during each method, also while the device works
        # As found when the file was opened.
        self.mark: Mark | None = None
        self.version_row: Row | None = None
        self.notes: Mapping[int, Note] = {}  # by nodeid
        self._data_version: object = None  # changes when another connection has committed
        self._stamp: Row | None = None  # of the version row in the file, as far as we know
        self.incomplete = Incomplete()
        self._index: LogIndex | None = None  # of the log; None: alone, or not open
        self._connection = connection
        self._unwritten: StoreError | None = None  # why the connection is to a copy in RAM
        self._is_missing = False  # the copy in RAM is not one of a file

    @classmethod
    def open(cls, path: Path, *, now: int, alone: bool = False) -> "Database":
        """Open the file; create it with an empty tree of mtime *now* if it is missing. Blocks.

        With *alone*, the file is locked exclusively: opening fails while another process has it
        open, and other processes can't open it. Raises StoreError.
        """
        with translated(path, "opened"):
            with contextlib.suppress(FileExistsError):
                make_file(path)
            path = real(path)
            connection = connect(path, timeout=0 if alone else BUSY_TIMEOUT)
            database = cls(path, connection, alone=alone)
            try:
                database._prepare(now)
                database._note_found()
            except BaseException:
                database._is_suspect = True  # the log stays as it is
                database._disconnect()
                raise
        return database

    @classmethod
    def open_unwritable(
        cls, path: Path, why: StoreError, *, fresh: Tree | None, now: int, scratch: Path
    ) -> "Database":
        """Read the file into RAM; the next save opens it, and fails while it can't. Blocks.

        Call it when ``open`` has failed; *why* is what ``why_unwritable`` says. A missing file
        counts as one with *fresh*, without that as one with an empty tree of mtime *now*. Copies
        are made in *scratch*. Raises StoreError if the file can't be read.
        """
        path = real(path)
        found = read_into_memory(path, scratch=scratch)
        database = cls(path, found or in_memory())
        database._unwritten, database._is_missing = why, found is None
        with contextlib.ExitStack() as undo, translated(path, "read"):
            undo.callback(database._disconnect)
            if found is None:
                database._connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
                database._create(now)
                if fresh is not None:
                    batch = whole_batch(fresh)
                    write_rows(database._connection.execute, [*batch.rows, batch.version_row])
            database._note_found()
            undo.pop_all()
        return database

    def _note_found(self) -> None:
        execute = self._connection.execute
        self.mark, self.version_row = _identity(execute)
        self.notes = divergence.read_notes(execute)
        self.incomplete.read(execute)

    @property
    def unwritten(self) -> StoreError | None:
        """Why the file could not be opened to write at the start, nor since; None if it could."""
        return self._unwritten

    @property
    def path(self) -> Path:
        """The path of the file, with links resolved."""
        return self._path

    @property
    def needs_whole(self) -> bool:
        """Whether the next save must get the whole tree. Never blocks."""
        return self._is_suspect or self._is_different

    def read(self) -> Loaded:
        """Return the tree, repaired in RAM only. Blocks. Raises StoreError."""
        with self._lock:
            return self._read()

    def load(self, *, now: int) -> Loaded:
        """Return the tree, with repairs if it is damaged. Blocks.

        The damaged file is copied to ``<file>.bak-<now>``, by the next save if that fails; the next
        save writes the repaired tree. Logs each repair. Raises StoreError if the file can't be
        read.
        """
        with self._lock:
            loaded = self._read()
            for line in loaded.repairs:
                _log.warning("repaired %s: %s", self._path, line)
            if loaded.repairs:
                self._is_different = True
                self.incomplete.is_set |= not has_version(self.version_row)
                self._backup_time = now
                with contextlib.suppress(*FAILURES):  # the next save tries again and reports it
                    self._back_up()
        return loaded

    def mend(self, *, now: int) -> tuple[Loaded, Path | None]:
        """Return the tree, after repairs in the file, and the path of the file's copy. Blocks.

        The path is None if nothing was repaired. Repairs are not logged. A mark is removed with
        them. Raises StoreError if the file can't be read or written.
        """
        with self._lock:
            loaded = self._read()
            if not loaded.repairs:
                return loaded, None
            with translated(self._path, "repaired"):
                copy = copy_to(self._connection, self._backup_path(now), is_complete=True)
            self.incomplete.is_set |= not has_version(self.version_row)
            root, *others = map(record_row, loaded.records)
            self._save(Batch(others, (), root, is_whole=True), None)
        return loaded, copy

    def save(self, batch: Batch, mark: Mark | None) -> None:
        """Write *batch* and *mark* in one transaction, which is on the device then. Blocks.

        Without a *mark*, the file gets none: no journal goes on from it. Raises NeedsWhole if
        *batch* is not enough, and StoreError; the file is then in the state before, or will be
        after the next save.
        """
        with self._lock:
            self._save(batch, mark)

    def adopt(self, adoption: Adoption, *, notes: Mapping[int, Note], mark: Mark | None) -> None:
        """Replace our tree by another node's, the notes and the mark, in one transaction. Blocks.

        The file must hold our tree: all is saved. The written rows are read back before the commit.
        All other rows are known to be right, unless another program wrote to the file. Raises
        NeedsWhole then, else StoreError; the file is then in the state before.
        """
        rows = [record_row(adoption.stored(inode)) for inode in adoption.written if inode != 0]
        root = version_row(adoption.root, kind=EntryType.DIRECTORY)
        gone = [signed(entry.inode) for entry in adoption.deleted]
        with self._lock, self._reporting():
            if self.needs_whole:
                raise self._needs_whole()
            self._open_at_last()
            with self._transaction(root) as execute:
                if self._others_have_written(execute):
                    self._is_different = True
                    raise self._needs_whole()
                write_rows(execute, [*rows, root], gone)
                divergence.write_notes(execute, notes)
                check_written(execute, self._path, rows=[*rows, root], count=adoption.count + 1)
                write_mark(execute, mark)
                self.incomplete.clear(execute)

    def read_removals(self) -> Sequence[Removal]:
        """Return the removals that other nodes may miss. Blocks. Raises StoreError."""
        with self._lock, translated(self._path, "read"):
            return divergence.read_removals(self._connection.execute)

    def copy_to(self, path: Path) -> Path:
        """Copy the last save to *path*, or to a numbered name if *path* exists. Blocks.

        The copy has no mark. Return its path. Raises StoreError.
        """
        with self._lock, translated(path, "written"):
            return copy_to(self._connection, path, is_complete=False)

    def checkpoint(self) -> bool:
        """Copy the log into the file and cut it to nothing; return whether that was done. Blocks.

        It was not if another program reads or writes just now, or if the log can't be trusted until
        the next save. While another program reads, the file stays as it is: older, not torn. Raises
        StoreError.
        """
        with self._lock:
            if self._is_suspect:
                return False
            if self._unwritten is not None and not has_log(self._path):
                return True
            try:
                self._open_at_last()
                return self._cut_log()
            except FAILURES as exc:
                self._note_failure(exc)
                raise translate(self._path, "checkpointed", exc) from exc

    def blocking_pid(self) -> int | None:
        """Return the pid of a process that reads, so that the log can't be cut; None for none.

        0 stands for a process outside of this pid namespace.
        """
        with self._lock:
            return None if self._index is None else self._index.find_reader()

    def close(self) -> None:
        """Cut the log and close the file; no log remains beside it, unless that fails. Blocks.

        Can be repeated. Logs a failure. If another thread waits for the device or another program
        for over CLOSE_TIMEOUT, the file is left as after a crash, which loses nothing of what was
        saved.
        """
        if not self._lock.acquire(timeout=CLOSE_TIMEOUT):
            _log.warning("%s is left with its write-ahead log: a save does not end", self._path)
            return
        try:
            if self._is_open:
                self._is_open = False
                self._cut_log_at_the_end()
                self._disconnect()
                self._is_suspect = True  # so that a later save finds the file closed
        finally:
            self._lock.release()

    def _cut_log_at_the_end(self) -> None:
        try:
            if not self._is_suspect and self._unwritten is None:
                self._cut_log()
        except FAILURES as exc:
            self._is_suspect = True
            _log.error("%s", translate(self._path, "checkpointed", exc))

    # Opening and closing.

    def _prepare(self, now: int) -> None:
        execute = self._connection.execute
        if self._alone:
            execute("PRAGMA locking_mode = EXCLUSIVE")
        else:
            check_room(self._path.parent)
        is_new = is_blank(execute)
        if not is_new:
            check_format(execute, self._path)
        else:
            execute(f"PRAGMA page_size = {PAGE_SIZE}")
        if execute("PRAGMA journal_mode = WAL").fetchone()[0] != b"wal":
            raise StoreError(f"{self._path} can't have a write-ahead log: put it on a local disk")
        for setting in SETTINGS:
            execute(setting)
        if is_new:
            self._create(now)
        execute("SELECT 1 FROM tree LIMIT 1").fetchall()  # creates the log if there is none
        for suffix in COMPANIONS:
            make_private(Path(f"{self._path}{suffix}"))
        sync_directory(self._path.parent)  # or the log's directory entry could be lost
        if not self._alone:
            self._index = LogIndex(self._path)
            self._index.reserve()
        self._data_version = data_version(execute)
        self._stamp = _stamp(execute(SELECT_ROW, (0,)).fetchone())
        if is_new:
            self._cut_log()  # the file alone is a database from now on

    def _create(self, now: int) -> None:
        root = Record(0, 0, FRESH_VERSION, 0, now, EntryType.FILE, VERSION_NAME, None)
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(TABLE)
        self._connection.execute(WRITE, version_row(root))
        self._connection.execute("COMMIT")

    def _disconnect(self) -> None:
        """Close the connection; if it is suspect, without copying the log into the file.

        SQLite checkpoints when the last connection closes, and does not verify the checksums in the
        log then: it would copy pages that the kernel failed to write. A read-only connection that
        is closed last prevents that.
        """
        guard = None
        if self._is_suspect and os.path.exists(f"{self._path}-wal"):
            with contextlib.suppress(*FAILURES):
                guard = connect(self._path, timeout=0, options="mode=ro")
                guard.execute("SELECT 1 FROM tree LIMIT 1").fetchall()
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        if guard is not None:
            guard.close()
        if self._index is not None:
            self._index.close()
            self._index = None

    def _open_again(self) -> None:
        if not self._is_open:
            raise ValueError(f"{self._path} is closed")
        self._disconnect()
        self._connection = connect(self._path, timeout=BUSY_TIMEOUT)
        self._prepare(0)
        self._is_suspect, self._is_different = False, True

    def _open_at_last(self) -> None:
        """Open the file if it could only be read at the start. Raises what SQLite raises."""
        if self._unwritten is None:
            return
        if not self._is_open:
            raise ValueError(f"{self._path} is closed")
        if self._is_missing:
            put_in_place(self._connection, self._path)
        copy = self._connection
        self._connection = connect(self._path, timeout=BUSY_TIMEOUT)
        try:
            self._prepare(0)
            if _identity(self._connection.execute) != (self.mark, self.version_row):
                raise StoreError(
                    f"{self._path} is not the file that was there at the start: restart the daemon"
                )
        except BaseException:
            self._disconnect()
            self._connection = copy
            raise
        copy.close()
        self._unwritten = None

    def _cut_log(self) -> bool:
        """Checkpoint with TRUNCATE; return whether it is complete."""
        if self._index is not None and self._index.find_reader() is not None:
            return False
        execute = self._connection.execute
        self._set_busy_timeout(_NO_WAIT)  # it would keep other programs from writing as long
        try:
            is_busy, _, _ = execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self._set_busy_timeout(0 if self._alone else BUSY_TIMEOUT)
        return not is_busy

    def _set_busy_timeout(self, seconds: float) -> None:
        self._connection.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}").fetchall()

    # Reading.

    def _read(self) -> Loaded:
        try:
            with translated(self._path, "read"):
                return read_tree(self._connection, self._path)
        except UnreadableDatabase:
            self._is_suspect = True
            raise

    # Writing.

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Raise every failure of the block as a StoreError; note what the next save must do."""
        try:
            yield
        except NeedsWhole:
            raise
        except FAILURES as exc:
            self._note_failure(exc)
            raise translate(self._path, "written", exc) from exc

    def _note_failure(self, exc: Exception) -> None:
        """Have the next save open the file again, unless *exc* is harmless or it is not open."""
        if self._unwritten is None and not is_harmless(exc):
            self._is_suspect = True

    @contextlib.contextmanager
    def _transaction(self, root: Row) -> Iterator[Execute]:
        """Run the block in a transaction and commit it; on a failure roll back. Blocks.

        *root* is the version row that the block writes.
        """
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            yield execute
            execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        self._stamp = _stamp(root)

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._is_suspect = True

    def _save(self, batch: Batch, mark: Mark | None) -> None:
        with self._reporting():
            if self.needs_whole and not batch.is_whole:
                raise self._needs_whole()
            if self._is_suspect:
                self._open_again()
            self._open_at_last()
            if self._backup_time is not None:
                self._back_up()
            with self._transaction(batch.version_row) as execute:
                if self._others_have_written(execute):
                    self._meet_others(execute, batch)
                rows, gone = batch.rows, batch.gone
                if batch.is_whole:
                    rows, gone = difference(execute, rows)
                write_rows(execute, [*rows, batch.version_row], gone)
                if batch.notes is not None:
                    divergence.write_notes(execute, batch.notes, batch.removals)
                elif batch.removals:
                    divergence.add_removals(execute, batch.removals)
                write_mark(execute, mark)
                self.incomplete.write(execute)
            self._is_different = False

    def _needs_whole(self) -> NeedsWhole:
        return NeedsWhole(f"{self._path} can differ from the tree: write the whole tree")

    def _others_have_written(self, execute: Execute) -> bool:
        """Tell whether another program has written since our last transaction; needs one."""
        return data_version(execute) != self._data_version

    def _meet_others(self, execute: Execute, batch: Batch) -> None:
        """Decide what another program's writes mean for a save. Raises NeedsWhole.

        If the version row is the same, the other program was not a pmxcfs: its rows stay until
        their entries change.
        """
        if _stamp(execute(SELECT_ROW, (0,)).fetchone()) != self._stamp:
            if not self._is_different:
                _log.warning(
                    "another program has changed the tree in %s: the daemon's tree is written over "
                    "it; stop that program",
                    self._path,
                )
            self._is_different = True
            if not batch.is_whole:
                raise self._needs_whole()
        elif not self._has_warned:
            self._has_warned = True
            _log.warning(
                "another program writes to %s, which the daemon does not read: make changes in the "
                "mounted file system",
                self._path,
            )
        self._data_version = data_version(execute)

    def _back_up(self) -> None:
        """Make the copy of the file before its repair."""
        assert self._backup_time is not None, "no copy is due"
        path = self._backup_path(self._backup_time)
        copy = copy_to(self._connection, path, is_complete=True)
        self._backup_time = None
        _log.warning("a copy of %s before the repair is kept as %s", self._path, copy)

    def _backup_path(self, now: int) -> Path:
        return self._path.with_name(f"{self._path.name}.bak-{now}")


def inspect(path: Path) -> Loaded:
    """Return the tree of a file, repaired in RAM only. Blocks. Raises StoreError.

    The file is not changed, and its other users are not blocked.
    """
    with reader(path) as connection:
        return read_tree(connection, path)


def read_tree(connection: sqlite3.Connection, path: Path) -> Loaded:
    """Return the tree of an open file, repaired in RAM only. Blocks.

    Raises StoreError, and what SQLite raises if the file can't be read.
    """
    rows = connection.execute(SELECT_ROWS).fetchall()
    inodes = [row[0] for row in rows]
    if any(one >= other for one, other in pairwise(inodes)):
        raise out_of_order(path)
    return Loaded(*repair(rows, vmid_of=vmid_of))


def _identity(execute: Execute) -> tuple[Mark | None, Row | None]:
    """Return what tells a save from every other one."""
    return read_mark(execute), execute(SELECT_ROW, (0,)).fetchone()


def _stamp(row: Row | None) -> Row | None:
    """Return version, writer and mtime in a version row."""
    return None if row is None else row[_STAMP]
