"""The tree on disk: one SQLite file in WAL mode, in the format of the existing implementation.

``save`` brings the file to the state of a tree in one transaction, so the file always equals a
state that the tree was in. What fails raises StoreError with the errno that a system call gets,
and changes nothing. After an I/O error the connection is suspect, because what it believes about
the file need not be true any more: the next save opens the file again, compares every row with the
tree and writes the difference.

Only the -wal file is ever opened by hand, for ``sync``: closing any descriptor of the database
file itself would drop SQLite's locks on it (POSIX).

Threads: ``load``, ``save`` and ``close`` by one thread at a time; ``sync`` and ``checkpoint`` may
run beside them and wait for no writer. There is no clock here: time comes in, in seconds.
Contract: docs/spec/storage.md.
"""

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
from pmxcfs.storage.divergence import Execute
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

CHECKPOINT_AFTER = 4 << 20  # bytes of log that are worth a checkpoint
LOG_LIMIT = 4 * CHECKPOINT_AFTER  # bytes of log from which on writers wait for its last part
PAGE_SIZE = 1024  # bytes, of a new file: most changes are small, and each logs two pages or more
_FRAME_HEADER = 24  # bytes of log before each page that a transaction changes
CACHE_KIB = 8192  # old and new pages of a file of the largest size fit several times
_LOG_SUFFIX = "-wal"
COMPANIONS = ("", _LOG_SUFFIX, "-shm", "-journal")


_FILE = int(EntryType.FILE)


class Loaded(NamedTuple):
    """The tree that a file holds."""

    records: list[Record]  # the root first, then by ascending inode
    repairs: list[str]  # what had to be repaired, a line each


