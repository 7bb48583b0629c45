"""The space of the tree: what counts against its limits, and what rewriting a file may use.

A file counts with its published or its visible size, whichever is larger. What a truncation through
a handle has freed stays reserved for that file until the handle is closed. So a file can always be
rewritten with as many bytes as it had, also if its truncation was published meanwhile.

Threads: all methods need the tree's lock.
Contract: docs/spec/filesystem.md, "Operations" and "Better than before" 6.
"""

from collections.abc import Hashable, Sized
from typing import NamedTuple

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import NoSpace, TooBig
from pmxcfs.messages import MAX_ENTRIES, MAX_FILE_SIZE, MAX_TOTAL_SIZE

# What ``statfs`` tells. A call, because Cython 0.29 can't make a class with this base.
Usage = NamedTuple("Usage", [("content_bytes", int), ("entries", int)])  # noqa: UP014


class Space:
    """The used part of the limits on the whole tree."""

    def __init__(self, tree: Tree, pending: Sized) -> None:
        self._tree = tree
        self._pending = pending  # the files that are not in the tree yet
        # By handle: the file that it has truncated, and the size before that, in bytes.
        self._reserved: dict[Hashable, tuple[Entry, int]] = {}
        self._reserved_bytes = 0  # the sum of these sizes, at least what is reserved

    def usage(self) -> Usage:
        """Return what is used of the limits, reserved bytes included."""
        tree = self._tree
        used = tree.content_bytes + tree.unpublished_growth
        if self._reserved:
            used += self._reserved_beside(None)
        return Usage(used, tree.entry_count + len(self._pending))

    def check_new_entry(self) -> None:
        """Raise NoSpace if the tree can't have one more entry."""
        if self._tree.entry_count + len(self._pending) >= MAX_ENTRIES:
            raise NoSpace(f"the tree holds {MAX_ENTRIES} entries already")

    def check_size(self, entry: Entry, end: int) -> None:
        """Check that *entry* may have *end* bytes. Raises TooBig, and NoSpace if it would grow."""
        if end > MAX_FILE_SIZE:
            raise TooBig(f"a file holds at most {MAX_FILE_SIZE} bytes")
        growth = end - max(entry.size, entry.visible_size)
        if growth <= 0 or entry.is_orphan:
            return
        used = self._tree.content_bytes + self._tree.unpublished_growth + growth
        if used + self._reserved_bytes <= MAX_TOTAL_SIZE or end <= self._reserved_for(entry):
            return
        if used + self._reserved_beside(entry) > MAX_TOTAL_SIZE:
            raise NoSpace(f"the tree holds at most {MAX_TOTAL_SIZE} bytes")

    def reserve(self, handle: Hashable, entry: Entry) -> None:
        """Reserve the present size of *entry*, which *handle* is about to truncate."""
        size = max(entry.size, entry.visible_size)
        _, before = self._reserved.get(handle, (entry, 0))
        if size > before:
            self._reserved[handle] = entry, size
            self._reserved_bytes += size - before

    def release(self, handle: Hashable) -> None:
        """End the reservation of *handle*, if it has one."""
        if self._reserved:
            _, size = self._reserved.pop(handle, (None, 0))
            self._reserved_bytes -= size

    def _reserved_for(self, entry: Entry) -> int:
        """Return the size up to which *entry* may grow in any case."""
        sizes = [size for found, size in self._reserved.values() if found is entry]
        return max(sizes, default=0)

    def _reserved_beside(self, entry: Entry | None) -> int:
        """Return the bytes that are reserved and not used, for all files but *entry*."""
        sizes: dict[Entry, int] = {}
        for found, size in self._reserved.values():
            if found is not entry and found.is_attached:
                sizes[found] = max(size, sizes.get(found, 0))
        free = [max(0, size - max(f.size, f.visible_size)) for f, size in sizes.items()]
        return sum(free)
