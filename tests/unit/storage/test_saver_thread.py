"""The saver's thread: who asks for a save, who waits for one, and what wakes the thread."""

import contextlib
import errno
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmxcfs.errors import StoreError
from pmxcfs.storage import schedule as schedule_module
from pmxcfs.storage.mark import Position
from pmxcfs.storage.saver import Saver
from tests.conftest import ExpectLog
from tests.fakes.doubles.saving import WAIT, World
from tests.fakes.doubles.store import Faults, faulty_connections

WRITTEN = "can't be written: .*; changes are kept in the journal"


@pytest.fixture
def faults() -> Iterator[Faults]:
    with faulty_connections() as faults:
        yield faults


@pytest.fixture
def running(tmp_path: Path, faults: Faults) -> Iterator[World]:
    world = World(tmp_path)
    world.saver = Saver(world.database, world.journal, world)  # by the real clock
    with contextlib.closing(world):
        world.saver.start()
        yield world


def test_the_thread_saves_when_it_is_told_to(running: World) -> None:
    running.change("a", is_configuration=False)
    running.saver.save_now(timeout=WAIT)
    running.check_is_saved()
    running.saver.save_now(timeout=WAIT)
    assert running.calls == ["take", "saved", "take"]


def test_the_thread_saves_when_it_is_time(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sleeps for an hour, until a change has an earlier time."""
    monkeypatch.setattr(schedule_module, "SAVE_AFTER", 3600)
    monkeypatch.setattr(schedule_module, "PAUSE", 0.01)
    running.change("lrm_status", is_configuration=False)
    running.saver.save_now(timeout=WAIT)
    running.change("lrm_status", is_configuration=False)
    running.was_saved.clear()
    running.change("a")
    assert running.was_saved.wait(WAIT)
    running.check_is_saved()


def test_a_failure_is_told_to_who_asked_for_the_save(
    running: World, faults: Faults, expect_log: ExpectLog
) -> None:
    expect_log(WRITTEN)
    faults.arm(sqlite3.SQLITE_FULL, matching="INSERT")
    running.change("a")
    with pytest.raises(StoreError, match="free some space"):
        running.saver.save_now(timeout=WAIT)
    running.saver.save_now(timeout=WAIT)  # at once, whatever failed before
    running.check_is_saved()


def test_nobody_waits_longer_than_wanted_for_a_save(running: World) -> None:
    running.may_be_saved.clear()
    running.change("a")
    with pytest.raises(StoreError, match=r"config.db could not be written within 0.01 s") as caught:
        running.saver.save_now(timeout=0.01)
    assert caught.value.errno == errno.EBUSY
    running.may_be_saved.set()
    running.saver.save_now(timeout=WAIT)
    running.check_is_saved()


def test_changes_wait_for_a_save_that_runs_if_too_much_waits(running: World) -> None:
    running.may_be_saved.clear()
    assert not running.saver.is_overdue
    running.change("a", size=9 << 20)
    assert running.is_being_saved.wait(WAIT)
    assert not running.saver.is_overdue
    running.change("b", size=9 << 20)
    assert running.saver.is_overdue
    running.saver.await_save(timeout=0.01)
    assert running.saver.is_overdue
    running.may_be_saved.set()
    running.saver.await_save(timeout=WAIT)
    assert not running.saver.is_overdue


def test_changes_wait_for_segments_that_become_history_if_too_much_is_on_the_disk(
    running: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database has them already, but they take as much of the disk until they are rewritten."""
    is_releasing, may_release, may_end = threading.Event(), threading.Event(), threading.Event()
    release = running.journal.release

    def wait_and_release(position: Position, progress: Callable[[Position], None]) -> None:
        is_releasing.set()
        assert may_release.wait(WAIT)
        progress(position)
        assert may_end.wait(WAIT)
        release(position, progress)

    monkeypatch.setattr(running.journal, "release", wait_and_release)
    running.change("a", size=9 << 20)
    assert is_releasing.wait(WAIT)
    running.append(9 << 20)
    assert running.saver.is_overdue
    assert running.saver.waiting_bytes < 10 << 20
    may_release.set()
    running.saver.await_save(timeout=WAIT)  # not to the end of the save
    assert not running.saver.is_overdue
    may_end.set()


def test_the_thread_outlives_a_bug(
    running: World, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    def fail(*, whole: bool, with_state: bool) -> None:
        raise RuntimeError("a bug")

    expect_log("the tree could not be saved, which is a bug")
    expect_log("a bug.*; changes are kept in the journal")
    with monkeypatch.context() as patch:
        patch.setattr(running, "take_batch", fail)
        running.change("a")
        with pytest.raises(StoreError, match="a bug"):
            running.saver.save_now(timeout=WAIT)
    running.saver.save_now(timeout=WAIT)
    running.check_is_saved()
