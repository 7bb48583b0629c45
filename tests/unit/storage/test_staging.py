"""Records that are staged in memory: where they count, when they are written, and what refuses."""

import contextlib
import errno
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.errors import StoreError
from pmxcfs.storage import journal as module
from pmxcfs.storage import staging
from pmxcfs.storage._journal import crc32c, frame
from pmxcfs.storage.journal import Journal, size_of
from pmxcfs.storage.mark import Position
from pmxcfs.storage.records import Gap, Record, encode
from pmxcfs.storage.segments import HEADER_SIZE, Verdict, absorb_staged, name_of, read, scan
from pmxcfs.storage.staging import LIMIT, Staged, StagingFile, read_staged
from tests.fakes.data.journals import LINEAGE, WRITE
from tests.fakes.doubles.device import Device, device
from tests.fakes.doubles.memory import file_for, in_memory

FIRST = 10


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory that counts as one in memory."""
    with in_memory(tmp_path / "memory") as path:
        yield path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(home: Path, memory: Path) -> Iterator[Journal]:
    """A journal with one record, which is not staged."""
    journal = started(home)
    journal.append([encode(WRITE)])
    yield journal
    with contextlib.suppress(StoreError):
        journal.close()


@pytest.fixture
def below(journal: Journal) -> Iterator[Device]:
    with device() as double:
        yield double


def started(home: Path, *, sequence: int = FIRST) -> Journal:
    return Journal.start(home, lineage=LINEAGE, sequence=sequence, version=3, is_staging=True)


def stage(journal: Journal, *versions: int) -> None:
    journal.stage([encode(Gap(version)) for version in versions])


def append(journal: Journal, *versions: int) -> None:
    journal.append([encode(Gap(version)) for version in versions])


def records_in(home: Path) -> list[Record]:
    """Return all records; they must be numbered without a gap, and nothing must be damaged."""
    segments = [place.read() for place in scan(home).segments]
    assert all(segment.verdict in (Verdict.WHOLE, Verdict.RESERVED) for segment in segments)
    located = [located for segment in segments for located in segment.records]
    assert [one.sequence for one in located] == list(range(FIRST, FIRST + len(located)))
    return [one.record for one in located]


def in_segment(home: Path, first: int = FIRST) -> bytes:
    return (home / name_of(first)).read_bytes()


# What is staged counts.


def test_staged_records_are_read_behind_the_others_and_are_not_in_the_segment(
    home: Path, journal: Journal, memory: Path
) -> None:
    before = in_segment(home)
    stage(journal, 1)
    stage(journal, 2, 3)
    assert records_in(home) == [WRITE, Gap(1), Gap(2), Gap(3)]
    assert in_segment(home) == before
    assert scan(home).next_sequence() == FIRST + 4


def test_only_root_can_read_what_is_staged(home: Path, journal: Journal, memory: Path) -> None:
    stage(journal, 1)
    assert memory.stat().st_mode & 0o777 == 0o700
    assert file_for(home).stat().st_mode & 0o777 == 0o600


def test_staged_records_count_for_position_size_and_room(journal: Journal) -> None:
    before, size = journal.position, size_of([encode(Gap(1))])
    (room,) = [n for n in range(4 << 20) if not journal.has_room(n)][:1]
    stage(journal, 1)
    assert journal.position == Position(FIRST, before.offset + size, FIRST + 2)
    assert journal.size_since(before) == size
    assert journal.has_room(room - 1 - size)
    assert not journal.has_room(room - size)


def test_staging_is_one_call_and_needs_no_device(
    home: Path, journal: Journal, below: Device
) -> None:
    stage(journal, 1)
    below.seen.clear()
    stage(journal, 2)
    assert below.seen == [("write", file_for(home).name)]


def test_two_journals_have_two_files(tmp_path: Path, home: Path, journal: Journal) -> None:
    with contextlib.closing(started(tmp_path / "other")) as other:
        stage(journal, 1)
        stage(other, 2)
        assert records_in(home) == [WRITE, Gap(1)]
        assert records_in(tmp_path / "other") == [Gap(2)]


def test_without_staging_all_records_are_written(home: Path, memory: Path) -> None:
    journal = Journal.start(home, lineage=LINEAGE, sequence=FIRST, version=3)
    with contextlib.closing(journal):
        stage(journal, 1)
        assert len(in_segment(home)) == HEADER_SIZE + size_of([encode(Gap(1))])
        assert not memory.exists()


# When it is written.


def test_the_next_record_is_written_together_with_what_is_staged(
    home: Path, journal: Journal, below: Device
) -> None:
    stage(journal, 1)
    stage(journal, 2)
    below.seen.clear()
    append(journal, 3)
    append(journal, 4)
    assert below.seen == [("write", name_of(FIRST))] * 2
    assert len(in_segment(home)) == journal.position.offset
    assert records_in(home) == [WRITE, Gap(1), Gap(2), Gap(3), Gap(4)]


def test_a_sync_has_it_on_the_device(home: Path, journal: Journal, below: Device) -> None:
    stage(journal, 1)
    below.seen.clear()
    journal.sync()
    assert below.seen[:2] == [("write", name_of(FIRST)), ("sync", name_of(FIRST))]
    assert len(in_segment(home)) == journal.position.offset
    below.seen.clear()
    journal.sync()
    assert below.seen == []


def test_the_end_of_a_segment_has_it(home: Path, journal: Journal) -> None:
    stage(journal, 1)
    end = journal.position.offset
    journal.begin_segment(version=4)
    assert len(in_segment(home)) == end
    stage(journal, 2)
    assert records_in(home) == [WRITE, Gap(1), Gap(2)]


def test_a_close_writes_it_and_leaves_nothing(home: Path, journal: Journal, memory: Path) -> None:
    stage(journal, 1)
    end = journal.position.offset
    journal.close()
    assert len(in_segment(home)) == end
    assert not memory.exists()


def test_a_close_leaves_the_file_of_another_daemon(journal: Journal, memory: Path) -> None:
    stage(journal, 1)
    (memory / "other").touch()
    journal.close()
    assert [path.name for path in memory.iterdir()] == ["other"]


def test_it_is_due_after_some_time(
    home: Path, journal: Journal, below: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(journal, 1)
    assert not journal.is_sync_due
    append(journal, 2)
    monkeypatch.setattr(module, "FLUSH_AFTER", 0.0)
    stage(journal, 3)
    assert journal.is_sync_due
    journal.sync()
    assert is_all_written(home, journal)
    assert not journal.is_sync_due


def test_much_is_not_staged(home: Path, journal: Journal) -> None:
    body = encode(WRITE._replace(message=bytes(20_000)))
    for _ in range(LIMIT // size_of([body])):
        journal.stage([body])
        assert not is_all_written(home, journal)
    journal.stage([body])
    assert is_all_written(home, journal)
    journal.stage([encode(WRITE._replace(message=bytes(LIMIT)))])
    assert is_all_written(home, journal)
    assert len(records_in(home)) == LIMIT // size_of([body]) + 3


def is_all_written(home: Path, journal: Journal) -> bool:
    return len(in_segment(home)) == journal.position.offset


def test_a_later_group_replaces_what_was_written(home: Path, journal: Journal) -> None:
    """What an earlier and longer group has left in the file never counts."""
    for length in (9, 1, 5, 2, 7):
        stage(journal, *range(length))
        stage(journal, 99)
        known = records_in(home)
        journal.sync()
        assert records_in(home) == known


# After a kill.


def killed(journal: Journal, home: Path, below: Device) -> None:
    """Let a journal write nothing any more, and end."""
    below.failures.update(dict.fromkeys(("write", "cut", "sync"), errno.EIO))
    with pytest.raises(StoreError):
        journal.close()
    below.failures.clear()


def test_a_start_writes_it_into_the_segment_and_forgets_it(
    home: Path, journal: Journal, below: Device, memory: Path
) -> None:
    stage(journal, 1, 2)
    end = journal.position.offset
    killed(journal, home, below)
    assert records_in(home) == [WRITE, Gap(1), Gap(2)]
    absorb_staged(home)
    assert len(in_segment(home)) == end
    assert not memory.exists()
    absorb_staged(home)
    assert records_in(home) == [WRITE, Gap(1), Gap(2)]


def test_reserved_space_behind_the_segments_end_does_not_matter(
    home: Path, journal: Journal, below: Device
) -> None:
    stage(journal, 1, 2)
    killed(journal, home, below)
    os.truncate(home / name_of(FIRST), 1 << 16)
    assert records_in(home) == [WRITE, Gap(1), Gap(2)]
    absorb_staged(home)
    assert records_in(home) == [WRITE, Gap(1), Gap(2)]
    assert len(in_segment(home)) == 1 << 16


@pytest.mark.parametrize("size", [1, 17, 30, 60, 80, 100])
def test_a_write_that_was_interrupted_is_completed(
    home: Path, journal: Journal, below: Device, size: int
) -> None:
    stage(journal, 1, 2)
    start, staged = len(in_segment(home)), file_for(home).read_bytes()
    append(journal, 3)
    content = in_segment(home)
    killed(journal, home, below)
    (home / name_of(FIRST)).write_bytes(content[: start + size])
    file_for(home).write_bytes(staged)
    found = read(home / name_of(FIRST)).records
    assert [one.record for one in found][:3] == [WRITE, Gap(1), Gap(2)]
    absorb_staged(home)
    assert in_segment(home).startswith(content[: start + max(size, len(staged) - HEADER_SIZE)])


def test_what_is_in_the_segment_already_changes_nothing(
    home: Path, journal: Journal, below: Device
) -> None:
    stage(journal, 1)
    staged = file_for(home).read_bytes()
    append(journal, 2)
    content = in_segment(home)
    assert file_for(home).read_bytes() == staged  # nobody had to say that it was written
    assert read(home / name_of(FIRST)).content == content
    killed(journal, home, below)
    absorb_staged(home)
    assert in_segment(home) == content


def test_a_failed_write_loses_nothing_that_is_staged(
    home: Path, journal: Journal, below: Device
) -> None:
    stage(journal, 1)
    position = journal.position
    below.failures["write"] = errno.EIO
    with pytest.raises(StoreError):
        append(journal, 2)
    assert journal.is_broken
    assert not journal.is_sync_due
    assert journal.position == position
    assert records_in(home) == [WRITE, Gap(1)]
    below.failures.clear()
    journal.begin_segment(version=4)  # the tree is being saved
    append(journal, 4)
    assert records_in(home) == [WRITE, Gap(1), Gap(4)]


@pytest.mark.parametrize("use", ["sync", "begin_segment", "close"])
def test_a_failed_flush_breaks_the_journal_and_loses_nothing(
    home: Path, journal: Journal, below: Device, use: str
) -> None:
    stage(journal, 1)
    below.failures["write"] = errno.EIO
    with pytest.raises(StoreError) as caught:
        journal.begin_segment(version=4) if use == "begin_segment" else getattr(journal, use)()
    assert caught.value.errno == errno.EIO
    assert journal.is_broken
    below.failures.clear()
    journal.close()
    assert records_in(home) == [WRITE, Gap(1)]


def test_no_descriptor_stays_open(home: Path, memory: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with contextlib.closing(started(home)) as journal, device() as below:
        stage(journal, 1)
        below.failures["reserve"] = errno.ENOSPC
        with pytest.raises(StoreError):
            journal.begin_segment(version=4)
        below.failures.clear()
        stage(journal, 2)
        journal.begin_segment(version=4)  # the directory is opened again
        stage(journal, 3)
    assert set(os.listdir("/proc/self/fd")) == before
    assert records_in(home) == [Gap(1), Gap(2), Gap(3)]


def test_another_directory_in_the_place_of_the_first_has_a_file_of_its_own(
    home: Path, journal: Journal, below: Device
) -> None:
    stage(journal, 1)
    first = file_for(home)
    below.failures["write"] = errno.EIO
    with pytest.raises(StoreError):
        append(journal, 2)
    below.failures.clear()
    home.rename(home.with_name("old"))
    journal.begin_segment(version=4)
    stage(journal, 4)
    assert file_for(home) != first
    assert [one.record for one in scan(home).segments[0].read().records] == [Gap(4)]
    assert records_in(home.with_name("old")) == [WRITE, Gap(1)]


# What refuses. Then all is written at once.


def check_nothing_is_staged(home: Path, journal: Journal) -> None:
    stage(journal, 1)
    stage(journal, 2)
    assert len(in_segment(home)) == journal.position.offset
    assert records_in(home) == [WRITE, Gap(1), Gap(2)]


def test_a_disk_is_no_memory(home: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "is_in_memory", lambda descriptor: False)
    check_nothing_is_staged(home, journal)


def test_only_root_stages(home: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: staging.OWNER + 1)
    check_nothing_is_staged(home, journal)


def test_the_directory_of_another_user_is_not_used(
    home: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(journal, 1)
    monkeypatch.setattr(staging, "OWNER", staging.OWNER + 1)
    assert read_staged(home) == []
    assert records_in(home) == [WRITE]


def test_a_directory_that_others_can_write_to_is_not_read(
    home: Path, journal: Journal, memory: Path
) -> None:
    stage(journal, 1)
    memory.chmod(0o770)
    assert records_in(home) == [WRITE]
    memory.chmod(0o700)
    assert records_in(home) == [WRITE, Gap(1)]


def test_a_missing_memory_refuses(home: Path, journal: Journal, memory: Path) -> None:
    memory.write_text("not a directory")
    check_nothing_is_staged(home, journal)


def test_the_second_place_is_used_if_the_first_one_can_not_be(
    home: Path, journal: Journal, memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "HOMES", (tmp_path / "none" / "none", memory))
    stage(journal, 1)
    assert records_in(home) == [WRITE, Gap(1)]
    assert len(in_segment(home)) < journal.position.offset


@pytest.mark.parametrize("longest", [0, 10, 70])
def test_a_full_memory_refuses(
    home: Path, journal: Journal, below: Device, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    below.longest, below.only = longest, file_for(home).name
    stage(journal, 1)
    assert file_for(home).stat().st_size == 0
    below.longest = 1 << 40
    check_refused(home, journal, [Gap(1)], monkeypatch)


@pytest.mark.parametrize("longest", [0, 10, 40])
def test_a_memory_that_becomes_full_refuses(
    home: Path, journal: Journal, below: Device, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(journal, 1)
    below.longest, below.only = longest, file_for(home).name
    stage(journal, 2, 3)
    below.longest = 1 << 40
    check_refused(home, journal, [Gap(1), Gap(2), Gap(3)], monkeypatch)


def check_refused(
    home: Path, journal: Journal, staged: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Assert that all is written, that it stays so for a while, and then is tried again."""
    assert is_all_written(home, journal)
    stage(journal, 8)
    assert is_all_written(home, journal)
    monkeypatch.setattr(staging, "RETRY_AFTER", 0.0)
    journal.begin_segment(version=4)
    monkeypatch.setattr(time, "monotonic", lambda: 1e12)
    stage(journal, 9)
    assert records_in(home) == [WRITE, *staged, Gap(8), Gap(9)]
    assert not is_all_written(home, journal)


