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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import StoreError
from pmxcfs.messages import EntryType
from pmxcfs.storage import database as module
from pmxcfs.storage.checkpointer import Checkpointer
from pmxcfs.storage.create import making
from pmxcfs.storage.database import Database
from tests.fakes.doubles.store import BY, Store, faulty_connections, query, stored
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
    assert query(path, SCHEMA) == schema
    assert query(path, "PRAGMA integrity_check") == [(b"ok",)]
    kinds = "SELECT DISTINCT typeof(name), typeof(data) FROM tree ORDER BY 2"
    assert query(path, kinds) == [(b"text", b"blob"), (b"text", b"null")]


def test_what_was_saved_is_loaded_again(store: Store) -> None:
    directory = store.tree.create(store.tree.root, "d", EntryType.DIRECTORY, **BY)
    for name in ("plain", "näme", "raw\udcff", "n" * 1024, ".."):
        entry = store.tree.create(directory, name, EntryType.FILE, **BY)
        store.tree.write(entry, 0, name.encode("utf-8", "surrogateescape"), truncate=True, **BY)
    store.save()
    store.put("empty", b"")
    store.put("big", bytes(range(256)) * 4096)
    expected = store.tree.checksum()
    store.database.close()
    assert stored(store.path).checksum() == expected


def test_numbers_of_64_bits_survive(tmp_path: Path) -> None:
    path = tmp_path / "config.db"
    Database.open(path, now=1).close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE tree SET version = -100 WHERE inode = 0")
        connection.execute("INSERT INTO tree VALUES (-200, 0, -150, 1, 1, 4, 'd', NULL)")
    store = Store(path)
    with contextlib.closing(store.database):
        directory = store.tree.get((1 << 64) - 200)
        assert directory is not None
        store.tree.create(directory, "f", EntryType.FILE, writer=(1 << 32) - 1, mtime=(1 << 32) - 1)
        store.save()
        store.tree.remove(existing(store, "d/f"), writer=1, mtime=1)
        store.tree.create(directory, "g", EntryType.FILE, writer=1, mtime=1)
        store.save()
    assert [row[:3] for row in query(path, SELECT)] == [
        (-200, 0, -150),
        (-97, -200, -97),
        (0, 0, -97),
    ]


def test_a_size_without_bytes_is_stored_as_null(store: Store) -> None:
    store.put("f", b"")
    entry = existing(store, "f")
    store.tree.write(entry, 10, b"", truncate=False, **BY)
    assert entry.size == 10
    store.save()
    assert query(store.path, "SELECT data FROM tree WHERE inode = 2") == [(None,)]


# Saving.


@pytest.mark.parametrize(
    ("names", "statements"),
    [
        ("a", ["BEGIN", "INSERT", "INSERT", "COMMIT"]),
        ("abc", ["BEGIN", *["INSERT"] * 4, "COMMIT"]),
        ("", []),
    ],
    ids=["one", "three", "none"],
)
def test_a_save_is_one_transaction_with_the_version_row(
    tmp_path: Path, names: str, statements: list[str]
) -> None:
    with faulty_connections() as faults:
        store = Store(tmp_path / "config.db")
    with contextlib.closing(store.database):
        faults.seen.clear()
        for name in names:
            store.write(name, b"x")
        store.save()
        assert [statement.split()[0] for statement in faults.seen] == statements
        assert stored(store.path).version == store.tree.version == 1 + 2 * len(names)


def test_a_save_waits_for_another_process_only_if_it_is_patient(store: Store) -> None:
    store.write("f", b"content")
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not store.database.save(store.tree, patient=False)
        assert store.database.degraded is None
        assert not query(store.path, "SELECT 1 FROM tree WHERE name = 'f'")
        with ThreadPoolExecutor() as pool:
            save = pool.submit(store.database.save, store.tree)
            with pytest.raises(TimeoutError):
                save.result(0.05)
            other.execute("UPDATE tree SET mtime = 99 WHERE inode = 0")
            other.execute("COMMIT")
            assert save.result()
    store.tree.mark_saved()
    assert query(store.path, "SELECT data FROM tree WHERE name = 'f'") == [(b"content",)]
    assert store.database.save(store.tree, patient=False)


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
        lines = [writer.stdout.readline() for _ in range(2000)]
        writer.send_signal(signal.SIGKILL)
        said = int([*lines, *writer.stdout][-1])
    store = Store(path)
    store.database.close()
    number = int(existing(store, "last").content)
    assert number in (said, said + 1)
    assert existing(store, f"f{number % 50}").content == b"%d" % number * 100
    assert os.listdir(tmp_path) == ["config.db"]


# fsync, checkpoints, closing.


