"""The saver: what a save writes to journal and database, in which order, when, and what fails."""

import contextlib
import errno
import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.storage import database as database_module
from pmxcfs.storage.database import Database
from pmxcfs.storage.divergence import Note
from pmxcfs.storage.mark import Mark, Position
from pmxcfs.storage.records import (
    Change,
    Check,
    Gap,
    Saved,
    Saving,
)
from pmxcfs.storage.saver import CHECK_INTERVAL
from pmxcfs.storage.segments import HEADER_SIZE, scan
from tests.conftest import ExpectLog
from tests.fakes.data.trees import ROOT, file, tree_of, way_to
from tests.fakes.doubles.saving import World
from tests.fakes.doubles.store import (
    LINEAGE,
    Faults,
    faulty_connections,
    reading,
    stored,
)

WRITTEN = "can't be written: .*; changes are kept in the journal"


@pytest.fixture
def faults() -> Iterator[Faults]:
    with faulty_connections() as faults:
        yield faults


@pytest.fixture
def world(tmp_path: Path, faults: Faults) -> Iterator[World]:
    world = World(tmp_path)
    with contextlib.closing(world):
        yield world


# One save.


def test_a_save_is_announced_committed_and_confirmed(world: World) -> None:
    world.change("a")
    position = world.journal.position
    world.saver.save()
    change, saving, saved = world.records()
    assert isinstance(change, Change)
    assert isinstance(saving, Saving)
    assert (saving.version, saving.writer, saving.mtime) == (world.tree.version, 3, 1234)
    assert saved == Saved(saving.save_id)
    assert world.mark() == Mark(saving.save_id, LINEAGE, position)
    assert world.calls == ["take", "saved"]
    world.check_is_saved()
    assert world.store.log_size == 0  # the file alone is current


def test_the_announcement_is_on_the_device_before_the_commit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    traced(monkeypatch, world.journal, ["append", "sync", "release"], steps)
    traced(monkeypatch, world.database, ["save", "checkpoint"], steps)
    traced(monkeypatch, world, ["batch_saved"], steps)
    world.change("a")
    steps.clear()
    world.saver.save()
    expected = ["append", "sync", "save", "batch_saved", "append", "release", "checkpoint"]
    assert steps == expected


