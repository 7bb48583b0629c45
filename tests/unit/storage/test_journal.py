"""The journal that is written: order, room, syncs, segments, and what waits for nothing."""

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pmxcfs.errors import StoreError
from pmxcfs.storage.journal import SEGMENT_LIMIT, SPARE, Journal, size_of
from pmxcfs.storage.mark import Position
from pmxcfs.storage.records import Gap, Record, Saved, encode
from pmxcfs.storage.segments import HEADER_SIZE, Verdict, name_of, read, scan
from tests.fakes.data.journals import LINEAGE, SAMPLES, SAVE_ID, WRITE, written
from tests.fakes.doubles.device import Device, device

FIRST = 10


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(home: Path) -> Iterator[Journal]:
    with contextlib.closing(started(home)) as journal:
        yield journal


@pytest.fixture
def below() -> Iterator[Device]:
    with device() as double:
        yield double


def started(home: Path, *, sequence: int = FIRST) -> Journal:
    return Journal.start(home, lineage=LINEAGE, sequence=sequence, version=3)


def append(journal: Journal, *records: Record) -> None:
    """Append as the daemon does: room first."""
    bodies = [encode(record) for record in records]
    if not journal.has_room(size_of(bodies)):
        journal.make_room(size_of(bodies), version=3)
    journal.append(bodies)


def records_in(home: Path) -> list[Record]:
    """Return all records; they must be numbered without a gap, and nothing must be damaged."""
    segments = [place.read() for place in scan(home).segments]
    assert all(segment.header for segment in segments)
    assert all(segment.verdict is Verdict.WHOLE for segment in segments)
    located = [located for segment in segments for located in segment.records]
    numbers = [record.sequence for record in located]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
    return [record.record for record in located]


def test_what_was_appended_is_read_in_order(home: Path, journal: Journal) -> None:
    for record in SAMPLES:
        append(journal, record)
    append(journal, *SAMPLES)
    assert records_in(home) == [*SAMPLES, *SAMPLES]  # also before the journal is closed
    (place,) = scan(home).segments
    assert place.header is not None
    assert (place.header.lineage, place.header.version) == (LINEAGE, 3)


def test_only_root_can_read_it(home: Path, journal: Journal) -> None:
    assert home.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in home.iterdir()] == [0o600]


def test_a_group_is_one_write(journal: Journal, below: Device) -> None:
    append(journal, *SAMPLES)
    assert [call for call, _ in below.seen] == ["write"]


def test_the_position_is_that_of_the_next_record(home: Path, journal: Journal) -> None:
    assert journal.position == (FIRST, HEADER_SIZE, FIRST)
    append(journal, WRITE, Gap(1))
    position = journal.position
    assert position == (FIRST, (home / name_of(FIRST)).stat().st_size, FIRST + 2)
    append(journal, WRITE)
    assert read(home / name_of(FIRST)).records[2][:2] == position[1:]


def test_a_start_never_appends_to_an_old_segment(home: Path) -> None:
    written(home, [WRITE], sequence=FIRST)
    old = (home / name_of(FIRST)).read_bytes()
    with contextlib.closing(started(home, sequence=FIRST + 1)) as journal:
        append(journal, Gap(1))
    assert (home / name_of(FIRST)).read_bytes() == old
    assert records_in(home) == [WRITE, Gap(1)]


def test_segments_without_records_do_not_pile_up(home: Path) -> None:
    for _ in range(3):
        started(home).close()
    assert [path.name for path in home.iterdir()] == [name_of(FIRST)]
    with contextlib.closing(started(home)) as journal:
        append(journal, WRITE)
    assert records_in(home) == [WRITE]


@pytest.mark.parametrize("content", [b"", bytes(100)], ids=["empty", "zeros"])
def test_what_a_power_cut_left_of_a_new_segment_is_replaced(home: Path, content: bytes) -> None:
    home.mkdir()
    (home / name_of(FIRST)).write_bytes(content)
    with contextlib.closing(started(home)) as journal:
        append(journal, WRITE)
    assert records_in(home) == [WRITE]


def test_records_in_the_way_are_never_replaced(home: Path) -> None:
    written(home, [WRITE], sequence=FIRST)
    content = (home / name_of(FIRST)).read_bytes()
    with contextlib.closing(started(home)) as journal:
        assert journal.failure is not None
        assert str(journal.failure) == (
            f"{home / name_of(FIRST)} is where the next record belongs, and nothing follows the "
            "last record: move it to another directory"
        )
        with pytest.raises(StoreError, match="move it to another directory"):
            journal.append([encode(WRITE)])
    assert (home / name_of(FIRST)).read_bytes() == content


# Room.


def test_room_is_reserved_ahead(home: Path, journal: Journal, below: Device) -> None:
    assert journal.has_room(0)
    assert not journal.has_room(3 * SPARE)
    journal.make_room(3 * SPARE, version=3)
    assert journal.has_room(3 * SPARE)
    assert (home / name_of(FIRST)).stat().st_blocks * 512 >= HEADER_SIZE + 4 * SPARE
    assert below.count("reserve") == 1
    journal.make_room(3 * SPARE, version=3)
    assert below.count("reserve") == 1


