"""The limit of 128 MiB: what counts as used, and that files can be rewritten in a full tree."""

from collections.abc import Callable

import pytest

from pmxcfs.errors import NoSpace
from pmxcfs.messages import MAX_FILE_SIZE, MAX_TOTAL_SIZE
from tests.conftest import ExpectLog
from tests.fakes.doubles.filesystem import World


@pytest.fixture
def world() -> World:
    return World()


def test_the_tree_holds_128_mib_and_unpublished_bytes_count(world: World) -> None:
    content = bytes(MAX_FILE_SIZE)
    for number in range(MAX_TOTAL_SIZE // MAX_FILE_SIZE - 1):
        world.make(f"f{number}", content)
    first, second = world.open(world.make("g", b"")), world.open(world.make("h", b""))
    world.files.write(first, 0, content[10:])
    assert world.files.space.usage().content_bytes == MAX_TOTAL_SIZE - 10
    world.files.write(second, 0, bytes(10))
    with pytest.raises(NoSpace):
        world.files.truncate(second.entry, 11, handle=None)
    world.files.write(second, 0, b"overwritten"[:10])
    world.files.truncate(first.entry, 0, handle=None)
    world.files.write(second, 10, b"x")


@pytest.fixture
def full(world: World) -> World:
    """A tree without room for another byte. The last of its files is "last"."""
    content = bytes(MAX_FILE_SIZE)
    for number in range(MAX_TOTAL_SIZE // MAX_FILE_SIZE - 1):
        world.make(f"f{number}", content)
    world.make("last", b"o" * MAX_FILE_SIZE)
    return world


@pytest.mark.parametrize("is_published", [False, True])
@pytest.mark.parametrize("size", [MAX_FILE_SIZE - 1, MAX_FILE_SIZE])
def test_in_a_full_tree_a_file_can_be_rewritten_with_as_many_bytes(
    full: World, size: int, is_published: bool
) -> None:
    entry = full.tree.find("last")
    assert entry is not None
    handle, other = full.open(entry, truncate=True), full.open(full.make("other", b""))
    if is_published:  # by the timer, because the writer is slow
        full.pass_time()
        assert entry.size == 0
        assert full.files.space.usage().content_bytes == MAX_TOTAL_SIZE
    with pytest.raises(NoSpace):
        full.files.write(other, 0, b"x")
    for offset in range(0, size, size // 3):
        full.files.write(handle, offset, bytes(min(size // 3, size - offset)))
    full.files.writeback.flush(handle)
    full.files.release(handle)
    assert (entry.size, entry.content) == (size, bytes(size))


def test_in_a_full_tree_a_refused_write_leaves_the_old_content(
    full: World, expect_log: ExpectLog
) -> None:
    first, entry = full.make("first", b""), full.tree.find("f0")
    assert entry is not None
    full.files.truncate(entry, MAX_FILE_SIZE - 10, handle=None)
    full.files.truncate(first, 10, handle=None)
    handle = full.open(entry, truncate=True)
    full.files.write(handle, 0, b"x" * (MAX_FILE_SIZE - 10))
    expect_log("the last writes to f0 are lost: ENOSPC")
    refusals: list[Callable[[], object]] = [
        lambda: full.files.write(handle, MAX_FILE_SIZE - 10, b"x"),
        lambda: full.files.write(handle, 0, b"x"),
        lambda: full.files.writeback.flush(handle),
    ]
    for refused in refusals:
        with pytest.raises(NoSpace):
            refused()
    full.files.release(handle)
    assert entry.read(0, MAX_FILE_SIZE) == bytes(MAX_FILE_SIZE - 10)


def test_the_room_for_rewriting_ends_with_the_handle(full: World) -> None:
    entry = full.tree.find("last")
    assert entry is not None
    handle = full.open(entry, truncate=True)
    full.files.writeback.flush(handle)
    full.files.release(handle)
    assert full.files.space.usage().content_bytes == MAX_TOTAL_SIZE - MAX_FILE_SIZE
    other = full.open(full.make("other", b""))
    full.files.write(other, 0, bytes(MAX_FILE_SIZE))
