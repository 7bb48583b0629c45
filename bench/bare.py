"""Bare SQLite: the cost of one commit of a row on this machine, through Python's sqlite3.

The database has the schema of pmxcfs. A commit writes the two rows that every mutation needs: the
entry's row and the version row. Contract: docs/spec/storage.md.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

SCHEMA = """
CREATE TABLE tree (inode INTEGER PRIMARY KEY NOT NULL, parent INTEGER NOT NULL,
    version INTEGER NOT NULL, writer INTEGER NOT NULL, mtime INTEGER NOT NULL,
    type INTEGER NOT NULL, name TEXT NOT NULL, data BLOB)
"""
# INSERT OR REPLACE would delete the row and its pages first: three times the log for a large row.
UPSERT = """
INSERT INTO tree VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (inode) DO UPDATE SET
    parent = excluded.parent, version = excluded.version, writer = excluded.writer,
    mtime = excluded.mtime, type = excluded.type, name = excluded.name, data = excluded.data
"""
SOME_TIME = 1_700_000_000  # an mtime with as many digits as a real one


class BareDatabase:
    """A table of files, written one transaction per file."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL").fetchall()
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute(SCHEMA)
        self._version = 1

    def commit(self, inode: int, content: bytes) -> None:
        """Write one file's row and the version row in one transaction."""
        self._version += 1
        version, execute = self._version, self._connection.execute
        execute("BEGIN IMMEDIATE")
        execute(UPSERT, (inode, 0, version, 0, SOME_TIME, 8, f"f{inode}", content))
        execute(UPSERT, (0, 0, version, 0, SOME_TIME, 8, "__version__", None))
        execute("COMMIT")

    def save(self, contents: Mapping[int, bytes]) -> None:
        """Write many files' rows in one transaction, sync it, and copy it into the file."""
        self._version += 1
        version, execute = self._version, self._connection.execute
        execute("PRAGMA synchronous = FULL")
        execute("BEGIN IMMEDIATE")
        for inode, content in contents.items():
            execute(UPSERT, (inode, 0, version, 0, SOME_TIME, 8, f"f{inode}", content))
        execute(UPSERT, (0, 0, version, 0, SOME_TIME, 8, "__version__", None))
        execute("COMMIT")
        execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        execute("PRAGMA synchronous = NORMAL")

    def close(self) -> None:
        """Checkpoint and close."""
        self._connection.close()


@contextlib.contextmanager
def bare_database(directory: Path) -> Iterator[BareDatabase]:
    """Create *directory*; yield an empty database in it."""
    directory.mkdir()
    database = BareDatabase(directory / "bare.db")
    try:
        yield database
    finally:
        database.close()
