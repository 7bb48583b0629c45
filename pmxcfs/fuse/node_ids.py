"""The kernel's node ids, which objects it holds references to, and which names it knows as absent.

Ids are the daemon's own: 1 for the root, then a counter that is never reused, so that what the
kernel has open can't come to mean another object. Contract: docs/spec/fuse.md, "Node ids".
"""

from pmxcfs._core import Entry
from pmxcfs.errors import Stale
from pmxcfs.status.files import Link, Snapshot, Switch

ROOT = 1  # the root's id in every FUSE file system

Node = Entry | Link | Switch | Snapshot


# Names in all that are remembered as told absent; directories that get more are taken to have all.
MOST_ABSENT = 1 << 16


class NodeIds:
    """The kernel's node ids, and what it has been told of names."""

    def __init__(self, root: Entry) -> None:
        root.node = ROOT
        self.objects: dict[int, Node] = {root.node: root}
        self._references: dict[int, int] = {root.node: 1}
        self._last = ROOT
        self._absent: dict[int, set[bytes] | None] = {}  # by directory; None: any name
        self._absent_count = 0

    def __getitem__(self, node: int) -> Node:
        """Return the object. Raises Stale for an id that was not given out, or was forgotten."""
        try:
            return self.objects[node]
        except KeyError:
            raise Stale(f"there is no node {node}") from None

    def number(self, found: Node) -> int:
        """Return the object's id, a new one if it has none yet."""
        if not found.node:
            self._last += 1
            found.node = self._last
        return found.node

    def reference(self, found: Node) -> int:
        """Count one more reference of the kernel; return the id."""
        node = self.number(found)
        self.objects[node] = found
        self._references[node] = self._references.get(node, 0) + 1
        return node

    def forget(self, node: int, count: int) -> None:
        """Take *count* references back."""
        left = self._references.get(node, 0) - count
        if left > 0:
            self._references[node] = left
        elif node != ROOT:
            self._references.pop(node, None)
            self.objects.pop(node, None)
            self._absent_count -= len(self._absent.pop(node, None) or ())

    def note_absent(self, parent: int, name: bytes) -> None:
        """The kernel is told that *parent* has no such name, and remembers that."""
        names = self._absent.setdefault(parent, set())
        if names is None or name in names:
            return
        if self._absent_count >= MOST_ABSENT:
            self._absent_count -= len(names)
            self._absent[parent] = None
            return
        self._absent_count += 1
        names.add(name)

    def may_be_absent(self, parent: int, name: bytes) -> bool:
        """Tell whether the kernel may take the name for one that does not exist."""
        names = self._absent.get(parent, ())
        return names is None or name in names
