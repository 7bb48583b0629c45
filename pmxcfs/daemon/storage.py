"""The database and the journal of a daemon: opened, joined into one tree, and closed.

Contract: docs/spec/storage.md, "Start".
"""

import contextlib
import errno
import functools
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.storage.create import making
from pmxcfs.storage.database import Database, whole_batch
from pmxcfs.storage.history import History, private_in
from pmxcfs.storage.journal import Journal
from pmxcfs.storage.recovery import Found, Recovered, recover, settle
from pmxcfs.storage.unwritable import has_log, why_unwritable


class Storage(NamedTuple):
    """What is on disk, and the tree that it gave at the start."""

    database: Database
    journal: Journal
    recovered: Recovered

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
    ) -> "Storage":
        """Open the database *path* and the journal in *directory*, and replay the journal. Blocks.

        A missing database is created, with the tree *fresh* if there is one. *now* is in seconds
        since 1970, *lock* is the lock of the tree to come, *scratch* a directory for temporary
        files. Raises StoreError if either can't be read. If nothing can be written, the
        ``failure`` of the journal says so, and ``unwritten`` of the database.
        """
        with contextlib.ExitStack() as undo:
            database = _open(path, now=now, scratch=scratch, fresh=fresh)
            undo.callback(database.close)
            loaded = database.load(now=now)
            found = Found(
                database.version_row, database.mark, loaded.records, loaded.repairs, database.notes
            )
            recovered = recover(found, directory)
            journal = Journal.start(
                directory,
                lineage=recovered.lineage,
                sequence=recovered.sequence,
                version=recovered.tree.version,
                history=History(directory, private_now=private_in(recovered.tree, lock)),
                # No record is appended, and so none is let go, before what is left over is kept.
                prepare=functools.partial(settle, recovered, directory, now=now),
            )
            undo.pop_all()
        return cls(database, journal, recovered)

    def close(self) -> None:
        """Close both. Blocks. Raises StoreError if the journal's last sync fails."""
        try:
            self.journal.close()
        finally:
            self.database.close()


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
