"""Failed writes, syncs and reservations of the journal: what counts, and how it works again."""

import contextlib
import errno
import os
import resource
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pmxcfs.errors import StoreError
from pmxcfs.storage import segment_file
from pmxcfs.storage._journal import reserve
from pmxcfs.storage.journal import ATTEMPT_INTERVAL, SEGMENT_LIMIT, SPARE, Journal, size_of
from pmxcfs.storage.records import Gap, Record, encode
from pmxcfs.storage.segments import HEADER_SIZE, Verdict, name_of, read, scan
from tests.fakes.data.journals import LINEAGE, SAMPLES, WRITE
from tests.fakes.doubles.device import Device, device

FIRST = 10
GROUP = [encode(record) for record in SAMPLES]


@pytest.fixture
def below() -> Iterator[Device]:
    with device() as double:
        yield double


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(home: Path, below: Device) -> Iterator[Journal]:
    """A journal with one record."""
    with contextlib.closing(started(home)) as journal:
        journal.append([encode(WRITE)])
        yield journal


def started(home: Path) -> Journal:
    return Journal.start(home, lineage=LINEAGE, sequence=FIRST, version=3)


def records_in(home: Path) -> list[Record]:
    segments = [place.read() for place in scan(home).segments]
    assert all(segment.verdict is Verdict.WHOLE for segment in segments)
    return [located.record for segment in segments for located in segment.records]


def fails(journal: Journal, bodies: list[bytes] = GROUP) -> StoreError:
    with pytest.raises(StoreError) as caught:
        journal.append(bodies)
    return caught.value


# Writes.


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_of_a_failed_write_nothing_counts(
    home: Path, journal: Journal, below: Device, code: int
) -> None:
    position = journal.position
    below.failures["write"] = code
    error = fails(journal)
    assert error.errno == code
    assert str(error).startswith(f"{home / name_of(FIRST)} can't be written: {os.strerror(code)}")
    assert journal.is_broken
    assert str(journal.failure) == str(error)
    assert journal.position == position
    assert records_in(home) == [WRITE]


@pytest.mark.parametrize("size", [1, 15, 16, 100, 600])
def test_what_a_failed_write_left_is_cut_off(
    home: Path, journal: Journal, below: Device, size: int
) -> None:
    end = journal.position.offset
    below.longest = size
    assert fails(journal).errno == errno.ENOSPC
    assert (home / name_of(FIRST)).stat().st_size == end
    assert records_in(home) == [WRITE]


def test_a_write_that_ends_early_is_continued(home: Path, journal: Journal) -> None:
    real, sizes = os.pwrite, []

    def short(descriptor: int, data: bytes, offset: int) -> int:
        sizes.append(len(data))
        return real(descriptor, data[:100], offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", short)
        journal.append(GROUP)
    assert len(sizes) > 3
    assert records_in(home) == [WRITE, *SAMPLES]
    assert not journal.is_broken


def test_a_broken_journal_takes_nothing_until_a_new_segment(
    home: Path, journal: Journal, below: Device
) -> None:
    below.failures["write"] = errno.EIO
    error = fails(journal)
    below.failures.clear()
    below.seen.clear()
    for use in (
        partial(journal.append, GROUP),
        partial(journal.make_room, 1, version=3),
        journal.sync,
    ):
        with pytest.raises(StoreError) as caught:
            use()
        assert str(caught.value) == str(error)
        assert not journal.has_room(0)
    assert below.seen == []
    journal.begin_segment(version=4)
    assert not journal.is_broken
    assert journal.failure is None
    journal.make_room(1, version=4)
    journal.append(GROUP)
    assert journal.position.sequence == FIRST + 1 + len(GROUP)
    assert records_in(home) == [WRITE, *SAMPLES]


def test_the_first_record_of_a_segment_can_fail(home: Path, below: Device) -> None:
    with contextlib.closing(started(home)) as journal:
        below.failures["write"] = errno.EIO
        fails(journal)
        below.failures.clear()
        journal.begin_segment(version=4)
        journal.make_room(1, version=4)
        journal.append(GROUP)
    assert records_in(home) == [*SAMPLES]
    assert [place.header and place.header.version for place in scan(home).segments] == [4]


def test_records_that_can_not_be_cut_off_are_told_by_their_numbers(
    home: Path, journal: Journal, below: Device
) -> None:
    """A device that fails in full: what follows has the numbers of what does not count."""
    below.longest = len(GROUP[0]) + 16  # a whole record
    below.failures["cut"] = errno.EIO
    fails(journal)
    below.longest = 1 << 40
    journal.begin_segment(version=4)
    journal.append([encode(Gap(5))])
    first, second = [place.read() for place in scan(home).segments]
    assert [located.sequence for located in first.records] == [FIRST, FIRST + 1]
    assert second.header is not None
    assert second.header.first == FIRST + 1


def test_a_new_segment_that_can_not_be_made_leaves_the_old_one(
    home: Path, journal: Journal, below: Device
) -> None:
    below.failures["reserve"] = errno.ENOSPC
    with pytest.raises(StoreError) as caught:
        journal.begin_segment(version=4)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in home.iterdir()] == [name_of(FIRST)]
    assert not journal.is_broken
    journal.append(GROUP)
    assert records_in(home) == [WRITE, *SAMPLES]


