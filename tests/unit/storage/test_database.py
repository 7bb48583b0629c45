"""The database file: its format, saving, checkpoints and closing.

test_database_failures.py has the failures of writing.
"""

import contextlib
import errno
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import StoreError
from pmxcfs.messages import EntryType
from pmxcfs.storage.create import making
from pmxcfs.storage.database import Database, NeedsWhole, whole_batch
from pmxcfs.storage.divergence import Note, Removal
from pmxcfs.storage.mark import Position, read_mark
from tests.conftest import ExpectLog
from tests.fakes.doubles.store import BY, Store, faulty_connections, query, reading, stored
from tests.places import ROOT

VECTORS = ROOT / "tests/vectors"
SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master"
SELECT = "SELECT inode, parent, version, writer, mtime, type, name, data FROM tree ORDER BY inode"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "config.db")
    with contextlib.closing(store.database):
        yield store


# The format.


def test_a_fresh_database_holds_the_version_row(tmp_path: Path) -> None:
    path = tmp_path / "config.db"
    previous = os.umask(0)
    try:
        Database.open(path, now=1234).close()
    finally:
        os.umask(previous)
    assert query(path, SELECT) == [(0, 0, 1, 0, 1234, 8, b"__version__", None)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["config.db"]


def test_the_table_is_the_original_s_to_the_letter(tmp_path: Path) -> None:
    path, original = tmp_path / "config.db", copied(tmp_path, "config_node1.db")
    Database.open(path, now=1).close()
    assert query(path, SCHEMA) == query(original, SCHEMA)
    for pragma in ("journal_mode", "encoding", "auto_vacuum", "user_version"):
        assert query(path, f"PRAGMA {pragma}") == query(original, f"PRAGMA {pragma}")


def copied(directory: Path, name: str) -> Path:
    """Return a copy of a recorded database, with mode 0644."""
    path = directory / name
    shutil.copyfile(VECTORS / name, path)
    path.chmod(0o644)
    return path


def existing(store: Store, path: str) -> Entry:
    entry = store.tree.find(path)
    assert entry is not None, f"no {path}"
    return entry


@pytest.mark.parametrize("name", ["config_node1.db", "config_node3.db"])
def test_recorded_databases_have_the_recorded_checksum(tmp_path: Path, name: str) -> None:
    recorded = json.loads((VECTORS / "config_node1.json").read_text())
    path = copied(tmp_path, name)
    store = Store(path)
    with contextlib.closing(store.database):
        assert store.tree.checksum().hex() == recorded["state_checksum_sha256"]
        assert store.tree.index().hex() == recorded["index_hex"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["config_node1.db", "config_node3.db"])
def test_recorded_databases_stay_in_the_original_s_format(tmp_path: Path, name: str) -> None:
    path = copied(tmp_path, name)
    before, schema = query(path, SELECT), query(path, SCHEMA)
    store = Store(path)
    with contextlib.closing(store.database):
        config = existing(store, "nodes/node2/qemu-server/100.conf")
        qemu = existing(store, "nodes/node1/qemu-server")
        store.tree.remove(existing(store, "big.cfg"), **BY)
        store.tree.rename(config, qemu, "100.conf", **BY)
        store.tree.touch(existing(store, "empty.cfg"), **BY)
        store.put("wei\udce4rd", b"\0\xff")
    after = {row[0]: row for row in query(path, SELECT)}
    changed = {row for row in after.values() if row not in before}
    assert changed == {
        (0, 0, 32, 3, 1234, 8, b"__version__", None),
        (14, 6, 29, 3, 1234, 8, b"100.conf", before[10][7]),
        (25, 0, 30, 3, 1234, 8, b"empty.cfg", None),
        (31, 0, 32, 3, 1234, 8, b"wei\xe4rd", b"\0\xff"),
    }
    assert set(after) == {row[0] for row in before} - {26} | {31}
    tables = [row for row in query(path, SCHEMA) if row[1] != b"pmxcfs_journal"]
    assert tables == schema
    assert query(path, "PRAGMA integrity_check") == [(b"ok",)]
    kinds = "SELECT DISTINCT typeof(name), typeof(data) FROM tree ORDER BY 2"
    assert query(path, kinds) == [(b"text", b"blob"), (b"text", b"null")]


def test_what_was_saved_is_loaded_again(store: Store) -> None:
    directory = store.tree.create(store.tree.root, "d", EntryType.DIRECTORY, **BY)
    for name in ("plain", "näme", "raw\udcff", "n" * 1024, "..."):
        entry = store.tree.create(directory, name, EntryType.FILE, **BY)
        store.tree.write(entry, 0, name.encode("utf-8", "surrogateescape"), truncate=True, **BY)
    store.save()
    store.put("empty", b"")
    store.put("big", bytes(range(256)) * 4096)
    expected = store.tree.checksum()
    store.database.close()
    assert stored(store.path).checksum() == expected


def test_numbers_of_63_bits_survive(tmp_path: Path) -> None:
    path, high = tmp_path / "config.db", 1 << 63
    Database.open(path, now=1).close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE tree SET version = ? WHERE inode = 0", (high - 100,))
        row = (high - 200, high - 150)
        connection.execute("INSERT INTO tree VALUES (?, 0, ?, 1, 1, 4, 'd', NULL)", row)
    store = Store(path)
    with contextlib.closing(store.database):
        directory = store.tree.get(high - 200)
        assert directory is not None
        store.tree.create(directory, "f", EntryType.FILE, writer=(1 << 32) - 1, mtime=(1 << 32) - 1)
        store.save()
        store.tree.remove(existing(store, "d/f"), writer=1, mtime=1)
        store.tree.create(directory, "g", EntryType.FILE, writer=1, mtime=1)
        store.save()
    assert [row[:3] for row in query(path, SELECT)] == [
        (0, 0, high - 97),
        (high - 200, 0, high - 150),
        (high - 97, high - 200, high - 97),
    ]


def test_a_size_without_bytes_is_stored_as_null(store: Store) -> None:
    store.put("f", b"")
    entry = existing(store, "f")
    store.tree.write(entry, 10, b"", truncate=False, **BY)
    assert entry.size == 10
    store.save()
    assert query(store.path, "SELECT data FROM tree WHERE inode = 2") == [(None,)]


# Saving.


@pytest.mark.parametrize("names", ["a", "abc", ""], ids=["one", "three", "none"])
def test_a_save_is_one_transaction_with_version_row_and_mark(tmp_path: Path, names: str) -> None:
    with faulty_connections() as faults:
        store = Store(tmp_path / "config.db")
    with contextlib.closing(store.database):
        store.save()  # makes the table of the mark
        faults.seen.clear()
        for name in names:
            store.write(name, b"x")
        store.save()
        changes = [s.split()[0] for s in faults.seen if not s.startswith(("PRAGMA", "CREATE"))]
        assert changes == ["BEGIN", *["INSERT"] * len(names), "INSERT", "INSERT", "COMMIT"]
        assert stored(store.path).version == store.tree.version == 1 + 2 * len(names)


def test_the_mark_is_that_of_the_last_save(store: Store) -> None:
    assert store.database.mark is None
    for data in (b"x", b"y"):
        store.put("a", data)
    store.database.close()
    reopened = Database.open(store.path, now=1)
    with contextlib.closing(reopened):
        assert store.saves == 2
        assert reopened.mark == store.mark()._replace(
            save_id=b"%16d" % 2, position=Position(1, 64, 2)
        )
        assert reopened.version_row == (0, 0, 4, 3, 1234, 8, b"__version__", None)
        assert query(store.path, "SELECT count(*) FROM pmxcfs_journal") == [(1,)]


def test_a_save_without_a_mark_removes_it(store: Store) -> None:
    store.put("a", b"x")
    store.database.save(store.batch(), None)
    assert "pmxcfs_journal" not in str(query(store.path, SCHEMA))


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE pmxcfs_journal SET save_id = 16",
        "UPDATE pmxcfs_journal SET lineage = x'00'",
        "UPDATE pmxcfs_journal SET offset = -1",
        "UPDATE pmxcfs_journal SET sequence = 1.5",
        "INSERT INTO pmxcfs_journal SELECT 7, save_id, lineage, 1, 1, 1 FROM pmxcfs_journal",
        "DELETE FROM pmxcfs_journal",
        "ALTER TABLE pmxcfs_journal RENAME COLUMN sequence TO number",
        "DROP TABLE pmxcfs_journal",
    ],
)
def test_what_can_t_be_a_mark_is_none(store: Store, damage: str) -> None:
    store.put("a", b"x")
    store.database.close()
    with contextlib.closing(sqlite3.connect(store.path)) as connection:
        connection.text_factory = bytes
        assert read_mark(connection.execute) is not None
        connection.execute(damage)
        assert read_mark(connection.execute) is None


