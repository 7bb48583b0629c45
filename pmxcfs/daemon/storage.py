"""The database and the journal of a daemon: opened, joined into one tree, and closed.

Contract: docs/spec/storage.md, "Start".
"""

import contextlib
import errno
import functools
import itertools
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError, UnreadableDatabase
from pmxcfs.messages import EntryType
from pmxcfs.settings import HistoryLimits
from pmxcfs.storage.create import making
from pmxcfs.storage.damaged import Damaged, lost_of_log, read_damaged
from pmxcfs.storage.database import Database, Loaded, whole_batch
from pmxcfs.storage.history import History, private_in
from pmxcfs.storage.journal import Journal
from pmxcfs.storage.recovery import Recovered, find, recover, settle
from pmxcfs.storage.repair import FRESH_VERSION
from pmxcfs.storage.salvage import keep_copy, report, salvage
from pmxcfs.storage.sqlite_errors import translated
from pmxcfs.storage.unwritable import has_log, why_unwritable

_log = logging.getLogger("pmxcfs.database")

COROSYNC_CONF = b"corosync.conf"  # its name in the tree's root
_FILE = int(EntryType.FILE)


class Storage(NamedTuple):
    """What is on disk, and the tree that it gave at the start."""

    database: Database
    journal: Journal
    recovered: Recovered
    history: History
    salvaged: Sequence[str] = ()  # what could be read of a damaged database, in lines

    @classmethod
    def open(
        cls,
        path: Path,
        directory: Path,
        *,
        now: int,
        lock: AbstractContextManager[object],
        scratch: Path,
        fresh: Tree | None = None,
        host_file: Path | None = None,
        limits: HistoryLimits | None = None,
    ) -> "Storage":
        """Open the database *path* and the journal in *directory*, and replay the journal. Blocks.

        A missing database is created, with the tree *fresh* if there is one. *now* is in seconds
        since 1970, *lock* is the lock of the tree to come, *scratch* a directory for temporary
        files, *limits* are those of ``History``. *host_file* is the host's corosync.conf; None in
        local mode. What can be read of a damaged database of a cluster is saved into a new one.
        Raises StoreError if either can't be read. If nothing can be written, the ``failure`` of the
        journal says so, and ``unwritten`` of the database.
        """
        salvaged = _salvage_if_log_is_damaged(path, now=now, host_file=host_file)
        with contextlib.ExitStack() as undo:
            try:
                database, loaded = _read(path, now=now, scratch=scratch, fresh=fresh)
            except UnreadableDatabase:
                if host_file is None or not _is_clustered(path, host_file):
                    raise
                salvaged = _salvage(path, now=now, host_file=host_file)
                database, loaded = _read(path, now=now, scratch=scratch, fresh=fresh)
            undo.callback(database.close)
            recovered = recover(find(database, loaded), directory)
            private_now = private_in(recovered.tree, lock)
            history = History(directory, private_now=private_now, limits=limits)
            journal = Journal.start(
                directory,
                lineage=recovered.lineage,
                sequence=recovered.sequence,
                version=recovered.tree.version,
                history=history,
                # No record is appended, and so none is let go, before what is left over is kept.
                prepare=functools.partial(settle, recovered, directory, now=now),
                is_staging=True,
            )
            undo.pop_all()
        return cls(database, journal, recovered, history, salvaged)

    def close(self) -> None:
        """Close both. Blocks. Raises StoreError if the journal's last sync fails."""
        try:
            self.journal.close()
        finally:
            self.database.close()


def _read(path: Path, *, now: int, scratch: Path, fresh: Tree | None) -> tuple[Database, Loaded]:
    """Open the database, and read the tree. Blocks. Raises StoreError; it is closed then."""
    database = _open(path, now=now, scratch=scratch, fresh=fresh)
    try:
        return database, database.load(now=now)
    except BaseException:
        database.close()
        raise


def _salvage_if_log_is_damaged(path: Path, *, now: int, host_file: Path | None) -> Sequence[str]:
    """Act on transactions that a damaged log has lost, which SQLite drops without a word. Blocks.

    In a cluster the database is incomplete, so it is saved anew; return the report. Alone it counts
    as it is, and a copy is kept. Raises StoreError.
    """
    lost = lost_of_log(path)
    if not lost:
        return ()
    if host_file is not None and _is_clustered(path, host_file):
        return _salvage(path, now=now, host_file=host_file)
    copy = keep_copy(path, now=now)
    _log.warning("%s is damaged: %s; a copy of both is kept as %s", path, lost, copy)
    return [lost]


def _is_clustered(path: Path, host_file: Path) -> bool:
    """Tell whether the damaged database is that of a node of a cluster. Raises StoreError."""
    return host_file.exists() or _has_cluster_file(read_damaged(path))


def _has_cluster_file(damaged: Damaged) -> bool:
    return any(row[1] == 0 and row[6] == COROSYNC_CONF for row in damaged.rows)


def _salvage(path: Path, *, now: int, host_file: Path) -> Sequence[str]:
    """Save what can be read of a damaged database into a new one; log and return the report.

    It gets the host's corosync.conf if its own can't be read. Blocks. Raises StoreError.
    """
    damaged = read_damaged(path)
    extra = []
    if not _has_cluster_file(damaged):
        with translated(host_file, "read"):
            content = host_file.read_bytes()
        used = {row[0] for row in damaged.rows}
        inode = next(number for number in itertools.count(2) if number not in used)
        extra = [(inode, 0, FRESH_VERSION, 0, now, _FILE, COROSYNC_CONF, content)]
    damaged, copy = salvage(path, now=now, extra=extra)
    lines = [*report(damaged, with_names=False)]
    for line in lines:
        _log.warning("%s is damaged: %s", path, line)
    _log.warning("a new %s has what could be read; the damaged one is kept as %s", path, copy)
    return lines


def _open(path: Path, *, now: int, scratch: Path, fresh: Tree | None) -> Database:
    """Open or create the database; if its directory can't be written, read it. Blocks.

    A failure leaves no database without *fresh*: the next start would not join the cluster of its
    corosync.conf. Raises StoreError.
    """
    had_log = os.path.exists(f"{path}-wal")
    try:
        if fresh is not None:
            with making(path, now=now) as database:
                database.save(whole_batch(fresh), None)
        if path.exists() and not os.access(path, os.W_OK):  # SQLite would open it to read only
            raise StoreError(f"{path} is read-only", errno.EROFS)
        return Database.open(path, now=now)
    except StoreError as error:
        why = why_unwritable(path, error)
        if why is None:
            raise
    if not had_log and not has_log(path):  # the attempt has left empty files
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.unlink(f"{path}{suffix}")
    return Database.open_unwritable(path, why, fresh=fresh, now=now, scratch=scratch)