# What is not trusted.


@pytest.fixture
def staged(home: Path, journal: Journal, below: Device) -> Path:
    """The file in memory of a killed daemon, with three records behind the two of the segment."""
    append(journal, 1)
    stage(journal, 2)
    stage(journal, 3, 4)
    killed(journal, home, below)
    assert len(records_in(home)) == 5
    return file_for(home)


def place(home: Path, **changed: object) -> None:
    """Replace what is staged for *home* by the same with other fields."""
    (found,) = read_staged(home)
    found = found._replace(**changed)  # type: ignore[arg-type]
    descriptor = os.open(home, os.O_RDONLY)
    try:
        file = StagingFile(descriptor)
        lineage, first, offset, frames = found
        assert file.begin(frames, lineage=lineage, first=first, offset=offset)
        file.close()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("change", [-1, 1, 10, 1 << 40, -HEADER_SIZE])
def test_another_offset_does_not_count(home: Path, staged: Path, change: int) -> None:
    (found,) = read_staged(home)
    place(home, offset=found.offset + change)
    assert records_in(home) == [WRITE, Gap(1)]


@pytest.mark.parametrize("changed", [{"lineage": bytes(16)}, {"first": 11}, {"first": 9}])
def test_another_segment_does_not_count(
    home: Path, staged: Path, changed: dict[str, object]
) -> None:
    place(home, **changed)
    assert records_in(home) == [WRITE, Gap(1)]
    absorb_staged(home)
    assert not staged.exists()
    assert records_in(home) == [WRITE, Gap(1)]


