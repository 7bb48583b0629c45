"""The inode table: entries, published content, undo, loading, checksums."""

import contextlib
import hashlib
import json
import sqlite3
import struct
import tracemalloc
from collections.abc import Callable

import pytest

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import Failed
from pmxcfs.messages import EntryType, Record
from tests.fakes.data.trees import changed_in
from tests.places import VECTORS

BY = {"writer": 1, "mtime": 1000}
LATER = {"writer": 2, "mtime": 2000}
LARGE = 64 << 10  # bytes; the row of a larger file is given for each change
FOUR_GIB = 1 << 32


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


def make_file(tree: Tree, name: str, parent: Entry | None = None) -> Entry:
    return tree.create(parent or tree.root, name, EntryType.FILE, **BY)


def make_directory(tree: Tree, name: str, parent: Entry | None = None) -> Entry:
    return tree.create(parent or tree.root, name, EntryType.DIRECTORY, **BY)


def stamp_of(entry: Entry) -> tuple[int, int, int]:
    return entry.version, entry.writer, entry.mtime


# Published mutations.


def test_a_fresh_tree_is_a_root_of_version_one(tree: Tree) -> None:
    assert stamp_of(tree.root) == (1, 0, 0)
    assert (tree.root.inode, tree.root.path, tree.root.parent) == (0, "", None)
    assert tree.root.is_directory
    assert tree.root.is_attached
    assert (tree.version, tree.entry_count, tree.content_bytes) == (1, 0, 0)
    assert tree.find("") is tree.find("/") is tree.get(0) is tree.root


def test_a_new_entry_has_the_new_version_as_inode(tree: Tree) -> None:
    directory = make_directory(tree, "d")
    entry = tree.create(directory, "f", EntryType.FILE, **LATER)
    assert (directory.inode, entry.inode) == (2, 3)
    assert stamp_of(entry) == stamp_of(tree.root) == (3, 2, 2000)
    assert stamp_of(directory) == (2, 1, 1000)
    assert (entry.name, entry.parent, entry.path) == ("f", directory, "d/f")
    assert not entry.is_directory
    assert (entry.size, entry.content, entry.stored) == (0, b"", b"")
    assert directory.stored is None
    assert tree.entry_count == 2


@pytest.mark.parametrize(
    ("offset", "data", "truncate", "after"),
    [
        (0, b"XY", False, b"XYcdef"),
        (2, b"XY", False, b"abXYef"),
        (5, b"XY", False, b"abcdeXY"),
        (6, b"XY", False, b"abcdefXY"),
        (8, b"XY", False, b"abcdef\0\0XY"),
        (0, b"XY", True, b"XY"),
        (2, b"XY", True, b"abXY"),
        (8, b"XY", True, b"abcdef\0\0XY"),
        (0, b"", False, b"abcdef"),
        (0, b"", True, b""),
        (3, b"", True, b"abc"),
        (8, b"", True, b"abcdef\0\0"),
        (8, b"", False, b"abcdef\0\0"),
        (3, b"", False, b"abcdef"),
    ],
)
def test_a_write_changes_its_range(
    tree: Tree, file: Entry, offset: int, data: bytes, truncate: bool, after: bytes
) -> None:
    tree.write(file, offset, data, truncate=truncate, **LATER)
    assert file.content == file.stored == file.read(0, 100) == after
    assert file.size == file.visible_size == tree.content_bytes == len(after)
    assert stamp_of(file) == stamp_of(tree.root) == (4, 2, 2000)


def test_whole_contents_are_never_copied(tree: Tree, file: Entry) -> None:
    data = bytes(range(100))
    tree.write(file, 0, data, truncate=True, **BY)
    assert file.content is data
    assert file.read(0, 100) is data


def test_a_read_is_cut_at_the_end(file: Entry) -> None:
    assert file.read(4, 100) == b"ef"
    assert file.read(1, 2) == b"bc"
    assert file.read(6, 1) == file.read(FOUR_GIB - 1, 10) == b""


