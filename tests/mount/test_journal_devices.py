"""The journal on real file systems: one that is full, one whose device fails, one read-only."""

import contextlib
import errno
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.errors import StoreError
from pmxcfs.messages import Write
from pmxcfs.storage.history import History
from pmxcfs.storage.journal import ATTEMPT_INTERVAL, SPARE, Journal, size_of
from pmxcfs.storage.records import Gap, Record, encode
from pmxcfs.storage.segments import Verdict, name_of, scan
from tests.fakes.data.journals import LINEAGE, SAMPLES, WRITE, change
from tests.fakes.doubles.device import device
from tests.mount.devices import Ext4, ext4, filled, needs_loop, tmpfs

pytestmark = pytest.mark.needs_fuse

FIRST = 10
GROUP = [encode(record) for record in SAMPLES]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Ext4]:
    with ext4(tmp_path / "state") as device:
        yield device


@pytest.fixture(params=["tmpfs", pytest.param("ext4", marks=needs_loop)])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    path = tmp_path / "state"
    with ext4(path) if request.param == "ext4" else tmpfs(path, size=8 << 20):
        yield path


def started(state: Path, *, sequence: int = FIRST) -> Journal:
    return Journal.start(state / "journal", lineage=LINEAGE, sequence=sequence, version=3)


def records_in(state: Path) -> list[Record]:
    segments = [place.read() for place in scan(state / "journal").segments]
    assert all(segment.verdict is Verdict.WHOLE for segment in segments)
    return [located.record for segment in segments for located in segment.records]


def append_to_the_end(journal: Journal) -> int:
    """Append while there is room; return the number of groups."""
    groups = 0
    while journal.has_room(size_of(GROUP)):
        journal.append(GROUP)
        groups += 1
    return groups


def test_a_full_file_system_takes_what_was_reserved_and_then_refuses(state: Path) -> None:
    with contextlib.closing(started(state)) as journal:
        with filled(state):
            groups = append_to_the_end(journal)
            with pytest.raises(StoreError) as caught:
                journal.make_room(SPARE, version=3)
            assert caught.value.errno == errno.ENOSPC
            assert str(caught.value) == (
                f"{state / 'journal'} can't be written: No space left on device: free some space"
            )
            assert not journal.is_broken
            journal.append(GROUP)  # as a save does, into the spare space
            journal.sync()
        journal.make_room(SPARE, version=3)
        assert journal.failure is None
        journal.append(GROUP)
    assert records_in(state) == [*SAMPLES] * (groups + 2)


def test_a_full_file_system_is_asked_twice_a_second(state: Path) -> None:
    def ask(journal: Journal) -> None:
        for _ in range(2):
            with pytest.raises(StoreError):
                journal.make_room(2 * SPARE, version=3)

    with contextlib.closing(started(state)) as journal, filled(state), device() as below:
        start = time.monotonic()
        threads = [threading.Thread(target=ask, args=(journal,)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent = time.monotonic() - start
    attempts = below.count("reserve") / 2  # each asks for less, as there is not enough
    assert 2 <= attempts <= 1 + spent / ATTEMPT_INTERVAL


def test_on_a_full_file_system_history_gives_way(state: Path) -> None:
    generator = random.Random(6)
    history = History(state / "journal", private_now=lambda _: ())
    journal = Journal.start(
        state / "journal", lineage=LINEAGE, sequence=FIRST, version=3, history=history
    )
    with contextlib.closing(journal):
        for version in range(4):
            bodies = [encode(change(version, Write("a", 0, generator.randbytes(400_000), True)))]
            journal.make_room(size_of(bodies), version=version)
            journal.append(bodies)
            journal.begin_segment(version=version)
        journal.release(journal.position)
        kept = history.size
        assert kept > 1_000_000
        with filled(state):
            append_to_the_end(journal)
            journal.make_room(SPARE // 2, version=3)
            assert journal.failure is None
            assert 0 < history.size < kept
            with pytest.raises(StoreError) as caught:
                journal.make_room(4 * SPARE, version=3)
            assert caught.value.errno == errno.ENOSPC
            assert history.size == 0
            journal.append(GROUP)
    (left,) = scan(state / "journal").segments
    assert left.path.name == name_of(FIRST + 4)


def test_a_start_on_a_full_file_system_serves_later(state: Path) -> None:
    with filled(state):
        journal = started(state)
        assert journal.failure is not None
        assert journal.failure.errno == errno.ENOSPC
        assert [path.name for path in (state / "journal").glob("*")] == []
    with contextlib.closing(journal):
        journal.make_room(size_of(GROUP), version=3)
        journal.append(GROUP)
    assert records_in(state) == [*SAMPLES]


@needs_loop
def test_a_start_on_a_read_only_file_system_serves_later(tmp_path: Path, disk: Ext4) -> None:
    state = tmp_path / "state"
    disk.mount_read_only()
    with contextlib.closing(started(state)) as journal:
        assert journal.failure is not None
        assert journal.failure.errno == errno.EROFS
        with pytest.raises(StoreError):
            journal.append(GROUP)
        disk.unmount()
        disk.mount()
        journal.make_room(size_of(GROUP), version=3)
        journal.append(GROUP)
    assert records_in(state) == [*SAMPLES]


@needs_loop
def test_a_failing_device_breaks_the_journal_until_it_is_replaced(
    tmp_path: Path, disk: Ext4
) -> None:
    state = tmp_path / "state"
    with contextlib.closing(started(state)) as journal:
        journal.append(GROUP)
        journal.sync()
        disk.fail()
        with pytest.raises(StoreError) as writing:
            journal.append(GROUP)
        assert writing.value.errno == errno.EIO
        with pytest.raises(StoreError, match="can't be written: Input/output error"):
            journal.sync()
        with pytest.raises(StoreError):
            journal.begin_segment(version=4)
        assert journal.is_broken
    disk.replace()
    assert records_in(state) == [*SAMPLES]


@needs_loop
def test_a_sync_on_a_failing_device_is_an_error(tmp_path: Path, disk: Ext4) -> None:
    with contextlib.closing(started(tmp_path / "state")) as journal:
        journal.append(GROUP)
        disk.fail()
        with pytest.raises(StoreError) as caught:
            journal.sync()
        assert caught.value.errno == errno.EIO
        assert journal.is_broken


@needs_loop
def test_after_a_power_cut_all_that_was_synced_is_there(tmp_path: Path, disk: Ext4) -> None:
    state = tmp_path / "state"
    journal = started(state)
    for version in range(5):
        journal.append([encode(Gap(version))])
        if version < 4:
            journal.begin_segment(version=version, sync=version % 2 == 0)
        journal.make_room(size_of(GROUP), version=version)
    journal.sync()
    journal.append(GROUP)  # not synced
    disk.fail()
    with pytest.raises(StoreError, match="can't be synced"):
        journal.close()
    disk.replace()
    found = scan(state / "journal")
    segments = [place.read() for place in found.segments]
    located = [record for segment in segments for record in segment.records]
    assert [record.record for record in located][:5] == [Gap(version) for version in range(5)]
    assert [record.sequence for record in located] == [
        FIRST + number for number in range(len(located))
    ]
    assert segments[-1].path.name == name_of(FIRST + 4)
    with contextlib.closing(started(state, sequence=found.next_sequence())) as journal:
        journal.append([encode(WRITE)])
    assert scan(state / "journal").segments[-1].read().records[0].record == WRITE
