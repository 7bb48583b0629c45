"""History: private content is left out, the rest stays, and the budget holds."""

import contextlib
import errno
import os
import random
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from zstandard import ZstdCompressor

from pmxcfs.errors import StoreError
from pmxcfs.messages import Create, Delete, Mutation, Rename, Write
from pmxcfs.settings import DAY, HistoryLimits
from pmxcfs.storage import history as history_module
from pmxcfs.storage._journal import crc32c, frame
from pmxcfs.storage.history import History, is_private_path
from pmxcfs.storage.journal import SPARE, Journal, size_of
from pmxcfs.storage.mark import Position
from pmxcfs.storage.records import (
    Before,
    Change,
    Gap,
    Record,
    encode,
    mutation_of,
)
from pmxcfs.storage.segments import (
    COMPRESSED,
    HEADER_SIZE,
    HISTORY,
    INDEXED,
    Header,
    Segment,
    Verdict,
    encode_header,
    name_of,
    read,
    scan,
)
from tests.fakes.data.journals import (
    LINEAGE,
    NOW,
    NOW_NS,
    RECORDS,
    SAMPLES,
    WRITE,
    before,
    change,
    message_of,
    written,
)
from tests.fakes.doubles.device import device

SECRET = b"-----BEGIN PRIVATE KEY-----"
PUBLIC = b"keyboard: de\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def history_of(
    home: Path,
    *,
    size: int = 1 << 20,
    private: Collection[int] = (),
    age: int = DAY,
    keeps_private: bool = False,
    now: float = NOW,
) -> History:
    return History(
        home,
        private_now=lambda inodes: set(inodes) & set(private),
        limits=HistoryLimits(size, age, keeps_private),
        clock_ns=lambda: int(now * 10**9),
    )


def rewritten(home: Path, *records: Record, private: Collection[int] = ()) -> Segment:
    """Write a segment, have it rewritten, and read it."""
    written(home, [*records])
    history_of(home, private=private).take(1, before=1 + len(records))
    return read(home / name_of(1))


def records_of(segment: Segment) -> list[Record]:
    return [located.record for located in segment.records]


def write(path: str, data: bytes) -> Mutation:
    return Write(path, 0, data, truncate=True)


# What stays.


def test_what_is_public_stays_as_it_was(home: Path) -> None:
    public = [record for record in SAMPLES if not getattr(record, "is_private", False)]
    segment = rewritten(home, *public)
    assert records_of(segment) == public
    assert [located.sequence for located in segment.records] == list(range(1, 1 + len(public)))
    assert segment.header == Header(LINEAGE, 1, 7, HISTORY | COMPRESSED | INDEXED)
    assert segment.verdict is Verdict.WHOLE
    assert (home / name_of(1)).stat().st_mode & 0o777 == 0o600
    assert os.listdir(home) == [name_of(1)]


def test_it_is_compressed(home: Path) -> None:
    records = [change(v, write(f"nodes/a/qemu-server/{v}.conf", PUBLIC)) for v in range(500)]
    plain = size_of([encode(record) for record in records])
    segment = rewritten(home, *records)
    assert (home / name_of(1)).stat().st_size < plain / 5
    assert len(segment.content) == HEADER_SIZE + plain


@given(records=st.lists(RECORDS, max_size=8), private=st.sets(st.integers(0, 9)))
@example(records=[Change(0, 0, 0, 0, 0, 0, 0, 0, b"", bytes(14), 4_294_967_282)], private=set())
def test_records_that_need_not_be_decoded_become_the_same_history(
    records: list[Record], private: set[int]
) -> None:
    """Whether its records are decoded or not, nobody can tell from a segment of the history."""
    files = []
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        for number in range(2):
            home = Path(place, str(number))
            rewritten(home, WRITE, *records, private=private)
            files.append((home / name_of(1)).read_bytes())
            patch.setattr(history_module, "outlines", lambda content, bounds: None)
    assert files[0] == files[1]


# What is left out.


