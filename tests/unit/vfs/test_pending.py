"""Pending files: what a new file is before it is announced, and with which messages it is."""

from collections.abc import Callable

import pytest

from pmxcfs._core import Entry
from pmxcfs.errors import (
    Busy,
    Denied,
    Exists,
    NoQuorum,
    NoSpace,
    NotADirectory,
    NotEmpty,
    NotFound,
    PmxcfsError,
)
from pmxcfs.messages import (
    Create,
    Delete,
    Mtime,
    Rename,
    Write,
)
from pmxcfs.vfs.writeback import OpenFile
from tests.fakes.doubles.filesystem import World
from tests.fakes.doubles.new_files import begin, close, content, is_free_of_pending, looked_up


@pytest.fixture
def world() -> World:
    made = World()
    made.issuer.is_cluster = True
    return made


# Announcing


def test_a_new_file_is_announced_with_its_content_and_one_wait(world: World) -> None:
    handle = begin(world)
    assert world.issuer.issued == []
    close(world, handle)
    assert world.issuer.issued == [Create("f"), Write("f", 0, b"new", True)]
    assert world.issuer.waits == 1
    assert world.tree.find("f") is handle.entry
    assert is_free_of_pending(world)


def test_the_write_cuts_the_file_only_if_the_open_had_o_trunc(world: World) -> None:
    close(world, begin(world, truncate=False))
    assert world.issuer.issued == [Create("f"), Write("f", 0, b"new", False)]


@pytest.mark.parametrize("truncate", [False, True])
def test_an_empty_file_is_announced_without_a_write(world: World, truncate: bool) -> None:
    handle = begin(world, content=b"", truncate=truncate)
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Create("f")]
    assert is_free_of_pending(world)
    world.files.release(handle)
    assert world.issuer.issued == [Create("f")]


def test_a_shell_closes_a_duplicate_first(world: World) -> None:
    handle = begin(world, content=b"")
    world.files.writeback.flush(handle)
    world.files.write(handle, 0, b"x")
    close(world, handle)
    assert world.issuer.issued == [Create("f"), Write("f", 0, b"x", False)]
    assert world.issuer.waits == 2


def test_a_rename_before_the_close_has_one_wait_for_all(world: World) -> None:
    handle = begin(world, "f.tmp")
    world.make("f")
    world.files.rename(handle.entry, world.tree.root, "f")
    expected = [Create("f.tmp"), Write("f.tmp", 0, b"new", True), Rename("f.tmp", "f")]
    assert world.issuer.issued == expected
    assert world.issuer.waits == 1
    assert world.tree.find("f") is handle.entry
    close(world, handle)
    assert world.issuer.issued == expected
    assert content(world, "f") == b"new"


def test_writes_after_the_announcement_are_published_as_any(world: World) -> None:
    handle = begin(world)
    world.files.writeback.flush(handle)
    world.files.write(handle, 3, b"er")
    close(world, handle)
    assert world.issuer.issued[2:] == [Write("f", 3, b"er", False)]
    assert content(world, "f") == b"newer"


def test_what_is_written_during_the_announcement_is_published_later(world: World) -> None:
    handle = begin(world)
    world.issuer.on_submit = lambda: write_more(world, handle)
    world.files.writeback.flush(handle)
    assert content(world, "f") == b"new"
    assert handle.entry.read(0, 10) == b"newer"
    close(world, handle)
    assert content(world, "f") == b"newer"


def write_more(world: World, handle: OpenFile) -> None:
    world.issuer.on_submit = lambda: None
    world.files.write(handle, 3, b"er")


def announce_by_fsync(world: World, handle: OpenFile) -> None:
    world.files.writeback.fsync(handle)
    assert world.issuer.syncs == 1


def announce_by_touching(world: World, handle: OpenFile) -> None:
    world.files.utime(handle.entry, 7)
    assert world.issuer.issued.pop() == Mtime("f", 7)


def announce_by_cutting(world: World, handle: OpenFile) -> None:
    world.files.truncate(handle.entry, 3, handle=None)


def announce_by_time(world: World, handle: OpenFile) -> None:
    assert world.pass_time() == 0


def announce_by_stopping(world: World, handle: OpenFile) -> None:
    world.files.writeback.publish_all()


def announce_by_another_writer(world: World, handle: OpenFile) -> None:
    other = world.open(handle.entry)
    world.files.write(other, 0, b"n")
    close(world, other)


@pytest.mark.parametrize(
    "announce",
    [
        announce_by_fsync,
        announce_by_touching,
        announce_by_cutting,
        announce_by_time,
        announce_by_stopping,
        announce_by_another_writer,
    ],
)
def test_a_file_is_announced_by(world: World, announce: Callable[[World, OpenFile], None]) -> None:
    handle = begin(world)
    announce(world, handle)
    assert world.issuer.issued == [Create("f"), Write("f", 0, b"new", True)]
    assert is_free_of_pending(world)
    close(world, handle)
    assert len(world.issuer.issued) == 2


def test_an_empty_file_is_announced_by_time_too(world: World) -> None:
    begin(world, content=b"", truncate=False)
    assert world.files.writeback.publish_due() > 0
    assert world.pass_time() == 0
    assert world.issuer.issued == [Create("f")]


def test_a_reader_s_close_announces_nothing(world: World) -> None:
    handle = begin(world)
    reader = world.files.open(handle.entry, writing=False, truncate=False)
    world.files.writeback.flush(reader)
    assert reader.entry.read(0, 9) == b"new"
    assert world.issuer.issued == []


# Which files


