"""The VFS ``pmxcfs``: one write call per transaction, and the same files as the default VFS."""

import contextlib
import random
import resource
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.storage.connect import WRITING, connect, settings
from pmxcfs.storage.database import LOG_LIMIT, Database
from tests.fakes.doubles.store import Store, stored

FRAMES = 4  # at least so many frames in the last transaction


def write_calls() -> int:
    """Return the number of write system calls of this thread so far."""
    lines = Path("/proc/thread-self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["syscw"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Database.open(tmp_path / "config.db", now=1).close()
    return tmp_path / "config.db"


@pytest.fixture
def writer(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection like the daemon's, but with a cache so small that transactions spill pages."""
    with contextlib.closing(connect(path, timeout=0, options=WRITING)) as connection:
        for setting in (*settings(log_limit=LOG_LIMIT), "PRAGMA cache_size = 12"):
            connection.execute(setting)
        yield connection


def test_a_transaction_is_written_with_one_call(path: Path) -> None:
    store = Store(path)
    with contextlib.closing(store.database):
        store.put("first", b"x")
        log = path.with_name(f"{path.name}-wal")
        size, calls = log.stat().st_size, write_calls()
        store.put("file", bytes(4000))
        assert log.stat().st_size - size >= FRAMES * (24 + 1024)
        assert write_calls() == calls + 1
        assert stored(path).checksum() == store.tree.checksum()


def test_a_large_transaction_is_written_with_one_call_per_64_kib(path: Path) -> None:
    store = Store(path)
    with contextlib.closing(store.database):
        store.put("first", b"x")
        calls = write_calls()
        store.put("file", bytes(range(256)) * 4096)
        assert 16 < write_calls() - calls < 20
        assert stored(path).checksum() == store.tree.checksum()


def rows(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    return connection.execute("SELECT inode, data FROM tree ORDER BY inode").fetchall()


def change(connection: sqlite3.Connection, chance: random.Random) -> None:
    """Write a row of random size, or delete one."""
    inode = chance.randrange(1, 40)
    if chance.random() < 0.2:
        connection.execute("DELETE FROM tree WHERE inode = ?", (inode,))
        return
    content = chance.randbytes(chance.choice((0, 10, 900, 5000, 90_000)))
    connection.execute(
        "INSERT OR REPLACE INTO tree VALUES (?, 0, 1, 1, 1, 8, CAST('n' AS TEXT), ?)",
        (inode, content),
    )


@pytest.mark.parametrize("seed", range(10))
def test_other_connections_see_exactly_the_committed_transactions(
    writer: sqlite3.Connection, path: Path, seed: int
) -> None:
    """With spilled pages, pages written twice, savepoints rolled back, and checkpoints between."""
    chance = random.Random(seed)
    with contextlib.closing(connect(path, timeout=0)) as other:
        for _ in range(60):
            before = rows(writer)
            writer.execute("BEGIN IMMEDIATE")
            for _ in range(chance.randrange(1, 12)):
                writer.execute("SAVEPOINT part")
                change(writer, chance)
                assert rows(other) == before
                if chance.random() < 0.2:
                    writer.execute("ROLLBACK TO part")
                writer.execute("RELEASE part")
            is_kept = chance.random() < 0.8
            writer.execute("COMMIT" if is_kept else "ROLLBACK")
            after = rows(writer)
            assert is_kept or after == before
            assert rows(other) == after
            assert other.execute("PRAGMA integrity_check").fetchall() == [(b"ok",)]
            if chance.random() < 0.2:
                mode = chance.choice(("PASSIVE", "RESTART", "TRUNCATE"))
                chance.choice((writer, other)).execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
            if chance.random() < 0.2:  # the log then continues behind another connection's frames
                other.execute("UPDATE tree SET version = version + 1")


def test_frames_written_in_other_pieces_are_passed_on(path: Path) -> None:
    """With synchronous=FULL, SQLite pads the log to a whole sector, with parts of frames."""
    options = f"{WRITING}&psow=0"
    with contextlib.closing(connect(path, timeout=0, options=options)) as writer:
        writer.execute("PRAGMA synchronous = FULL")
        with contextlib.closing(connect(path, timeout=0)) as other:
            chance = random.Random(1)
            for _ in range(100):
                change(writer, chance)
                assert rows(other) == rows(writer)
                assert other.execute("PRAGMA integrity_check").fetchall() == [(b"ok",)]


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_leaves_what_was_committed(
    writer: sqlite3.Connection, path: Path, tmp_path: Path, seed: int
) -> None:
    """Files copied in the middle of a transaction hold all transactions before it."""
    chance = random.Random(seed)
    for number in range(20):
        writer.execute("BEGIN IMMEDIATE")
        change(writer, chance)
        writer.execute("COMMIT")
        committed = rows(writer)
        writer.execute("BEGIN IMMEDIATE")
        for _ in range(chance.randrange(10)):
            change(writer, chance)
        copy = tmp_path / f"{number}.db"
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
        writer.execute("ROLLBACK")
        with contextlib.closing(connect(copy, timeout=0)) as found:
            assert rows(found) == committed


def test_a_log_that_can_not_be_written_fails_the_commit(
    writer: sqlite3.Connection, path: Path
) -> None:
    """A limit of the file size acts like a full disk: only a part of the frames is written."""
    log = path.with_name(f"{path.name}-wal")
    change(writer, random.Random(1))
    committed = rows(writer)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 1500, limits[1]))
        with pytest.raises(sqlite3.OperationalError, match=r"full|I/O error"):
            writer.execute("UPDATE tree SET data = ?", (bytes(3000),))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not writer.in_transaction
    assert rows(writer) == committed
    writer.execute("UPDATE tree SET data = ?", (b"after",))
    with contextlib.closing(connect(path, timeout=0)) as other:
        assert {data for _, data in rows(other)} == {b"after"}
