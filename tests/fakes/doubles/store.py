"""A real database with its tree, and SQLite connections that fail on demand."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pmxcfs._core import Tree
from pmxcfs.messages import EntryType
from pmxcfs.storage.database import Batch, Database, inspect, whole_batch
from pmxcfs.storage.mark import Mark, Position
from pmxcfs.storage.repair import Row

LINEAGE = b"l" * 16
BY = {"writer": 3, "mtime": 1234}
T = TypeVar("T")
Contents = dict[str, bytes | None]  # by path; None for a directory


class Store:
    """A database with the tree that it stores, as a replica has them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = Database.open(path, now=7)
        self.tree = Tree()
        self.tree.load(self.database.load(now=7).records)
        self._saved = self._rows()
        self.saves = 0

    def _rows(self) -> dict[int, Row]:
        return {row[0]: row for row in whole_batch(self.tree).rows}

    def write(self, name: str, data: bytes) -> None:
        """Create or replace a file in the root, without saving."""
        entry = self.tree.find(name)
        if entry is None:
            entry = self.tree.create(self.tree.root, name, EntryType.FILE, **BY)
        self.tree.write(entry, 0, data, truncate=True, **BY)

    def batch(self, *, whole: bool = False) -> Batch:
        """Return what the database lacks; the *whole* tree if that is wanted or needed."""
        batch, now = whole_batch(self.tree), self._rows()
        if whole or self.database.needs_whole:
            return batch
        changed = [row for inode, row in now.items() if self._saved.get(inode) != row]
        gone = [*self._saved.keys() - now.keys()]
        return batch._replace(rows=changed, gone=gone, is_whole=False)

    def mark_saved(self) -> None:
        """Note that the database has the tree."""
        self._saved = self._rows()

    def mark(self) -> Mark:
        """Return a mark that is new each time."""
        self.saves += 1
        return Mark(b"%16d" % self.saves, LINEAGE, Position(1, 64, self.saves))

    def save(self, **changes: Any) -> None:
        """Save what has changed since the last save. *changes* are other fields of the batch."""
        self.database.save(self.batch()._replace(**changes), self.mark())
        self.mark_saved()

    def put(self, name: str, data: bytes) -> None:
        """Create or replace a file in the root, and save."""
        self.write(name, data)
        self.save()

    @property
    def log_size(self) -> int:
        """The size of the write-ahead log in bytes."""
        return os.stat(f"{self.path}-wal").st_size


def stored(path: Path) -> Tree:
    """Return the tree committed in a database file, which another connection may have open."""
    loaded = inspect(path)
    assert loaded.repairs == []
    tree = Tree()
    tree.load(loaded.records)
    return tree


def query(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """Return the rows of *statement*, run on a new connection; text as bytes."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        return connection.execute(statement).fetchall()


class Faults:
    """A failure to inject into SQLite connections; none before ``arm`` is called."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._error: BaseException = KeyboardInterrupt()
        self._countdown = 0
        self._matching = ""
        self._is_done = False

    def arm(
        self,
        code: int | BaseException,
        *,
        at: int = 1,
        matching: str = "",
        is_done: bool = False,
    ) -> None:
        """Let the statement number *at* that contains *matching* fail once; 0: all of them fail.

        *code* is an SQLite result code, or the exception to raise. With *is_done* the statement is
        executed before it fails. ROLLBACK never fails.
        """
        self._error = injected(code) if isinstance(code, int) else code
        self._countdown, self._matching, self._is_done = at or -1, matching, is_done

    def disarm(self) -> None:
        """Let all statements succeed again."""
        self._countdown = 0

    def run(self, sql: str, action: Callable[[], T]) -> T:
        """Run *action* for the statement *sql*, or raise the injected failure."""
        self.seen.append(sql)
        if not self._is_due(sql):
            return action()
        if self._is_done:
            action()
        raise self._error

    def _is_due(self, sql: str) -> bool:
        if not self._countdown or self._matching not in sql or sql == "ROLLBACK":
            return False
        if self._countdown < 0:
            return True
        self._countdown -= 1
        return not self._countdown


def injected(code: int) -> sqlite3.Error:
    """Return an exception as sqlite3 raises it for a result code."""
    error = sqlite3.OperationalError("injected")
    error.sqlite_errorcode = code
    return error


@contextlib.contextmanager
def faulty_connections() -> Iterator[Faults]:
    """Let every connection opened in the block fail as the yielded ``Faults`` say."""
    faults = Faults()

    class Faulty(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            return faults.run(sql, lambda: sqlite3.Connection.execute(self, sql, *args))

        def backup(self, target: sqlite3.Connection) -> None:  # type: ignore[override]
            faults.run("BACKUP", lambda: sqlite3.Connection.backup(self, target))

    connect = sqlite3.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Faulty, **k))
        yield faults


def contents_of(tree: Tree) -> Contents:
    """Return the content of each path of *tree*."""
    entries = tree.root.children()
    for entry in entries:
        entries += entry.children()
    return {entry.path: None if entry.is_directory else entry.content for entry in entries}


@contextlib.contextmanager
def reading(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run a process that keeps a read transaction of the database *path* open."""
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('BEGIN'); c.execute('SELECT * FROM tree').fetchall(); print(flush=True);"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        yield process
        process.communicate("")