@pytest.mark.parametrize(
    "path", ["nodes/a/qemu-server/100.conf", "nodes/a/lxc/7.conf", "nodes/a/openvz/8.conf"]
)
def test_a_guest_s_file_is_announced_at_once(world: World, path: str) -> None:
    world.make(path.rpartition("/")[0], directory=True)
    parent, name = world.tree.find_parent(path)
    assert parent is not None
    world.files.create(parent, name, exclusive=False, later=True)
    assert world.issuer.issued == [Create(path)]


def test_a_node_that_is_not_in_sync_announces_at_once(world: World) -> None:
    world.issuer.is_cluster = False
    world.files.create(world.tree.root, "f", exclusive=False, later=True)
    assert world.issuer.issued == [Create("f")]


def test_an_exclusive_creation_is_announced_at_once(world: World) -> None:
    world.files.create(world.tree.root, "f", exclusive=True)
    assert world.issuer.issued == [Create("f")]


def test_what_this_node_can_check_is_checked_before(world: World) -> None:
    gone = world.make("d", directory=True)
    world.elsewhere(Delete("d"))
    refusals: list[tuple[Entry, str, type[PmxcfsError]]] = [
        (world.tree.root, "..", Denied),
        (gone, "f", NotFound),
    ]
    for parent, name, expected in refusals:
        with pytest.raises(expected):
            world.files.create(parent, name, exclusive=False, later=True)
    world.issuer.refuses = NoSpace("the device is full")
    with pytest.raises(NoSpace):
        begin(world)
    world.issuer.refuses = None
    world.quorum.is_quorate = False
    with pytest.raises(NoQuorum):
        begin(world)
    assert is_free_of_pending(world)


# What users of this node see


def test_a_pending_file_is_seen_here_and_is_no_part_of_the_tree(world: World) -> None:
    before = world.tree.checksum(), world.tree.index(), world.tree.version
    handle = begin(world, "f")
    assert looked_up(world, "f") is handle.entry
    assert world.files.pending.children(world.tree.root) == [handle.entry]
    assert handle.entry.path == "f"
    assert handle.entry.mtime == world.wall
    assert handle.entry.read(0, 9) == b"new"
    assert world.tree.find("f") is None
    assert (world.tree.checksum(), world.tree.index(), world.tree.version) == before


def test_a_pending_file_counts_for_the_limits(world: World) -> None:
    before = world.files.space.usage()
    begin(world)
    used = world.files.space.usage()
    assert (used.entries - before.entries, used.content_bytes - before.content_bytes) == (1, 3)


def test_a_file_below_priv_is_private_while_it_is_pending(world: World) -> None:
    world.make("priv", directory=True)
    assert begin(world, "priv/f").entry.private
    assert not begin(world, "f").entry.private


def test_the_name_of_a_pending_file_is_taken_on_this_node(world: World) -> None:
    handle = begin(world)
    root = world.tree.root
    assert world.files.create(root, "f", exclusive=False) is handle.entry
    with pytest.raises(Exists):
        world.files.create(root, "f", exclusive=True)
    with pytest.raises(Exists):
        world.files.mkdir(root, "f")
    with pytest.raises(Exists):
        world.files.rename(world.make("g"), root, "f", exclusive=True)
    assert world.issuer.issued == []


def test_the_directory_of_a_pending_file_is_not_empty(world: World) -> None:
    directory, empty = world.make("d", directory=True), world.make("e", directory=True)
    handle = begin(world, "d/f")
    refusals: list[Callable[[], object]] = [
        lambda: world.files.rmdir(directory),
        lambda: world.files.rename(directory, world.tree.root, "x"),
        lambda: world.files.rename(empty, world.tree.root, "d"),
    ]
    for refused in refusals:
        with pytest.raises(NotEmpty):
            refused()
    assert world.issuer.issued == []
    world.files.unlink(handle.entry)
    world.files.rmdir(directory)
    assert world.issuer.issued == [Delete("d")]


def test_the_removal_of_a_pending_file_sends_nothing(world: World) -> None:
    handle = begin(world)
    with pytest.raises(NotADirectory):
        world.files.rmdir(handle.entry)
    world.files.unlink(handle.entry)
    assert looked_up(world, "f") is None
    assert not handle.entry.is_attached
    world.files.write(handle, 3, b"er")
    assert handle.entry.read(0, 9) == b"newer"
    close(world, handle)
    assert world.issuer.issued == []
    assert is_free_of_pending(world)
    assert world.files.space.usage().content_bytes == 0


def test_a_file_is_renamed_onto_a_pending_one(world: World) -> None:
    handle, other = begin(world), world.make("g", b"other")
    world.files.rename(other, world.tree.root, "f")
    close(world, handle)
    assert world.issuer.issued == [Rename("g", "f")]
    assert content(world, "f") == b"other"
    assert is_free_of_pending(world)


def test_a_rename_onto_a_pending_file_that_fails_leaves_it(world: World) -> None:
    handle, other = begin(world), world.make("g", b"other")
    world.issuer.failure = Busy("not in sync")
    with pytest.raises(Busy):
        world.files.rename(other, world.tree.root, "f")
    world.issuer.failure = None
    close(world, handle)
    assert content(world, "f") == b"new"


def test_a_pending_file_is_renamed_onto_another_one(world: World) -> None:
    replaced, handle = begin(world, "f", b"old"), begin(world, "f.tmp")
    world.files.rename(handle.entry, world.tree.root, "f")
    close(world, replaced)
    close(world, handle)
    assert content(world, "f") == b"new"
    assert is_free_of_pending(world)
