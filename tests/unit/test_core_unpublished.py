"""Drafts: visible content, dirty ranges, writebacks, and changes of other nodes meanwhile."""

from typing import Any

import pytest

from pmxcfs._content import Unpublished
from pmxcfs._core import Entry, Tree
from pmxcfs.messages import EntryType
from tests.fakes.data.trees import changed_in

BY = {"writer": 1, "mtime": 1000}
LATER = {"writer": 2, "mtime": 2000}


@pytest.fixture
def tree() -> Tree:
    return Tree()


@pytest.fixture
def file(tree: Tree) -> Entry:
    """A file that holds ``abcdef``."""
    entry = make_file(tree, "file")
    tree.write(entry, 0, b"abcdef", truncate=False, **BY)
    tree.mark_written()
    return entry


def make_file(tree: Tree, name: str) -> Entry:
    return tree.create(tree.root, name, EntryType.FILE, **BY)


def write(tree: Tree, entry: Entry, offset: int, data: bytes, *, now_ns: int = 1) -> None:
    tree.write_unpublished(entry, offset, data, now_ns=now_ns)


def truncate(tree: Tree, entry: Entry, size: int, *, now_ns: int = 1) -> None:
    tree.truncate_unpublished(entry, size, now_ns=now_ns)


def publish(tree: Tree, entry: Entry, taken: Unpublished | None) -> None:
    """Apply a writeback's WRITE and end the writeback."""
    assert taken is not None
    tree.write(entry, taken.offset, taken.data, truncate=taken.truncate, **LATER)
    tree.finish_unpublished(entry)


def test_dirty_bytes_are_visible_but_not_published(tree: Tree, file: Entry) -> None:
    before = tree.checksum()
    write(tree, file, 8, b"xy")
    assert (file.read(0, 100), file.visible_size) == (b"abcdef\0\0xy", 10)
    assert (file.read(7, 2), file.read(9, 9), file.read(10, 1)) == (b"\0x", b"y", b"")
    assert (file.content, file.size, tree.content_bytes) == (b"abcdef", 6, 6)
    assert tree.unpublished_growth == 4
    assert tree.checksum() == before
    assert changed_in(tree) == {}


def test_what_an_open_has_cut_off_is_read_until_something_follows(tree: Tree, file: Entry) -> None:
    tree.truncate_unpublished(file, 0, now_ns=1, opening=True)
    tree.truncate_unpublished(file, 0, now_ns=1, opening=True)  # another open
    assert (file.read(0, 100), file.read(6, 100), file.visible_size) == (b"abcdef", b"", 0)
    write(tree, file, 1, b"x")
    assert (file.read(0, 100), file.visible_size) == (b"\0x", 2)
    tree.truncate_unpublished(file, 0, now_ns=1, opening=True)
    publish(tree, file, tree.take_unpublished(file))
    assert (file.read(0, 100), file.content) == (b"", b"")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(write, 1, b"X")], Unpublished(1, b"X", False)),
        ([(write, 4, b"X"), (write, 1, b"Y")], Unpublished(1, b"YcdX", False)),
        ([(write, 8, b"X")], Unpublished(6, b"\0\0X", False)),
        ([(truncate, 8)], Unpublished(6, b"\0\0", False)),
        ([(truncate, 8), (write, 1, b"X")], Unpublished(1, b"Xcdef\0\0", False)),
        ([(truncate, 0)], Unpublished(0, b"", True)),
        ([(truncate, 6)], Unpublished(0, b"abcdef", True)),
        ([(truncate, 2), (truncate, 4)], Unpublished(0, b"ab\0\0", True)),
        ([(write, 5, b"XYZ"), (truncate, 1)], Unpublished(0, b"a", True)),
        ([(truncate, 0), (write, 0, b"new"), (write, 3, b"er")], Unpublished(0, b"newer", True)),
        ([(truncate, 0), (write, 2, b"x")], Unpublished(0, b"\0\0x", True)),
    ],
)
def test_a_publication_is_the_smallest_range_or_everything(
    tree: Tree, file: Entry, steps: list[tuple[Any, ...]], expected: Unpublished
) -> None:
    for step, *arguments in steps:
        step(tree, file, *arguments)
    seen = file.read(0, 100)
    taken = tree.take_unpublished(file)
    assert taken == expected
    publish(tree, file, taken)
    assert file.content == file.read(0, 100) == seen
    assert tree.unpublished_growth == 0
    assert tree.take_unpublished(file) is None


def test_an_empty_write_changes_nothing(tree: Tree, file: Entry) -> None:
    write(tree, file, 100, b"")
    assert not file.has_unpublished
    assert tree.take_unpublished(file) is None
    assert file.visible_size == 6


