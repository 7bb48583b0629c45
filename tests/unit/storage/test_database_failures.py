"""Failed writes of the database: the errno, the log, and how file and tree become equal again."""

import contextlib
import errno
import logging
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.storage.database import Database
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
REFUSED = r"can't be written: .*; reads go on, changes are refused"


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
def test_every_error_has_its_errno(
    store: Store, faults: Faults, code: int, expected: int, expect_log: ExpectLog
) -> None:
    before = store.tree.checksum()
    expect_log(REFUSED)
    faults.arm(code, matching="INSERT")
    with pytest.raises(StoreError) as caught:
        change(store)
    assert caught.value.errno == expected
    assert str(caught.value).startswith(f"{store.path} can't be written: injected: ")
    assert store.database.degraded is caught.value
    assert stored(store.path).checksum() == before == store.tree.checksum()


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, IO_ERROR], ids=["full", "io"])
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("statement", range(1, 6))
def test_after_the_failure_of_any_statement_file_and_tree_become_equal(
    store: Store,
    faults: Faults,
    statement: int,
    is_done: bool,
    code: int,
    expect_log: ExpectLog,
) -> None:
    if code == sqlite3.SQLITE_FULL and is_done:
        return  # a full device never executes a statement
    before = store.tree.checksum()
    expect_log(REFUSED)
    faults.arm(code, at=statement, is_done=is_done)
    with pytest.raises(StoreError):
        change(store)
    assert store.tree.checksum() == before
    store.put("b", b"other")
    assert store.database.degraded is None
    assert stored(store.path).checksum() == store.tree.checksum() != before


def test_a_change_needs_five_statements(store: Store, faults: Faults) -> None:
    change(store)
    assert len(faults.seen) == 5


@pytest.mark.parametrize("nth", range(1, 21))
def test_catching_up_may_fail_at_any_statement(
    store: Store, faults: Faults, nth: int, expect_log: ExpectLog
) -> None:
    expect_log(REFUSED)
    faults.arm(IO_ERROR, matching="COMMIT", is_done=True)
    with pytest.raises(StoreError):
        change(store)
    faults.arm(IO_ERROR, at=nth)
    with contextlib.suppress(StoreError):
        store.put("a", b"second")
    faults.disarm()
    store.put("b", b"third")
    assert stored(store.path).checksum() == store.tree.checksum()
    assert store.database.degraded is None


def test_a_half_failed_commit_of_the_same_version_is_overwritten(
    store: Store, faults: Faults, expect_log: ExpectLog
) -> None:
    """The row left in the file has the version, size and mtime of the next change."""
    expect_log(REFUSED)
    faults.arm(IO_ERROR, matching="INSERT", is_done=True)
    with pytest.raises(StoreError):
        store.put("a", b"first!")
    store.put("a", b"second")
    assert stored(store.path).checksum() == store.tree.checksum()


def test_a_row_that_a_failed_commit_left_is_deleted(
    store: Store, faults: Faults, expect_log: ExpectLog
) -> None:
    expect_log(REFUSED)
    faults.arm(IO_ERROR, matching="INSERT", is_done=True)
    with pytest.raises(StoreError):
        store.put("new", b"x")
    store.put("b", b"y")
    assert stored(store.path).checksum() == store.tree.checksum()


def test_changes_kept_in_ram_are_saved_later(
    store: Store, faults: Faults, expect_log: ExpectLog
) -> None:
    """In a cluster, delivered changes stay in RAM if they can't be saved."""
    expect_log(REFUSED)
    faults.arm(IO_ERROR, at=0, matching="INSERT")
    for number in range(3):
        store.write(f"delivered{number}", b"x")
        with pytest.raises(StoreError):
            store.database.save(store.tree)
    faults.disarm()
    store.save()
    assert stored(store.path).checksum() == store.tree.checksum()


def test_a_full_device_does_not_reopen_the_file(
    store: Store, faults: Faults, expect_log: ExpectLog
) -> None:
    expect_log(REFUSED)
    before = store.database._connection
    faults.arm(sqlite3.SQLITE_FULL, matching="COMMIT")
    with pytest.raises(StoreError):
        change(store)
    change(store)
    assert store.database._connection is before


def test_a_save_without_changes_tests_whether_writing_works_again(
    store: Store, faults: Faults, expect_log: ExpectLog
) -> None:
    expect_log(REFUSED)
    faults.arm(sqlite3.SQLITE_FULL, at=0, matching="BEGIN")
    with pytest.raises(StoreError):
        change(store)
    faults.arm(sqlite3.SQLITE_FULL, at=0, matching="INSERT")
    with pytest.raises(StoreError):
        store.save()
    assert store.database.degraded is not None
    faults.disarm()
    store.save()
    assert store.database.degraded is None


