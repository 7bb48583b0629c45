"""FUSE node ids, the kernel's references to them, its open files, and its negative entries.

The daemon chooses the ids: 1 for the root, then a counter. An id is never reused, so an id that the
kernel still holds never refers to another object.

Threads: any, with the tree's lock held.
Contract: docs/spec/fuse.md, "Node ids".
"""

from pmxcfs._core import Entry
from pmxcfs.errors import Stale
from pmxcfs.status.files import Link, Snapshot, Switch
from pmxcfs.vfs.writeback import OpenFile

ROOT = 1  # the root's id in every FUSE file system

Node = Entry | Link | Switch | Snapshot
Handle = OpenFile | Switch | Snapshot  # what the kernel's number of an open file stands for


# Negative entries that are remembered, of all directories together. Beyond it, every name of the
# directory concerned counts as a negative entry.
MAX_NEGATIVE_ENTRIES = 1 << 16


class NodeIds:
    """The node ids, references, open files and negative entries that the kernel has got."""

    def __init__(self, root: Entry) -> None:
        root.node = ROOT
        self.objects: dict[int, Node] = {root.node: root}
        self.handles: dict[int, Handle] = {}
        self._references: dict[int, int] = {root.node: 1}
        self._last = ROOT
        self._absent: dict[int, set[bytes] | None] = {}  # by directory id; None: every name
        self._absent_count = 0

    def __getitem__(self, node: int) -> Node:
        """Return the object with the id *node*. Raises Stale if the kernel does not hold it."""
        try:
            return self.objects[node]
        except KeyError:
            raise Stale(f"the kernel holds no reference to node {node}") from None

    def is_known(self, found: Node) -> bool:
        """Tell whether the kernel holds a reference to the object."""
        return found.node in self.objects

    def number(self, found: Node) -> int:
        """Return the object's id; give it a new id if it has none yet."""
        if not found.node:
            self._last += 1
            found.node = self._last
        return found.node

    def reference(self, found: Node) -> int:
        """Count one more reference of the kernel to the object; return its id."""
        node = self.number(found)
        self.objects[node] = found
        self._references[node] = self._references.get(node, 0) + 1
        return node

    def forget(self, node: int, count: int) -> None:
        """Take back *count* references of the kernel; drop the object with the last one."""
        left = self._references.get(node, 0) - count
        if left > 0:
            self._references[node] = left
        elif node != ROOT:
            self._references.pop(node, None)
            self.objects.pop(node, None)
            self._absent_count -= len(self._absent.pop(node, None) or ())

    def note_absent(self, parent: int, name: bytes) -> None:
        """Note that the kernel gets a negative entry for *name* in the directory *parent*."""
        names = self._absent.setdefault(parent, set())
        if names is None or name in names:
            return
        if self._absent_count >= MAX_NEGATIVE_ENTRIES:
            self._absent_count -= len(names)
            self._absent[parent] = None
            return
        self._absent_count += 1
        names.add(name)

    def may_be_absent(self, parent: int, name: bytes) -> bool:
        """Return whether the kernel may have a negative entry for *name* in *parent*."""
        names = self._absent.get(parent, ())
        return names is None or name in names