def test_sparse_content_is_kept_and_the_next_write_starts_empty(tree: Tree) -> None:
    entry = make_file(tree, "f")
    tree.write(entry, 20, b"", truncate=False, **BY)
    assert (entry.size, entry.content, entry.stored) == (20, bytes(20), None)
    assert entry.read(15, 100) == bytes(5)
    assert tree.content_bytes == 20
    fields = struct.pack("<QQIIIBQ", 2, 3, 1, 1000, 20, 8, 0)
    assert tree.entry_checksum(entry) == hashlib.sha256(fields + b"f").digest()
    tree.write(entry, 2, b"x", truncate=False, **BY)
    assert (entry.size, entry.content, entry.stored) == (3, b"\0\0x", b"\0\0x")
    assert tree.content_bytes == 3


def test_an_empty_write_at_offset_zero_empties_sparse_content(tree: Tree) -> None:
    entry = make_file(tree, "f")
    tree.write(entry, 20, b"", truncate=False, **BY)
    tree.write(entry, 0, b"", truncate=False, **BY)
    assert (entry.size, entry.stored) == (0, b"")


def test_a_rename_keeps_the_inode_and_replaces_in_one_version(tree: Tree, file: Entry) -> None:
    directory = make_directory(tree, "d")
    target = make_file(tree, "target", directory)
    tree.write(target, 0, b"old", truncate=True, **BY)
    assert tree.rename(file, directory, "target", **LATER) is target
    assert (file.inode, file.path, file.parent) == (2, "d/target", directory)
    assert stamp_of(file) == stamp_of(tree.root) == (7, 2, 2000)
    assert tree.find("file") is None
    assert (target.is_attached, target.path, target.content) == (False, "d/target", b"old")
    assert tree.get(target.inode) is None
    assert (tree.entry_count, tree.content_bytes) == (2, 6)


def test_a_rename_to_a_free_name_replaces_nothing(tree: Tree, file: Entry) -> None:
    assert tree.rename(file, tree.root, "..", **LATER) is None
    assert tree.find("..") is file


def test_a_removed_entry_keeps_content_and_last_path(tree: Tree, file: Entry) -> None:
    tree.remove(file, **LATER)
    assert (file.is_attached, file.parent, file.path) == (False, None, "file")
    assert file.read(0, 10) == b"abcdef"
    assert stamp_of(file) == (3, 1, 1000)
    assert stamp_of(tree.root) == (4, 2, 2000)
    assert (tree.entry_count, tree.content_bytes) == (0, 0)


def test_the_last_path_survives_the_directory(tree: Tree) -> None:
    directory = make_directory(tree, "d")
    entry = make_file(tree, "f", directory)
    tree.remove(entry, **BY)
    tree.remove(directory, **BY)
    make_file(tree, "d")
    assert entry.path == "d/f"


def test_drop_removes_without_a_new_version(tree: Tree, file: Entry) -> None:
    tree.drop(file)
    assert tree.version == 3
    assert tree.find("file") is None
    assert changed_in(tree) == {file.inode: None}


def test_touch_stamps_only(tree: Tree, file: Entry) -> None:
    tree.touch(file, writer=3, mtime=(1 << 32) - 1)
    assert stamp_of(file) == stamp_of(tree.root) == (4, 3, (1 << 32) - 1)
    assert file.content == b"abcdef"


def test_children_and_lookup(tree: Tree) -> None:
    directory = make_directory(tree, "d")
    first, second = make_file(tree, "a", directory), make_file(tree, "\udcff", directory)
    assert (directory.children(), directory.child_count) == ([first, second], 2)
    assert directory.child("a") is first
    assert directory.child("b") is None
    assert first.child("b") is None
    assert (first.children(), first.child_count) == ([], 0)
    assert tree.find("//d///a/") is first
    assert tree.find("d/a/b") is tree.find("x/a") is None
    assert tree.find_parent("/d//new/") == (directory, "new")
    assert tree.find_parent("d/a/new") == (first, "new")
    assert tree.find_parent("x/y/new") == (None, "new")
    assert tree.find_parent("new") == (tree.root, "new")
    assert tree.find_parent("//") == (None, "")