def test_a_full_segment_takes_more_while_no_other_can_be_made(
    journal: Journal, below: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    large = encode(WRITE._replace(message=bytes(SEGMENT_LIMIT)))
    journal.make_room(size_of([large]) + SPARE, version=3)
    journal.append([large])
    assert journal.is_full()
    below.failures["reserve"] = errno.ENOSPC
    with pytest.raises(StoreError):
        journal.begin_segment(version=4)
    assert not journal.is_full()
    assert journal.has_room(size_of(GROUP))
    journal.append(GROUP)
    now[0] += ATTEMPT_INTERVAL
    assert journal.is_full()
    below.failures.clear()
    journal.begin_segment(version=4)
    assert journal.failure is None


def test_a_file_that_may_not_grow_is_an_error_of_the_change(home: Path) -> None:
    """A real limit of the process. It does not concern the space that is reserved."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = [encode(WRITE._replace(message=bytes(4 * SPARE)))]
    with contextlib.closing(started(home)) as journal:
        journal.append([encode(WRITE)])
        journal.make_room(4 * SPARE, version=3)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * SPARE, limit[1]))
        try:
            error = fails(journal, large)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert error.errno == errno.ENOSPC
        assert str(error).endswith("File too large: raise the limit of file sizes (ulimit -f)")
        assert records_in(home) == [WRITE]
        journal.begin_segment(version=4)
        journal.make_room(4 * SPARE, version=4)
        journal.append([encode(WRITE)])
    assert records_in(home) == [WRITE, WRITE]


# Syncs.


def test_after_a_failed_sync_nothing_is_trusted(
    home: Path, journal: Journal, below: Device
) -> None:
    below.failures["sync"] = errno.EIO
    with pytest.raises(StoreError) as caught:
        journal.sync()
    assert caught.value.errno == errno.EIO
    assert str(caught.value).startswith(f"{home / name_of(FIRST)} can't be synced: ")
    assert journal.is_broken
    below.failures.clear()
    with pytest.raises(StoreError, match="can't be synced"):
        journal.sync()  # the kernel forgets an error once it has told it
    with pytest.raises(StoreError, match="can't be synced"):
        journal.append(GROUP)
    below.seen.clear()
    journal.begin_segment(version=4)
    assert below.names("sync") == [name_of(FIRST + 1)]
    journal.append(GROUP)
    journal.sync()


def test_a_failed_sync_of_an_ended_segment_breaks_the_journal(
    home: Path, journal: Journal, below: Device
) -> None:
    below.failures["sync"] = errno.EIO
    below.only = name_of(FIRST)
    with pytest.raises(StoreError, match=f"{name_of(FIRST)} can't be synced"):
        journal.begin_segment(version=4)
    assert journal.is_broken
    journal.begin_segment(version=5)
    assert not journal.is_broken
    assert [place.header and place.header.version for place in scan(home).segments] == [3, 5]


def test_a_failed_sync_of_the_directory_breaks_the_journal(
    home: Path, journal: Journal, below: Device
) -> None:
    below.failures["sync directory"] = errno.EIO
    with pytest.raises(StoreError, match="journal can't be synced"):
        journal.sync()
    assert journal.is_broken
    below.failures.clear()
    below.seen.clear()
    journal.begin_segment(version=4)
    assert below.names("sync directory") == [home.parent.name, "journal"]  # opened again


def test_a_failed_sync_at_the_close_is_told(home: Path, below: Device) -> None:
    journal = started(home)
    journal.append(GROUP)
    below.failures["sync"] = errno.EIO
    with pytest.raises(StoreError, match="can't be synced"):
        journal.close()
    journal.close()
    assert not [name for name in os.listdir("/proc/self/fd") if is_in(home, name)]


def is_in(home: Path, descriptor: str) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(home))
    return False


# Room.


def test_a_start_without_room_is_a_failure_that_ends(home: Path, below: Device) -> None:
    below.failures["reserve"] = errno.ENOSPC
    with contextlib.closing(started(home)) as journal:
        assert journal.failure is not None
        assert journal.failure.errno == errno.ENOSPC
        assert str(journal.failure) == (
            f"{home} can't be written: No space left on device: free some space"
        )
        assert not journal.has_room(0)
        assert list(home.iterdir()) == []
        assert fails(journal).errno == errno.ENOSPC
        assert not journal.is_broken
        journal.sync()  # nothing is there that could be lost
        below.failures.clear()
        journal.make_room(100, version=3)
        assert journal.failure is None
        journal.append(GROUP)
    assert records_in(home) == [*SAMPLES]


def test_a_directory_that_can_not_be_made_is_a_failure_that_ends(home: Path) -> None:
    home.write_text("in the way")
    with contextlib.closing(started(home)) as journal:
        assert journal.failure is not None
        assert journal.failure.errno == errno.EIO
        home.unlink()
        journal.make_room(100, version=3)
        journal.append(GROUP)
    assert records_in(home) == [*SAMPLES]


def test_records_that_have_room_are_appended_while_there_is_no_more(
    home: Path, journal: Journal, below: Device
) -> None:
    below.failures["reserve"] = errno.ENOSPC
    with pytest.raises(StoreError):
        journal.make_room(8 * SPARE, version=3)
    assert journal.failure is not None
    assert not journal.is_broken
    journal.append(GROUP)
    assert records_in(home) == [WRITE, *SAMPLES]


def test_without_room_two_attempts_a_second_are_made(journal: Journal, below: Device) -> None:
    below.failures["reserve"] = errno.ENOSPC
    below.seen.clear()
    start = time.monotonic()
    refused = 0
    while time.monotonic() < start + 1.2:
        with pytest.raises(StoreError):
            journal.make_room(8 * SPARE, version=3)
        refused += 1
    attempts = below.count("reserve") // 2  # each asks for less if there is not enough
    assert refused == attempts
    assert 2 <= attempts <= 1 + int((time.monotonic() - start) / ATTEMPT_INTERVAL)


def test_who_does_not_wait_gets_the_last_error(journal: Journal, below: Device) -> None:
    below.failures["reserve"] = errno.ENOSPC
    with pytest.raises(StoreError) as first:
        journal.make_room(8 * SPARE, version=3, wait=False)
    calls = below.count("reserve")
    with pytest.raises(StoreError) as second:
        journal.make_room(8 * SPARE, version=3, wait=False)
    assert below.count("reserve") == calls
    assert str(second.value) == str(first.value)


def test_who_waits_shares_the_next_attempt(journal: Journal, below: Device) -> None:
    below.failures["reserve"] = errno.ENOSPC
    with pytest.raises(StoreError):
        journal.make_room(8 * SPARE, version=3)
    calls, errors, start = below.count("reserve"), [], time.monotonic()

    def work() -> None:
        try:
            journal.make_room(8 * SPARE, version=3)
        except StoreError as error:
            errors.append(error.errno)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if time.monotonic() < start + 2 * ATTEMPT_INTERVAL:
        assert below.count("reserve") == calls + 2
    assert errors == [errno.ENOSPC] * 6


def test_the_first_change_after_there_is_room_again_succeeds(
    journal: Journal, below: Device
) -> None:
    below.failures["reserve"] = errno.ENOSPC
    with pytest.raises(StoreError):
        journal.make_room(8 * SPARE, version=3)
    below.failures.clear()
    start = time.monotonic()
    journal.make_room(8 * SPARE, version=3)
    assert time.monotonic() < start + 3 * ATTEMPT_INTERVAL
    assert journal.has_room(8 * SPARE)
    assert journal.failure is None


def test_less_is_reserved_where_there_is_not_enough_for_a_whole_step(
    home: Path, journal: Journal
) -> None:
    limit = journal.position.offset + 3 * SPARE + 8192

    def limited(descriptor: int, offset: int, length: int) -> None:
        if offset + length > limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(descriptor, offset, length)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_file, "reserve", limited)
        journal.make_room(2 * SPARE, version=3)
    assert journal.has_room(2 * SPARE)
    assert read(home / name_of(FIRST)).end > HEADER_SIZE


def test_attempts_without_success_keep_no_descriptors(
    home: Path, below: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    below.failures["reserve"] = errno.ENOSPC
    with contextlib.closing(started(home)) as journal:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            now += ATTEMPT_INTERVAL
            with pytest.raises(StoreError):
                journal.make_room(1, version=3)
        assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_syncs_without_success_keep_no_descriptors(home: Path, below: Device) -> None:
    with contextlib.closing(started(home)) as journal:
        before = len(os.listdir("/proc/self/fd"))
        below.failures["sync"] = errno.EIO
        for version in range(10):
            with pytest.raises(StoreError):
                journal.begin_segment(version=version)
            if not journal.is_broken:
                journal.append([encode(WRITE)])
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_broken_journal_is_not_mended_by_the_next_full_segment(
    journal: Journal, below: Device
) -> None:
    """Else a sync would succeed later, without what was in the segment that failed."""
    below.failures["sync"] = errno.EIO
    with pytest.raises(StoreError):
        journal.sync()
    below.failures.clear()
    with pytest.raises(StoreError):
        journal.begin_segment(version=4, sync=False)
    assert journal.is_broken
    journal.begin_segment(version=4)
    assert not journal.is_broken


def test_a_journal_goes_on_if_its_files_are_gone(home: Path, below: Device) -> None:
    with contextlib.closing(started(home)) as journal:
        below.failures["write"] = errno.EIO
        fails(journal)
        below.failures.clear()
        (home / name_of(FIRST)).unlink()
        journal.begin_segment(version=4)
        journal.append(GROUP)
        assert records_in(home) == list(SAMPLES)
