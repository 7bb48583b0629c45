"""Database and journal of a daemon at its start."""

import contextlib
import errno
import sqlite3
import threading
from pathlib import Path

import pytest

from pmxcfs.daemon.storage import Storage
from pmxcfs.errors import StoreError
from pmxcfs.messages import Create
from pmxcfs.storage.database import whole_batch
from pmxcfs.storage.kept_copies import kept_copies
from pmxcfs.storage.records import encode
from pmxcfs.storage.recovery import inspect
from tests.conftest import ExpectLog
from tests.fakes.data.databases import Shape, make_database
from tests.fakes.data.journals import WRITE
from tests.fakes.doubles.device import device
from tests.fakes.doubles.journals import JournalingNode

OTHER = r"the database is not the one that the journal goes on from, .*; they are kept as .*"


def opened(path: Path, *, now: int = 9) -> Storage:
    return Storage.open(
        path, path.with_name("journal"), now=now, lock=threading.Lock(), scratch=path.parent
    )


def test_no_segment_is_begun_before_what_is_left_over_is_kept(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    """A second start finds it again, as the journal is as it was."""
    path = tmp_path / "config.db"
    node = JournalingNode(tmp_path / "journal")
    node.change(Create("unsaved"))
    (tmp_path / "conflicts").touch()  # no directory can be made there
    before = node.segment.read_bytes()
    for _ in range(2):
        with contextlib.closing(opened(path)) as storage:
            assert "conflicts" in str(storage.journal.failure)
            with pytest.raises(StoreError):
                storage.journal.make_room(100, version=1, wait=False)
        assert [file.read_bytes() for file in node.directory.iterdir()] == [before]
    found = inspect(path).left_over
    assert found is not None
    assert list(found.paths()) == ["unsaved"]
    with contextlib.closing(opened(path)) as storage:
        (tmp_path / "conflicts").unlink()
        expect_log(OTHER)
        expect_log("changed in the journal only: unsaved")
        storage.journal.make_room(100, version=1)
        assert storage.journal.failure is None
    assert len(kept_copies(tmp_path)) == 1


def test_the_database_is_closed_if_the_journal_fails_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "config.db"
    storage = opened(path)
    storage.journal.make_room(100, version=1)
    storage.journal.append([encode(WRITE)])
    with device() as below:
        below.failures["sync"] = errno.EIO
        with pytest.raises(StoreError):
            storage.close()
    assert not Path(f"{path}-wal").exists()


# Damaged databases


PAGE = 1024
DAMAGED_NOW = 1800000000


def damaged_database(path: Path, *, names: str = "other") -> bytes:
    """Make a database of 300 entries and *names*, and zero one of its leaves."""
    make_database(path, Shape(PAGE, 300, (100,)))
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for number, name in enumerate(names.split(), 900):
            row = (number, 0, 600, 1, 1, 8, name, b"content")
            connection.execute("INSERT INTO tree VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        connection.execute("UPDATE tree SET version = 999 WHERE inode = 0")
        connection.commit()
        connection.execute("PRAGMA journal_mode = WAL")
    content = bytearray(path.read_bytes())
    page = content.index(b"100.conf") // PAGE * PAGE
    content[page : page + PAGE] = bytes(PAGE)
    path.write_bytes(content)
    return bytes(content)


def opened_in_cluster(path: Path, host_file: Path) -> Storage:
    return Storage.open(
        path,
        path.with_name("journal"),
        now=DAMAGED_NOW,
        lock=threading.Lock(),
        scratch=path.parent,
        host_file=host_file,
    )


def test_alone_a_damaged_database_is_refused_with_the_command(tmp_path: Path) -> None:
    """Neither in local mode, nor without any corosync.conf."""
    path = tmp_path / "a state" / "config.db"
    path.parent.mkdir()
    content = damaged_database(path)
    for host_file in (None, tmp_path / "missing.conf"):
        with pytest.raises(StoreError) as caught:
            Storage.open(
                path,
                path.with_name("journal"),
                now=DAMAGED_NOW,
                lock=threading.Lock(),
                scratch=path.parent,
                host_file=host_file,
            )
        assert f": pmxcfs fsck --repair '{path}'" in str(caught.value)
        assert path.read_bytes() == content
        assert list(path.parent.glob("*.bak-*")) == []


@pytest.mark.parametrize("names", ["corosync.conf other", "other"])
def test_in_a_cluster_what_can_be_read_is_saved(
    tmp_path: Path, expect_log: ExpectLog, names: str
) -> None:
    path, host_file = tmp_path / "config.db", tmp_path / "corosync.conf"
    host_file.write_bytes(b"of the host")
    content = damaged_database(path, names=names)
    expect_log("config.db is damaged: ")
    expect_log(rf"a new .* what could be read; the damaged one is kept as .*bak-{DAMAGED_NOW}$")
    with contextlib.closing(opened_in_cluster(path, host_file)) as storage:
        tree = storage.recovered.tree
        assert storage.database.incomplete.is_set
        assert (tree.version, tree.root.mtime) == (999, 0)
        assert storage.salvaged
        config, other = tree.find("corosync.conf"), tree.find("other")
        assert config is not None
        assert other is not None
        assert config.content == (b"content" if "corosync" in names else b"of the host")
    assert path.with_name(f"config.db.bak-{DAMAGED_NOW}").read_bytes() == content
    with contextlib.closing(opened_in_cluster(path, host_file)) as storage:
        assert storage.database.incomplete.is_set
        assert not storage.salvaged


def test_without_a_version_row_a_tree_is_incomplete(tmp_path: Path, expect_log: ExpectLog) -> None:
    path = tmp_path / "config.db"
    make_database(path, Shape(PAGE, 30, (100,)))
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM tree WHERE inode = 0")
    expect_log("repaired")
    expect_log("kept")
    with contextlib.closing(opened(path)) as storage:
        assert storage.database.incomplete.is_set
        storage.database.save(whole_batch(storage.recovered.tree), None)
    with contextlib.closing(opened(path)) as storage:
        assert storage.database.incomplete.is_set
        storage.database.incomplete.is_set = False
        storage.database.save(whole_batch(storage.recovered.tree), None)
    with contextlib.closing(opened(path)) as storage:
        assert not storage.database.incomplete.is_set


def test_alone_a_damaged_log_is_kept(tmp_path: Path, expect_log: ExpectLog) -> None:
    path = tmp_path / "config.db"
    make_database(path, Shape(PAGE, 30, (100,)))
    log = b"\x37\x7f\x06\x82" + b"damage" * 500
    path.with_name("config.db-wal").write_bytes(log)
    expect_log(r"has no valid header: nothing of it counts; a copy of both is kept as .*bak-9$")
    with contextlib.closing(opened(path)) as storage:
        assert storage.recovered.tree.entry_count == 30
        assert not storage.database.incomplete.is_set
    assert path.with_name("config.db.bak-9-wal").read_bytes() == log
