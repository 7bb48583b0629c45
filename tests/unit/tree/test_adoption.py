"""Adoption of the leader's tree: kept objects, drafts, and invalid input."""

import pytest

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import BadMessage, NotFound
from pmxcfs.messages import EntryType, Record, Write
from pmxcfs.replica.tickets import Ticket
from pmxcfs.tree import index
from pmxcfs.tree.adoption import Reload, plan, record_of
from tests.fakes.data.trees import (
    ROOT,
    at,
    changed_in,
    directory,
    file,
    forge,
    found,
    records_of,
    tree_of,
    way_to,
)

NEWER = ROOT._replace(version=60, mtime=2000)


def become(tree: Tree, leader: Tree) -> Reload:
    """Adopt the leader's tree, and check the invariants of every adoption."""
    reload = way_to(tree, leader).apply()
    assert tree.index() == leader.index()
    assert tree.checksum() == leader.checksum()
    assert tree.entry_count == leader.entry_count
    assert tree.content_bytes == leader.content_bytes
    assert tree.version == leader.version
    return reload


def names(reload: Reload) -> set[tuple[str, str]]:
    return {(entry.path, name) for entry, name in reload.names}


# Kept and replaced objects.


def test_nothing_differs() -> None:
    tree = tree_of(file(2, "f", b"x"))
    entry = found(tree, 2)
    assert become(tree, tree_of(file(2, "f", b"x"))) == Reload([], [], [], [])
    assert found(tree, 2) is entry
    assert changed_in(tree) == {}


def test_other_content_at_the_same_path_is_the_same_object() -> None:
    tree = tree_of(directory(2, "d"), file(3, "f", b"old", parent=2))
    entry = found(tree, 3)
    leader = tree_of(directory(2, "d"), file(3, "f", b"newer", parent=2, version=60), root=NEWER)
    assert become(tree, leader) == Reload([], [], [entry], [])
    assert at(tree, "d/f") is entry
    assert (entry.content, entry.version) == (b"newer", 60)
    assert changed_in(tree) == {3: entry}


def test_a_new_mtime_is_an_attribute_change_only() -> None:
    tree = tree_of(directory(2, "d"), file(3, "f", b"x"))
    leader = tree_of(
        directory(2, "d")._replace(mtime=7), file(3, "f", b"x")._replace(mtime=8), root=NEWER
    )
    reload = become(tree, leader)
    assert reload == Reload([], [found(tree, 2), found(tree, 3)], [], [])


def test_a_new_version_alone_is_not_visible() -> None:
    tree = tree_of(file(3, "f", b"x"))
    assert become(tree, tree_of(file(3, "f", b"x", version=9))) == Reload([], [], [], [])


def test_a_new_entry_and_a_deleted_one() -> None:
    tree = tree_of(file(2, "f", b"x"), directory(3, "d"), file(4, "g", b"y", parent=3))
    gone, inside = found(tree, 3), found(tree, 4)
    leader = tree_of(file(2, "f", b"x"), file(51, "new", b"z"), root=NEWER)
    assert names(become(tree, leader)) == {("", "d"), ("d", "g"), ("", "new")}
    assert not gone.is_attached
    assert not inside.is_attached
    assert (gone.path, inside.path, inside.content) == ("d", "d/g", b"y")
    assert gone.children() == []
    assert changed_in(tree) == {3: None, 4: None, 51: found(tree, 51)}


def test_another_inode_at_the_same_path_is_another_object() -> None:
    tree = tree_of(file(2, "f", b"x"))
    entry = found(tree, 2)
    reload = become(tree, tree_of(file(3, "f", b"x"), root=NEWER))
    assert names(reload) == {("", "f")}
    assert not entry.is_attached
    assert at(tree, "f") is not entry


def test_the_same_inode_at_another_path_is_another_object() -> None:
    """A descriptor of the public file must never read the private one."""
    tree = tree_of(directory(2, "priv"), file(3, "f", b"public"))
    public = found(tree, 3)
    leader = tree_of(directory(2, "priv"), file(3, "f", b"secret", parent=2), root=NEWER)
    reload = become(tree, leader)
    assert names(reload) == {("", "f"), ("priv", "f")}
    assert (public.content, public.private, public.is_attached) == (b"public", False, False)
    assert (found(tree, 3).content, found(tree, 3).private) == (b"secret", True)