def test_each_change_of_state_is_logged_once(
    store: Store, faults: Faults, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pmxcfs.database")
    expect_log(REFUSED)
    for code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_FULL, IO_ERROR, IO_ERROR):
        faults.arm(code, matching="INSERT")
        with pytest.raises(StoreError):
            change(store)
    for _ in range(2):
        store.put("d", b"d")
    logged = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert logged == [
        (
            "ERROR",
            f"{store.path} can't be written: injected: free some space; "
            "reads go on, changes are refused",
        ),
        (
            "ERROR",
            f"{store.path} can't be written: injected: look for the device's errors with "
            "dmesg; reads go on, changes are refused",
        ),
        ("INFO", f"{store.path} can be written again"),
    ]


def test_an_interrupted_transaction_is_rolled_back(store: Store, faults: Faults) -> None:
    faults.arm(KeyboardInterrupt(), matching="COMMIT")
    with pytest.raises(KeyboardInterrupt):
        change(store)
    store.tree.rollback()
    store.put("b", b"other")
    assert stored(store.path).checksum() == store.tree.checksum()


def test_a_failed_sync_is_reported_and_the_next_save_opens_the_file_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    expect_log("can't be synced: Input/output error: .*; reads go on")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(StoreError) as caught:
            store.database.sync()
    assert caught.value.errno == errno.EIO
    before = store.database._connection
    store.put("b", b"y")
    assert store.database._connection is not before
    store.database.sync()
    assert stored(store.path).checksum() == store.tree.checksum()


def test_failed_checkpoints_are_logged_once_and_never_raised(
    store: Store, faults: Faults, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pmxcfs.database")
    expect_log(
        "can't be checkpointed: injected: free some space; its write-ahead log grows meanwhile"
    )
    faults.arm(sqlite3.SQLITE_FULL, at=0, matching="wal_checkpoint")
    for _ in range(3):
        store.put("d", b"d")
        store.database.checkpoint()
    assert len(caplog.records) == 1
    assert store.database.degraded is None
    assert store.database.wal_size > 0
    faults.disarm()
    store.database.checkpoint()
    assert caplog.messages[1:] == [f"the write-ahead log of {store.path} shrinks again"]
    assert store.database.wal_size == 0


def test_no_checkpoint_runs_after_a_failed_one_until_the_file_is_opened_again(
    store: Store, faults: Faults, expect_log: ExpectLog
) -> None:
    """The first failure may be the only sign that the log has lost pages."""
    expect_log("can't be checkpointed")
    faults.arm(sqlite3.SQLITE_IOERR_FSYNC, matching="wal_checkpoint")
    store.database.checkpoint()
    faults.seen.clear()
    store.database.checkpoint()
    assert faults.seen == []
    store.put("d", b"d")
    store.database.checkpoint()
    assert store.database.wal_size == 0


@pytest.mark.parametrize("ending", ["save", "close"])
def test_a_log_that_lost_pages_is_never_copied_into_the_file(
    store: Store, faults: Faults, expect_log: ExpectLog, ending: str
) -> None:
    """Pages that the kernel failed to write read back with other content."""
    store.database.checkpoint()
    store.put("a", b"in the log")
    pages = store.path.read_bytes()
    with open(f"{store.path}-wal", "r+b") as log:
        log.seek(32 + 24)  # behind the headers of the log and of its first frame
        log.write(bytes(4096))
    expect_log(REFUSED)
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


def test_a_repair_that_can_t_be_written_is_written_by_the_next_save(
    tmp_path: Path, faults: Faults, expect_log: ExpectLog
) -> None:
    path = tmp_path / "config.db"
    Database.open(path, now=1).close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO tree VALUES (5, 99, 5, 0, 1, 8, 'lost', 'x')")
    expect_log("repaired")
    expect_log("can't be repaired: injected.*; reads go on")
    expect_log("before the repair is kept")
    faults.arm(sqlite3.SQLITE_FULL, matching="BACKUP")
    store = Store(path)
    with contextlib.closing(store.database):
        assert store.database.degraded is not None
        assert not list(tmp_path.glob("*.bak*"))
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
    """A file system of 512 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path = tmp_path / "device"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_device_without_space_is_survived(small_device: Path, expect_log: ExpectLog) -> None:
    expect_log(r"can't be written: .* full: free some space; reads go on")
    store = Store(small_device / "config.db")
    with contextlib.closing(store.database):
        store.put("kept", bytes(1000))
        ballast = small_device / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        for _ in range(3):
            with pytest.raises(StoreError) as caught:
                store.put("new", bytes(100_000))
            assert caught.value.errno == errno.ENOSPC
        ballast.unlink()
        store.put("new", bytes(100_000))
        expected = store.tree.checksum()
    assert os.listdir(small_device) == ["config.db"]
    tree = Tree()
    with contextlib.closing(Database.open(small_device / "config.db", now=1)) as database:
        tree.load(database.load(now=1).records)
    assert tree.checksum() == expected


def test_a_file_system_that_became_read_only_is_survived(
    small_device: Path, expect_log: ExpectLog
) -> None:
    path = small_device / "config.db"
    Database.open(path, now=1).close()
    subprocess.run(["mount", "-o", "remount,ro", small_device], check=True)
    with pytest.raises(StoreError, match=r"config\.db can't be opened: ") as caught:
        Database.open(path, now=1)
    assert caught.value.errno in (errno.EROFS, errno.EIO)
