"""The SQLite binding ``Writer``: errors carry SQLite's code, and ``close`` releases everything."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.storage import connect
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


def test_a_missing_file_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(SqliteError) as caught:
        writer_of(tmp_path / "none")
    assert caught.value.sqlite_errorcode & 0xFF == sqlite3.SQLITE_CANTOPEN
    assert os.listdir(tmp_path) == []


def test_a_wrong_statement_leaves_no_open_file(path: Path) -> None:
    with pytest.raises(SqliteError, match="no such table: missing"):
        writer_of(path, write="DELETE FROM missing")
    assert os.listdir(path.parent) == [path.name]


def test_a_database_locked_by_another_writer_is_busy(path: Path) -> None:
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


def test_any_name_and_any_content_are_saved(path: Path) -> None:
    store = Store(path)
    with contextlib.closing(store.database):
        store.put("n\udcffme", b"")
        store.put("other", bytes(range(256)))
        assert stored(path).checksum() == store.tree.checksum()


def test_a_second_copy_of_the_library_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing the file in one copy of the library would drop the POSIX locks of the other."""
    monkeypatch.setattr(connect, "memory_used", lambda: 0)
    with pytest.raises(StoreError, match="use the system's Python"):
        Database.open(path, now=1)