def test_a_commit_is_on_the_device_when_a_save_returns(store: Store) -> None:
    [row] = store.database._connection.execute("PRAGMA synchronous")
    assert row == (2,)


def test_notes_and_removals_are_in_the_transaction_of_a_save(store: Store) -> None:
    store.put("a", b"x")
    notes = {2: Note(3, 3)}
    store.save(notes=notes, removals=[Removal(2, 4, b"a")])
    store.save(removals=[Removal(3, 5, b"b")])
    store.database.close()
    with contextlib.closing(Database.open(store.path, now=1)) as database:
        assert database.notes == notes
        assert database.read_removals() == [Removal(2, 4, b"a"), Removal(3, 5, b"b")]
        database.save(store.batch()._replace(notes={}), None)
        assert database.read_removals() == []


def test_a_batch_of_the_whole_tree_writes_the_difference_only(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    expect_log("another program has changed the tree")
    with faulty_connections() as faults:
        store = Store(tmp_path / "config.db")
    with contextlib.closing(store.database):
        for name in "abcd":
            store.put(name, b"x")
        with contextlib.closing(sqlite3.connect(store.path)) as other, other:
            other.execute("UPDATE tree SET data = 'y' WHERE name = 'a'")  # of the same length
            other.execute("DELETE FROM tree WHERE name = 'b'")
            other.execute("UPDATE tree SET mtime = 5 WHERE name = 'c'")
            other.execute("INSERT INTO tree VALUES (99, 0, 1, 1, 1, 8, 'x', NULL)")
            other.execute("UPDATE tree SET version = 70 WHERE inode = 0")
        store.tree.create(store.tree.root, "e", EntryType.FILE, **BY)
        faults.seen.clear()
        store.database.save(whole_batch(store.tree), store.mark())
        assert [s.split()[0] for s in faults.seen if "INTO tree" in s] == ["INSERT"] * 5
        assert [s.split()[0] for s in faults.seen if "FROM tree WHERE inode = ?" in s][1:] == [
            "DELETE"
        ]
        assert stored(store.path).checksum() == store.tree.checksum()


def test_removed_rows_are_deleted(store: Store) -> None:
    store.put("a", b"x")
    store.put("b", b"x")
    store.tree.remove(existing(store, "a"), **BY)
    store.write("gone before it was saved", b"x")
    store.tree.remove(existing(store, "gone before it was saved"), **BY)
    store.save()
    assert [row[6] for row in query(store.path, SELECT)] == [b"__version__", b"b"]


def test_saves_may_come_from_different_threads(store: Store) -> None:
    thread = threading.Thread(target=store.put, args=("a", b"x"))
    thread.start()
    thread.join()
    store.put("b", b"y")
    assert stored(store.path).checksum() == store.tree.checksum()


def test_a_commit_survives_a_kill(tmp_path: Path) -> None:
    """Kill a writing process: all commits it reported are there, and no partial one."""
    path = tmp_path / "config.db"
    command = [sys.executable, str(ROOT / "tests/fakes/programs/busy_writer.py"), str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(300)]
        writer.send_signal(signal.SIGKILL)
        said = int([*lines, *writer.stdout][-1])
    store = Store(path)
    store.database.close()
    number = int(existing(store, "last").content)
    assert number in (said, said + 1)
    assert existing(store, f"f{number % 50}").content == b"%d" % number * 100
    assert os.listdir(tmp_path) == ["config.db"]


# The log, closing.


def test_the_directory_is_synced_when_the_file_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[list[str]] = []
    monkeypatch.setattr(os, "fsync", lambda fd: listed.append(sorted(os.listdir(fd))))
    Database.open(tmp_path / "config.db", now=1).close()
    assert listed == [["config.db", "config.db-shm", "config.db-wal"]]


def test_a_database_with_a_rollback_journal_gets_a_log(tmp_path: Path) -> None:
    path = copied(tmp_path, "config_node1.db")
    assert query(path, "PRAGMA journal_mode = DELETE") == [(b"delete",)]
    store = Store(path)
    with contextlib.closing(store.database):
        store.put("a", bytes(4096))
        assert store.log_size > 4096
    assert query(path, "PRAGMA journal_mode") == [(b"wal",)]


def copied_alone(path: Path) -> Path:
    """Copy a database without its log, in a process of its own; return the copy's path.

    This process would drop SQLite's locks if it closed the file.
    """
    copy = path.with_name("copy.db")
    subprocess.run(["cp", path, copy], check=True)
    return copy


def test_a_checkpoint_leaves_the_file_alone_current(store: Store) -> None:
    store.put("a", bytes(100000))
    assert store.log_size > 100000
    assert store.database.checkpoint()
    assert store.log_size == 0
    assert stored(copied_alone(store.path)).checksum() == store.tree.checksum()
    store.put("b", b"x")
    assert store.log_size > 0


def test_a_new_file_alone_is_a_database(store: Store) -> None:
    assert stored(copied_alone(store.path)).checksum() == store.tree.checksum()


def test_a_reader_keeps_the_log_from_being_cut_and_is_found(store: Store) -> None:
    """A copy that is made meanwhile is of the last complete checkpoint, and sound."""
    store.put("a", bytes(5000))
    assert store.database.checkpoint()
    before = store.tree.checksum()
    store.put("b", b"x")
    with reading(store.path) as reader:
        store.put("a", bytes(6000))
        assert not store.database.checkpoint()
        assert store.log_size > 0
        assert store.database.blocking_pid() == reader.pid
        assert stored(copied_alone(store.path)).checksum() == before
    assert store.database.blocking_pid() is None
    assert store.database.checkpoint()
    assert store.log_size == 0


def test_a_writer_keeps_the_log_from_being_cut_without_a_wait(store: Store) -> None:
    store.put("a", b"x")
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not store.database.checkpoint()
    assert store.database.checkpoint()
    assert store.database._connection.execute("PRAGMA busy_timeout").fetchall() == [(5000,)]


def test_the_path_can_be_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    file, link = tmp_path / "disk" / "real.db", tmp_path / "config.db"
    Database.open(file, now=1).close()
    link.symlink_to(file)
    store = Store(link)
    with contextlib.closing(store.database):
        store.put("new", b"in the log")
        assert stored(link).checksum() == store.tree.checksum()
    assert sorted(os.listdir(tmp_path)) == ["config.db", "disk"]
    assert os.listdir(tmp_path / "disk") == ["real.db"]


def test_a_new_file_is_not_mixed_with_the_log_of_one_that_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path / "old.db")
    with contextlib.closing(store.database):
        store.put("old", bytes(5000))
        shutil.copy(f"{store.path}-wal", tmp_path / "config.db-wal")
    path = tmp_path / "config.db"
    with making(path, now=7) as new:
        tree = Tree()
        tree.load(new.load(now=7).records)
        tree.create(tree.root, "new", EntryType.FILE, **BY)
        new.save(whole_batch(tree), None)
    assert stored(path).checksum() == tree.checksum()


