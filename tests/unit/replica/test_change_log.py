"""The change log: records on their way into the journal, failures, and records that are missing."""

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pmxcfs.errors import StoreError
from pmxcfs.replica.change_log import AHEAD, MAX_OWED, MAX_STALLED, ChangeLog
from pmxcfs.storage import journal as journal_module
from pmxcfs.storage._journal import MAX_BODY
from pmxcfs.storage.journal import SEGMENT_LIMIT, Journal
from pmxcfs.storage.records import Gap, Record, encode
from pmxcfs.storage.segments import scan
from tests.conftest import ExpectLog
from tests.fakes.data.journals import LINEAGE, WRITE
from tests.fakes.doubles.device import Device, device
from tests.fakes.doubles.memory import in_memory

FULL = r"can't be written.*; nothing is changed"
WAIT = 30.0  # seconds until a wait fails the test


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


class World:
    """A change log on a real journal; a save of the tree succeeds if the test lets it."""

    def __init__(self, directory: Path, *, is_staging: bool = False) -> None:
        self.directory = directory
        self.journal = Journal.start(
            directory, lineage=LINEAGE, sequence=1, version=1, is_staging=is_staging
        )
        self.now = 100.0
        self.pauses: list[float] = []
        self.saves = 0
        self.save_error: StoreError | None = None
        self.log = ChangeLog(
            self.journal,
            save=self.save,
            consequence="nothing is changed",
            has_gap=False,
            is_kept=True,
            monotonic=lambda: self.now,
            pause=self._pause,
        )
        self.log.await_ready(0, version=1)

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def save(self) -> None:
        """Do what the saver does: take the tree, begin a segment, and note the outcome."""
        self.saves += 1
        if self.save_error is not None:
            raise self.save_error
        with self.log.paused() as is_paused:
            assert is_paused
            if not self.log.begin_bridge():
                return
        self.journal.begin_segment(version=9)
        self.journal.append([encode(Gap(9))])
        self.log.end_bridge(is_saved=True)

    def add(self, *versions: int, size: int = 0) -> None:
        """Add a record of each of *versions*."""
        message = WRITE.message + bytes(size)
        self.log.add([encode(WRITE._replace(version=v, message=message)) for v in versions])

    def add_heartbeat(self, version: int) -> None:
        """Add a record that may be staged."""
        self.log.add_heartbeats([encode(WRITE._replace(version=version))])

    @property
    def is_staged(self) -> bool:
        """Whether the last record is in memory only."""
        size = max(self.directory.glob("*.log")).stat().st_size
        return size < self.journal.position.offset

    def records(self) -> list[Record]:
        places = scan(self.directory).segments
        return [found.record for place in places for found in place.read().records]

    def versions(self) -> list[int]:
        """Return the versions in the journal; of a GAP as a negative number."""
        return [
            -r.version if isinstance(r, Gap) else getattr(r, "version", 0) for r in self.records()
        ]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "journal")
    yield made
    with contextlib.suppress(StoreError):
        made.journal.close()


@pytest.fixture
def below(world: World) -> Iterator[Device]:
    with device() as below:
        yield below


def test_all_that_waits_is_one_write_in_order(world: World, below: Device) -> None:
    world.add(2, 3)
    world.add(4)
    assert world.log.is_waiting()
    world.log.write()
    assert not world.log.is_waiting()
    assert (world.versions(), below.count("write")) == ([2, 3, 4], 1)
    world.log.write()
    assert below.count("write") == 1


def test_it_is_ready_only_for_what_there_is_room_for(world: World) -> None:
    assert world.log.is_ready(0)
    assert not world.log.is_ready(100 << 20)
    world.log.await_ready(3 << 20, version=1)
    assert world.log.is_ready(3 << 20)
    world.add(2, size=1 << 20)
    assert not world.log.is_ready(3 << 20)  # what waits counts


def test_discarded_records_are_never_written(world: World) -> None:
    world.add(2, 3)
    segment = world.log.segment
    world.log.discard()
    world.add(2)
    world.log.write()
    assert world.versions() == [2]
    assert world.log.segment != segment  # rows before changes are recorded again