def test_dirty_files_are_listed_oldest_first(tree: Tree) -> None:
    assert tree.unpublished() == []
    first, second, third = (make_file(tree, name) for name in "abc")
    write(tree, first, 0, b"x", now_ns=10)
    write(tree, third, 0, b"x", now_ns=20)
    truncate(tree, second, 0, now_ns=25)
    write(tree, first, 1, b"x", now_ns=30)
    assert tree.unpublished() == [first, third, second]
    assert [entry.unpublished_since_ns for entry in (first, third, second)] == [10, 20, 25]
    tree.take_unpublished(first)
    assert first.unpublished_since_ns == 0
    assert tree.unpublished() == [third, second]
    write(tree, first, 0, b"y", now_ns=40)
    assert tree.unpublished() == [third, second, first]


def test_bytes_in_flight_stay_visible_and_later_ones_wait(tree: Tree, file: Entry) -> None:
    write(tree, file, 0, b"X")
    taken = tree.take_unpublished(file)
    assert (file.has_unpublished, file.read(0, 9)) == (False, b"Xbcdef")
    write(tree, file, 5, b"Y")
    assert (file.has_unpublished, file.read(0, 9)) == (True, b"XbcdeY")
    publish(tree, file, taken)
    assert (file.content, file.read(0, 9)) == (b"Xbcdef", b"XbcdeY")
    assert tree.take_unpublished(file) == Unpublished(5, b"Y", False)


def test_a_change_of_another_node_shows_outside_of_dirty_ranges(tree: Tree, file: Entry) -> None:
    write(tree, file, 0, b"X")
    taken = tree.take_unpublished(file)
    write(tree, file, 4, b"Y")
    tree.write(file, 0, b"123456789", truncate=True, **LATER)
    assert file.read(0, 99) == b"X234Y6789"
    publish(tree, file, taken)
    assert (file.content, file.read(0, 99)) == (b"X23456789", b"X234Y6789")
    tree.write(file, 0, b"-", truncate=True, **LATER)
    assert file.read(0, 99) == b"-\0\0\0Y"
    assert tree.unpublished_growth == 4
    publish(tree, file, tree.take_unpublished(file))
    assert file.content == b"-\0\0\0Y"


def test_a_redirtied_range_is_taken_again(tree: Tree, file: Entry) -> None:
    write(tree, file, 1, b"XY", now_ns=7)
    tree.take_unpublished(file)
    write(tree, file, 4, b"Z")
    tree.write(file, 0, b"123456789", truncate=True, **LATER)
    tree.redirty_unpublished(file, 9)
    assert (file.read(0, 99), file.unpublished_since_ns) == (b"1XY4Z6789", 1)
    publish(tree, file, tree.take_unpublished(file))
    assert file.content == b"1XY4Z6789"
    tree.redirty_unpublished(file, 9)
    assert not file.has_unpublished


def test_bytes_that_were_cut_off_are_not_redirtied(tree: Tree, file: Entry) -> None:
    write(tree, file, 6, b"long")
    tree.take_unpublished(file)
    truncate(tree, file, 2)
    tree.redirty_unpublished(file, 9)
    assert tree.take_unpublished(file) == Unpublished(0, b"ab", True)


def test_discarded_bytes_are_not_redirtied(tree: Tree, file: Entry) -> None:
    write(tree, file, 0, b"X", now_ns=1)
    tree.take_unpublished(file)
    tree.discard_unpublished(file)
    tree.redirty_unpublished(file, 9)
    assert (file.has_unpublished, file.read(0, 9)) == (False, b"abcdef")


def test_a_truncated_file_ignores_changes_of_other_nodes(tree: Tree, file: Entry) -> None:
    truncate(tree, file, 0)
    write(tree, file, 0, b"mine")
    tree.write(file, 0, b"theirs", truncate=True, **LATER)
    assert file.read(0, 99) == b"mine"
    taken = tree.take_unpublished(file)
    tree.write(file, 0, b"theirs again", truncate=True, **LATER)
    assert file.read(0, 99) == b"mine"
    publish(tree, file, taken)
    assert file.content == file.read(0, 99) == b"mine"


def test_a_change_between_apply_and_finish_is_seen_afterwards(tree: Tree, file: Entry) -> None:
    write(tree, file, 0, b"X")
    taken = tree.take_unpublished(file)
    assert taken is not None
    write(tree, file, 5, b"Y")
    tree.write(file, taken.offset, taken.data, truncate=False, **LATER)
    tree.write(file, 0, b"1", truncate=False, **LATER)
    tree.finish_unpublished(file)
    assert file.read(0, 99) == b"1bcdeY"


