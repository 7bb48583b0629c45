"""The kernel cache: which notifications each change of the tree needs."""

import pytest

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import StoreError
from pmxcfs.fuse.kernel_cache import KernelCache
from pmxcfs.fuse.node_ids import Handle
from pmxcfs.messages import Create, EntryType, Kind, Mutation, Rename
from pmxcfs.tree.adoption import Reload
from pmxcfs.tree.apply import Change, apply
from pmxcfs.tree.guests import Guests
from pmxcfs.vfs.writeback import OpenFile
from tests.fakes.doubles.kernel import Recorder, Sent


class World:
    """A tree of which the kernel has cached everything but /unknown."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.root = self.tree.root
        self.root.node = 1
        self.known: dict[int, object] = {1: self.root}
        self.handles: dict[int, Handle] = {}
        self.queue = Recorder()
        self.absent: set[tuple[int, bytes]] = set()
        self.cache = KernelCache(
            self.queue,
            self.tree,
            self.known,
            handles=self.handles,
            may_be_absent=lambda parent, name: (parent, name) in self.absent,
        )
        self.priv = self.make(self.root, "priv", directory=True)
        self.file = self.make(self.root, "f")
        self.unknown = self.make(self.root, "unknown", directory=True, known=False)

    def make(
        self, parent: Entry, name: str, *, directory: bool = False, known: bool = True
    ) -> Entry:
        kind = EntryType.DIRECTORY if directory else EntryType.FILE
        entry = self.tree.create(parent, name, kind, writer=1, mtime=1)
        if known:
            entry.node = len(self.known) + 1
            self.known[entry.node] = entry
        return entry

    def tell(self, change: Change, foreign: bool = True) -> list[Sent]:
        """Announce *change*; return the notifications that were queued."""
        self.queue.queued = []
        self.cache.on_change(change, foreign=foreign)
        return self.queue.queued


@pytest.fixture
def world() -> World:
    return World()


def test_a_foreign_write_invalidates_pages_and_entry(world: World) -> None:
    node = world.file.node
    assert world.tell(Change(Kind.WRITE, "f", world.file)) == [
        ("inode", node, True),
        ("entry", 1, b"f", node, True),
    ]


def test_a_foreign_mtime_invalidates_attributes_and_entry(world: World) -> None:
    node = world.file.node
    assert world.tell(Change(Kind.MTIME, "f", world.file)) == [
        ("inode", node, False),
        ("entry", 1, b"f", node, False),
    ]


@pytest.mark.parametrize("kind", [Kind.CREATE, Kind.MKDIR])
def test_a_foreign_creation_invalidates_the_entry(world: World, kind: Kind) -> None:
    made = Change(kind, "f", world.file, directory=world.root)
    assert world.tell(made) == [("entry", 1, b"f", 0, False)]


@pytest.mark.parametrize("kind", [Kind.DELETE, Kind.UNLOCK])
def test_a_foreign_removal_invalidates_the_entry(world: World, kind: Kind) -> None:
    world.tree.remove(world.file, writer=9, mtime=1)
    gone = Change(kind, "f", world.file, source_directory=world.root)
    assert world.tell(gone) == [
        ("entry", 1, b"f", 0, False),
        ("inode", world.file.node, False),  # an open file has no link any more
    ]


def test_an_entry_removed_from_a_directory_that_was_renamed_since_is_invalidated(
    world: World,
) -> None:
    """Changes that are delivered together are announced after all of them are applied."""
    directory = world.make(world.root, "d", directory=True)
    world.tree.rename(directory, world.root, "e", writer=9, mtime=1)
    for change in (
        Change(Kind.DELETE, "d/f", world.file, source_directory=directory),
        Change(Kind.RENAME, "f", world.file, "d/f", source_directory=directory),
    ):
        assert ("entry", directory.node, b"f", 0, False) in world.tell(change)


@pytest.mark.parametrize("kind", [Kind.CREATE, Kind.MKDIR])
def test_a_foreign_creation_invalidates_a_negative_entry(world: World, kind: Kind) -> None:
    new = world.make(world.root, "new", known=False)
    made = Change(kind, "new", new, directory=world.root)
    assert world.tell(made) == []
    world.absent.add((1, b"new"))
    assert world.tell(made) == [("entry", 1, b"new", 0, False)]


def test_a_foreign_removal_invalidates_a_negative_entry(world: World) -> None:
    new = world.make(world.root, "new", known=False)
    world.tree.remove(new, writer=9, mtime=1)
    gone = Change(Kind.DELETE, "new", new, source_directory=world.root)
    assert world.tell(gone) == []
    world.absent.add((1, b"new"))
    assert world.tell(gone) == [("entry", 1, b"new", 0, False)]


def test_a_foreign_rename_invalidates_both_entries_and_the_mode(world: World) -> None:
    world.absent.add((world.priv.node, b"g"))
    world.tree.rename(world.file, world.priv, "g", writer=9, mtime=1)
    priv, node = world.priv.node, world.file.node
    renamed = Change(
        Kind.RENAME, "priv/g", world.file, "f", source_directory=world.root, directory=world.priv
    )
    assert world.tell(renamed) == [
        ("entry", 1, b"f", 0, False),
        ("entry", priv, b"g", 0, False),
        ("inode", node, False),
        ("entry", priv, b"g", node, False),
    ]


def test_an_entry_replaced_by_a_foreign_rename_is_invalidated(world: World) -> None:
    temporary = world.make(world.root, "f.tmp", known=False)
    world.tree.rename(temporary, world.root, "f", writer=9, mtime=1)
    replaced = Change(
        Kind.RENAME,
        "f",
        temporary,
        "f.tmp",
        world.file,
        source_directory=world.root,
        directory=world.root,
    )
    assert world.tell(replaced) == [
        ("entry", 1, b"f", 0, False),
        ("inode", world.file.node, False),
    ]


def apply_together(world: World, *mutations: Mutation) -> list[Sent]:
    """Apply *mutations* of another node, then announce all; return the entries' notifications."""
    guests = Guests()
    changes = [apply(world.tree, guests, mutation, 9, 1) for mutation in mutations]
    return [sent for change in changes for sent in world.tell(change) if sent[0] == "entry"]