@pytest.mark.parametrize(
    "path",
    ["priv/shadow.cfg", "nodes/a/priv/key", "priv/lock/x", "nodes/\udcff/priv/a/b", "//priv//x"],
)
def test_content_at_a_private_path_is_left_out(home: Path, path: str) -> None:
    secret = change(8, write(path, SECRET))
    (found,) = records_of(rewritten(home, secret))
    assert isinstance(found, Change)
    assert mutation_of(found) == write(path, b"")
    assert found == secret._replace(left_out=len(SECRET), message=message_of(write(path, b"")))


@pytest.mark.parametrize(
    "path", ["privy/a", "nodes/priv", "nodes/a/b/priv/c", "a/priv/b", "nodes/priv/a"]
)
def test_content_at_a_path_that_only_looks_private_stays(home: Path, path: str) -> None:
    record = change(8, write(path, PUBLIC))
    assert records_of(rewritten(home, record)) == [record]


@pytest.mark.parametrize(
    "path", [b"priv", b"priv/", b"priv/a\nb", b"nodes/a\n/priv/x", b"/nodes//a/priv"]
)
def test_private_paths(path: bytes) -> None:
    assert is_private_path(path)


@pytest.mark.parametrize("path", [b"", b"priv\n", b"xpriv/a", b"nodes//priv/a", b"x\npriv/a"])
def test_public_paths(path: bytes) -> None:
    assert not is_private_path(path)


def test_a_row_of_a_private_file_has_no_data(home: Path) -> None:
    row = before("nodes/a/priv/key", SECRET, is_private=True)
    (found,) = records_of(rewritten(home, row))
    assert found == row._replace(data=b"", is_left_out=True)


def test_a_file_that_becomes_private_was_so_all_the_time(home: Path) -> None:
    """A program writes a temporary file and renames it."""
    records = rewritten(
        home,
        change(8, Create("key.tmp"), inode=8),
        change(9, write("key.tmp", SECRET), inode=8),
        change(10, write("other", PUBLIC), inode=5),
        change(11, Rename("key.tmp", "priv/key"), inode=8),
    )
    assert [mutation_of(r) for r in records_of(records) if isinstance(r, Change)] == [
        Create("key.tmp"),
        write("key.tmp", b""),
        write("other", PUBLIC),
        Rename("key.tmp", "priv/key"),
    ]


def test_a_file_that_ceases_to_be_private_was_so_all_the_time(home: Path) -> None:
    row = before("priv/key", SECRET, inode=5, is_private=True)
    segment = rewritten(
        home,
        row,
        change(9, Rename("priv/key", "key"), inode=5),
        change(10, write("key", SECRET), inode=5),
    )
    assert SECRET not in segment.content
    assert len(segment.records) == 3


def test_a_file_that_is_private_now_counts_as_private(home: Path) -> None:
    mine, other = change(9, write("a", SECRET), inode=5), change(10, write("b", PUBLIC), inode=6)
    segment = rewritten(home, before("a", SECRET, inode=5), mine, other, private={5})
    assert SECRET not in segment.content
    row = segment.records[0].record
    assert isinstance(row, Before)
    assert (row.is_private, row.is_left_out, row.size) == (True, True, len(SECRET))
    assert segment.records[2].record == other


def test_a_removed_private_file_leaves_its_path(home: Path) -> None:
    row = before("priv/key", SECRET, inode=5, is_private=True)
    removal = change(9, Delete("priv/key"), inode=5)
    found = records_of(rewritten(home, row, removal))
    assert found == [row._replace(data=b"", is_left_out=True), removal]


def test_a_message_that_can_not_be_decoded_is_left_out(home: Path) -> None:
    (found,) = records_of(rewritten(home, WRITE._replace(message=SECRET)))
    assert found == WRITE._replace(message=b"", left_out=len(SECRET))


