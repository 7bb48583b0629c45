"""The start after a kill that left records in memory: they count as if they had been written."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmxcfs.errors import StoreError
from pmxcfs.messages import Create, Mkdir, Record
from pmxcfs.storage import segments
from pmxcfs.storage.create import making
from pmxcfs.storage.database import whole_batch
from pmxcfs.storage.fold import fold
from pmxcfs.storage.journal_reader import JournalFiles
from pmxcfs.storage.kept_copies import kept_copies
from pmxcfs.storage.kept_journals import read_kept_tree
from pmxcfs.storage.mark import Position
from pmxcfs.storage.path_search import search_path
from pmxcfs.storage.recovery import inspect, recover, settle
from pmxcfs.storage.schema import entries
from tests.conftest import ExpectLog
from tests.fakes.doubles.journals import JournalingNode, content, restart, write
from tests.fakes.doubles.memory import file_for, in_memory, stage_tail
from tests.fakes.doubles.store import contents_of, stored

NOW = 1_795_000_000
OTHER = r"the database is not the one that the journal goes on from, .*; they are kept as .*"
ONLY = "changed in the journal only: "


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path) -> Iterator[None]:
    with in_memory(tmp_path / "memory"):
        yield


def test_staged_changes_are_replayed_and_then_in_the_segment(
    node: JournalingNode, journal: Path
) -> None:
    found = node.save()
    node.change(Mkdir("d"))
    offset = node.position.offset
    node.change(Create("d/f"), write("d/f"))
    whole = node.segment.read_bytes()
    staged = stage_tail(node.segment, offset)
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(node.tree)
    assert (recovered.replayed, recovered.sequence) == (3, node.sequence)
    assert staged.exists()  # nothing is written by a look
    later = restart(recovered, journal)
    assert not staged.exists()
    assert (journal / "0000000000000001.log").read_bytes() == whole
    later.change(Create("d/g"))
    assert content(recover(found, journal).tree) == content(later.tree)


def test_a_crash_while_it_is_written_into_the_segment_loses_nothing(
    node: JournalingNode, journal: Path
) -> None:
    found = node.save()
    offset = node.position.offset
    node.change(Create("f"), write("f"), Create("g"))
    whole = node.segment.read_bytes()
    staged = stage_tail(node.segment, offset)
    for end in range(offset, len(whole) + 1, 7):
        node.segment.write_bytes(whole[:end])
        assert content(recover(found, journal).tree) == content(node.tree)
    assert staged.exists()


def test_it_stays_in_memory_while_the_segment_can_not_be_written(
    node: JournalingNode, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = node.save()
    offset = node.position.offset
    node.change(Create("f"))
    staged = stage_tail(node.segment, offset)

    def refuse(*args: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(StoreError, match="Read-only file system"):
            settle(recover(found, journal), journal, now=NOW)
    assert staged.exists()
    settle(recover(found, journal), journal, now=NOW)
    assert not staged.exists()
    assert content(recover(found, journal).tree) == content(node.tree)


def test_a_later_segment_does_not_hide_it(node: JournalingNode, journal: Path) -> None:
    """A flush failed, and the next segment began before the tree was saved."""
    found = node.save()
    offset, first = node.position.offset, node.segment
    node.change(Create("f"), Create("g"))
    stage_tail(first, offset)
    node.begin_segment()
    node.change(Create("h"))
    assert content(recover(found, journal).tree) == content(node.tree)


def test_of_another_database_it_is_kept_with_the_rest(
    node: JournalingNode, journal: Path, expect_log: ExpectLog
) -> None:
    found = node.save()
    node.change(Create("f"))
    node.save()
    offset = node.position.offset
    node.change(Create("g"))
    stage_tail(node.segment, offset)
    expect_log(OTHER)
    expect_log(ONLY + "f")
    expect_log(ONLY + "g")
    recovered = recover(found, journal)
    assert recovered.sequence == node.sequence
    restart(recovered, journal)
    (copy,) = kept_copies(journal.parent)
    assert sorted(entry.path for entry in entries(read_kept_tree(copy.path).tree)) == ["f", "g"]
    assert not file_for(journal).exists()


def test_the_next_number_is_above_what_is_staged(node: JournalingNode, journal: Path) -> None:
    offset = node.position.offset
    node.change(Create("f"), Create("g"))
    stage_tail(node.segment, offset)
    assert JournalFiles(journal).next_sequence == node.sequence


def test_history_is_not_touched(node: JournalingNode, journal: Path) -> None:
    node.change(Create("f"))
    offset = node.position.offset
    node.change(Create("g"))
    stage_tail(node.segment, offset)
    header = segments.Header(node.lineage, 1, 1, segments.HISTORY)
    raw = segments.encode_header(header) + node.segment.read_bytes()[segments.HEADER_SIZE :]
    node.segment.write_bytes(raw)
    assert segments.read(node.segment).content == raw


# Commands without a daemon.


@pytest.fixture
def database(tmp_path: Path, node: JournalingNode) -> Path:
    """A database, and its node with a file ``f`` that only memory has."""
    path = tmp_path / "config.db"
    with making(path, now=1) as made:
        made.save(whole_batch(node.tree), None)
    node.save_into(path)
    offset = node.position.offset
    node.change(Create("f"), write("f", b"in memory"))
    stage_tail(node.segment, offset)
    return path


def test_a_look_at_the_database_shows_it(database: Path) -> None:
    assert contents_of(inspect(database).tree) == {"f": b"in memory"}


def test_the_history_of_a_path_has_it(database: Path, journal: Path) -> None:
    assert [*search_path(journal, b"f")]


def test_a_fold_writes_it_into_the_database(database: Path, journal: Path) -> None:
    assert fold(database, now=NOW).replayed == 2
    assert contents_of(stored(database)) == {"f": b"in memory"}
    assert not file_for(journal).exists()
    assert fold(database, now=NOW).replayed == 0


def test_a_copy_of_the_directory_has_what_was_written(
    database: Path, journal: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    (copy / "journal").mkdir(parents=True)
    for path in (database, *journal.iterdir()):
        (copy / path.relative_to(tmp_path)).write_bytes(path.read_bytes())
    assert contents_of(inspect(copy / "config.db").tree) == {}


# Damage.

mutations = st.one_of(
    st.builds(Create, st.sampled_from("abc")),
    st.builds(write, st.sampled_from("abc"), st.binary(max_size=9)),
)
steps = st.lists(mutations, max_size=8)
damages = st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=70)), max_size=3)


def damage(path: Path, places: list[tuple[int, bytes]], cut: int | None) -> None:
    raw = bytearray(path.read_bytes())
    for offset, data in places:
        raw[offset : offset + len(data)] = data
    path.write_bytes(raw[:cut])


@given(
    before=steps,
    staged=steps,
    flushed=st.integers(0, 400),
    in_memory_file=damages,
    in_segment=damages,
    cut=st.one_of(st.none(), st.integers(0, 400)),
)
def test_any_damage_gives_a_state_that_was_there(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[Create],
    staged: list[Create],
    flushed: int,
    in_memory_file: list[tuple[int, bytes]],
    in_segment: list[tuple[int, bytes]],
    cut: int | None,
) -> None:
    with contextlib.ExitStack() as stack:
        directory = tmp_path_factory.mktemp("state")
        stack.enter_context(in_memory(directory / "memory"))
        journal = directory / "journal"
        node = JournalingNode(journal)
        found = node.save()
        states: list[list[Record]] = [list(found.records)]
        position: Position = node.position
        for number, mutation in enumerate([*before, *staged]):
            if number == len(before):
                position = node.position
            node.change(mutation)
            states.append(content(node.tree))
        whole = node.segment.read_bytes()
        file = stage_tail(node.segment, position.offset)
        node.segment.write_bytes(whole[: position.offset + flushed])
        damage(file, in_memory_file, cut)
        damage(node.segment, in_segment, None)
        recovered = recover(found, journal)
        assert content(recovered.tree) in states
        if recovered.left_over is None:
            settle(recovered, journal, now=NOW)
            assert content(recover(found, journal).tree) == content(recovered.tree)
            assert not file.exists()