class Database:
    """One open database file, with a faster second connection for ``save``. Made by ``open``."""

    def __init__(self, path: Path, *, alone: bool) -> None:
        self.on_growth: Callable[[], None] = lambda: None  # the log is worth a checkpoint
        self._path = path
        self._alone = alone
        self._is_open = True
        self._suspect = False
        self._backup_time: int | None = None  # of the copy that must precede the next write
        self._writing = _outage("reads go on, changes are refused", over=f"{path} is written again")
        self._checkpoints = _outage(
            "its log grows meanwhile", over=f"the log of {path} shrinks again"
        )
        self._checkpoint_lock = threading.Lock()  # held to checkpoint, or to open the file again
        self._write_lock = threading.Lock()  # held to commit; taken after the checkpoint's
        self._sync_lock = threading.Lock()  # held to use the log's descriptor, or to replace it
        # Bytes of log since the start: written, when a checkpoint was last tried, and when it
        # last was complete. Each has one thread that sets it.
        self._written = self._tried = self._copied = 0
        # The last version that other nodes had, too; None while they have all of the tree.
        self.diverged_at: int | None = None
        self._known_commits = 0  # by all but ``save``, as its connection counts them
        self._log_fd = -1
        self._frame = _FRAME_HEADER + PAGE_SIZE  # bytes of log for each page
        self._connection = connect(path, timeout=0 if alone else BUSY_TIMEOUT, options=WRITING)
        self._writer: Writer | None = None

    @classmethod
    def open(cls, path: Path, *, now: int, alone: bool = False) -> "Database":
        """Open the file, made with an empty tree of mtime *now* if it is missing. Blocks.

        *alone* refuses a file that another process has open, and keeps others out.
        """
        check_library(path)
        with translated(path, "opened"):
            with contextlib.suppress(FileExistsError):
                make_file(path)
            database = cls(real(path), alone=alone)
            try:
                database._prepare(now)
            except BaseException:
                database._disconnect()
                raise
        return database

    @property
    def degraded(self) -> StoreError | None:
        """Why the last attempt to write failed; None if it did not."""
        return self._writing.cause

    @property
    def incomplete(self) -> StoreError | None:
        """Why the file lacks what its log has, as the last checkpoint found; None if it may not."""
        return self._checkpoints.cause

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._path

    @property
    def is_sound(self) -> bool:
        """Tell whether nothing has failed that makes another save necessary."""
        return not self._suspect and self._writing.cause is None

    @property
    def wal_size(self) -> int:
        """About how many bytes of log a checkpoint would have to copy."""
        return self._written - self._copied

    def load(self, *, now: int) -> Loaded:
        """Return the tree, repaired if need be, also in the file. Blocks.

        The damaged file is copied to ``<file>.bak-<now>`` first. Where copy or repair can't be
        written, the tree is repaired all the same, and the next save writes both.
        """
        loaded, copy = self.mend(now=now)
        for line in loaded.repairs:
            _log.warning("repaired %s: %s", self._path, line)
        if copy:
            _log.warning("%s as it was is kept as %s", self._path, copy)
        return loaded

    def mend(self, *, now: int) -> tuple[Loaded, Path | None]:
        """Do what ``load`` does without logging it; return also where the copy is. Blocks."""
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

    def save(self, tree: Tree, *, patient: bool = True) -> bool:
        """Commit what *tree* has unsaved, and its version, as one transaction. Blocks.

        If it has to wait for another process or a checkpoint that writes, or to compare all of the
        file, and is not *patient*, it changes nothing and returns False; else it returns True.
        Raises StoreError; the file is then at the state before, or will be after the next save.
        """
        try:
            if self._suspect:
                if not patient:
                    return False
                self._catch_up(tree)
            elif tree.has_unsaved or self._writing.cause is not None:
                if not self._write_lock.acquire(blocking=patient):
                    return False
                try:
                    self._save(tree, patient=patient)
                finally:
                    self._write_lock.release()
        except FAILURES as exc:
            if is_busy(exc) and not patient:
                return False
            raise self._failed(exc) from exc
        self._worked()
        return True

    def adopt(self, adoption: Adoption) -> None:
        """Commit another node's tree in place of ours, which the file must soundly hold. Blocks.

        What was written is read back before the commit; all other rows are as they were compared
        with a tree before, unless another process has written. Raises StoreError; the file is then
        at the state before.
        """
        rows = [record_row(adoption.stored(inode)) for inode in adoption.written if inode != 0]
        rows.append(version_row(adoption.root, kind=EntryType.DIRECTORY))
        gone = [signed(entry.inode) for entry in adoption.deleted]
        with self._transaction(weight=self._weight(rows, gone)) as execute:
            for inode in gone:
                execute(DELETE, (inode,))
            for row in rows:
                execute(WRITE, row)
            divergence.end(execute)
            check_written(execute, self._path, rows=rows, count=adoption.count + 1)
            if self._others_commits() != self._known_commits:
                raise StoreError(f"{self._path} was written by another process: end that one")
        self.diverged_at = None

    def diverge(self, version: int) -> None:
        """Note, before it happens, that what follows *version* is this node's alone. Blocks.

        Raises StoreError.
        """
        with self._transaction() as execute:
            divergence.begin(execute, version)
        self.diverged_at = version

    def converge(self) -> None:
        """Note that other nodes have all of the tree. Blocks. Raises StoreError."""
        with self._transaction() as execute:
            divergence.end(execute)
        self.diverged_at = None

    def copy_to(self, path: Path) -> Path:
        """Copy what is committed; return where: *path*, numbered if taken. Raises StoreError."""
        with translated(path, "written"):
            return self._copy_to(path)

    @contextlib.contextmanager
    def _transaction(self, *, weight: int = 0) -> Iterator[Execute]:
        """Let the block write *weight* bytes; commit, or change nothing and raise StoreError."""
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
        """Return a number that changes whenever something else than ``save`` commits."""
        return 0 if self._writer is None else self._writer.others_commits()

    def _failed(self, exc: Exception) -> StoreError:
        """Note that a write failed with *exc*; return what to raise."""
        is_stuck = self._writer is not None and self._writer.is_stuck
        self._suspect = self._suspect or is_stuck or not is_harmless(exc)
        error = translate(self._path, "written", exc)
        self._writing.fails(error)
        return error

    def _worked(self) -> None:
        self._writing.works()
        if self._written - self._tried >= CHECKPOINT_AFTER:
            self.on_growth()

    def sync(self) -> None:
        """Have everything committed on the device. Blocks; needs no lock. Raises StoreError."""
        with self._sync_lock:
            if self._log_fd < 0:
                raise StoreError(f"{self._path} can't be synced: it is not open")
            try:
                os.fdatasync(self._log_fd)
            except OSError as exc:
                self._suspect = True  # what was not written need not stay in the kernel's cache
                error = translate(self._path, "synced", exc)
                self._writing.fails(error)
                raise error from exc

    def checkpoint(self) -> None:
        """Copy the log into the file, on a connection of its own. Blocks; logs what fails.

        Writers go on meanwhile, so under constant writing the log is never copied to its end and
        would grow for ever: past LOG_LIMIT they wait for the last, short part of it.
        """
        with self._checkpoint_lock:
            if self._suspect:
                return  # the log is not to be trusted, or closed
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
        """Copy the log on a connection of its own; return whether all of it could be."""
        with contextlib.closing(connect(self._path, timeout=0)) as connection:
            connection.execute("PRAGMA synchronous = NORMAL")  # opens the log, too
            self._let_go()
            is_complete = _checkpoint(connection)
            if is_complete or self.wal_size <= LOG_LIMIT:
                self._let_go()  # so that the next save can begin the log anew
                return is_complete
            _checkpoint(connection)  # what was written during the first, so that little is left
            with self._write_lock:
                if self._writer is not None:
                    self._writer.let_go()
                return _checkpoint(connection)

    def _let_go(self) -> None:
        with self._write_lock:
            if self._writer is not None:
                self._writer.let_go()

    def close(self) -> None:
        """Close the file, complete and with no log beside it unless that failed. Blocks."""
        with self._checkpoint_lock:
            if not self._is_open:
                return
            self._is_open = False
            try:
                if not self._suspect:
                    self._let_go()
                    self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except FAILURES as exc:
                self._suspect = True
                self._checkpoints.fails(translate(self._path, "checkpointed", exc))
            self._disconnect()
            self._suspect = True  # so that a save looks, and sees that it is closed

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
        execute("SELECT 1 FROM tree LIMIT 1").fetchall()  # makes the log, if there was none
        for suffix in COMPANIONS:
            make_private(Path(f"{self._path}{suffix}"))
        sync_directory(self._path.parent)  # a log that can't be found was not synced
        with self._sync_lock:
            self._log_fd = os.open(f"{self._path}{_LOG_SUFFIX}", os.O_RDONLY)
        if not self._alone:
            self._writer = _open_writer(self._path)
        self._written = os.fstat(self._log_fd).st_size
        self._tried = self._copied = 0
        self.diverged_at = divergence.read(execute)
        self._known_commits = self._others_commits()

    def _create(self, now: int) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(TABLE)
        version = (0, 0, FRESH_VERSION, 0, now, _FILE, VERSION_NAME, None)
        self._connection.execute(WRITE, version)
        self._connection.execute("COMMIT")

    def _disconnect(self) -> None:
        """Close the connection; a suspect one without copying its log into the file.

        SQLite makes a checkpoint when the last connection closes, and does not look at the log's
        checksums then: pages that the kernel failed to write would be copied as they are. So
        another connection, which can't write, is there until the end.
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

    def _save(self, tree: Tree, *, patient: bool) -> None:
        if self._writer is not None:
            count, size = self._writer.save(tree, patient=patient)
            self._written += self._frame * count + size
            return
        unsaved = tree.unsaved()
        rows = [entry_row(entry) for entry in unsaved.values() if entry is not None]
        gone = [signed(inode) for inode, entry in unsaved.items() if entry is None]
        self._commit([*rows, version_row(tree.root)], gone)

    def _catch_up(self, tree: Tree) -> None:
        """Open the file again and bring it to the state of *tree*."""
        self._open_again()
        if self._backup_time is not None:
            copy = self._back_up(self._backup_time)
            _log.warning("%s as it was is kept as %s", self._path, copy)
            self._backup_time = None
        rows = [version_row(tree.root), *map(entry_row, entries(tree))]
        # An unsaved row that the file seems to have may be one whose commit failed half-way, with
        # the same version and other content.
        self._write_difference(rows, always=tree.unsaved())
        self._suspect = False

    def _write_difference(self, rows: Iterable[Row], always: Iterable[int] = ()) -> None:
        """Commit those of all *rows* that the file lacks or has otherwise, by everything but data.

        Rows with an inode in *always* are written in any case; what is not in *rows* is deleted.
        """
        present = {row[0]: row for row in self._connection.execute(SELECT_STATE)}
        forced = {signed(inode) for inode in always}
        changed = []
        for row in rows:
            found = present.pop(row[0], None)
            if found != (*row[:7], len(row[7] or b"")) or row[0] in forced:
                changed.append(row)
        self._commit(changed, present)

    def _commit(self, rows: Sequence[Row], gone: Collection[int]) -> None:
        """Write *rows* and delete the inodes *gone* (signed), or do nothing."""
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            for inode in gone:
                execute(DELETE, (inode,))
            for row in rows:
                execute(WRITE, row)
            execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        self._known_commits = self._others_commits()
        self._written += self._weight(rows, gone)

    def _weight(self, rows: Sequence[Row], gone: Collection[int]) -> int:
        """Return about how many bytes of log it takes to write *rows* and delete *gone*."""
        return self._frame * (len(rows) + len(gone)) + sum(len(row[7] or b"") for row in rows)

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._suspect = True

    def _back_up(self, now: int) -> Path:
        """Copy the file, as it is with its log, beside itself."""
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
    """Return the tree of a file, repaired in RAM only. Blocks; neither file nor users notice."""
    with reader(path) as connection:
        return _read(connection, path)


def find_damage(path: Path) -> list[str]:
    """Return what SQLite finds wrong with the structure of a file, a line each. Blocks."""
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
    """Copy what the log holds now; return whether all of it could be."""
    is_busy, frames, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return not is_busy and copied == frames >= 0
