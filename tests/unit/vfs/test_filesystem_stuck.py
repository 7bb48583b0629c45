"""A file system whose issuer refuses all changes at once, as on a node that is stuck."""

from collections.abc import Callable

import pytest

from pmxcfs._core import Entry
from pmxcfs.errors import Busy
from pmxcfs.messages import Create, Delete, Write
from pmxcfs.vfs.writeback import OpenFile
from tests.conftest import ExpectLog
from tests.fakes.doubles.filesystem import World

OLD = b"published"
LOST = "the last writes to f are lost: EBUSY"


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def entry(world: World) -> Entry:
    return world.make("f", OLD)


def refuse(world: World) -> None:
    world.issuer.refuses = Busy("stuck")


def recover(world: World) -> None:
    world.issuer.refuses = None


@pytest.mark.parametrize(
    "change",
    [
        lambda world, entry: world.files.create(world.tree.root, "g", exclusive=True),
        lambda world, entry: world.files.create(world.tree.root, "g", exclusive=False),
        lambda world, entry: world.files.mkdir(world.tree.root, "g"),
        lambda world, entry: world.files.unlink(entry),
        lambda world, entry: world.files.rename(entry, world.tree.root, "g"),
        lambda world, entry: world.files.utime(entry, 5),
        lambda world, entry: world.files.truncate(entry, 0, handle=None),
        lambda world, entry: world.open(entry, truncate=True),
        lambda world, entry: world.files.write(world.open(entry), 0, b"new"),
        lambda world, entry: world.files.truncate(entry, 0, handle=world.open(entry)),
    ],
)
def test_every_change_is_refused_and_changes_nothing(
    world: World, entry: Entry, change: Callable[[World, Entry], object]
) -> None:
    refuse(world)
    with pytest.raises(Busy):
        change(world, entry)
    assert entry.read(0, 100) == OLD
    assert not entry.has_unpublished
    assert [child.name for child in world.tree.root.children()] == ["f"]
    recover(world)
    world.pass_time()
    assert world.issuer.issued == []


def test_an_open_that_changes_nothing_is_not_refused(world: World, entry: Entry) -> None:
    refuse(world)
    for writing in (False, True):
        handle = world.files.open(entry, writing=writing, truncate=False)
        world.files.writeback.flush(handle)
        world.files.writeback.release(handle)


def begin(world: World, entry: Entry) -> OpenFile:
    """Truncate the file and write, as a shell does that redirects to it."""
    handle = world.open(entry, truncate=True)
    world.files.writeback.flush(handle)  # the shell closes a duplicate of the descriptor
    world.files.write(handle, 0, b"ne")
    return handle


def test_a_refused_write_drops_what_was_written_and_the_truncation(
    world: World, entry: Entry, expect_log: ExpectLog
) -> None:
    expect_log(LOST)
    handle = begin(world, entry)
    refuse(world)
    with pytest.raises(Busy):
        world.files.write(handle, 2, b"w")
    assert entry.read(0, 100) == OLD
    assert world.displaced == [entry], "the kernel has pages and a size of the new content"
    recover(world)
    further: list[Callable[[], object]] = [
        lambda: world.files.write(handle, 0, b"new"),
        lambda: world.files.truncate(entry, 0, handle=handle),
        lambda: world.files.writeback.flush(handle),
        lambda: world.files.writeback.flush(handle),  # a program and its child have the handle
        lambda: world.files.writeback.fsync(handle),
    ]
    for again in further:
        with pytest.raises(Busy):
            again()
    world.files.writeback.release(handle)
    assert world.issuer.issued == []
    other = world.open(entry, truncate=True)
    world.files.write(other, 0, b"new")
    world.files.writeback.flush(other)
    assert world.issuer.issued == [Write("f", 0, b"new", True)]


def test_a_refused_truncation_drops_what_was_written(
    world: World, entry: Entry, expect_log: ExpectLog
) -> None:
    expect_log(LOST)
    handle = begin(world, entry)
    refuse(world)
    with pytest.raises(Busy):
        world.files.truncate(entry, 1, handle=handle)
    assert entry.read(0, 100) == OLD


def test_the_other_handles_of_the_file_are_told_at_their_next_close(
    world: World, entry: Entry, expect_log: ExpectLog
) -> None:
    expect_log(LOST)
    other = begin(world, entry)
    handle = world.open(entry)
    refuse(world)
    with pytest.raises(Busy):
        world.files.write(handle, 0, b"x")
    recover(world)
    with pytest.raises(Busy):
        world.files.writeback.flush(other)
    world.files.write(other, 0, b"again")
    world.files.writeback.flush(other)
    assert world.issuer.issued == [Write("f", 0, b"again", False)]


def test_a_write_refused_during_a_writeback_drops_what_came_after_its_begin(
    world: World, entry: Entry, expect_log: ExpectLog
) -> None:
    expect_log(LOST)
    first, second = begin(world, entry), world.open(entry)

    def meanwhile() -> None:
        world.issuer.on_submit = lambda: None
        world.files.write(second, 2, b"half")
        refuse(world)
        with pytest.raises(Busy):
            world.files.write(second, 6, b"rest")
        recover(world)

    world.issuer.on_submit = meanwhile
    world.files.writeback.flush(first)
    assert entry.read(0, 100) == entry.content == b"ne"
    with pytest.raises(Busy):
        world.files.writeback.flush(second)
    assert world.issuer.issued == [Write("f", 0, b"ne", True)]


def test_a_file_that_was_removed_here_can_be_written_all_the_same(world: World) -> None:
    """Its content is never published."""
    entry = world.files.create(world.tree.root, "g", exclusive=True)
    handle = world.open(entry)
    world.files.unlink(entry)
    refuse(world)
    world.files.write(handle, 0, b"mine")
    assert entry.read(0, 100) == b"mine"
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Create("g"), Delete("g")]


def test_a_file_removed_after_a_refused_write_closes_without_an_error(
    world: World, entry: Entry
) -> None:
    handle = world.open(entry)
    refuse(world)
    with pytest.raises(Busy):
        world.files.write(handle, 0, b"x")
    recover(world)
    world.files.unlink(entry)
    world.files.writeback.flush(handle)