def test_no_secret_is_left_in_a_random_segment(home: Path) -> None:
    """Of random histories: files with a private path at any time hold SECRET, others PUBLIC."""
    generator = random.Random(3)
    for _ in range(30):
        paths = {inode: generator.choice(("a", "priv/b", "nodes/n/priv/c")) for inode in range(6)}
        later = {inode: generator.choice(("d", "priv/e")) for inode in range(3)}
        is_secret = {i: "priv/" in paths[i] or "priv/" in later.get(i, "") for i in range(6)}
        records: list[Record] = []
        for version in range(40):
            inode = generator.randrange(6)
            data = SECRET if is_secret[inode] else PUBLIC
            mutation = write(f"{paths[inode]}{inode}", data)
            records.append(change(version, mutation, inode=inode))
        for inode, path in later.items():
            rename = Rename(f"{paths[inode]}{inode}", f"{path}{inode}")
            records.insert(generator.randrange(41), change(50, rename, inode=inode))
        segment = rewritten(home, *records)
        assert SECRET not in segment.content
        assert len(segment.records) == len(records)
        assert segment.content.count(PUBLIC) == sum(
            isinstance(m := mutation_of(r), Write) and m.data == PUBLIC
            for r in records
            if isinstance(r, Change)
        )
        (home / name_of(1)).unlink()


# What goes.


def test_records_that_do_not_count_are_dropped(home: Path) -> None:
    written(home, [Gap(1), Gap(2), Gap(3)])
    history_of(home).take(1, before=3)
    assert records_of(read(home / name_of(1))) == [Gap(1), Gap(2)]


@pytest.mark.parametrize("content", [b"", b"x" * 100], ids=["empty", "foreign"])
def test_a_segment_without_records_is_dropped(home: Path, content: bytes) -> None:
    home.mkdir()
    (home / name_of(1)).write_bytes(content)
    history_of(home).take(1, before=5)
    assert os.listdir(home) == []


def test_a_segment_of_a_later_version_stays(home: Path) -> None:
    home.mkdir()
    content = bytearray(encode_header(Header(LINEAGE, 1, 1)))
    content[8] = 2
    content[60:] = crc32c(bytes(content[:60])).to_bytes(4, "little")
    (home / name_of(1)).write_bytes(content)
    history_of(home).take(1, before=5)
    assert (home / name_of(1)).read_bytes() == content


def test_without_a_budget_nothing_is_kept(home: Path) -> None:
    written(home, [Gap(1)])
    history_of(home, size=0).take(1, before=2)
    assert os.listdir(home) == []


def filled_history(home: Path, count: int = 5, *, size: int = 1 << 20) -> History:
    """A history of *count* segments that do not compress well."""
    generator = random.Random(4)
    groups: list[list[Record]] = [
        [change(n, write("a", generator.randbytes(2000)))] for n in range(count)
    ]
    written(home, *groups)
    history = history_of(home, size=size)
    for first in range(1, count + 1):
        history.take(first, before=first + 1)
    return history


def names(home: Path) -> list[int]:
    return [place.first for place in scan(home).segments]


def test_beyond_the_budget_the_oldest_are_dropped(home: Path) -> None:
    history = filled_history(home, size=7000)
    assert history.size > 10_000
    history.trim()
    assert names(home) == [3, 4, 5]
    assert history.size == sum(path.stat().st_size for path in home.iterdir()) < 7000
    assert history.drop_oldest()
    assert names(home) == [4, 5]


