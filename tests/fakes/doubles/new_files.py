"""What a program does to make a file, and what it sees, in a ``World`` of a cluster."""

from pmxcfs._core import Entry
from pmxcfs.vfs.writeback import OpenFile
from tests.fakes.doubles.filesystem import World


def begin(
    world: World, path: str = "f", content: bytes = b"new", *, truncate: bool = True
) -> OpenFile:
    """Make a file as an open does, and write to it."""
    parent, name = world.tree.find_parent(path)
    assert parent is not None
    entry = world.files.create(parent, name, exclusive=False, later=True)
    entry.node = 100 + world.unpublished_calls
    handle = world.files.open(entry, writing=True, truncate=truncate, has_created=True)
    if content:
        world.files.write(handle, 0, content)
    return handle


def close(world: World, handle: OpenFile) -> None:
    """Do what the kernel asks for at the last close."""
    try:
        world.files.writeback.flush(handle)
    finally:
        world.files.release(handle)


def looked_up(world: World, path: str) -> Entry | None:
    """Return what users see at *path*."""
    parent, name = world.tree.find_parent(path)
    assert parent is not None
    return parent.child(name) or world.files.pending.find(parent, name)


def content(world: World, path: str) -> bytes:
    found = world.tree.find(path)
    assert found is not None
    return found.content


def is_free_of_pending(world: World) -> bool:
    pending = world.files.pending
    return not pending.files and not pending.by_directory and not world.tree.unpublished()