@pytest.mark.parametrize(
    ("path", "private"),
    [
        ("priv", True),
        ("priv/a", True),
        ("priv/a/b", True),
        ("private", False),
        ("d/priv", False),
        ("nodes/priv", False),
        ("nodes/n", False),
        ("nodes/n/priv", True),
        ("nodes/n/priv/a/b", True),
        ("nodes/n/d/priv", False),
        ("d/nodes/n/priv", False),
        ("x/n/priv", False),
    ],
)
def test_private_follows_from_the_position(tree: Tree, path: str, private: bool) -> None:
    entry = tree.root
    for name in path.split("/"):
        entry = make_directory(tree, name, entry)
    assert entry.private is private
    plain = make_file(tree, "plain")
    tree.rename(plain, entry, "f", **BY)
    assert plain.private is private
    tree.rename(plain, tree.root, "plain", **BY)
    assert plain.private is False


# Operations that the tree refuses.


@pytest.mark.parametrize(
    ("reason", "attempt"),
    [
        (
            "invalid offset or size",
            lambda tree, file: tree.write(file, -1, b"", truncate=False, **BY),
        ),
        (
            "invalid offset or size",
            lambda tree, file: tree.write(file, FOUR_GIB, b"", truncate=False, **BY),
        ),
        (
            "do not fit",
            lambda tree, file: tree.write(file, FOUR_GIB - 1, b"x", truncate=False, **BY),
        ),
        (
            "invalid offset or size",
            lambda tree, file: tree.write(file, 1 << 70, b"", truncate=False, **BY),
        ),
        ("not a file", lambda tree, file: tree.write(tree.root, 0, b"", truncate=False, **BY)),
        ("can't be created", lambda tree, file: tree.create(file, "x", 8, **BY)),
        ("can't be created", lambda tree, file: tree.create(tree.root, "file", 8, **BY)),
        ("can't be created", lambda tree, file: tree.create(tree.root, "", 8, **BY)),
        ("can't be created", lambda tree, file: tree.create(tree.root, "a/b", 8, **BY)),
        ("unknown type", lambda tree, file: tree.create(tree.root, "x", 5, **BY)),
        ("is the root", lambda tree, file: tree.remove(tree.root, **BY)),
        ("is the root", lambda tree, file: tree.drop(tree.root)),
        ("has entries", lambda tree, file: tree.remove(tree.find("full"), **BY)),
        ("has entries", lambda tree, file: tree.rename(tree.find("full"), tree.root, "x", **BY)),
        ("has entries", lambda tree, file: tree.rename(file, tree.root, "full", **BY)),
        ("onto or into itself", lambda tree, file: tree.rename(file, tree.root, "file", **BY)),
        ("can't be created", lambda tree, file: tree.rename(file, tree.root, "", **BY)),
        ("can't be created", lambda tree, file: tree.rename(file, file, "x", **BY)),
        (
            "onto or into itself",
            lambda tree, file: tree.rename(tree.find("empty"), tree.find("empty"), "x", **BY),
        ),
        ("not in the tree", lambda tree, file: tree.touch(Tree().root, **BY)),
        ("not in the tree", lambda tree, file: tree.remove(make_file(Tree(), "f"), **BY)),
        ("not a file", lambda tree, file: tree.write_unpublished(tree.root, 0, b"x", now_ns=1)),
        (
            "invalid offset or size",
            lambda tree, file: tree.write_unpublished(file, -1, b"x", now_ns=1),
        ),
        (
            "do not fit",
            lambda tree, file: tree.write_unpublished(file, FOUR_GIB - 1, b"x", now_ns=1),
        ),
        (
            "invalid offset or size",
            lambda tree, file: tree.truncate_unpublished(file, -1, now_ns=1),
        ),
        (
            "invalid offset or size",
            lambda tree, file: tree.truncate_unpublished(file, FOUR_GIB, now_ns=1),
        ),
        ("not a file", lambda tree, file: tree.truncate_unpublished(tree.root, 0, now_ns=1)),
        ("invalid offset or size", lambda tree, file: file.read(-1, 1)),
        ("invalid offset or size", lambda tree, file: file.read(0, -1)),
    ],
)
def test_an_invalid_operation_is_refused_and_changes_nothing(
    tree: Tree, file: Entry, reason: str, attempt: Callable[[Tree, Entry], object]
) -> None:
    make_file(tree, "f", make_directory(tree, "full"))
    make_directory(tree, "empty")
    tree.mark_written()
    before = tree.checksum()
    with pytest.raises(ValueError, match=reason):
        attempt(tree, file)
    assert tree.checksum() == before
    assert changed_in(tree) == {}
    assert tree.unpublished() == []
    assert tree.unpublished_growth == 0