def test_appended_records_take_of_the_room(journal: Journal) -> None:
    journal.make_room(100_000, version=3)
    (room,) = [size for size in range(4 * SPARE) if not journal.has_room(size)][:1]
    bodies = [encode(WRITE), encode(Gap(1))]
    journal.append(bodies)
    assert journal.has_room(room - 1 - size_of(bodies))
    assert not journal.has_room(room - size_of(bodies))


@pytest.mark.parametrize("code", [95, 38], ids=["EOPNOTSUPP", "ENOSYS"])
def test_where_space_can_not_be_reserved_there_is_always_room(
    home: Path, below: Device, code: int
) -> None:
    below.failures["reserve"] = code
    with contextlib.closing(started(home)) as journal:
        assert journal.failure is None
        assert journal.has_room(1 << 50)
        append(journal, WRITE)
    assert records_in(home) == [WRITE]


def test_what_waits_for_nothing_does_not_wait_for_a_device_that_stands_still(
    journal: Journal, below: Device
) -> None:
    append(journal, WRITE)
    position, size = journal.position, journal.size_since(Position(FIRST, 0, FIRST))
    seen, calls = len(below.seen), below.count("write")
    below.runs.clear()
    thread = threading.Thread(target=append, args=(journal, WRITE))
    thread.start()
    assert below.stands_still.wait(10)
    assert journal.position == position
    assert journal.has_room(100)
    assert not journal.is_full()
    assert not journal.is_broken
    assert journal.failure is None
    assert journal.size_since(Position(FIRST, 0, FIRST)) == size
    below.runs.set()
    thread.join()
    assert below.count("write") == calls + 1
    assert len(below.seen) == seen + 1
    assert journal.position.sequence == position.sequence + 1


def test_appending_goes_on_during_a_sync(home: Path, journal: Journal, below: Device) -> None:
    append(journal, WRITE)
    below.runs.clear()
    thread = threading.Thread(target=journal.sync)
    thread.start()
    assert below.stands_still.wait(10)
    below.seen.clear()
    os_pwrite_runs = threading.Thread(target=append, args=(journal, Gap(1)))
    os_pwrite_runs.start()  # it reaches the device, so it does not wait for the sync
    while not below.count("write"):
        assert os_pwrite_runs.is_alive()
    below.runs.set()
    thread.join()
    os_pwrite_runs.join()
    assert records_in(home) == [WRITE, Gap(1)]