def test_an_entry_replaced_twice_at_a_time_is_invalidated(world: World) -> None:
    """The first replacement has no place any more when it is announced."""
    for name in ("first", "second"):
        world.make(world.root, name, known=False)
    sent = apply_together(world, Rename("first", "f"), Rename("second", "f"))
    assert sent == [("entry", 1, b"f", 0, False)]


def test_an_entry_whose_replacement_was_moved_on_is_invalidated(world: World) -> None:
    world.make(world.root, "first", known=False)
    sent = apply_together(world, Rename("first", "f"), Rename("f", "priv/f"))
    assert ("entry", 1, b"f", 0, False) in sent


def test_a_negative_entry_is_invalidated_if_the_new_file_was_moved_on(world: World) -> None:
    world.absent.add((1, b"new"))
    sent = apply_together(world, Create("new"), Rename("new", "priv/new"))
    assert sent[0] == ("entry", 1, b"new", 0, False)


def test_what_an_adopted_tree_lacks_loses_its_links(world: World) -> None:
    hidden = world.make(world.root, "hidden", known=False)
    world.cache.on_reload(Reload([(world.root, "f")], [], [], [world.file, hidden]))
    assert world.queue.queued == [("entry", 1, b"f", 0, False), ("inode", world.file.node, False)]


def test_a_directory_that_is_not_cached_needs_no_notification(world: World) -> None:
    inside = world.make(world.unknown, "f", known=False)
    made = Change(Kind.CREATE, "unknown/f", inside, directory=world.unknown)
    for change in (made, Change(Kind.WRITE, "unknown/f", inside)):
        assert world.tell(change) == []
    gone = Change(Kind.DELETE, "unknown/f", inside, source_directory=world.unknown)
    assert world.tell(gone) == []


def test_a_write_to_a_file_that_is_not_cached_needs_no_notification(world: World) -> None:
    new = world.make(world.root, "new", known=False)
    assert world.tell(Change(Kind.WRITE, "new", new)) == []


@pytest.mark.parametrize("kind", [Kind.CREATE, Kind.MKDIR, Kind.DELETE, Kind.WRITE, Kind.MTIME])
def test_a_local_change_needs_no_notification_beside_the_reply(world: World, kind: Kind) -> None:
    assert world.tell(Change(kind, "f", world.file), foreign=False) == []


def test_a_local_rename_invalidates_the_mode_if_it_changes(world: World) -> None:
    renamed = Change(Kind.RENAME, "g", world.file, "f")
    assert world.tell(renamed, foreign=False) == []
    hidden = Change(Kind.RENAME, "priv/f", world.file, "f")
    assert world.tell(hidden, foreign=False) == [("attributes", [world.file.node])]


def test_a_local_rename_invalidates_the_mtime_if_it_changes(world: World) -> None:
    renamed = Change(Kind.RENAME, "g", world.file, "f", has_new_time=True)
    assert world.tell(renamed, foreign=False) == [("inode", world.file.node, False)]


def test_a_local_unlock_invalidates_the_entry(world: World) -> None:
    world.absent.add((world.priv.node, b"lock"))
    lock = Change(Kind.UNLOCK, "priv/lock", world.file, source_directory=world.priv)
    assert world.tell(lock, foreign=False) == [("entry", world.priv.node, b"lock", 0, False)]


def test_dropped_bytes_invalidate_the_pages(world: World) -> None:
    world.cache.on_displaced(world.file)
    assert world.queue.queued == [("inode", world.file.node, True)]


def test_the_name_of_a_file_that_could_not_be_announced_is_invalidated(world: World) -> None:
    world.cache.on_name_gone(world.root, "new")
    world.cache.on_name_gone(world.unknown, "new")
    assert world.queue.queued == [("entry", 1, b"new", 0, False)]


def test_a_quorum_change_invalidates_every_mode(world: World) -> None:
    world.cache.on_quorum()
    assert world.queue.queued == [("attributes", list(world.known))]


def test_with_epochs_a_quorum_change_invalidates_what_is_used_without_a_look_up(
    world: World,
) -> None:
    """All names first, then directories and open files."""
    opened = world.make(world.root, "open")
    world.handles[7] = OpenFile(opened, append=False, has_created=False)
    world.queue.has_epochs = True
    world.cache.on_quorum()
    first, *others = world.queue.queued
    assert first == ("all entries",)
    nodes = (world.root.node, world.priv.node, opened.node)
    assert sorted(others, key=str) == [("inode", node, False) for node in sorted(nodes)]


def test_a_rollback_invalidates_all_that_may_have_been_cached(world: World) -> None:
    moved = world.make(world.root, "moved")
    world.tree.mark_written()
    world.make(world.root, "new")
    world.tree.write(world.file, 0, b"x", truncate=True, writer=1, mtime=1)
    world.tree.rename(moved, world.root, "other", writer=1, mtime=1)
    world.cache.on_undone(world.tree.rollback(), StoreError("broken"))
    node, parent = world.file.node, world.file.parent
    assert parent is not None
    assert world.queue.queued == [
        ("entry", 1, b"new", 0, False),
        ("inode", node, True),
        ("entry", parent.node, world.file.name.encode(), node, True),
        ("entry", 1, b"other", 0, False),
        ("inode", moved.node, True),
        ("entry", 1, b"moved", moved.node, True),
    ]