def test_a_third_of_what_is_free_is_the_most(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = filled_history(home)

    class Free:
        f_bavail, f_frsize = 10, 1000

    monkeypatch.setattr(os, "statvfs", lambda path: Free)
    history.trim()
    assert names(home) == [5]


def test_an_empty_history_has_nothing_to_drop(home: Path) -> None:
    home.mkdir()
    history = history_of(home)
    assert not history.drop_oldest()
    history.trim()


def test_without_room_older_history_gives_way_and_at_last_the_segment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = filled_history(home)
    (home / name_of(6)).write_bytes(
        encode_header(Header(LINEAGE, 6, 1)) + frame([encode(WRITE)], 6)
    )
    calls = []

    def full(path: Path, content: bytes, *, mode: int) -> None:
        calls.append(path)
        path.with_name(f".{path.name}.new").write_bytes(content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(history_module, "replace_file", full)
    history.take(6, before=7)
    assert len(calls) == 6
    assert os.listdir(home) == []


def test_a_segment_that_can_not_be_rewritten_stays_and_is_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(home, [WRITE])
    content = (home / name_of(1)).read_bytes()

    def broken(path: Path, content: bytes, *, mode: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(history_module, "replace_file", broken)
    with pytest.raises(StoreError, match=f"{name_of(1)} can't be rewritten: Input/output error"):
        history_of(home).take(1, before=2)
    assert (home / name_of(1)).read_bytes() == content


def aged_history(
    home: Path, *ages: int, damaged: Collection[int] = (), now: float = NOW
) -> History:
    """A history of an earlier run with a segment that ended each of *ages* days before NOW."""
    groups: list[list[Record]] = []
    for number, age in enumerate(ages):
        record, time_ns = change(number, write("a", b"x")), NOW_NS - age * DAY * 10**9
        groups.append([record._replace(time_ns=time_ns - 10**9), record._replace(time_ns=time_ns)])
    written(home, *groups)
    for number in range(len(groups)):
        first = 1 + 2 * number
        history_of(home).take(first, before=first + 2)
        if first in damaged:
            path = home / name_of(first)
            path.write_bytes(path.read_bytes()[:-1])
            os.utime(path, ns=(NOW_NS, NOW_NS))
    history = history_of(home, age=180 * DAY, now=now)
    for place in scan(home).segments:
        history.note(place)
    return history


def test_what_is_old_goes_one_segment_at_a_time(home: Path) -> None:
    history = aged_history(home, 300, 181, 179, 0)
    for expected in ([3, 5, 7], [5, 7], [5, 7]):
        history.trim()
        assert names(home) == expected


def test_a_clock_that_jumps_drops_one_segment(home: Path) -> None:
    history = aged_history(home, 3, 2, 1, now=NOW * 2)
    history.trim()
    assert names(home) == [3, 5]


def test_a_segment_without_an_index_is_as_old_as_its_file(home: Path) -> None:
    history = aged_history(home, 300, 300, damaged=[1])
    history.trim()
    assert names(home) == [1, 3]


def test_the_begin_of_the_history_is_that_of_its_oldest_change(home: Path) -> None:
    history = aged_history(home, 2, 1)
    assert history.begin_ns == NOW_NS - 2 * DAY * 10**9 - 10**9
    assert history.drop_oldest()
    assert history.begin_ns == NOW_NS - DAY * 10**9 - 10**9
    assert history.drop_oldest()
    assert history.begin_ns is None


def test_without_limits_only_a_lack_of_room_drops_history(home: Path) -> None:
    aged_history(home, 300, 200)
    history = History(home, private_now=lambda inodes: ())
    for place in scan(home).segments:
        history.note(place)
    history.trim()
    assert names(home) == [1, 3]


# Private content that is to stay.


def test_what_private_files_hold_can_be_kept(home: Path) -> None:
    records: list[Record] = [
        before("priv/a", SECRET, is_private=True),
        change(8, write("priv/a", SECRET)),
    ]
    history = history_of(home, keeps_private=True)
    with journal_with(home, history) as journal:
        journal.append([encode(record) for record in records])
        journal.begin_segment(version=9)
    # Another History, as that of ``pmxcfs checkpoint``, does the same.
    history_of(home).take(1, before=3)
    segment = read(home / name_of(1))
    assert segment.header is not None
    assert segment.header.is_history
    assert segment.header.keeps_private
    assert records_of(segment) == records


def test_a_later_wish_to_keep_it_is_not_for_earlier_segments(home: Path) -> None:
    written(home, [change(8, write("priv/a", SECRET))])
    history_of(home, keeps_private=True).take(1, before=2)
    assert SECRET not in read(home / name_of(1)).content


# Reading what is compressed.


@pytest.fixture
def compressed(home: Path) -> Path:
    rewritten(home, *[change(n, write("a", bytes(100))) for n in range(50)])
    return home / name_of(1)


def test_damage_of_a_compressed_segment_never_makes_a_record(compressed: Path) -> None:
    whole, content = read(compressed), compressed.read_bytes()
    generator = random.Random(5)
    verdicts = set()
    for _ in range(300):
        damaged = bytearray(content)
        if generator.random() < 0.3:
            del damaged[generator.randrange(len(damaged)) :]
        else:
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        compressed.write_bytes(damaged)
        segment = read(compressed)
        verdicts.add(segment.verdict)
        assert segment.records == whole.records[: len(segment.records)]
        segment.later()
    assert verdicts >= {Verdict.DAMAGED, Verdict.FOREIGN}


def test_a_frame_that_grows_without_end_is_cut(compressed: Path) -> None:
    header = encode_header(Header(LINEAGE, 1, 7, HISTORY | COMPRESSED | INDEXED))
    bomb = ZstdCompressor().compress(bytes(200 << 20))
    assert len(bomb) < 1 << 20
    compressed.write_bytes(header + bomb)
    segment = read(compressed)
    assert segment.records == []
    assert segment.verdict is Verdict.DAMAGED
    assert segment.reason.startswith("it has more than")


# Together with the journal.


@contextlib.contextmanager
def journal_with(home: Path, history: History, *, sequence: int = 1) -> Iterator[Journal]:
    journal = Journal.start(home, lineage=LINEAGE, sequence=sequence, version=1, history=history)
    with contextlib.closing(journal):
        yield journal


def test_released_segments_become_history(home: Path) -> None:
    history = history_of(home)
    with journal_with(home, history) as journal:
        for version in range(4):
            journal.make_room(1000, version=version)
            journal.append([encode(change(version, write("priv/a", SECRET)))])
            journal.begin_segment(version=version)
        journal.release(Position(3, HEADER_SIZE, 3))
        headers = [place.header for place in scan(home).segments]
        assert [header and header.is_history for header in headers] == [True] * 2 + [False] * 3
        assert history.size == sum((home / name_of(n)).stat().st_size for n in (1, 2))
        assert journal.size_since(Position(3, HEADER_SIZE, 3)) > 0
    assert SECRET in (home / name_of(3)).read_bytes()
    found = scan(home).segments[0].read()
    assert SECRET not in found.content
    assert len(found.records) == 1


def test_the_history_of_an_earlier_run_counts(home: Path) -> None:
    filled_history(home)
    (home / f".{name_of(3)}.new").write_bytes(b"left by a crash")
    (home / "notes.txt").write_bytes(b"")
    history = history_of(home)
    with journal_with(home, history, sequence=100) as journal:
        assert history.size == sum((home / name_of(n)).stat().st_size for n in range(1, 6))
        assert journal.size_since(Position(100, HEADER_SIZE, 100)) == 0
        assert sorted(os.listdir(home)) == [*map(name_of, [1, 2, 3, 4, 5, 100]), "notes.txt"]


def test_history_gives_way_before_a_change_is_refused(home: Path) -> None:
    history = filled_history(home)
    with journal_with(home, history, sequence=100) as journal, device() as below:
        real = history.drop_oldest

        def drop() -> bool:
            if history.size < 7000:
                below.failures.clear()
            return real()

        below.failures["reserve"] = errno.ENOSPC
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(history, "drop_oldest", drop)
            journal.make_room(8 * SPARE, version=1)
        assert journal.failure is None
        assert names(home) == [4, 5, 100]
        below.failures["reserve"] = errno.ENOSPC
        with pytest.raises(StoreError):
            journal.make_room(16 * SPARE, version=1)
        assert names(home) == [100]


def test_what_can_not_be_released_does_not_keep_the_rest(home: Path) -> None:
    history = history_of(home)
    with journal_with(home, history) as journal:
        for version in range(3):
            journal.make_room(1000, version=version)
            journal.append([encode(Gap(version))])
            journal.begin_segment(version=version)
        (home / name_of(1)).unlink()
        (home / name_of(1)).mkdir()
        with pytest.raises(StoreError, match=f"{name_of(1)} can't be rewritten: Is a directory"):
            journal.release(journal.position)
        headers = [place.header for place in scan(home).segments]
        assert [header and header.is_history for header in headers] == [None, True, True, False]