def test_threads_append_groups_that_stay_together(home: Path, journal: Journal) -> None:
    versions = itertools.count()
    guard = threading.Lock()

    def work() -> None:
        for _ in range(50):
            with guard:
                version = next(versions)
            append(journal, *[Gap(version)] * 3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = records_in(home)
    groups = [records[start : start + 3] for start in range(0, len(records), 3)]
    assert all(first == second == third for first, second, third in groups)
    assert sorted(records) == sorted([Gap(version) for version in range(200)] * 3)


def test_appends_syncs_and_releases_run_together(home: Path, journal: Journal) -> None:
    done = threading.Event()
    released: list[int] = []

    def write() -> None:
        for version in range(300):
            append(journal, Gap(version), WRITE)
            if version % 10 == 0:
                journal.begin_segment(version=version, sync=version % 20 == 0)
        done.set()

    def sync() -> None:
        while not done.is_set():
            position = journal.position
            journal.sync()
            journal.release(position)
            released.append(position.segment)

    threads = [threading.Thread(target=write), *[threading.Thread(target=sync) for _ in range(2)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not journal.is_broken
    journal.sync()
    records = records_in(home)
    assert len(records) <= 600
    assert records == [Gap(299 - n // 2) if n % 2 else WRITE for n in range(len(records))][::-1]
    assert min(place.first for place in scan(home).segments) == max(released)


# Segments.


def test_a_segment_is_full_at_its_limit(journal: Journal) -> None:
    large = WRITE._replace(message=bytes(1 << 20))
    for _ in range(3):
        append(journal, large)
        assert not journal.is_full()
    append(journal, large)
    assert journal.is_full()
    journal.begin_segment(version=4)
    assert not journal.is_full()
    assert journal.size_since(Position(FIRST, HEADER_SIZE, FIRST)) > SEGMENT_LIMIT


def test_the_end_of_a_segment_gives_back_its_space(home: Path, journal: Journal) -> None:
    append(journal, WRITE)
    first = home / name_of(FIRST)
    assert first.stat().st_blocks * 512 >= SPARE
    journal.begin_segment(version=4)
    assert first.stat().st_blocks * 512 <= 8192
    append(journal, Gap(1))
    assert [place.header and place.header.version for place in scan(home).segments] == [3, 4]
    assert records_in(home) == [WRITE, Gap(1)]


def test_a_segment_without_records_is_replaced_by_the_next(home: Path, journal: Journal) -> None:
    journal.begin_segment(version=9)
    assert journal.position == (FIRST, HEADER_SIZE, FIRST)
    append(journal, WRITE)
    (place,) = scan(home).segments
    assert place.header is not None
    assert place.header.version == 9
    assert records_in(home) == [WRITE]
    assert journal.size_since(Position(FIRST, HEADER_SIZE, FIRST)) == size_of([encode(WRITE)])


def test_the_size_since_a_position_counts_segments_of_earlier_runs(home: Path) -> None:
    written(home, [WRITE], [WRITE, WRITE], sequence=1)
    size = size_of([encode(WRITE)])
    with contextlib.closing(started(home, sequence=4)) as journal:
        append(journal, WRITE)
        all_bytes = 4 * size + 3 * HEADER_SIZE
        assert journal.size_since(Position(1, HEADER_SIZE, 1)) == all_bytes - HEADER_SIZE
        assert journal.size_since(Position(1, HEADER_SIZE + size, 2)) == 3 * size + 2 * HEADER_SIZE
        assert journal.size_since(Position(2, HEADER_SIZE + size, 3)) == 2 * size + HEADER_SIZE
        assert journal.size_since(journal.position) == 0
        assert journal.size_since(Position(77, HEADER_SIZE, 77)) == all_bytes
        assert sum(path.stat().st_size for path in home.iterdir()) == all_bytes


def test_segments_before_the_position_are_dropped(home: Path, journal: Journal) -> None:
    positions = []
    for version in range(4):
        append(journal, Gap(version))
        positions.append(journal.position)
        journal.begin_segment(version=version)
    journal.release(positions[2])
    assert records_in(home) == [Gap(2), Gap(3)]
    assert journal.size_since(positions[2]) == 2 * HEADER_SIZE + size_of([encode(Gap(3))])
    journal.release(positions[2])
    append(journal, WRITE)
    assert records_in(home) == [Gap(2), Gap(3), WRITE]


def test_a_segment_that_is_gone_already_is_no_error(home: Path, journal: Journal) -> None:
    append(journal, WRITE)
    journal.begin_segment(version=4)
    (home / name_of(FIRST)).unlink()
    journal.release(journal.position)
    assert [place.first for place in scan(home).segments] == [FIRST + 1]


# Syncs.


def test_a_sync_has_every_segment_on_the_device_oldest_first(
    home: Path, journal: Journal, below: Device
) -> None:
    journal.sync()
    below.seen.clear()
    for version in range(3):
        append(journal, Gap(version))
        journal.begin_segment(version=version, sync=False)
    append(journal, WRITE)
    below.seen.clear()
    journal.sync()
    names = [name_of(FIRST + number) for number in range(4)]
    assert below.seen == [*(("sync", name) for name in names), ("sync directory", "journal")]
    below.seen.clear()
    journal.sync()
    assert below.seen == []
    append(journal, WRITE)
    journal.sync()
    assert below.seen[1:] == [("sync", names[-1])]


def test_the_end_of_a_segment_is_synced(home: Path, journal: Journal, below: Device) -> None:
    append(journal, WRITE)
    journal.begin_segment(version=4)
    assert below.names("cut") == [name_of(FIRST)]
    assert below.names("sync") == [name_of(FIRST), name_of(FIRST + 1)]
    assert below.names("sync directory") == ["journal"]


# The end.


def test_a_close_has_all_on_the_device(home: Path, below: Device) -> None:
    journal = started(home)
    append(journal, WRITE)
    below.seen.clear()
    journal.close()
    assert [call for call, _ in below.seen] == ["cut", "sync", "sync directory"]
    assert (home / name_of(FIRST)).stat().st_blocks * 512 <= 8192
    journal.close()
    assert not journal.has_room(0)


def test_a_closed_journal_can_not_be_used(home: Path) -> None:
    journal = started(home)
    journal.close()
    for use in (
        partial(journal.append, [encode(WRITE)]),
        partial(journal.make_room, 1, version=1),
        partial(journal.begin_segment, version=1),
        partial(journal.release, journal.position),
        journal.sync,
    ):
        with pytest.raises(StoreError, match="is closed, as the daemon ends"):
            use()


def test_no_descriptor_stays_open(home: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with contextlib.closing(started(home)) as journal:
        for version in range(3):
            append(journal, Gap(version))
            journal.begin_segment(version=version, sync=version == 1)
    assert set(os.listdir("/proc/self/fd")) == before


def test_records_of_a_save_have_room_beyond_what_was_asked_for(
    home: Path, journal: Journal, below: Device
) -> None:
    body = encode(WRITE)
    left = next(size for size in range(4 * SPARE) if not journal.has_room(size))
    journal.append([body + bytes(left - size_of([body]))])
    assert not journal.has_room(0)
    journal.append([encode(Saved(SAVE_ID))])
    status = (home / name_of(FIRST)).stat()
    assert status.st_blocks * 512 >= status.st_size + SPARE - 2 * 4096
    assert below.count("reserve") == 0
    assert records_in(home)[-1] == Saved(SAVE_ID)