def traced(
    monkeypatch: pytest.MonkeyPatch, target: object, names: list[str], steps: list[str]
) -> None:
    """Add the name of each of these methods to *steps* when it is called."""

    def trace(name: str, method: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            steps.append(name)
            return method(*args, **kwargs)

        return call

    for name in names:
        monkeypatch.setattr(target, name, trace(name, getattr(target, name)))


def test_each_save_has_an_id_of_its_own(world: World) -> None:
    for name in "ab":
        world.change(name)
        world.saver.save()
    ids = {record.save_id for record in world.records() if isinstance(record, Saved)}
    assert len(ids) == 2
    assert {len(save_id) for save_id in ids} == {16}


def test_without_changes_nothing_is_written(world: World) -> None:
    world.saver.save()
    assert world.calls == ["take"]
    assert world.records() == []
    assert world.mark() is None


def test_a_save_of_the_whole_tree_is_one_without_changes_too(world: World) -> None:
    world.saver.save(whole=True)
    assert world.kinds() == [Saving, Saved]
    assert world.mark() is not None


def test_a_checksum_is_written_behind_a_save_once_an_hour(world: World) -> None:
    world.has_state = True
    expected: list[Check] = []
    for seconds in (0.0, CHECK_INTERVAL - 1, 1.0, 1.0):
        world.now += seconds
        world.change("a")
        world.saver.save()
        if seconds != CHECK_INTERVAL - 1 and len(expected) < 2:
            expected.append(Check(world.tree.version, world.tree.checksum()))
            assert world.records()[-1] == expected[-1]
    assert [record for record in world.records() if isinstance(record, Check)] == expected


def test_segments_that_the_database_has_are_let_go(world: World) -> None:
    world.change("a")
    world.journal.begin_segment(version=world.tree.version)
    world.change("b")
    assert len(scan(world.directory).segments) == 2
    world.saver.save()
    assert len(scan(world.directory).segments) == 1


def test_a_journal_that_does_not_lead_to_the_tree_begins_anew(world: World) -> None:
    world.change("a")
    world.is_gap = True
    world.saver.save()
    gap, saving, saved = world.records()  # the segment before is gone
    assert gap == Gap(world.tree.version)
    assert isinstance(saving, Saving)
    assert isinstance(saved, Saved)
    mark = world.mark()
    assert mark is not None
    assert mark.position == (6, HEADER_SIZE, 6)  # before GAP
    assert world.calls == ["take", "saved"]
    world.check_is_saved()


def test_a_gap_that_could_not_be_saved_leaves_the_database_with_its_mark(
    world: World, faults: Faults, expect_log: ExpectLog
) -> None:
    world.change("a")
    world.saver.save()
    mark = world.mark()
    world.change("b")
    world.is_gap = True
    expect_log(WRITTEN)
    faults.arm(sqlite3.SQLITE_FULL, matching="COMMIT")
    with pytest.raises(StoreError):
        world.saver.save()
    assert world.mark() == mark
    assert world.kinds() == [Change, Saving, Saved, Change, Gap, Saving]
    world.store.write("c", b"delivered meanwhile")
    world.saver.save()
    assert world.kinds() == [Gap, Saving, Gap, Saving, Saved]  # in the same segment
    assert [record.version for record in world.records() if isinstance(record, Gap)] == [
        world.tree.version - 2,
        world.tree.version,
    ]
    world.check_is_saved()


# When.


def test_a_configuration_change_is_saved_after_a_pause(world: World) -> None:
    world.change("a")
    assert world.pass_time(1.5) == []
    world.change("b")
    assert world.pass_time(1.5) == []
    assert world.pass_time(0.5) == ["take", "saved"]
    world.check_is_saved()
    assert world.pass_time(1000) == []


def test_heartbeats_are_saved_after_five_minutes(world: World) -> None:
    for _ in range(29):
        world.change("lrm_status", is_configuration=False)
        assert world.pass_time(10) == []
    assert world.pass_time(10) == ["take", "saved"]


def test_eight_mebibytes_are_saved_at_once(world: World) -> None:
    for _ in range(8):
        assert world.pass_time(0) == []
        world.change("lrm_status", size=1 << 20, is_configuration=False)
    assert world.pass_time(0) == ["take", "saved"]
    assert world.pass_time(0) == []


def test_records_without_an_unsaved_change_are_no_reason_to_save_for_ever(world: World) -> None:
    world.append(9 << 20)
    assert world.pass_time(0) == ["take"]
    assert world.pass_time(0) == []


def test_a_repaired_tree_is_saved_at_once(tmp_path: Path, expect_log: ExpectLog) -> None:
    path = tmp_path / "config.db"
    Database.open(path, now=1).close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO tree VALUES (5, 99, 5, 0, 1, 8, 'lost', 'x')")
    expect_log("repaired")
    expect_log("before the repair is kept")
    world = World(tmp_path)
    with contextlib.closing(world):
        assert world.pass_time(0) == ["take whole", "saved"]
        world.check_is_saved()


# Readers.


def test_while_another_program_reads_saves_wait_for_eight_mebibytes(
    world: World, expect_log: ExpectLog
) -> None:
    expect_log("has kept a read transaction")
    with reading(world.store.path):
        world.change("a")
        assert world.pass_time(2) == ["take", "saved"]
        assert world.saver.is_blocked
        world.change("a")
        assert world.pass_time(400) == []
        world.change("b", size=8 << 20)
        assert world.pass_time(0) == ["take", "saved"]
        world.change("c")
        assert world.store.log_size > 0
    assert world.pass_time(1.9) == []
    assert world.pass_time(0.1) == []  # cuts the log
    assert not world.saver.is_blocked
    assert world.store.log_size == 0
    assert world.pass_time(0) == ["take", "saved"]
    world.check_is_saved()


def test_a_reader_is_named_once_after_a_minute(
    world: World, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    with reading(world.store.path) as reader:
        world.change("a")
        for _ in range(30):
            world.pass_time(2)
        assert caplog.records == []
        expect_log(
            rf"\(pid {reader.pid}\) has kept a read transaction of .*config.db open for 60 s"
        )
        for _ in range(40):
            world.pass_time(2)
        assert len(caplog.records) == 1


# Failures.


def test_what_could_not_be_saved_is_saved_later(
    world: World, faults: Faults, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pmxcfs.database")
    expect_log(WRITTEN)
    faults.arm(sqlite3.SQLITE_FULL, at=0, matching="INSERT")
    world.change("a")
    assert world.pass_time(2) == ["take", "failed"]
    assert world.saver.error is not None
    assert world.saver.error.errno == errno.ENOSPC
    assert world.pass_time(1.9) == []
    assert world.pass_time(0.1) == ["take", "failed"]
    assert world.pass_time(3.9) == []
    assert world.pass_time(0.1) == ["take", "failed"]
    faults.disarm()
    assert world.pass_time(8) == ["take", "saved"]
    assert world.saver.error is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    world.check_is_saved()


@pytest.mark.parametrize("nth", range(1, 8))
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_after_an_error_of_the_device_the_whole_tree_is_written(
    world: World, faults: Faults, nth: int, is_done: bool, expect_log: ExpectLog
) -> None:
    world.change("a")
    world.saver.save()
    expect_log(WRITTEN)
    world.change("b")
    faults.arm(sqlite3.SQLITE_IOERR_WRITE, at=nth, is_done=is_done)
    assert world.pass_time(2) == ["take", "failed"]
    assert world.pass_time(2) == ["take whole", "saved"]
    world.check_is_saved()


def test_a_program_that_keeps_the_write_lock_delays_the_save_only(
    world: World, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT", 0.02)
    world.saver.save()  # takes over the time limit
    expect_log("another process has it open: stop that process; changes are kept in the journal")
    with contextlib.closing(sqlite3.connect(world.store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        world.change("a")
        failures = 0
        for _ in range(30):
            failures += world.pass_time(2) == ["take", "failed"]
        assert failures > 5
        assert world.saver.error is not None
        assert world.saver.error.errno == errno.EBUSY
    world.pass_time(10)
    world.check_is_saved()


def test_a_change_of_the_version_by_another_program_needs_the_whole_tree(
    world: World, expect_log: ExpectLog
) -> None:
    world.change("a")
    world.saver.save()
    with contextlib.closing(sqlite3.connect(world.store.path)) as other, other:
        other.execute("UPDATE tree SET version = 99, mtime = 5")
    expect_log("another program has changed the tree")
    world.change("b")
    assert world.pass_time(2) == ["take", "failed", "take whole", "saved"]
    world.check_is_saved()


@pytest.mark.parametrize("method", ["append", "sync"])
def test_without_an_announcement_nothing_is_committed(
    world: World, monkeypatch: pytest.MonkeyPatch, method: str, expect_log: ExpectLog
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("no journal", errno.EIO)

    world.change("a")
    expect_log("no journal; changes are kept")
    with monkeypatch.context() as patch:
        patch.setattr(world.journal, method, fail)
        with pytest.raises(StoreError, match="no journal"):
            world.saver.save()
    assert world.calls == ["take", "failed"]
    assert world.mark() is None
    world.saver.save()
    world.check_is_saved()


def test_a_save_counts_although_the_journal_can_t_confirm_it(
    world: World, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """The announcement is enough for the next start."""
    append = world.journal.append

    def fail_later(bodies: list[bytes]) -> None:
        if world.calls[-1:] == ["saved"]:
            raise StoreError("no journal", errno.EIO)
        append(bodies)

    world.change("a")
    expect_log("no journal; the next save")
    with monkeypatch.context() as patch:
        patch.setattr(world.journal, "append", fail_later)
        world.saver.save()
    assert world.saver.error is None
    assert world.kinds() == [Change, Saving]
    world.check_is_saved()


def test_a_failing_checkpoint_is_tried_again_with_the_whole_tree(
    world: World, faults: Faults, expect_log: ExpectLog
) -> None:
    expect_log("can't be checkpointed: .*; a copy of it alone is older")
    world.change("a")
    faults.arm(sqlite3.SQLITE_IOERR_FSYNC, matching="wal_checkpoint")
    assert world.pass_time(2) == ["take", "saved"]
    assert world.saver.is_blocked
    assert world.pass_time(2) == []
    assert world.pass_time(8) == ["take whole", "saved"]
    assert not world.saver.is_blocked
    assert world.store.log_size == 0


# Adoptions.


OURS = (file(2, "a", b"ours"), file(3, "b", b"gone"), file(4, "c", b"same"))
THEIRS = (file(2, "a", b"theirs", version=70), file(4, "c", b"same"), file(9, "d", b"new"))


@pytest.fixture
def leader(world: World) -> Tree:
    """Another node's tree; ours is saved."""
    world.store.tree = tree_of(*OURS)
    world.saver.save(whole=True)
    return tree_of(*THEIRS, root=ROOT._replace(version=80))


def test_an_adoption_is_announced_committed_and_confirmed(world: World, leader: Tree) -> None:
    position = world.journal.position
    world.saver.save_adoption(way_to(world.tree, leader), notes={7: Note(1, 2)})
    assert stored(world.store.path).index() == leader.index()
    saving, saved = world.records()[2:]
    assert isinstance(saving, Saving)
    assert (saving.version, saving.writer, saving.mtime) == (80, 1, 1000)
    assert saved == Saved(saving.save_id)
    assert world.mark() == Mark(saving.save_id, LINEAGE, position)
    assert world.store.log_size == 0


def test_an_adoption_that_fails_leaves_the_database_with_our_tree(
    world: World, leader: Tree, faults: Faults, expect_log: ExpectLog
) -> None:
    mark = world.mark()
    expect_log(WRITTEN)
    faults.arm(sqlite3.SQLITE_FULL, matching="COMMIT")
    with pytest.raises(StoreError):
        world.saver.save_adoption(way_to(world.tree, leader), notes={})
    assert world.kinds()[2:] == [Saving]
    assert world.mark() == mark
    assert world.saver.error is not None
    world.saver.save_adoption(way_to(world.tree, leader), notes={})
    assert stored(world.store.path).index() == leader.index()


def test_segments_that_can_not_be_let_go_of_are_told_once_and_when_that_is_over(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    expect_log: ExpectLog,
) -> None:
    expect_log("can't be read; the next save lets go of what the journal need not have")
    caplog.set_level(logging.INFO, logger="pmxcfs.database")

    def fail(position: Position, progress: object) -> None:
        raise StoreError("the journal's directory can't be read", errno.ENOENT)

    with monkeypatch.context() as patch:
        patch.setattr(world.journal, "release", fail)
        for name in "abc":
            world.change(name)
            world.saver.save()
    for name in "de":
        world.change(name)
        world.saver.save()
    lines = [record.message for record in caplog.records if "let" in record.message]
    assert len(lines) == 2
    assert lines[1] == "the journal has let go of what it need not have"
