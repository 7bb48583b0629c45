"""The frames of a write-ahead log that count, against SQLite's own reading of the same log."""

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.storage.damaged import lost_of_log, read_damaged
from pmxcfs.storage.log_frames import read_frames
from pmxcfs.storage.schema import SELECT_ROWS
from tests.fakes.data.databases import Shape, make_database

HEADER, FRAME = 32, 24 + 1024
COMMITS = 12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database whose last transactions are in its log only."""
    live = tmp_path / "live.db"
    make_database(live, Shape(1024, 60, (100, 1500)))
    path = tmp_path / "config.db"
    with contextlib.closing(sqlite3.connect(live, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        for number in range(COMMITS):
            connection.execute(
                "UPDATE tree SET data = ?, version = version + 1 WHERE type = 8 AND inode % 5 = ?",
                (b"%d" % number * 300, number % 5),
            )
        shutil.copyfile(live, path)
        shutil.copyfile(f"{live}-wal", f"{path}-wal")
    return path


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def rows_by_sqlite(path: Path) -> list[tuple[object, ...]]:
    """Return the rows that SQLite finds in a copy."""
    with _copied(path) as copy, contextlib.closing(sqlite3.connect(copy)) as connection:
        connection.text_factory = bytes
        return connection.execute(SELECT_ROWS).fetchall()


@contextlib.contextmanager
def _copied(path: Path) -> Iterator[Path]:
    copy = path.with_name("copy.db")
    shutil.copyfile(path, copy)
    shutil.copyfile(log_of(path), log_of(copy))
    yield copy
    for suffix in ("", "-wal", "-shm"):
        copy.with_name(f"copy.db{suffix}").unlink(missing_ok=True)


def test_a_sound_log_is_applied(path: Path) -> None:
    read = read_damaged(path)
    assert list(read.rows) == rows_by_sqlite(path)
    assert read.is_complete
    assert lost_of_log(path) == ""


def test_damaged_logs_count_as_far_as_they_do_for_sqlite(path: Path) -> None:
    chance, intact = random.Random(4), log_of(path).read_bytes()
    lost = 0
    for _ in range(60):
        damaged = bytearray(intact)
        at = chance.randrange(len(intact))
        kind = chance.choice(("flip", "zero", "cut"))
        if kind == "flip":
            damaged[at] ^= 1 << chance.randrange(8)
        elif kind == "zero":
            damaged[at : at + 700] = bytes(len(damaged[at : at + 700]))
        else:
            del damaged[at:]
        log_of(path).write_bytes(damaged)
        try:
            expected = rows_by_sqlite(path)
        except sqlite3.DatabaseError:
            continue
        read = read_damaged(path)
        assert [row for row in read.rows if row not in expected] == []
        assert [row for row in expected if row not in read.rows] == []
        lost += bool(lost_of_log(path))
        assert bool(lost_of_log(path)) <= (not read.is_complete)
    assert lost > 20


@pytest.mark.parametrize(
    ("at", "lost"),
    [
        (HEADER + FRAME // 2, "later transactions don't count"),
        (12, "no valid header"),
        (0, "no valid header"),
    ],
)
def test_what_is_lost_is_told(path: Path, at: int, lost: str) -> None:
    content = bytearray(log_of(path).read_bytes())
    content[at] ^= 1
    log_of(path).write_bytes(content)
    assert lost in lost_of_log(path)


@pytest.mark.parametrize("size", [8, 200, FRAME, 2 * FRAME])
def test_what_a_power_cut_leaves_of_the_last_transaction_is_no_damage(
    path: Path, size: int
) -> None:
    """The blocks of a log that is not synced yet reach the device in any order."""
    torn = bytearray(log_of(path).read_bytes())
    frames = range(HEADER, len(torn), FRAME)
    ends = [at for at in frames if any(torn[at + 4 : at + 8])]
    assert ends[-2] + 4 * FRAME < ends[-1] == frames[-1]
    first = ends[-2] + FRAME
    torn[first : first + size] = bytes(size)
    log_of(path).write_bytes(torn)
    assert lost_of_log(path) == ""
    torn[ends[-2] + 100] ^= 1  # the last frame of the one before, which was on the device
    log_of(path).write_bytes(torn)
    assert "1 later transactions" in lost_of_log(path)


def test_a_torn_end_and_old_frames_are_no_damage(path: Path) -> None:
    """A power cut leaves the first, a log that is written anew the second."""
    intact = log_of(path).read_bytes()
    log_of(path).write_bytes(intact[:-500])
    assert lost_of_log(path) == ""
    torn = bytearray(intact)
    torn[-3 * FRAME + 500] ^= 1  # in the last transaction, whose end is sound
    log_of(path).write_bytes(torn)
    assert lost_of_log(path) == ""
    other = bytearray(intact[HEADER : HEADER + 3 * FRAME])
    for frame in range(3):
        other[frame * FRAME + 8] ^= 0xFF  # another salt
    log_of(path).write_bytes(intact + other)
    assert lost_of_log(path) == ""


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 40, b"x" * 10, b"\x37\x7f\x06\x82" + b"\xff" * 90]
)
def test_any_bytes_are_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    with path.open("rb") as file:
        found = read_frames(file.fileno(), len(content))
    assert found.offsets == {}
    assert found.has_lost_header == any(content)
