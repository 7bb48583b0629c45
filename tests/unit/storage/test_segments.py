"""Reading segments: whatever the bytes are, a verdict comes back, and only sound records."""

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from pmxcfs.errors import StoreError
from pmxcfs.storage._journal import crc32c, frame
from pmxcfs.storage.records import Gap, Record, encode
from pmxcfs.storage.segments import (
    COMPRESSED,
    HEADER_SIZE,
    HISTORY,
    MAX_SEGMENT,
    Header,
    Located,
    Segment,
    Verdict,
    encode_header,
    name_of,
    read,
    scan,
)
from tests.fakes.data.journals import LINEAGE, SAMPLES, WRITE, written

RECORDS = list(SAMPLES)
FIRST = 5


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A journal with two segments; the first holds a record of each kind."""
    written(tmp_path / "journal", RECORDS, [Gap(1), WRITE], sequence=FIRST)
    return tmp_path / "journal"


@pytest.fixture
def path(home: Path) -> Path:
    """The first segment."""
    return home / name_of(FIRST)


def records_of(segment: Segment) -> list[Record]:
    return [located.record for located in segment.records]


def test_a_segment_comes_back_as_it_was(path: Path) -> None:
    segment = read(path)
    assert segment.header == Header(LINEAGE, FIRST, 7, 0)
    assert records_of(segment) == RECORDS
    assert [located.sequence for located in segment.records] == list(
        range(FIRST, FIRST + len(RECORDS))
    )
    assert segment.records[0].offset == HEADER_SIZE
    assert (segment.verdict, segment.reason) == (Verdict.WHOLE, "")
    assert segment.end == path.stat().st_size
    assert segment.next_sequence == FIRST + len(RECORDS)
    assert segment.later() is None


def test_the_header_is_that_of_the_format(path: Path) -> None:
    header = path.read_bytes()[:HEADER_SIZE]
    expected = struct.pack("<8sII16sQQ12x", b"pmxcfs\0J", 1, 0, LINEAGE, FIRST, 7)
    assert header[:-4] == expected
    assert encode_header(Header(LINEAGE, FIRST, 7)) == header


def test_a_scan_lists_segments_in_order_and_other_files(home: Path) -> None:
    (home / "notes.txt").write_text("x")
    (home / "5.log").write_text("x")
    found = scan(home)
    assert [place.first for place in found.segments] == [FIRST, FIRST + len(RECORDS)]
    assert [place.verdict for place in found.segments] == [Verdict.WHOLE] * 2
    assert [place.header and place.header.version for place in found.segments] == [7, 8]
    assert records_of(found.segments[1].read()) == [Gap(1), WRITE]
    assert [path.name for path in found.foreign] == ["5.log", "notes.txt"]


def test_a_missing_directory_has_no_segments(tmp_path: Path) -> None:
    assert scan(tmp_path / "none") == ((), ())


def test_a_directory_that_is_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("x")
    with pytest.raises(StoreError, match="journal can't be read: Not a directory: check the path"):
        scan(tmp_path / "journal")


def test_reserved_space_behind_the_end_is_no_damage(path: Path) -> None:
    end = path.stat().st_size
    os.truncate(path, end + 100_000)
    segment = read(path)
    assert (segment.end, segment.verdict) == (end, Verdict.RESERVED)
    assert records_of(segment) == RECORDS
    assert segment.later() is None


def test_a_torn_record_ends_the_segment(path: Path) -> None:
    last = read(path).records[-1]
    os.truncate(path, last.offset + 5)
    segment = read(path)
    assert (segment.end, segment.verdict) == (last.offset, Verdict.DAMAGED)
    assert records_of(segment) == RECORDS[:-1]
    assert segment.later() is None


def test_damage_in_the_middle_shows_the_sound_records_behind_it(path: Path) -> None:
    third, fourth = read(path).records[2:4]
    content = bytearray(path.read_bytes())
    content[third.offset + 20] ^= 1
    path.write_bytes(content)
    segment = read(path)
    assert (segment.end, segment.verdict) == (third.offset, Verdict.DAMAGED)
    assert records_of(segment) == RECORDS[:2]
    assert segment.later() == (fourth.offset, fourth.sequence)


def test_the_raw_frames_from_a_number_on(path: Path) -> None:
    segment = read(path)
    assert segment.raw() == segment.content[HEADER_SIZE:]
    assert segment.raw(FIRST + 2) == segment.content[segment.records[2].offset :]
    assert segment.raw(FIRST + len(RECORDS)) == b""


def test_a_sound_frame_around_an_unknown_record_is_not_accepted(path: Path) -> None:
    sequence = read(path).next_sequence
    end = path.stat().st_size
    with path.open("ab") as file:
        file.write(frame([b"\x63unknown", encode(WRITE)], sequence))
    segment = read(path)
    assert records_of(segment) == RECORDS
    assert (segment.end, segment.verdict) == (end, Verdict.DAMAGED)
    assert segment.reason == f"record {sequence} can't be decoded: kind: 99 is unknown"


def cut(size: int) -> Callable[[bytearray], None]:
    return lambda content: content.__delitem__(slice(size, None))


def put(offset: int, value: int) -> Callable[[bytearray], None]:
    return lambda content: content.__setitem__(offset, value)


@pytest.mark.parametrize(
    ("damage", "verdict", "reason"),
    [
        (cut(0), Verdict.FOREIGN, "it has no header"),
        (cut(HEADER_SIZE - 1), Verdict.FOREIGN, "it has no header"),
        (put(0, ord("P")), Verdict.FOREIGN, "it has no header"),
        (put(30, 0xFF), Verdict.FOREIGN, "its header is damaged"),
        (put(63, 0xFF), Verdict.FOREIGN, "its header is damaged"),
    ],
)
def test_a_damaged_header_is_told(
    path: Path, damage: Callable[[bytearray], None], verdict: Verdict, reason: str
) -> None:
    content = bytearray(path.read_bytes())
    damage(content)
    path.write_bytes(content)
    segment = read(path)
    assert (segment.header, segment.verdict, segment.reason) == (None, verdict, reason)
    assert (segment.records, segment.next_sequence, segment.later()) == ([], 0, None)
    assert scan(path.parent).segments[0].verdict is verdict


@pytest.mark.parametrize("offset", [8, 12, 48, 59], ids=["format", "flags", "reserved", "last"])
def test_a_header_of_a_later_format_is_not_read(path: Path, offset: int) -> None:
    content = bytearray(encode_header(Header(LINEAGE, FIRST, 7)))
    content[offset] = 0x80
    rest = bytes(content[:-4])
    path.write_bytes(rest + crc(rest) + path.read_bytes()[HEADER_SIZE:])
    assert read(path).verdict is Verdict.NEWER
    assert read(path).records == []


def crc(data: bytes) -> bytes:
    return crc32c(data).to_bytes(4, "little")


def test_a_segment_under_another_name_is_not_read(path: Path) -> None:
    other = path.rename(path.with_name(name_of(99)))
    segment = read(other)
    assert (segment.verdict, segment.reason) == (Verdict.FOREIGN, f"it was {name_of(FIRST)}")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "pipe"])
def test_what_is_not_a_file_is_not_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / name_of(1)
    make(path)
    segment = read(path)
    assert (segment.verdict, segment.reason) == (
        Verdict.UNREADABLE,
        "it is not a regular file",
    )
    assert scan(tmp_path).segments[0].verdict is Verdict.UNREADABLE


def test_a_symbolic_link_is_not_followed(path: Path) -> None:
    target = path.rename(path.with_name("target"))
    path.symlink_to(target)
    assert read(path).verdict is Verdict.UNREADABLE


def test_of_a_huge_file_only_a_part_is_read(path: Path) -> None:
    os.truncate(path, 1 << 40)
    segment = read(path)
    assert segment.verdict is Verdict.DAMAGED
    assert segment.reason == f"it has more than {MAX_SEGMENT} bytes"
    assert len(segment.content) == MAX_SEGMENT
    assert records_of(segment) == RECORDS


@pytest.mark.parametrize("flags", [HISTORY, HISTORY | COMPRESSED])
def test_flags_are_read(tmp_path: Path, flags: int) -> None:
    path = tmp_path / name_of(1)
    path.write_bytes(encode_header(Header(LINEAGE, 1, 2, flags)))
    (place,) = scan(tmp_path).segments
    assert place.header is not None
    assert place.header.is_history
    assert place.header.is_compressed is bool(flags & COMPRESSED)


def test_the_next_number_is_above_all_that_is_there(home: Path) -> None:
    last = FIRST + len(RECORDS)
    assert scan(home.parent / "none").next_sequence() == 1
    assert scan(home).next_sequence() == last + 2
    second = home / name_of(last)
    content = bytearray(second.read_bytes())
    content[HEADER_SIZE + 3] = 0xFF  # the length of the first record; the second one is sound
    second.write_bytes(content)
    assert scan(home).next_sequence() == last + 2
    (home / f"{'f' * 16}.log").write_bytes(b"not a segment")
    assert scan(home).next_sequence() == last + 2
    (home / name_of(last + 2)).write_bytes(b"")  # a start takes its place
    assert scan(home).next_sequence() == last + 2
    (home / name_of(last + 2)).write_bytes(b"not a segment")
    assert scan(home).next_sequence() == last + 3


# Random damage.


class Damage:
    """Changes the bytes of a segment at random, as devices and people do."""

    def __init__(self, seed: int, content: bytes, offsets: list[int]) -> None:
        self._random = random.Random(seed)
        self._content = content
        self._frames = [
            content[start:stop]
            for start, stop in zip(offsets, [*offsets[1:], len(content)], strict=True)
        ]

    def next(self) -> bytes:
        """Return other bytes."""
        return self._random.choice(
            (self._flipped, self._cut, self._reordered, self._noise, self._overwritten)
        )()

    def _flipped(self) -> bytes:
        content = bytearray(self._content)
        for _ in range(self._random.randint(1, 4)):
            content[self._random.randrange(len(content))] ^= 1 << self._random.randrange(8)
        return bytes(content)

    def _cut(self) -> bytes:
        start, stop = sorted(self._random.randrange(len(self._content) + 1) for _ in range(2))
        if self._random.random() < 0.5:
            return self._content[:start]
        return self._content[:start] + self._content[stop:]

    def _reordered(self) -> bytes:
        frames = self._frames.copy()
        first, second = (self._random.randrange(len(frames)) for _ in range(2))
        match self._random.randrange(3):
            case 0:
                frames[first], frames[second] = frames[second], frames[first]
            case 1:
                frames.insert(first, frames[second])
            case 2:
                del frames[first]
        return self._content[:HEADER_SIZE] + b"".join(frames)

    def _noise(self) -> bytes:
        noise = self._random.randbytes(self._random.randrange(2000))
        if self._random.random() < 0.5:
            return noise
        return self._content[:HEADER_SIZE] + noise

    def _overwritten(self) -> bytes:
        content = bytearray(self._content)
        start = self._random.randrange(len(content))
        size = self._random.randint(1, 600)
        byte = self._random.choice((b"\0", b"\xff", b"\x01"))
        content[start : start + size] = byte * size
        return bytes(content)


def check_damage(path: Path, *, count: int) -> None:
    """Read *count* damaged forms of a segment: what is read is a beginning of what was written."""
    whole = read(path)
    damage = Damage(14, path.read_bytes(), [located.offset for located in whole.records])
    seen: set[Verdict] = set()
    for _ in range(count):
        content = damage.next()
        path.write_bytes(content)
        segment = read(path)
        seen.add(segment.verdict)
        assert segment.records == whole.records[: len(segment.records)]
        if segment.header is None:
            assert segment.records == []
            continue
        assert content[: segment.end] == whole.content[: segment.end]
        if segment.verdict is Verdict.WHOLE:
            assert len(content) == segment.end
        check_later(segment, whole.records)
    assert seen - {Verdict.RESERVED} == {Verdict.WHOLE, Verdict.DAMAGED, Verdict.FOREIGN}


def check_later(segment: Segment, written: list[Located]) -> None:
    """Check that what is found behind the damage is one of the records that were written."""
    if (later := segment.later()) is None:
        return
    offset, sequence = later
    assert offset >= segment.end
    (original,) = [located for located in written if located.sequence == sequence]
    size = len(encode(original.record)) + 16
    assert segment.content[offset : offset + size] == frame([encode(original.record)], sequence)


def test_no_damage_makes_a_record(path: Path) -> None:
    check_damage(path, count=300)


@pytest.mark.long
def test_no_damage_of_ten_thousand_makes_a_record(path: Path) -> None:
    check_damage(path, count=10_000)