@pytest.mark.parametrize("swap", [False, True])
def test_the_same_inode_of_another_type_is_another_object(swap: bool) -> None:
    ours = tree_of(file(3, "x", b"data"))
    theirs = tree_of(directory(3, "x"), file(5, "f", parent=3), root=NEWER)
    if swap:
        ours, theirs = theirs, ours
    entry = found(ours, 3)
    become(ours, theirs)
    assert not entry.is_attached
    assert found(ours, 3).type == found(theirs, 3).type


def test_an_entry_below_a_moved_directory_is_another_object() -> None:
    """The record of the entry is unchanged, but the entry becomes private."""
    ours = [file(5, "f", b"x", parent=4), directory(4, "e", parent=3)]
    tree = tree_of(directory(2, "priv"), directory(3, "d"), *ours)
    outside, inside = found(tree, 4), found(tree, 5)
    leader = tree_of(directory(2, "priv"), directory(3, "d", parent=2), *ours, root=NEWER)
    reload = become(tree, leader)
    assert names(reload) == {
        ("", "d"), ("d", "e"), ("d/e", "f"), ("priv", "d"), ("priv/d", "e"), ("priv/d/e", "f")
    }  # fmt: skip
    assert not outside.is_attached
    assert (inside.is_attached, inside.path, inside.private) == (False, "d/e/f", False)
    new = at(tree, "priv/d/e/f")
    assert (new.inode, new.private, new.content) == (5, True, b"x")


def test_an_entry_stays_when_only_the_inode_of_its_directory_changes() -> None:
    tree = tree_of(directory(3, "d"), file(5, "f", b"x", parent=3))
    entry, old = found(tree, 5), found(tree, 3)
    leader = tree_of(directory(4, "d"), file(5, "f", b"x", parent=4), root=NEWER)
    reload = become(tree, leader)
    assert at(tree, "d/f") is entry
    assert at(tree, "d").inode == 4
    assert old.children() == []
    assert [(directory_, name) for directory_, name in reload.names] == [
        (tree.root, "d"),
        (old, "f"),
        (at(tree, "d"), "f"),
    ]


def test_directories_that_swap_places() -> None:
    tree = tree_of(directory(3, "a"), directory(4, "b"), file(5, "f", b"x", parent=3))
    leader = tree_of(directory(3, "b"), directory(4, "a"), file(5, "f", b"x", parent=3), root=NEWER)
    become(tree, leader)
    assert at(tree, "b/f").content == b"x"
    assert at(tree, "a").children() == []


def test_a_parent_and_its_child_that_swap() -> None:
    tree = tree_of(directory(3, "a"), directory(4, "b", parent=3))
    leader = tree_of(directory(4, "a"), directory(3, "b", parent=4), root=NEWER)
    become(tree, leader)
    assert (at(tree, "a").inode, at(tree, "a/b").inode) == (4, 3)


def test_a_whole_tree_and_back() -> None:
    records = [directory(2, "d"), directory(3, "e", parent=2), file(4, "f", b"x", parent=3)]
    tree = tree_of(root=ROOT._replace(version=1))
    become(tree, tree_of(*records))
    tree.mark_written()
    become(tree, tree_of(root=NEWER))
    assert changed_in(tree) == {2: None, 3: None, 4: None}


def test_only_changed_directories_get_a_new_listing_version() -> None:
    tree = tree_of(directory(2, "d"), directory(3, "e"))
    before = [found(tree, inode).listing_version for inode in (0, 2, 3)]
    leader = tree_of(directory(2, "d"), directory(3, "e"), file(9, "f", parent=2), root=NEWER)
    become(tree, leader)
    after = [found(tree, inode).listing_version for inode in (0, 2, 3)]
    assert [one != other for one, other in zip(before, after, strict=True)] == [False, True, False]


