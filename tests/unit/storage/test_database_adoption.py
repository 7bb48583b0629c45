"""An adoption in the database: one transaction, read back before the commit, or no change."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.storage.database import Database, NeedsWhole, inspect
from pmxcfs.storage.divergence import Note, Removal
from pmxcfs.storage.mark import Mark, Position
from tests.conftest import ExpectLog
from tests.fakes.data.trees import ROOT, directory, file, tree_of, way_to
from tests.fakes.doubles.store import Faults, Store, contents_of, faulty_connections, query, stored

OURS = (directory(2, "d"), file(3, "same", b"s"), file(4, "f", b"old"), file(5, "gone", b"g"))
THEIRS = (
    directory(2, "d"),
    file(3, "same", b"s"),
    file(4, "f", b"new", version=60),
    file(9, "n", parent=2),
)
NEWER = ROOT._replace(version=60, mtime=2000)
IO_ERROR = sqlite3.SQLITE_IOERR_WRITE
MARK = Mark(b"s" * 16, b"l" * 16, Position(1, 64, 2))
# Begin, look for other writers, delete 5, write 4, 9 and the version, look for the tables of notes
# and write a note in four, read 4, 9, the version and the count, write the mark in two, commit.
STATEMENTS = 17


class World:
    """A database that holds our tree, and the leader's tree."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.path, self.database = path, self.store.database
        self.store.tree = tree_of(*OURS)
        self.database.save(self.store.batch(whole=True), self.store.mark())
        self.leader = tree_of(*THEIRS, root=NEWER)

    def adopt(self) -> None:
        adoption = way_to(self.store.tree, self.leader)
        self.database.adopt(adoption, notes={7: Note(1, 2)}, mark=MARK)

    def check_is_ours(self) -> None:
        """Check that the file has not changed."""
        assert stored(self.path).index() == self.store.tree.index()
        assert mark_of(self.path) == (b"%16d" % 1,)

    def check_is_theirs(self) -> None:
        """Check that the file has the leader's tree."""
        assert stored(self.path).index() == self.leader.index()
        assert mark_of(self.path) == (MARK.save_id,)

    def save_whole(self) -> None:
        """Save our tree, as if the adoption had been given up."""
        self.database.save(self.store.batch(whole=True), self.store.mark())


def mark_of(path: Path) -> tuple[bytes]:
    [row] = query(path, "SELECT save_id FROM pmxcfs_journal")
    return row


@pytest.fixture
def faults() -> Iterator[Faults]:
    with faulty_connections() as faults:
        yield faults


@pytest.fixture
def world(tmp_path: Path, faults: Faults) -> Iterator[World]:
    world = World(tmp_path / "config.db")
    with contextlib.closing(world.database):
        faults.seen.clear()
        yield world


def test_an_adoption_is_one_transaction_with_notes_and_mark(world: World, faults: Faults) -> None:
    world.adopt()
    assert len(faults.seen) == STATEMENTS, faults.seen
    assert (faults.seen[0], faults.seen[-1]) == ("BEGIN IMMEDIATE", "COMMIT")
    world.check_is_theirs()
    assert query(world.path, "SELECT * FROM divergence_notes") == [(7, 1, 2)]


def test_the_version_row_says_that_a_sync_wrote_it(world: World) -> None:
    world.adopt()
    rows = query(world.path, "SELECT version, writer, mtime, type, name FROM tree WHERE inode = 0")
    assert rows == [(60, 1, 2000, 4, b"__version__")]
    world.store.tree = world.leader
    world.save_whole()
    assert query(world.path, "SELECT version, type FROM tree WHERE inode = 0") == [(60, 8)]


def test_equal_entries_are_not_written(world: World, faults: Faults) -> None:
    world.leader = tree_of(*OURS, root=NEWER)
    world.adopt()
    assert sum("INTO tree" in sql for sql in faults.seen) == 1  # the version
    assert not any(sql.startswith("DELETE FROM tree") for sql in faults.seen)


def test_an_adoption_by_all_forgets_the_notes(world: World) -> None:
    batch = world.store.batch(whole=True)
    world.database.save(batch._replace(notes={1: Note(1, 1)}, removals=[Removal(1, 1, b"x")]), MARK)
    world.database.adopt(way_to(world.store.tree, world.leader), notes={}, mark=MARK)
    world.check_is_theirs()
    assert query(world.path, "SELECT * FROM divergence_notes") == []
    assert world.database.read_removals() == []


@pytest.mark.parametrize("nth", range(1, STATEMENTS + 1))
@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, IO_ERROR], ids=["full", "io"])
def test_a_failure_at_any_statement_changes_nothing(
    world: World, faults: Faults, nth: int, code: int
) -> None:
    faults.arm(code, at=nth)
    with pytest.raises(StoreError):
        world.adopt()
    world.check_is_ours()
    if code == IO_ERROR:
        with pytest.raises(NeedsWhole):
            world.adopt()
        world.check_is_ours()
        world.save_whole()
    world.adopt()
    world.check_is_theirs()


def test_a_commit_that_reports_a_failure_but_succeeded_is_undone(
    world: World, faults: Faults
) -> None:
    faults.arm(IO_ERROR, matching="COMMIT", is_done=True)
    with pytest.raises(StoreError):
        world.adopt()
    world.save_whole()
    assert stored(world.path).index() == world.store.tree.index()


def test_rows_that_read_back_different_are_not_committed(world: World) -> None:
    # On our own connection: a write of another process would be detected in another way.
    world.database._connection.execute(
        "CREATE TEMP TRIGGER spoil AFTER INSERT ON main.tree WHEN new.inode = 9 "
        "BEGIN UPDATE tree SET mtime = 1 WHERE inode = 9; END"
    )
    with pytest.raises(StoreError, match="entry 9 reads back different from what was written"):
        world.adopt()
    world.check_is_ours()
    assert world.database.needs_whole


def test_unknown_rows_are_detected(world: World) -> None:
    world.database._connection.execute("INSERT INTO tree VALUES (77, 0, 1, 1, 1, 8, 'x', NULL)")
    with pytest.raises(StoreError, match="has 6 rows instead of 5"):
        world.adopt()
    world.save_whole()
    assert stored(world.path).index() == world.store.tree.index()


def test_a_write_of_another_process_is_detected(world: World, expect_log: ExpectLog) -> None:
    with contextlib.closing(sqlite3.connect(world.path)) as other, other:
        other.execute("UPDATE tree SET data = 'tampered' WHERE inode = 3")
    with pytest.raises(NeedsWhole):
        world.adopt()
    assert contents_of(stored(world.path))["same"] == b"tampered"
    expect_log("another program writes to")
    world.save_whole()
    world.adopt()
    world.check_is_theirs()


def test_readers_and_checkpoints_are_not_writers(world: World) -> None:
    inspect(world.path)
    world.database.checkpoint()
    world.adopt()
    world.check_is_theirs()


def test_an_adopted_tree_is_loaded_after_a_restart(world: World) -> None:
    world.adopt()
    world.database.close()
    with contextlib.closing(Database.open(world.path, now=9)) as database:
        loaded = database.load(now=9)
        assert loaded.repairs == []
        assert database.notes == {7: Note(1, 2)}
        assert database.mark == MARK
    tree = Tree()
    tree.load(loaded.records)
    assert tree.index() == world.leader.index()
