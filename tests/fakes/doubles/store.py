"""A database together with the tree that is kept in it, and connections that fail on demand."""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.messages import EntryType
from pmxcfs.storage import database
from pmxcfs.storage._sqlite import Statement, Writer
from pmxcfs.storage.database import Database, inspect

BY = {"writer": 3, "mtime": 1234}
T = TypeVar("T")
Contents = dict[str, bytes | None]  # by path; None for a directory


class Store:
    """A database with the tree that is kept in it, as a replica has them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = Database.open(path, now=7)
        self.tree = Tree()
        self.tree.load(self.database.load(now=7).records)

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file of the root, unsaved."""
        entry = self.tree.find(name)
        if entry is None:
            entry = self.tree.create(self.tree.root, name, EntryType.FILE, **BY)
        self.tree.write(entry, 0, data, truncate=True, **BY)

    def save(self) -> None:
        """Save, or take everything back, as local mode does."""
        try:
            self.database.save(self.tree)
        except StoreError:
            self.tree.rollback()
            raise
        self.tree.mark_saved()

    def put(self, name: str, data: bytes) -> None:
        """Make or replace a file of the root."""
        self.write(name, data)
        self.save()

    @property
    def log_size(self) -> int:
        """Bytes that the log file has."""
        return os.stat(f"{self.path}-wal").st_size


def stored(path: Path) -> Tree:
    """The tree that is committed in a file, which may be open."""
    loaded = inspect(path)
    assert loaded.repairs == []
    tree = Tree()
    tree.load(loaded.records)
    return tree


def query(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """The answer of a connection of its own, with text as bytes."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        return connection.execute(statement).fetchall()


class Faults:
    """Which statement of the next connections fails, and how. Without ``arm`` none does."""

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
        """Fail the statement number *at* of those with *matching*, once; 0 means all of them.

        *is_done*: it is executed all the same. Taking a transaction back never fails.
        """
        self._error = injected(code) if isinstance(code, int) else code
        self._countdown, self._matching, self._is_done = at or -1, matching, is_done

    def disarm(self) -> None:
        """Let everything work again."""
        self._countdown = 0

    def run(self, sql: str, action: Callable[[], T]) -> T:
        """Do what a connection was asked to, or fail."""
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
    """An error as SQLite would report it."""
    error = sqlite3.OperationalError("injected")
    error.sqlite_errorcode = code
    return error


@contextlib.contextmanager
def faulty_connections() -> Iterator[Faults]:
    """Let every connection that is made in the block do what the faults say."""
    faults = Faults()

    class Faulty(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            return faults.run(sql, lambda: sqlite3.Connection.execute(self, sql, *args))

        def backup(self, target: sqlite3.Connection) -> None:  # type: ignore[override]
            faults.run("BACKUP", lambda: sqlite3.Connection.backup(self, target))

    class FaultyWriter(Writer):
        def run(self, statement: Statement) -> int:
            return faults.run(statement.sql, lambda: Writer.run(self, statement))

    connect = sqlite3.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Faulty, **k))
        patch.setattr(database, "Writer", FaultyWriter)
        yield faults


def contents_of(tree: Tree) -> Contents:
    """Return what stands at each path of *tree*."""
    entries = tree.root.children()
    for entry in entries:
        entries += entry.children()
    return {entry.path: None if entry.is_directory else entry.content for entry in entries}