def test_an_unfinished_file_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Database, "checkpoint", lambda database: False)
    with pytest.raises(StoreError, match="can't be written"), making(tmp_path / "a.db", now=7):
        pass
    assert os.listdir(tmp_path) == []


def test_checkpoints_leak_no_descriptors(store: Store) -> None:
    store.put("a", b"x")
    store.database.checkpoint()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        store.put("a", b"y")
        store.database.checkpoint()
    assert len(os.listdir("/proc/self/fd")) == before


def test_close_leaves_one_complete_file(store: Store) -> None:
    store.put("a", b"x")
    store.database.close()
    store.database.close()
    assert os.listdir(store.path.parent) == ["config.db"]
    assert stored(store.path).checksum() == store.tree.checksum()


def test_a_closed_database_stays_closed(store: Store) -> None:
    store.database.close()
    with pytest.raises(ValueError, match="is closed"):
        store.put("a", b"x")
    assert not store.database.checkpoint()
    assert os.listdir(store.path.parent) == ["config.db"]


def test_a_database_in_use_can_t_be_opened_alone(store: Store) -> None:
    with pytest.raises(StoreError, match="another process has it open") as caught:
        Database.open(store.path, now=1, alone=True)
    assert caught.value.errno == errno.EBUSY
    store.put("a", b"x")
    store.database.close()
    with contextlib.closing(Database.open(store.path, now=1, alone=True)) as alone:
        assert len(alone.load(now=1).records) == 2