@pytest.mark.parametrize("stamp", [{"writer": -1, "mtime": 0}, {"writer": 0, "mtime": FOUR_GIB}])
def test_a_stamp_beyond_32_bits_is_refused(tree: Tree, file: Entry, stamp: dict[str, int]) -> None:
    with pytest.raises(OverflowError):
        tree.touch(file, **stamp)
    assert tree.version == 3


def test_the_version_does_not_wrap(tree: Tree) -> None:
    last = (1 << 64) - 1
    tree.load([Record(0, 0, last, 1, 1, 8, b"", None), Record(5, 0, 5, 1, 1, 8, b"f", b"")])
    entry = tree.get(5)
    assert entry is not None
    attempts: list[Callable[[], object]] = [
        lambda: tree.touch(entry, **BY),
        lambda: tree.remove(entry, **BY),
        lambda: tree.write(entry, 0, b"x", truncate=True, **BY),
        lambda: tree.rename(entry, tree.root, "g", **BY),
        lambda: make_file(tree, "x"),
    ]
    for attempt in attempts:
        with pytest.raises(Failed):
            attempt()
    assert (tree.version, entry.path, entry.content) == (last, "f", b"")
    assert changed_in(tree) == {}


def test_an_inode_that_is_in_use_is_not_given_again(tree: Tree) -> None:
    tree.load([Record(2, 0, 1, 1, 1, 8, b"f", b"")])
    entry = tree.get(2)
    assert entry is not None
    with pytest.raises(Failed):
        make_file(tree, "x")
    assert tree.version == 1
    tree.touch(entry, **BY)
    assert make_file(tree, "x").inode == 3


# Writing and undo.


def test_changed_lists_the_changes_since_the_last_write(tree: Tree, file: Entry) -> None:
    assert changed_in(tree) == {}
    made = make_file(tree, "made")
    gone = make_file(tree, "gone")
    tree.remove(gone, **BY)
    assert changed_in(tree) == {made.inode: made, gone.inode: None}
    tree.touch(file, **BY)
    assert list(changed_in(tree)) == [made.inode, gone.inode, file.inode]
    tree.mark_written()
    assert changed_in(tree) == {}
    tree.remove(file, **BY)
    assert changed_in(tree) == {file.inode: None}


def test_a_rollback_restores_everything(tree: Tree, file: Entry) -> None:
    directory = make_directory(tree, "d")
    target = make_file(tree, "target", directory)
    tree.write(target, 0, b"kept", truncate=True, **BY)
    tree.mark_written()
    before = (tree.checksum(), tree.index(), tree.entry_count, tree.content_bytes)
    tree.write(file, 3, b"XYZXYZ", truncate=False, **LATER)
    tree.rename(file, directory, "target", **LATER)
    tree.rename(file, tree.root, "elsewhere", **LATER)
    tree.remove(directory, **LATER)
    made = tree.create(tree.root, "d", EntryType.FILE, **LATER)
    undone = {file: "elsewhere", target: "d/target", directory: "d", made: "d"}
    assert tree.rollback() == undone
    assert (tree.checksum(), tree.index(), tree.entry_count, tree.content_bytes) == before
    assert tree.find("d/target") is target
    assert tree.find("file") is file
    assert (made.is_attached, made.path) == (False, "d")
    assert changed_in(tree) == {}
    assert tree.rollback() == {}


def test_a_rolled_back_inode_is_given_again(tree: Tree) -> None:
    lost = make_file(tree, "lost")
    tree.rollback()
    entry = make_file(tree, "kept")
    assert entry.inode == lost.inode == 2
    assert changed_in(tree) == {2: entry}
    with pytest.raises(ValueError, match="not in the tree"):
        tree.touch(lost, **BY)


def test_a_drop_can_be_rolled_back(tree: Tree, file: Entry) -> None:
    tree.drop(file)
    tree.rollback()
    assert tree.find("file") is file
    assert tree.content_bytes == 6


def before(tree: Tree, segment: int) -> list[tuple[str, bytes]]:
    """Return the name and the content before of each of the rows to be recorded."""
    return [(state[1], state[3]) for _, state in tree.rows_before(segment, LARGE)]