@pytest.mark.parametrize("sequence", [FIRST, FIRST + 1, FIRST + 3, FIRST + 400])
def test_other_numbers_do_not_count(home: Path, staged: Path, sequence: int) -> None:
    place(home, frames=frame([encode(Gap(7))] * 3, sequence))
    assert records_in(home) == [WRITE, Gap(1)]


def test_a_segment_that_ends_earlier_does_not_count(home: Path, staged: Path) -> None:
    """A power cut, or an older copy of the directory."""
    path = home / name_of(FIRST)
    os.truncate(path, read(path).records[1].offset)
    assert records_in(home) == [WRITE]
    os.truncate(path, HEADER_SIZE)
    assert records_in(home) == []


def test_a_segment_that_goes_on_differently_does_not_count(home: Path, staged: Path) -> None:
    path = home / name_of(FIRST)
    path.write_bytes(in_segment(home) + frame([encode(Gap(77))], FIRST + 2))
    assert records_in(home) == [WRITE, Gap(1), Gap(77)]
    absorb_staged(home)
    assert records_in(home) == [WRITE, Gap(1), Gap(77)]


def test_damage_ahead_of_it_ends_the_segment_there(home: Path, staged: Path) -> None:
    path = home / name_of(FIRST)
    content = bytearray(in_segment(home))
    content[-1] ^= 1
    path.write_bytes(content)
    assert [one.record for one in read(path).records] == [WRITE]
    absorb_staged(home)
    assert path.read_bytes() == content