# Other programs.


def test_rows_that_another_program_wrote_stay_until_their_entries_change(
    store: Store, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("a", b"x")
    store.put("b", b"x")
    for _ in range(2):
        with contextlib.closing(sqlite3.connect(store.path)) as other, other:
            other.execute("UPDATE tree SET data = 'tampered' WHERE name = 'a'")
            other.execute("UPDATE tree SET data = 'tampered' WHERE name = 'b'")
        expect_log("another program writes to .*config.db")
        store.put("b", b"z")
    assert len(caplog.records) == 1
    assert query(store.path, "SELECT name, data FROM tree WHERE inode > 0") == [
        (b"a", b"tampered"),
        (b"b", b"z"),
    ]


def test_another_version_in_the_file_is_written_over(store: Store, expect_log: ExpectLog) -> None:
    store.put("a", b"x")
    store.put("b", b"x")
    with contextlib.closing(sqlite3.connect(store.path)) as other, other:
        other.execute("UPDATE tree SET data = 'tampered', version = 9 WHERE name = 'a'")
        other.execute("UPDATE tree SET version = 9 WHERE inode = 0")
    expect_log("another program has changed the tree in .*config.db")
    store.write("b", b"y")
    for _ in range(2):
        with pytest.raises(NeedsWhole):
            store.database.save(whole_batch(store.tree)._replace(is_whole=False), store.mark())
        assert store.database.needs_whole
    store.save()
    assert not store.database.needs_whole
    assert stored(store.path).checksum() == store.tree.checksum()
    store.put("b", b"z")
    assert stored(store.path).checksum() == store.tree.checksum()


def test_readers_and_checkpoints_of_other_programs_are_not_writers(store: Store) -> None:
    store.put("a", b"x")
    with contextlib.closing(sqlite3.connect(store.path)) as other:
        other.execute("SELECT * FROM tree").fetchall()
        other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    store.put("a", b"y")
    assert store.database.checkpoint()
    store.put("a", b"z")
    assert stored(store.path).checksum() == store.tree.checksum()


def test_a_copy_has_no_mark(store: Store, tmp_path: Path) -> None:
    store.put("a", b"x")
    copy = store.database.copy_to(tmp_path / "copy.db")
    assert stored(copy).checksum() == store.tree.checksum()
    assert [row[1] for row in query(copy, SCHEMA)] == [b"tree"]
    assert query(store.path, "SELECT count(*) FROM pmxcfs_journal") == [(1,)]
