"""The database and the journal of a daemon: opened, joined into one tree, and closed.

Contract: docs/spec/storage.md, "Start".
"""

import contextlib
import functools
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from pmxcfs.storage.database import Database
from pmxcfs.storage.history import History, private_in
from pmxcfs.storage.journal import Journal
from pmxcfs.storage.recovery import Found, Recovered, recover, settle


class Storage(NamedTuple):
    """What is on disk, and the tree that it gave at the start."""

    database: Database
    journal: Journal
    recovered: Recovered

    @classmethod
    def open(
        cls, path: Path, directory: Path, *, now: int, lock: AbstractContextManager[object]
    ) -> "Storage":
        """Open the database *path* and the journal in *directory*, and replay the journal. Blocks.

        A missing database is created. *now* is in seconds since 1970, *lock* is the lock of the
        tree to come. Raises StoreError if either can't be read. If nothing can be written, the
        journal's ``failure`` says so.
        """
        with contextlib.ExitStack() as undo:
            database = Database.open(path, now=now)
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
