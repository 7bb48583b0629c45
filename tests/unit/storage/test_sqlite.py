"""The connection that saves: what fails raises SQLite's code, and nothing outlives ``close``."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.storage import connect as connections
from pmxcfs.storage._sqlite import SqliteError, Writer
from pmxcfs.storage.database import Database
from tests.fakes.doubles.store import Store, stored


def writer_of(path: Path, *, write: str = "SELECT 1", timeout_ms: int = 0) -> Writer:
    return Writer(
        os.fsencode(path),
        write=write,
        delete="SELECT 2",
        settings=(),
        version_name=b"v",
        timeout_ms=timeout_ms,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Database.open(tmp_path / "config.db", now=1).close()
    return tmp_path / "config.db"


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(SqliteError) as caught:
        writer_of(tmp_path / "none")
    assert caught.value.sqlite_errorcode & 0xFF == sqlite3.SQLITE_CANTOPEN
    assert os.listdir(tmp_path) == []


def test_a_statement_that_is_wrong_leaves_nothing_open(path: Path) -> None:
    with pytest.raises(SqliteError, match="no such table: missing"):
        writer_of(path, write="DELETE FROM missing")
    assert os.listdir(path.parent) == [path.name]


def test_what_another_writer_holds_is_busy(path: Path) -> None:
    writer = writer_of(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SqliteError, match="locked") as caught:
            writer.save(Tree())
        assert caught.value.sqlite_errorcode == sqlite3.SQLITE_BUSY
        assert not writer.is_stuck
    writer.close()


def test_nothing_is_saved_after_close(path: Path) -> None:
    writer = writer_of(path)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.save(Tree())
    assert not writer.is_stuck


def test_inodes_of_64_bits_and_any_name_are_saved(path: Path) -> None:
    store = Store(path)
    with contextlib.closing(store.database):
        store.put("n\udcffme", b"")
        store.put("other", bytes(range(256)))
        assert stored(path).checksum() == store.tree.checksum()


def test_a_second_copy_of_the_library_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would not know the first one's locks, which any closing of the file would drop."""
    monkeypatch.setattr(connections, "memory_used", lambda: 0)
    with pytest.raises(StoreError, match="use the system's Python"):
        Database.open(path, now=1)