# Drafts.


def write_draft(tree: Tree, entry: Entry, offset: int, data: bytes) -> None:
    tree.write_unpublished(entry, offset, data, now_ns=1)


def test_the_draft_of_a_kept_entry_lies_over_the_new_content() -> None:
    tree = tree_of(file(2, "f", b"abcdef"))
    entry = found(tree, 2)
    write_draft(tree, entry, 1, b"XX")
    become(tree, tree_of(file(2, "f", b"ABCDEFGH", version=9), root=NEWER))
    assert entry.read(0, 99) == b"AXXDEFGH"
    assert tree.unpublished() == [entry]
    assert tree.unpublished_growth == 0
    taken = tree.take_unpublished(entry)
    assert taken == (1, b"XX", False)


def test_the_draft_of_a_detached_entry_is_not_published_into_another() -> None:
    tree = tree_of(file(2, "f", b"abc"))
    entry = found(tree, 2)
    write_draft(tree, entry, 3, b"mine")
    become(tree, tree_of(directory(3, "d"), file(2, "f", b"other", parent=3), root=NEWER))
    assert entry.read(0, 99) == b"abcmine"
    assert at(tree, "d/f").read(0, 99) == b"other"
    with pytest.raises(NotFound):
        Ticket(Write("f", 3, b"mine", truncate=False), target=entry).with_current_path(tree)
    tree.discard_unpublished(entry)
    assert tree.unpublished_growth == 0


def test_sparse_content_is_adopted() -> None:
    leader = tree_of(file(2, "f"), file(3, "zeros", bytes(4)))
    leader.write(found(leader, 2), 9, b"", truncate=False, writer=1, mtime=7)
    tree = tree_of()
    adoption = way_to(tree, leader)
    assert adoption.stored(2).data is None
    assert adoption.stored(3).data == bytes(4)
    become(tree, leader)
    assert found(tree, 2).size == 9
    assert found(tree, 2).stored is None
    tree.write(found(tree, 2), 0, b"x", truncate=False, writer=1, mtime=8)
    assert found(tree, 2).content == b"x"


def test_sparse_content_moves_with_its_directory() -> None:
    sparse = file(4, "f", parent=3)
    tree = tree_of(directory(3, "d"), sparse)
    leader = tree_of(directory(3, "e"), sparse, root=NEWER)
    for each in (tree, leader):
        each.write(found(each, 4), 9, b"", truncate=False, writer=1, mtime=7)
    ours, theirs = found(tree, 4), found(leader, 4)
    while tree.version < leader.version:
        tree.touch(ours, writer=1, mtime=7)
    assert tree.entry_checksum(ours) == leader.entry_checksum(theirs)
    become(tree, leader)
    assert (at(tree, "e/f").size, at(tree, "e/f").stored) == (9, None)
    assert at(tree, "e/f") is not ours


# Invalid input.


OURS = (directory(2, "d"), file(3, "f", b"x", parent=2), file(4, "g", b"y"), directory(5, "e"))
LOOP = [directory(2, "d", parent=5), directory(5, "e", parent=2)]
HOSTILE: dict[str, list[Record]] = {
    "a missing directory": [*OURS, file(9, "x", parent=8)],
    "a file with entries": [*OURS, file(9, "x", parent=4)],
    "its own directory": [*OURS, directory(9, "x", parent=9)],
    "a cycle": [*LOOP, file(3, "f", b"x", parent=2), OURS[2]],
    "a cycle of new ones": [*OURS, directory(8, "x", parent=9), directory(9, "y", parent=8)],
    "a directory that leaves its entry": list(OURS[1:]),
    "a directory that becomes a file": [file(2, "d"), *OURS[1:]],
    "one name twice": [*OURS, file(8, "x"), file(9, "x")],
    "the name of one that stays": [*OURS, file(9, "g")],
    "no name": [*OURS, file(9, "")],
    "a path for a name": [*OURS, file(9, "a/b")],
    "a name with NUL": [*OURS, file(9, "a\0b")],
    "an unknown type": [*OURS, file(9, "x")._replace(type=10)],
    "a directory with content": [*OURS, directory(9, "x")._replace(data=b"x")],
    "a file that is too large": [*OURS, file(9, "x", bytes(1 << 20) + b"x")],
}


