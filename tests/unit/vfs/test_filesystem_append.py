"""``FileSystem.write`` with O_APPEND: the offset of the bytes does not depend on the kernel."""

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