def test_a_row_before_changes_is_given_once_per_segment(tree: Tree, file: Entry) -> None:
    tree.write(file, 0, b"new", truncate=True, **BY)
    make_file(tree, "made")
    assert before(tree, 1) == [("file", b"abcdef")]
    tree.mark_written()
    tree.write(file, 0, b"newer", truncate=True, **BY)
    assert before(tree, 1) == []
    tree.mark_written()
    tree.write(file, 0, b"newest", truncate=True, **BY)
    assert before(tree, 2) == [("file", b"newer")]


def test_a_row_before_is_the_state_at_the_last_write(tree: Tree, file: Entry) -> None:
    directory = make_directory(tree, "priv")
    tree.mark_written()
    stamp = stamp_of(file)
    tree.rename(file, directory, "other", **LATER)
    tree.remove(file, **LATER)
    ((entry, state),) = tree.rows_before(1, LARGE)
    assert entry is file
    assert state == (tree.root, "file", stamp, b"abcdef", 6, False)


def test_a_large_row_before_is_given_until_all_of_it_was_recorded(tree: Tree, file: Entry) -> None:
    tree.write(file, 0, bytes(LARGE + 1), truncate=True, **BY)
    tree.mark_written()
    for is_whole, expected in (False, 1), (True, 1), (True, 0):
        tree.write(file, 0, b"x", truncate=False, **BY)
        assert len(before(tree, 1)) == expected
        file.has_row = is_whole
        tree.mark_written()


def test_a_rolled_back_row_is_given_again(tree: Tree, file: Entry) -> None:
    tree.write(file, 0, b"new", truncate=True, **BY)
    assert before(tree, 1) == [("file", b"abcdef")]
    tree.rollback()
    tree.write(file, 0, b"new", truncate=True, **BY)
    assert before(tree, 1) == [("file", b"abcdef")]


@pytest.mark.parametrize("above", ["d", "priv"])
def test_an_entry_is_rolled_back_whose_directory_was_removed_later(tree: Tree, above: str) -> None:
    directory = make_directory(tree, above)
    inner = make_directory(tree, "inner", directory)
    entry = make_file(tree, "f", inner)
    tree.write(entry, 0, b"kept", truncate=True, **BY)
    tree.mark_written()
    state = (tree.checksum(), tree.index(), tree.entry_count, tree.content_bytes)
    tree.write(entry, 0, b"changed", truncate=True, **LATER)
    for gone in (entry, inner, directory):
        tree.remove(gone, **LATER)
    path = f"{above}/inner"
    undone = {entry: f"{path}/f", inner: path, directory: above}
    assert tree.rollback() == undone
    assert (tree.checksum(), tree.index(), tree.entry_count, tree.content_bytes) == state
    assert (entry.path, entry.content) == (f"{path}/f", b"kept")
    assert [found.private for found in (directory, inner, entry)] == [above == "priv"] * 3
    assert tree.find(f"{path}/f") is entry
    assert tree.get(entry.inode) is entry


def test_an_entry_is_rolled_back_that_was_moved_before_its_directory_was_removed(
    tree: Tree,
) -> None:
    secret, public = make_directory(tree, "priv"), make_directory(tree, "d")
    entry = make_file(tree, "f", secret)
    tree.mark_written()
    state = tree.checksum()
    tree.rename(entry, public, "g", **LATER)
    tree.remove(secret, **LATER)
    made = make_directory(tree, "priv")
    tree.rename(entry, made, "h", **LATER)
    tree.remove(public, **LATER)
    assert tree.rollback()[entry] == "priv/h"
    assert (entry.path, entry.private, secret.is_attached) == ("priv/f", True, True)
    assert not made.is_attached
    assert tree.find("priv") is secret
    assert tree.checksum() == state


def test_a_directory_made_and_removed_in_one_group_is_rolled_back(tree: Tree) -> None:
    directory = make_directory(tree, "priv")
    entry = make_file(tree, "f", directory)
    tree.remove(entry, **BY)
    tree.remove(directory, **BY)
    assert tree.rollback() == {directory: "priv", entry: "priv/f"}
    assert (tree.entry_count, tree.version) == (0, 1)
    assert not directory.is_attached
    assert tree.find("priv") is None