@pytest.mark.parametrize("records", HOSTILE.values(), ids=HOSTILE)
def test_an_invalid_tree_is_refused(records: list[Record]) -> None:
    tree = tree_of(*OURS)
    before = tree.index()
    everything = [NEWER, *records]
    with pytest.raises(BadMessage):
        plan(tree, forge(everything), everything)
    changed = [record for record in everything if record not in OURS]
    with pytest.raises(BadMessage):
        plan(tree, forge(everything), changed)
    assert tree.index() == before
    assert changed_in(tree) == {}


@pytest.mark.parametrize(
    "root",
    [
        NEWER._replace(type=EntryType.FILE),
        NEWER._replace(name=b"x"),
        NEWER._replace(parent=2),
        NEWER._replace(data=b"x"),
    ],
    ids=["file", "named", "placed", "content"],
)
def test_an_invalid_root_is_refused(root: Record) -> None:
    with pytest.raises(BadMessage):
        plan(tree_of(*OURS), forge([root, *OURS]), [root])


def test_an_entry_that_was_not_sent_is_an_error() -> None:
    tree, leader = tree_of(*OURS), tree_of(*OURS, file(9, "new"), root=NEWER)
    sent = records_of(leader, [0, 9])
    for records in ([], sent[:1], sent[1:]):
        with pytest.raises(BadMessage, match="were not sent"):
            plan(tree, leader.index(), records)
    plan(tree, leader.index(), sent)


def test_a_record_must_match_the_index() -> None:
    tree, leader = tree_of(*OURS), tree_of(*OURS, file(9, "new", b"x"), root=NEWER)
    root, new = records_of(leader, [0, 9])
    for wrong in (
        new._replace(parent=2),
        new._replace(version=2),
        new._replace(writer=2),
        new._replace(mtime=2),
        new._replace(type=EntryType.DIRECTORY),
        new._replace(name=b"other"),
        new._replace(data=b"y"),
        new._replace(data=None),
    ):
        with pytest.raises(BadMessage, match="differs from"):
            plan(tree, leader.index(), [root, wrong])


def test_a_duplicate_or_unknown_record_is_refused() -> None:
    tree, leader = tree_of(*OURS), tree_of(*OURS, file(9, "new", b"x"), root=NEWER)
    sent = records_of(leader, [0, 9])
    for extra in (sent[1], file(10, "more")):
        with pytest.raises(BadMessage, match="twice, or is not"):
            plan(tree, leader.index(), [*sent, extra])


def test_an_unchanged_record_that_was_sent_changes_nothing() -> None:
    tree, leader = tree_of(*OURS), tree_of(*OURS, file(9, "new", b"x"), root=NEWER)
    entry = found(tree, 4)
    plan(tree, leader.index(), records_of(leader, [0, 2, 3, 4, 5, 9])).apply()
    assert tree.index() == leader.index()
    assert found(tree, 4) is entry
    assert set(changed_in(tree)) == {9}


@pytest.mark.parametrize(
    "root",
    [ROOT._replace(version=77), ROOT._replace(writer=77), ROOT._replace(mtime=77)],
    ids=["version", "writer", "mtime"],
)
def test_the_header_must_match_the_root(root: Record) -> None:
    tree = tree_of(*OURS)
    other = tree_of(*OURS, root=root).index()
    forged = other[: index.HEADER.size] + tree.index()[index.HEADER.size :]
    with pytest.raises(BadMessage, match="contradicts its root"):
        plan(tree, forged, [])


def test_names_that_delivery_can_make_are_legal() -> None:
    odd = [file(8, "."), file(9, ".."), file(10, "x" * 1024), file(11, "y" * 5000)]
    tree, leader = tree_of(*OURS), tree_of(*OURS, *odd, root=NEWER)
    become(tree, leader)
    assert record_of(found(tree, 11)) == odd[-1]