def test_a_segment_that_is_gone_does_not_matter(home: Path, staged: Path) -> None:
    (home / name_of(FIRST)).unlink()
    absorb_staged(home)
    assert not staged.exists()
    assert [*home.iterdir()] == []


@pytest.mark.parametrize("offset", [8, 12, 48])
def test_a_later_version_does_not_count(home: Path, staged: Path, offset: int) -> None:
    content = bytearray(staged.read_bytes())
    content[offset] += 1
    crc = crc32c(bytes(content[: HEADER_SIZE - 4]))
    content[HEADER_SIZE - 4 : HEADER_SIZE] = crc.to_bytes(4, "little")
    staged.write_bytes(content)
    assert read_staged(home) == []


def test_what_is_no_file_does_not_count(home: Path, staged: Path, tmp_path: Path) -> None:
    kept = staged.rename(tmp_path / "kept")
    staged.symlink_to(kept)
    assert records_in(home) == [WRITE, Gap(1)]
    staged.unlink()
    os.mkfifo(staged)
    assert records_in(home) == [WRITE, Gap(1)]


def test_any_beginning_gives_the_records_that_are_whole(home: Path, staged: Path) -> None:
    content, whole = staged.read_bytes(), records_in(home)
    for size in range(len(content)):
        staged.write_bytes(content[:size])
        found = records_in(home)
        assert 2 <= len(found) < 5
        assert found == whole[: len(found)]


def test_any_damage_gives_a_beginning(home: Path, staged: Path, seed: int) -> None:
    content, whole, chance = staged.read_bytes(), records_in(home), random.Random(seed)
    segment = in_segment(home)
    for _ in range(2000):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 9))):
            at = chance.randrange(len(damaged))
            length = chance.choice((1, 1, 4, 40))
            damaged[at : at + length] = chance.randbytes(length)
        staged.write_bytes(damaged)
        found = records_in(home)
        assert len(found) >= 2, f"seed {seed}"
        assert found == whole[: len(found)], f"seed {seed}"
        assert read(home / name_of(FIRST)).content.startswith(segment)


def test_only_the_bounds_of_a_segment_are_looked_at() -> None:
    empty = Staged(LINEAGE, FIRST, HEADER_SIZE, b"")
    for content in (b"", bytes(HEADER_SIZE), bytes(200)):
        merged = empty.merged(content, start=len(content[:64]), lineage=LINEAGE, first=FIRST)
        assert merged == content