def test_without_undo_there_is_no_rollback() -> None:
    tree = Tree(keep_undo=False)
    entry = make_file(tree, "f")
    with pytest.raises(ValueError, match="no undo"):
        tree.rollback()
    assert changed_in(tree) == {entry.inode: entry}


# Loading.


def test_records_load_in_any_order(tree: Tree) -> None:
    tree.load(
        [
            Record(9, 7, 12, 2, 22, 8, b"key", b"secret"),
            Record(7, 0, 7, 1, 11, 4, b"priv", None),
            Record(0, 0, 13, 3, 33, 8, b"__version__", None),
            Record(8, 0, 8, 1, 11, 8, b"n\xff", None),
        ]
    )
    key, odd = tree.find("priv/key"), tree.find("n\udcff")
    assert key is not None
    assert odd is not None
    assert stamp_of(tree.root) == (13, 3, 33)
    assert (stamp_of(key), key.content, key.private) == ((12, 2, 22), b"secret", True)
    assert (odd.size, odd.private) == (0, False)
    assert (tree.entry_count, tree.content_bytes) == (3, 6)
    assert changed_in(tree) == {}


def record(
    inode: int, parent: int, *, type: int = 4, name: bytes = b"", data: bytes | None = None
) -> Record:
    return Record(inode, parent, 1, 1, 1, type, name or b"n%d" % inode, data)


@pytest.mark.parametrize(
    ("reason", "records"),
    [
        ("missing parent", [record(2, 9)]),
        ("can't be created", [record(2, 0, type=8), record(3, 2)]),
        ("twice", [record(2, 0), record(2, 0, name=b"x")]),
        ("can't be created", [record(2, 0, name=b"x"), record(3, 0, name=b"x")]),
        ("directory cycle", [record(2, 2)]),
        ("directory cycle", [record(2, 3), record(3, 2)]),
        ("unknown type", [record(2, 0, type=5)]),
        ("directory with data", [record(2, 0, data=b"x")]),
        ("can't be created", [record(2, 0, name=b"a/b")]),
        ("can't be created", [Record(2, 0, 1, 1, 1, 8, b"", None)]),
    ],
)
def test_records_that_are_not_a_tree_are_refused(
    tree: Tree, reason: str, records: list[Record]
) -> None:
    with pytest.raises(ValueError, match=reason):
        tree.load(records)


def test_only_an_empty_tree_can_be_loaded(tree: Tree, file: Entry) -> None:
    with pytest.raises(ValueError, match="empty tree"):
        tree.load([])
    assert tree.find("file") is file


def test_a_deep_tree_needs_no_stack() -> None:
    depth = 50_000
    tree = Tree()
    tree.load([record(inode, inode - 1 if inode > 2 else 0) for inode in range(2, depth + 2)])
    entry = tree.get(depth + 1)
    assert entry is not None
    assert entry.path.count("/") == depth - 1
    assert tree.find(entry.path) is entry


@pytest.mark.parametrize("database", ["config_node1.db", "config_node3.db"])
def test_a_database_of_the_original_gives_its_checksum_and_index(tree: Tree, database: str) -> None:
    columns = "inode, parent, version, writer, mtime, type, CAST(name AS BLOB), data"
    uri = f"file:{VECTORS / database}?immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        rows = connection.execute(f"SELECT {columns} FROM tree").fetchall()
    tree.load(Record(*row) for row in rows)
    expected = json.loads((VECTORS / "config_node1.json").read_text())
    assert tree.checksum().hex() == expected["state_checksum_sha256"]
    assert tree.index().hex() == expected["index_hex"]
    sizes = {entry["inode"]: entry["size"] for entry in expected["entries"]}
    assert {inode: entry.size for inode in sizes if (entry := tree.get(inode))} == sizes


def test_an_entry_costs_less_than_400_bytes() -> None:
    names = [f"{number}.conf" for number in range(5000)]
    tree = Tree()
    tracemalloc.start()
    try:
        for name in names:
            tree.create(tree.root, name, EntryType.FILE, writer=1, mtime=1_700_000_000)
        tree.mark_written()
        assert tracemalloc.get_traced_memory()[0] < 400 * len(names)
    finally:
        tracemalloc.stop()
