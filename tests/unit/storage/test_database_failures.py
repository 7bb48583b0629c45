"""Failed saves: the errno, and how file and tree become equal again."""

import contextlib
import errno
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.storage.database import Database, NeedsWhole
from pmxcfs.storage.schema import entries
from pmxcfs.tree.adoption import record_of
from tests.conftest import ExpectLog
from tests.fakes.doubles.store import BY, Faults, Store, faulty_connections, query, stored

MEANINGS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR_WRITE: errno.EIO,
    sqlite3.SQLITE_IOERR_FSYNC: errno.EIO,
    sqlite3.SQLITE_IOERR_SHMSIZE: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_READONLY_DBMOVED: errno.EROFS,
    sqlite3.SQLITE_CORRUPT: errno.EIO,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_BUSY_SNAPSHOT: errno.EBUSY,
    sqlite3.SQLITE_CANTOPEN: errno.EIO,
    sqlite3.SQLITE_ERROR: errno.EIO,
}
IO_ERROR = sqlite3.SQLITE_IOERR_WRITE
# Begin, look for other writers, delete c, write a, the version and the mark, commit.
STATEMENTS = 8
WHOLE = 22  # statements to open the file again and to write the whole tree


@pytest.fixture
def faults() -> Iterator[Faults]:
    with faulty_connections() as faults:
        yield faults


@pytest.fixture
def store(tmp_path: Path, faults: Faults) -> Iterator[Store]:
    store = Store(tmp_path / "config.db")
    with contextlib.closing(store.database):
        for name in ("a", "b", "c"):
            store.put(name, name.encode())
        faults.seen.clear()
        yield store


def change(store: Store) -> None:
    """Make a change that needs every kind of statement."""
    entry = store.tree.find("c")
    assert entry is not None
    store.tree.remove(entry, **BY)
    store.put("a", b"changed")


@pytest.mark.parametrize(("code", "expected"), MEANINGS.items())
def test_every_error_has_its_errno(store: Store, faults: Faults, code: int, expected: int) -> None:
    before = store.tree.checksum()
    faults.arm(code, matching="INSERT")
    with pytest.raises(StoreError) as caught:
        change(store)
    assert caught.value.errno == expected
    assert str(caught.value).startswith(f"{store.path} can't be written: injected: ")
    assert stored(store.path).checksum() == before


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, IO_ERROR], ids=["full", "io"])
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("statement", range(1, 1 + STATEMENTS))
def test_after_the_failure_of_any_statement_file_and_tree_become_equal(
    store: Store, faults: Faults, statement: int, is_done: bool, code: int
) -> None:
    if code == sqlite3.SQLITE_FULL and is_done:
        return  # a full device never executes a statement
    before = store.tree.checksum()
    faults.arm(code, at=statement, is_done=is_done)
    with pytest.raises(StoreError):
        change(store)
    assert store.database.needs_whole == (code == IO_ERROR)
    store.put("b", b"other")
    assert not store.database.needs_whole
    assert stored(store.path).checksum() == store.tree.checksum() != before


def test_a_change_needs_so_many_statements(store: Store, faults: Faults) -> None:
    change(store)
    assert len(faults.seen) == STATEMENTS
    faults.arm(IO_ERROR, matching="COMMIT", is_done=True)
    with pytest.raises(StoreError):
        store.put("b", b"x")
    faults.seen.clear()
    store.put("a", b"x")
    assert len(faults.seen) == WHOLE, faults.seen


@pytest.mark.parametrize("nth", range(1, 1 + WHOLE))
def test_writing_the_whole_tree_may_fail_at_any_statement(
    store: Store, faults: Faults, nth: int
) -> None:
    faults.arm(IO_ERROR, matching="COMMIT", is_done=True)
    with pytest.raises(StoreError):
        change(store)
    faults.arm(IO_ERROR, at=nth)
    with contextlib.suppress(StoreError):
        store.put("a", b"second")
    faults.disarm()
    store.put("b", b"third")
    assert stored(store.path).checksum() == store.tree.checksum()
    assert not store.database.needs_whole


