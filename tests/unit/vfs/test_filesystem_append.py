"""``FileSystem.write`` with O_APPEND: appends go to the end, a mapping's pages to their offset."""

import mmap

import pytest

from pmxcfs.errors import TooBig
from pmxcfs.messages import MAX_FILE_SIZE, Write
from tests.fakes.doubles.filesystem import World


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("theirs", [b"theirs, longer", b""])
def test_an_append_goes_to_the_end_whatever_offset_the_kernel_gives(
    world: World, theirs: bytes
) -> None:
    entry = world.make("f", b"ours")
    handle = world.files.open(entry, writing=True, truncate=False, append=True)
    world.elsewhere(Write("f", 0, theirs, True))
    world.files.write(handle, 4, b"!")
    assert entry.read(0, 100) == theirs + b"!"
    assert world.displaced == [entry]


def test_an_append_at_the_end_displaces_nothing(world: World) -> None:
    entry = world.make("f", b"ours")
    handle = world.files.open(entry, writing=True, truncate=False, append=True)
    world.files.write(handle, 4, b" and")
    world.files.write(handle, 8, b" more")
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Write("f", 4, b" and more", False)]
    assert world.displaced == []


def test_an_append_counts_from_the_end_against_the_limit(world: World) -> None:
    entry = world.make("f", bytes(MAX_FILE_SIZE))
    handle = world.files.open(entry, writing=True, truncate=False, append=True)
    with pytest.raises(TooBig):
        world.files.write(handle, 0, b"x")
    assert world.displaced == []


def test_pages_of_a_mapping_go_to_their_own_offset(world: World) -> None:
    pages = bytes(2 * mmap.PAGESIZE)
    entry = world.make("f", pages + b"end")
    entry.kernel_size = len(pages) + 3  # the kernel has looked at it
    handle = world.files.open(entry, writing=True, truncate=False, append=True)
    world.files.write(handle, mmap.PAGESIZE, b"m" * mmap.PAGESIZE)
    world.files.write(handle, 2 * mmap.PAGESIZE, b"END")
    world.files.write(handle, 2 * mmap.PAGESIZE + 3, b"appended")
    written = pages[: mmap.PAGESIZE] + b"m" * mmap.PAGESIZE + b"ENDappended"
    assert entry.read(0, len(written) + 1) == written
    assert world.displaced == []


def test_an_append_behind_whole_pages_is_no_mapping(world: World) -> None:
    """The kernel computes its offset from the size that it has; another node has appended since."""
    entry = world.make("f", bytes(mmap.PAGESIZE))
    entry.kernel_size = mmap.PAGESIZE
    handle = world.files.open(entry, writing=True, truncate=False, append=True)
    world.elsewhere(Write("f", mmap.PAGESIZE, b"theirs", False))
    world.files.write(handle, mmap.PAGESIZE, bytes(mmap.PAGESIZE))
    world.files.write(handle, 2 * mmap.PAGESIZE, b"ours")
    tail = b"theirs" + bytes(mmap.PAGESIZE) + b"ours"
    assert entry.read(mmap.PAGESIZE, len(tail) + 1) == tail


def test_the_parts_of_one_append_stay_together_whatever_the_kernel_is_told_meanwhile(
    world: World,
) -> None:
    entry = world.make("f", b"ours")
    handle = world.files.open(entry, writing=True, truncate=False, append=True)
    world.elsewhere(Write("f", 0, b"theirs", True))
    world.files.write(handle, 4, bytes(mmap.PAGESIZE - 4))
    entry.kernel_size = entry.visible_size  # a process asks for the size, between the two parts
    world.files.write(handle, mmap.PAGESIZE, b"rest")
    assert entry.read(0, 2 * mmap.PAGESIZE) == b"theirs" + bytes(mmap.PAGESIZE - 4) + b"rest"
