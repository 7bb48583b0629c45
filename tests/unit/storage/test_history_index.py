"""The index of a history segment never hides a path, and a damaged one is none."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmxcfs.messages import Mutation, Rename, Write
from pmxcfs.storage._journal import crc32c
from pmxcfs.storage.history import History
from pmxcfs.storage.history_index import (
    Index,
    decode_index,
    encode_index,
    marks_of,
    plain,
    read_index,
    without_index,
)
from pmxcfs.storage.records import Adopted, Gap, Record, Saved
from pmxcfs.storage.segments import HEADER_SIZE, Segment, Verdict, name_of, read
from tests.fakes.data.journals import NOW_NS, SAVE_ID, WRITE, before, change, written

NAMES = st.sampled_from([b"a", b"b", b"a.tmp.1", b"\xff"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)
U64 = st.integers(0, (1 << 64) - 1)
INDEXES = st.builds(Index, U64, U64, st.one_of(st.none(), st.lists(PATHS).map(marks_of)))


@given(st.lists(PATHS, max_size=6), PATHS)
def test_a_path_is_found_and_others_are_not(named: list[bytes], path: bytes) -> None:
    related = any(
        path == each or path.startswith(each + b"/") or each.startswith(path + b"/")
        for each in named
    )
    assert Index(0, 0, marks_of(named)).may_tell_of(path) == related


@given(INDEXES)
def test_an_index_comes_back_as_it_was(index: Index) -> None:
    data = encode_index(index)
    size, checksum = (int.from_bytes(data[at:][:4], "little") for at in (-8, -4))
    assert size == len(data) - 8
    assert decode_index(data[:-8], checksum) == index
    assert without_index(b"header" + b"records" + data, 6) == b"records"


@given(st.binary(max_size=60))
def test_any_bytes_are_an_index_or_none(data: bytes) -> None:
    found = decode_index(data, crc32c(data))
    assert found is None or found.marks is None or len(found.marks) <= (len(data) - 17) // 4
    assert decode_index(data, crc32c(data) ^ 1) is None


@given(st.binary(max_size=80), st.integers(0, 90))
def test_a_file_of_any_bytes_can_be_asked(data: bytes, start: int) -> None:
    rest = without_index(data, start)
    assert data[start:].startswith(rest)


@pytest.mark.parametrize("size", [0, 7, 8, 71, 72, 100])
@pytest.mark.parametrize("byte", [b"\0", b"\xff"])
def test_a_file_without_an_index_has_none(tmp_path: Path, size: int, byte: bytes) -> None:
    path = tmp_path / "segment"
    path.write_bytes(byte * size)
    assert read_index(path, header_size=64) is None
    assert read_index(tmp_path, header_size=64) is None
    assert read_index(tmp_path / "missing", header_size=64) is None


@pytest.mark.parametrize(
    ("path", "expected"), [(b"", b""), (b"/", b""), (b"//a//b/", b"a/b"), (b"a/b", b"a/b")]
)
def test_needless_slashes_do_not_count(path: bytes, expected: bytes) -> None:
    assert plain(path) == expected


# In a segment.


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def rewritten(home: Path, *records: Record) -> Segment:
    """Write a segment, have it rewritten as history, and read it."""
    written(home, [*records])
    History(home, private_now=lambda inodes: ()).take(1, before=1 + len(records))
    return read(home / name_of(1))


def write(path: str, data: bytes) -> Mutation:
    return Write(path, 0, data, truncate=True)


def index_of(home: Path, *records: Record) -> Index:
    index = read_index(rewritten(home, *records).path, header_size=HEADER_SIZE)
    assert index is not None
    return index


def test_the_index_has_each_path_of_the_segment(home: Path) -> None:
    index = index_of(
        home,
        before("nodes/a/old", b""),
        change(8, write("nodes//a/new", b"x")),
        change(9, Rename("from", "dir/to"))._replace(time_ns=NOW_NS + 5),
        Adopted(9, 20, (b"adopted/file",)),
        Saved(SAVE_ID),
    )
    assert (index.first_ns, index.last_ns) == (NOW_NS, NOW_NS + 5)
    for path in (b"nodes/a/old", b"nodes/a/new", b"from", b"dir/to", b"adopted/file"):
        assert index.may_tell_of(path)
        assert index.may_tell_of(path + b"/what/is/below")
    for path in (b"", b"nodes", b"nodes/a", b"dir", b"adopted"):
        assert index.may_tell_of(path)
    for path in (b"nodes/b", b"nodes/a/other", b"dir/two", b"new", b"a"):
        assert not index.may_tell_of(path)


@pytest.mark.parametrize(
    "record",
    [Adopted(8, 20, (), is_short=True), Gap(8), WRITE._replace(message=b"unknown")],
    ids=lambda record: type(record).__name__,
)
def test_a_record_without_paths_may_tell_of_any(home: Path, record: Record) -> None:
    assert index_of(home, WRITE, record).may_tell_of(b"any")


def test_a_damaged_index_is_none_and_the_records_stay(home: Path) -> None:
    whole = rewritten(home, *[change(n, write(f"d/{n}", b"x")) for n in range(20)])
    content = whole.path.read_bytes()
    size = int.from_bytes(content[-8:-4], "little") + 8
    assert read_index(whole.path, header_size=HEADER_SIZE) is not None
    generator = random.Random(6)
    verdicts = set()
    for _ in range(2000):
        damaged = bytearray(content)
        at = len(content) - 1 - generator.randrange(size)
        damaged[at] ^= 1 << generator.randrange(8)
        if generator.random() < 0.2:
            del damaged[at:]
        whole.path.write_bytes(damaged)
        assert read_index(whole.path, header_size=HEADER_SIZE) is None
        segment = read(whole.path)
        assert segment.records == whole.records[: len(segment.records)]
        verdicts.add(segment.verdict)
        if len(damaged) == len(content) and at < len(content) - 8:
            assert segment.records == whole.records
    assert verdicts == {Verdict.WHOLE, Verdict.DAMAGED}