def test_a_full_segment_is_followed_by_a_new_one(world: World) -> None:
    world.add(*range(2, 8), size=SEGMENT_LIMIT // 6)
    world.log.write()
    assert not world.log.is_ready(0)
    segment = world.log.segment
    world.log.begin_segment_if_full(7)
    world.log.begin_segment_if_full(7)
    assert world.log.segment == segment + 1
    world.add(8)
    world.log.write()
    places = scan(world.directory).segments
    assert [place.header and place.header.version for place in places] == [1, 7]
    assert world.versions() == [*range(2, 9)]


def test_the_next_segment_begins_ahead_of_a_change_if_the_current_one_is_full(world: World) -> None:
    world.add(*range(2, 8), size=SEGMENT_LIMIT // 6)
    world.log.write()
    segment = world.log.segment
    world.log.prepare(7)
    assert world.log.segment == segment + 1  # before it begins: no row may be missing in it
    world.log.await_ready(10, version=7)
    assert world.log.is_ready(10)
    headers = [place.header for place in scan(world.directory).segments]
    assert [header and header.version for header in headers] == [1, 7]


def test_without_preparation_no_segment_begins(world: World) -> None:
    """Its rows before changes would be recorded for the one before it."""
    world.add(*range(2, 8), size=SEGMENT_LIMIT // 6)
    world.log.write()
    world.log.await_ready(10, version=7)
    assert not world.log.is_ready(10)
    assert len(scan(world.directory).segments) == 1


# Failures


def test_records_that_could_not_be_written_wait_on(
    world: World, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    below.failures["reserve"] = errno.ENOSPC
    world.add(*range(2, 8), size=1 << 20)
    with pytest.raises(StoreError):
        world.log.write()
    assert world.log.failure is not None
    assert not world.log.is_writable
    assert not world.log.is_ready(0)
    world.add(8)
    below.failures.clear()
    world.log.await_ready(0, version=8)
    assert world.versions() == [*range(2, 9)]
    assert world.log.is_writable
    assert world.saves == 0


def test_after_a_failed_write_the_tree_is_saved_before_anything_follows(
    world: World, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    world.add(2)
    world.log.write()
    below.failures["write"] = errno.EIO
    world.add(3)
    with pytest.raises(StoreError):
        world.log.write()
    world.log.discard()
    below.failures.clear()
    world.save_error = StoreError("the database can't be written", errno.EIO)
    with pytest.raises(StoreError, match="the database"):
        world.log.await_ready(0, version=2)
    world.save_error = None
    world.log.await_ready(0, version=2)
    world.add(10)
    world.log.write()
    assert world.versions() == [2, -9, 10]


def test_attempts_are_at_least_half_a_second_apart(
    world: World, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    below.failures["write"] = errno.EIO
    world.add(2)
    world.save_error = StoreError("the database can't be written", errno.EIO)
    for _ in range(3):
        with pytest.raises(StoreError):
            world.log.write() if world.log.failure is None else world.log.await_ready(0, version=1)
    assert world.saves == 2
    assert world.pauses == [pytest.approx(0.5)]
    world.now += 3
    with pytest.raises(StoreError):
        world.log.await_ready(0, version=1)
    assert len(world.pauses) == 1


def test_who_comes_during_an_attempt_gets_its_result(world: World, expect_log: ExpectLog) -> None:
    expect_log("the database can't be written")
    has_begun, may_fail = threading.Event(), threading.Event()

    def pause(seconds: float) -> None:
        has_begun.set()
        assert may_fail.wait(WAIT)

    world.save_error = StoreError("the database can't be written", errno.EIO)
    waiting = ChangeLog(
        world.journal, save=world.save, consequence="", has_gap=True, is_kept=True, pause=pause
    )
    with ThreadPoolExecutor() as pool:
        with pytest.raises(StoreError):
            waiting.await_ready(0, version=1)
        first = pool.submit(waiting.await_ready, 0, version=1)
        assert has_begun.wait(WAIT)
        before = world.saves
        others = [pool.submit(waiting.await_ready, 0, version=1) for _ in range(3)]
        may_fail.set()
        for future in (first, *others):
            with pytest.raises(StoreError):
                future.result(WAIT)
        assert 1 <= world.saves - before <= 4
    assert waiting.failure is not None


def test_a_failed_sync_succeeds_if_the_tree_is_saved(
    world: World, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL.replace("written", "synced"))
    world.add(2)
    world.log.write()
    below.failures["sync"] = errno.EIO

    def save() -> None:
        below.failures.clear()
        world.save()

    log = ChangeLog(
        world.journal, save=save, consequence="nothing is changed", has_gap=False, is_kept=True
    )
    world.log = log
    log.sync(version=2)
    assert world.saves == 1
    assert log.is_writable


# Missing records


def test_too_much_owed_is_forgotten_until_the_tree_is_saved(
    world: World, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    below.failures["reserve"] = errno.ENOSPC
    world.add(*range(2, 8), size=1 << 20)
    with pytest.raises(StoreError):
        world.log.write()
    world.add(*range(8, 8 + (MAX_OWED >> 20)), size=1 << 20)
    assert world.log.has_gap
    assert not world.log.is_waiting()
    below.failures.clear()
    world.add(99)  # leads nowhere, as those before it are gone
    world.log.await_ready(0, version=20)
    world.add(21)
    world.log.write()
    assert world.versions() == [-9, 21]
    assert world.log.is_ready(0)


def test_more_may_wait_for_a_device_that_stands_still(world: World) -> None:
    count = MAX_STALLED >> 20
    world.add(*range(2, count), size=1 << 20)
    assert not world.log.has_gap
    world.add(*range(count, count + 4), size=1 << 20)
    assert world.log.has_gap


def test_a_record_lost_during_a_save_needs_another_save(world: World) -> None:
    world.log.lose()
    with world.log.paused():
        assert world.log.begin_bridge()
    world.log.lose()
    world.log.end_bridge(is_saved=True)
    assert world.log.has_gap
    with world.log.paused():
        assert world.log.begin_bridge()
    world.log.end_bridge(is_saved=False)
    assert world.log.has_gap
    with world.log.paused():
        assert world.log.begin_bridge()
    world.log.end_bridge(is_saved=True)
    assert not world.log.has_gap


def test_nothing_is_written_while_a_record_is_missing(world: World) -> None:
    world.add(2)
    world.log.lose()
    with pytest.raises(StoreError, match="before the whole tree has been saved"):
        world.log.write()
    assert world.versions() == []


def test_writing_is_not_paused_while_a_thread_writes(world: World, below: Device) -> None:
    world.add(2)
    below.runs.clear()
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(world.log.write)
        assert below.stands_still.wait(WAIT)
        assert not world.log.is_waiting()  # although the record is not in the journal yet
        with world.log.paused() as is_paused:
            assert not is_paused
        waiting = pool.submit(world.log.await_writer)
        assert not waiting.done()
        below.runs.set()
        writing.result(WAIT)
        waiting.result(WAIT)
    with world.log.paused() as is_paused:
        assert is_paused


def test_a_sync_needs_the_tree_saved_while_records_are_missing(
    world: World, expect_log: ExpectLog
) -> None:
    """After a failure the journal can have a new segment, and the database still lacks the rest."""
    expect_log("the disk is full; nothing is changed")
    world.log.lose()
    world.save_error = StoreError("the disk is full", errno.ENOSPC)
    with pytest.raises(StoreError):
        world.log.sync(version=2)
    world.save_error = None
    world.log.sync(version=2)
    assert world.saves == 2
    assert world.log.is_writable


def test_a_record_that_can_not_be_written_at_all_is_replaced_by_a_save_of_the_tree(
    world: World,
) -> None:
    world.add(2)
    world.log.add([bytes(MAX_BODY + 1)])
    with pytest.raises(ValueError, match="a record has 1 to"):
        world.log.write()
    assert world.log.has_gap
    world.log.await_ready(0, version=3)
    world.add(4)
    world.log.write()
    assert world.versions() == [-9, 4]


# Staging


def test_heartbeats_alone_are_staged(tmp_path: Path) -> None:
    with staging_world(tmp_path) as world:
        world.add_heartbeat(2)
        world.add_heartbeat(3)
        world.log.write()
        assert world.is_staged
        assert world.versions() == [2, 3]


@pytest.mark.parametrize("order", ["before", "behind"])
def test_heartbeats_with_other_records_are_not(tmp_path: Path, order: str) -> None:
    with staging_world(tmp_path) as world:
        world.add(*[2] * (order == "behind"))
        world.add_heartbeat(3)
        world.add(*[4] * (order == "before"))
        world.log.write()
        assert not world.is_staged
        world.add_heartbeat(5)
        world.log.write()
        assert world.is_staged
        assert world.versions() == ([2, 3, 5] if order == "behind" else [3, 4, 5])


def test_after_records_were_forgotten_heartbeats_are_staged_again(tmp_path: Path) -> None:
    with staging_world(tmp_path) as world:
        world.add(2, size=1000)
        world.log.discard()
        for version in range(3, 20):
            world.add_heartbeat(version)
            world.log.write()
        assert world.is_staged
        assert world.versions() == [*range(3, 20)]


def test_what_is_staged_is_written_when_it_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with staging_world(tmp_path) as world:
        world.add_heartbeat(2)
        world.log.write()
        world.log.sync_if_due()
        assert world.is_staged
        world.journal.sync()
        monkeypatch.setattr(journal_module, "FLUSH_AFTER", 0.0)
        world.add_heartbeat(3)
        world.log.write()
        world.log.sync_if_due()
        assert not world.is_staged
        assert world.versions() == [2, 3]


def test_if_that_fails_the_tree_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    monkeypatch.setattr(journal_module, "FLUSH_AFTER", 0.0)
    with staging_world(tmp_path) as world:
        world.add_heartbeat(2)
        world.log.write()
        with device() as below:
            below.failures["write"] = errno.EIO
            world.log.sync_if_due()
        assert not world.log.is_writable
        assert world.versions() == [2]
        world.log.await_ready(0, version=2)
        assert (world.saves, world.versions()) == (1, [2, -9])
        assert world.log.is_writable


@contextlib.contextmanager
def staging_world(directory: Path) -> Iterator[World]:
    """Make a change log whose journal stages records, until the block ends."""
    with in_memory(directory / "memory"):
        world = World(directory / "journal", is_staging=True)
        with contextlib.closing(world.journal):
            yield world


# Room


def test_a_lack_of_room_is_over_when_there_is_as_much_as_was_refused(
    world: World, below: Device, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Changes that need less go on meanwhile."""
    caplog.set_level(logging.INFO, logger="pmxcfs.database")
    expect_log(FULL)
    below.failures["reserve"] = errno.ENOSPC
    with pytest.raises(StoreError, match="No space left"):
        world.log.await_ready(3 << 20, version=1)
    for version in range(2, 5):
        assert world.log.is_ready(1000)
        world.add(version)
        world.log.write()
        world.log.await_ready(0, version=version)  # as the thread that tries again does
    assert not world.log.is_writable
    assert not world.log.is_ready(3 << 20)
    below.failures.clear()
    world.log.await_ready(0, version=4)
    assert world.log.is_writable
    assert world.log.is_ready(3 << 20)
    assert world.versions() == [2, 3, 4]
    lines = [record.message for record in caplog.records]
    assert [line.rpartition("; ")[2] for line in lines] == [
        "nothing is changed",
        "changes can be stored again",
    ]


def test_room_is_made_before_a_change_needs_it(world: World) -> None:
    world.add(2, size=900_000)
    world.log.write()
    wait_for(lambda: world.journal.has_room(AHEAD))
    assert world.log.is_writable


def test_without_room_ahead_nothing_has_failed(world: World, below: Device) -> None:
    below.failures["reserve"] = errno.ENOSPC
    world.add(2, size=900_000)
    world.log.write()
    wait_for(lambda: below.count("reserve") > 0)
    world.log.await_ready(0, version=2)  # after that attempt
    assert world.log.is_writable
    assert world.journal.failure is None


def test_the_end_of_the_daemon_is_no_failure(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.journal.close()
    with pytest.raises(StoreError, match="as the daemon ends"):
        world.log.await_ready(1 << 20, version=2)
    assert world.log.failure is None
    assert not caplog.records