@pytest.mark.parametrize("nth", range(1, 1 + WHOLE))
def test_a_tree_that_reports_a_failure_is_not_half_committed(
    store: Store, faults: Faults, nth: int
) -> None:
    """Other programs see the tree before, or the whole one."""
    before = store.tree.checksum()
    faults.arm(IO_ERROR, matching="INSERT")
    with pytest.raises(StoreError):
        change(store)
    faults.arm(IO_ERROR, at=nth)
    with contextlib.suppress(StoreError):
        store.save()
    faults.disarm()
    assert stored(store.path).checksum() in (before, store.tree.checksum())


def test_a_row_that_a_failed_commit_left_is_overwritten_or_deleted(
    store: Store, faults: Faults
) -> None:
    """The row left in the file has the version, size and mtime of the next change."""
    faults.arm(IO_ERROR, matching="COMMIT", is_done=True)
    tree = copy_of(store.tree)
    store.write("a", b"first!")
    store.write("new", b"x")
    with pytest.raises(StoreError):
        store.save()
    store.tree = tree  # as local mode rolls back
    store.put("a", b"second")
    assert stored(store.path).checksum() == store.tree.checksum()


def copy_of(tree: Tree) -> Tree:
    """Return another tree with the same entries."""
    root = record_of(tree.root)
    copy = Tree()
    copy.load([root, *sorted(map(record_of, entries(tree)))])
    return copy


def test_a_batch_of_changes_is_refused_after_an_error_of_the_device(
    store: Store, faults: Faults
) -> None:
    faults.arm(IO_ERROR, matching="INSERT")
    with pytest.raises(StoreError):
        change(store)
    faults.seen.clear()
    with pytest.raises(NeedsWhole):
        store.database.save(store.batch()._replace(is_whole=False), None)
    assert faults.seen == []


def test_a_full_device_does_not_reopen_the_file(store: Store, faults: Faults) -> None:
    before = store.database._connection
    faults.arm(sqlite3.SQLITE_FULL, matching="COMMIT")
    with pytest.raises(StoreError):
        change(store)
    store.save()
    assert store.database._connection is before


def test_an_interrupted_transaction_is_rolled_back(store: Store, faults: Faults) -> None:
    faults.arm(KeyboardInterrupt(), matching="COMMIT")
    with pytest.raises(KeyboardInterrupt):
        change(store)
    store.put("b", b"other")
    assert stored(store.path).checksum() == store.tree.checksum()


def test_a_failed_checkpoint_is_reported(store: Store, faults: Faults) -> None:
    faults.arm(sqlite3.SQLITE_FULL, matching="wal_checkpoint")
    with pytest.raises(StoreError, match="can't be checkpointed: injected: free some space"):
        store.database.checkpoint()
    assert not store.database.needs_whole
    assert store.database.checkpoint()


def test_no_checkpoint_runs_after_a_failed_one_until_the_file_is_opened_again(
    store: Store, faults: Faults
) -> None:
    """The first failure may be the only sign that the log has lost pages."""
    faults.arm(sqlite3.SQLITE_IOERR_FSYNC, matching="wal_checkpoint")
    with pytest.raises(StoreError):
        store.database.checkpoint()
    faults.seen.clear()
    assert not store.database.checkpoint()
    assert faults.seen == []
    store.put("d", b"d")
    assert store.database.checkpoint()
    assert store.log_size == 0


def test_a_failed_checkpoint_at_the_end_is_logged(
    store: Store, faults: Faults, expect_log: ExpectLog
) -> None:
    expect_log("ERROR .*can't be checkpointed: injected")
    faults.arm(sqlite3.SQLITE_IOERR_FSYNC, matching="wal_checkpoint")
    store.database.close()
    assert stored(store.path).checksum() == store.tree.checksum()