def test_sync_writes_the_log_file_to_the_device(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr(os, "fdatasync", note)
    store.put("a", b"x")
    store.database.sync()
    assert synced == [f"{store.path}-wal"]


def test_the_directory_is_synced_when_the_file_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[list[str]] = []
    monkeypatch.setattr(os, "fsync", lambda fd: listed.append(sorted(os.listdir(fd))))
    Database.open(tmp_path / "config.db", now=1).close()
    assert listed == [["config.db", "config.db-shm", "config.db-wal"]]


def test_commits_do_not_wait_for_the_device(store: Store) -> None:
    [row] = store.database._connection.execute("PRAGMA synchronous")
    assert row == (1,)


def test_a_database_with_a_rollback_journal_gets_a_log(tmp_path: Path) -> None:
    path = copied(tmp_path, "config_node1.db")
    assert query(path, "PRAGMA journal_mode = DELETE") == [(b"delete",)]
    store = Store(path)
    with contextlib.closing(store.database):
        store.put("a", b"x")
        store.database.sync()
        assert store.log_size > 4096
    assert query(path, "PRAGMA journal_mode") == [(b"wal",)]


def test_the_log_is_counted_until_a_checkpoint(store: Store) -> None:
    before = store.database.wal_size
    store.put("a", bytes(100000))
    assert before + 100000 < store.database.wal_size < before + 120000
    store.database.checkpoint()
    assert store.database.wal_size == 0


def test_a_long_log_requests_a_checkpoint_until_one_runs(tmp_path: Path) -> None:
    asked: list[None] = []
    store = Store(tmp_path / "config.db", on_growth=lambda: asked.append(None))
    with contextlib.closing(store.database):
        for number in range(5):
            store.put("a", bytes([number]) * (1 << 20))
        assert len(asked) == 2  # at 4 MiB and again at 5
        assert store.path.stat().st_size <= 2 * 4096
        store.database.checkpoint()
        store.put("a", b"x")
        assert len(asked) == 2


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
        new.save(tree)
    assert stored(path).checksum() == tree.checksum()


def test_the_log_size_of_a_file_with_large_pages_is_estimated_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_AFTER", 1 << 20)
    path = tmp_path / "config.db"
    Database.open(path, now=1).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript("PRAGMA journal_mode = DELETE; PRAGMA page_size = 65536; VACUUM")
    asked: list[int] = []
    store = Store(path, on_growth=lambda: asked.append(os.stat(f"{path}-wal").st_size))
    with contextlib.closing(store.database):
        while not asked:
            store.put("a", b"small")
        assert query(path, "PRAGMA page_size") == [(65536,)]
    assert asked[0] < 2 << 20


def test_the_checkpointer_keeps_the_log_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    checkpointer = Checkpointer()
    store = Store(tmp_path / "config.db", on_growth=checkpointer.request)
    checkpoint = store.database.checkpoint

    def notify() -> None:
        checkpoint()
        done.set()

    monkeypatch.setattr(store.database, "checkpoint", notify)
    checkpointer.start(store.database)
    with contextlib.closing(store.database), contextlib.closing(checkpointer):
        for number in range(20):
            store.put(f"f{number % 4}", bytes(1 << 20))
            while store.database.wal_size >= module.CHECKPOINT_AFTER:
                assert done.wait(60)
                done.clear()
        assert store.log_size < 2 * module.CHECKPOINT_AFTER


def test_a_checkpointer_that_never_started_can_be_closed() -> None:
    Checkpointer().close()


def test_writers_wait_only_for_a_checkpoint_of_a_log_that_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_AFTER", 1 << 16)
    monkeypatch.setattr(module, "LOG_LIMIT", 1 << 18)
    store = Store(tmp_path / "config.db")
    with (
        contextlib.closing(store.database),
        faulty_connections() as faults,
        contextlib.closing(sqlite3.connect(store.path)) as reader,
    ):
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM tree").fetchall()  # the log can't be restarted meanwhile
        for number in range(8):
            faults.seen.clear()
            store.put("a", bytes([number]) * (1 << 16))
            is_short = store.database.wal_size <= module.LOG_LIMIT
            store.database.checkpoint()
            passes = [sql for sql in faults.seen if "wal_checkpoint(PASSIVE)" in sql]
            assert len(passes) == (1 if is_short else 3)
        assert not is_short
        reader.execute("COMMIT")
        store.database.checkpoint()
        assert store.database.wal_size == 0
        store.put("b", b"x")
        assert store.log_size == module.LOG_LIMIT


def test_the_last_part_of_a_long_log_is_copied_with_writers_blocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOG_LIMIT", 0)
    store = Store(tmp_path / "config.db")
    passes: list[bool] = []

    def checkpoint(connection: sqlite3.Connection) -> bool:
        passes.append(store.database._write_lock.locked())
        return False

    monkeypatch.setattr(module, "_checkpoint", checkpoint)
    with contextlib.closing(store.database):
        store.put("a", b"x")
        store.database.checkpoint()
    assert passes == [False, False, True]


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
    with pytest.raises(StoreError, match="is not open"):
        store.database.sync()
    store.database.checkpoint()
    assert os.listdir(store.path.parent) == ["config.db"]


def test_a_database_in_use_can_t_be_opened_alone(store: Store) -> None:
    with pytest.raises(StoreError, match="another process has it open") as caught:
        Database.open(store.path, now=1, alone=True)
    assert caught.value.errno == errno.EBUSY
    store.put("a", b"x")
    store.database.close()
    with contextlib.closing(Database.open(store.path, now=1, alone=True)) as alone:
        assert len(alone.load(now=1).records) == 2
