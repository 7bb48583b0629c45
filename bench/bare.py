"""SQLite without us: what one commit of a row costs on this machine, through Python's module.

The database has the form of ours (see the project's storage rules), and a commit what every
mutation needs: the entry's row and the version row.
"""

import contextlib
import sqlite3
import statistics
from collections.abc import Iterator
from pathlib import Path

from bench.data import REWRITTEN, VARIANTS, variant
from bench.goals import KIB
from bench.turns import Operation, times_us

SCHEMA = """
CREATE TABLE tree (inode INTEGER PRIMARY KEY NOT NULL, parent INTEGER NOT NULL,
    version INTEGER NOT NULL, writer INTEGER NOT NULL, mtime INTEGER NOT NULL,
    type INTEGER NOT NULL, name TEXT NOT NULL, data BLOB)
"""
# INSERT OR REPLACE would delete the row and its pages first: three times the log for a large one.
UPSERT = """
INSERT INTO tree VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (inode) DO UPDATE SET
    parent = excluded.parent, version = excluded.version, writer = excluded.writer,
    mtime = excluded.mtime, type = excluded.type, name = excluded.name, data = excluded.data
"""
SOME_TIME = 1_700_000_000  # any mtime of the usual width


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

    def close(self) -> None:
        """Checkpoint and close."""
        self._connection.close()


@contextlib.contextmanager
def bare_database(directory: Path) -> Iterator[BareDatabase]:
    """Yield an empty database in a directory that is made for it."""
    directory.mkdir()
    database = BareDatabase(directory / "bare.db")
    try:
        yield database
    finally:
        database.close()


def commit_us(directory: Path, size: int, *, between: Operation) -> float:
    """Return what committing one row of *size* bytes takes on average, in microseconds.

    *between* is done before each commit, and not counted: after a request has been through the
    kernel and another process, the CPU has to learn SQLite anew, and a commit takes half as long
    again as in a loop of nothing else. The average has in it, unlike a median, the checkpoint
    that is due per 4 MiB of log: ours has a thread for that, on the same CPU.
    """
    contents = [bytes([byte]) * size for byte in VARIANTS]
    count = 2000 if size <= KIB else 80
    times = []
    with bare_database(directory) as database:

        def commit(number: int) -> None:
            turn, file = divmod(number, REWRITTEN)
            database.commit(1 + file, variant(contents, turn))

        for number in range(count):
            between(number)
            times += times_us(commit, [number])
    return statistics.mean(times)