def test_the_end_does_not_wait_for_a_save_that_does_not_end(
    store: Store, expect_log: ExpectLog
) -> None:
    expect_log("WARNING .*config.db is left with its write-ahead log: a save does not end")
    with store.database._lock:  # as a thread that waits for the device
        store.database.close()
    assert store.log_size > 0
    store.database.close()
    assert os.listdir(store.path.parent) == ["config.db"]


@pytest.mark.parametrize("ending", ["save", "close"])
def test_a_log_that_lost_pages_is_never_copied_into_the_file(
    store: Store, faults: Faults, ending: str
) -> None:
    """Pages that the kernel failed to write read back with other content."""
    store.database.checkpoint()
    store.put("a", b"in the log")
    pages = store.path.read_bytes()
    with open(f"{store.path}-wal", "r+b") as log:
        log.seek(32 + 24)  # behind the headers of the log and of its first frame
        log.write(bytes(4096))
    faults.arm(IO_ERROR, matching="INSERT")
    with pytest.raises(StoreError):
        store.put("b", b"x")
    if ending == "close":
        store.database.close()
        assert store.path.read_bytes() == pages
        return
    store.put("c", b"y")
    assert query(store.path, "PRAGMA integrity_check") == [(b"ok",)]
    assert stored(store.path).checksum() == store.tree.checksum()


def test_a_repair_waits_for_the_copy_of_the_damaged_file(
    tmp_path: Path, faults: Faults, expect_log: ExpectLog
) -> None:
    path = tmp_path / "config.db"
    Database.open(path, now=1).close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO tree VALUES (5, 99, 5, 0, 1, 8, 'lost', 'x')")
        connection.execute("UPDATE tree SET version = 5 WHERE inode = 0")
    expect_log("repaired")
    expect_log("before the repair is kept")
    faults.arm(sqlite3.SQLITE_FULL, at=0, matching="BACKUP")
    store = Store(path)
    with contextlib.closing(store.database):
        with pytest.raises(StoreError, match="free some space"):
            store.save()
        assert not list(tmp_path.glob("*.bak*"))
        assert query(path, "SELECT parent FROM tree WHERE inode = 5") == [(99,)]
        faults.disarm()
        found = store.tree.find("priv/lost+found/5-lost")
        assert found is not None
        assert found.content == b"x"
        store.put("new", b"y")
        assert stored(path).checksum() == store.tree.checksum()
        [copy] = tmp_path.glob("*.bak*")
        assert query(copy, "SELECT parent FROM tree WHERE inode = 5") == [(99,)]


# A real full device.


@pytest.fixture
def small_device(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path = tmp_path / "device"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_device_without_space_is_survived(small_device: Path) -> None:
    store = Store(small_device / "config.db")
    with contextlib.closing(store.database):
        store.put("kept", bytes(1000))
        ballast = small_device / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        for _ in range(3):
            store.write("new", bytes(100_000))
            with pytest.raises(StoreError) as caught:
                store.save()
            assert caught.value.errno == errno.ENOSPC
        ballast.unlink()
        store.put("new", bytes(100_000))
        expected = store.tree.checksum()
    assert os.listdir(small_device) == ["config.db"]
    tree = Tree()
    with contextlib.closing(Database.open(small_device / "config.db", now=1)) as database:
        tree.load(database.load(now=1).records)
    assert tree.checksum() == expected


def test_a_file_system_that_became_read_only_is_survived(small_device: Path) -> None:
    path = small_device / "config.db"
    Database.open(path, now=1).close()
    subprocess.run(["mount", "-o", "remount,ro", small_device], check=True)
    with pytest.raises(StoreError, match=r"config\.db can't be opened: ") as caught:
        Database.open(path, now=1)
    assert caught.value.errno in (errno.EROFS, errno.EIO)