def test_finishing_may_come_just_before_applying(tree: Tree, file: Entry) -> None:
    write(tree, file, 0, b"X")
    taken = tree.take_unpublished(file)
    assert taken is not None
    tree.finish_unpublished(file)
    assert file.read(0, 99) == b"abcdef"
    tree.write(file, taken.offset, taken.data, truncate=False, **LATER)
    assert file.read(0, 99) == b"Xbcdef"


def test_two_writes_in_flight_end_in_order(tree: Tree, file: Entry) -> None:
    write(tree, file, 0, b"X")
    first = tree.take_unpublished(file)
    truncate(tree, file, 3)
    second = tree.take_unpublished(file)
    assert second == Unpublished(0, b"Xbc", True)
    publish(tree, file, first)
    assert (file.content, file.read(0, 9)) == (b"Xbcdef", b"Xbc")
    publish(tree, file, second)
    assert file.content == file.read(0, 9) == b"Xbc"


def test_discarding_drops_everything_and_a_late_finish_is_harmless(tree: Tree, file: Entry) -> None:
    write(tree, file, 0, b"X")
    tree.take_unpublished(file)
    write(tree, file, 10, b"Y")
    tree.discard_unpublished(file)
    assert (file.read(0, 99), file.has_unpublished, tree.unpublished()) == (b"abcdef", False, [])
    assert tree.unpublished_growth == 0
    tree.finish_unpublished(file)
    tree.discard_unpublished(file)
    write(tree, file, 1, b"Z")
    tree.finish_unpublished(file)
    assert tree.take_unpublished(file) == Unpublished(1, b"Z", False)


def test_a_rollback_keeps_unpublished_bytes_over_the_old_content(tree: Tree, file: Entry) -> None:
    write(tree, file, 1, b"X")
    tree.write(file, 0, b"123456789", truncate=True, **LATER)
    tree.rollback()
    assert (file.content, file.read(0, 99)) == (b"abcdef", b"aXcdef")
    assert tree.take_unpublished(file) == Unpublished(1, b"X", False)


def test_a_removed_file_can_still_be_written_through_an_open_handle(
    tree: Tree, file: Entry
) -> None:
    write(tree, file, 0, b"X")
    tree.remove(file, **LATER)
    write(tree, file, 6, b"Y")
    assert file.read(0, 99) == b"XbcdefY"
    assert tree.unpublished() == [file]
    tree.discard_unpublished(file)
    assert (file.read(0, 99), tree.unpublished_growth) == (b"abcdef", 0)


def test_an_orphan_is_never_published(tree: Tree, file: Entry) -> None:
    write(tree, file, 6, b"X")
    tree.remove(file, **LATER)
    tree.orphan(file)
    write(tree, file, 7, b"Y")
    assert (file.read(0, 99), file.has_draft, file.has_unpublished) == (b"abcdefXY", True, False)
    assert tree.take_unpublished(file) is None
    assert (tree.unpublished(), tree.unpublished_growth) == ([], 0)
    tree.discard_unpublished(file)
    assert (file.has_draft, tree.unpublished_growth) == (False, 0)


def test_a_write_in_flight_of_an_orphan_may_end(tree: Tree, file: Entry) -> None:
    write(tree, file, 6, b"X")
    tree.take_unpublished(file)
    write(tree, file, 7, b"Y")
    tree.remove(file, **LATER)
    tree.orphan(file)
    tree.finish_unpublished(file)
    assert tree.unpublished_growth == 0


def test_a_write_to_sparse_content_publishes_the_whole_file(tree: Tree) -> None:
    entry = make_file(tree, "f")
    tree.write(entry, 6, b"", truncate=False, **LATER)
    write(tree, entry, 1, b"x")
    taken = tree.take_unpublished(entry)
    assert taken == Unpublished(0, b"\0x\0\0\0\0", True)
    publish(tree, entry, taken)
    assert entry.content == b"\0x\0\0\0\0"


def test_sparse_content_of_another_node_makes_the_whole_file_dirty(tree: Tree) -> None:
    entry = make_file(tree, "f")
    write(tree, entry, 1, b"x")
    tree.write(entry, 4, b"", truncate=False, **LATER)
    assert entry.read(0, 9) == b"\0x\0\0"
    assert tree.take_unpublished(entry) == Unpublished(0, b"\0x\0\0", True)


def test_redirtied_bytes_over_sparse_content_make_the_whole_file_dirty(tree: Tree) -> None:
    entry = make_file(tree, "f")
    write(tree, entry, 1, b"x")
    tree.take_unpublished(entry)
    tree.write(entry, 4, b"", truncate=False, **LATER)
    tree.redirty_unpublished(entry, 1)
    assert entry.read(0, 9) == b"\0x\0\0"
    assert tree.take_unpublished(entry) == Unpublished(0, b"\0x\0\0", True)
