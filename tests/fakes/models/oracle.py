"""Reference model of the tree, which ``_core``, ``tree.guests`` and ``tree.apply`` must agree with.

Written from the specification, not from the code, slow and plain: one dict from path to node,
snapshots by copying, totals and checksums computed anew each time. Unpublished content is a list of
layers over the published content instead of a buffer. Refusals are errno names.
"""

import errno
import hashlib
import re
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from pmxcfs.messages import Create, Delete, Mkdir, Mtime, Mutation, Rename, Unlock, Write
from pmxcfs.text import to_bytes

MIB = 1 << 20
GUEST = re.compile(
    r"nodes/([A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)/(qemu-server|lxc|openvz)"
    r"/([1-9][0-9]*)\.conf"
)


class Refused(Exception):
    """A refusal; the argument is the name of an errno."""

    @property
    def errno(self) -> int:
        """The number of the errno."""
        return int(getattr(errno, self.args[0]))


class Layer(NamedTuple):
    """Unpublished bytes: at *offset*, or (*whole*) instead of everything below."""

    offset: int
    data: bytes
    whole: bool

    def over(self, content: bytes) -> bytes:
        """Return *content* as it looks with this layer on top."""
        return self.data if self.whole else splice(content, self.offset, self.data)


class Stamped(NamedTuple):
    """The published attributes and content of a node."""

    version: int
    writer: int
    mtime: int
    data: bytes
    size: int


@dataclass(eq=False)
class Node:
    """A file or a directory."""

    inode: int
    is_directory: bool
    published: Stamped
    in_flight: list[Layer] = field(default_factory=list)
    dirty: Layer | None = None
    is_orphan: bool = False

    @property
    def is_sparse(self) -> bool:
        """Whether the file has a size, but fewer bytes stored; readers see zeros."""
        return len(self.published.data) < self.published.size

    @property
    def content(self) -> bytes:
        """The published content; zeros for a sparse file."""
        return self.published.data or bytes(self.published.size)

    @property
    def visible(self) -> bytes:
        """The content that readers on this node see, unpublished bytes included."""
        content = self.content
        for layer in [*self.in_flight, *([self.dirty] if self.dirty else [])]:
            content = layer.over(content)
        return content


def splice(content: bytes, offset: int, data: bytes) -> bytes:
    """Return *content* with *data* written at *offset*; a gap is filled with zeros."""
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]


def normalize(path: str) -> str:
    """Return *path* without empty components."""
    return "/".join(name for name in path.split("/") if name)


def parent_of(path: str) -> str:
    """Return the path of the parent directory; the root is its own parent."""
    return path.rpartition("/")[0]


def is_private(path: str) -> bool:
    """Tell whether only root may access *path*."""
    return re.match(r"(priv|nodes/[^/]+/priv)(/|$)", path) is not None


class Oracle:
    """The tree, the guest registry and the delivery of changes."""

    def __init__(self) -> None:
        self.root = Node(0, is_directory=True, published=Stamped(1, 0, 0, b"", 0))
        self.nodes: dict[str, Node] = {"": self.root}
        self.guests: dict[str, str] = {}  # vmid -> "NODE/DIRECTORY"
        self.mark_written()

    # Lookups.

    def find(self, path: str) -> Node | None:
        """Return the node at *path*."""
        return self.nodes.get(normalize(path))

    def names(self, path: str) -> list[str]:
        """Return the names in a directory."""
        prefix = f"{path}/" if path else ""
        below = [known[len(prefix) :] for known in self.nodes if known.startswith(prefix)]
        return [name for name in below if name and "/" not in name]

    def files(self) -> list[str]:
        """Return the paths of all files, sorted."""
        return sorted(path for path, node in self.nodes.items() if not node.is_directory)

    @property
    def version(self) -> int:
        """The tree's version."""
        return self.root.published.version

    def totals(self) -> tuple[int, int]:
        """Return the number of entries and the bytes of content."""
        return len(self.nodes) - 1, sum(node.published.size for node in self.nodes.values())

    # Delivery.

    def apply(self, mutation: Mutation, *, writer: int, mtime: int) -> None:
        """Apply one delivered change, or raise Refused."""
        match mutation:
            case Write() | Create():
                self._write_or_create(mutation, writer, mtime)
            case Mkdir():
                path = self._target(mutation.path)
                self._refuse_if("EEXIST", path in self.nodes)
                self._make(path, writer, mtime, is_directory=True)
            case Delete():
                self._delete(normalize(mutation.path), writer, mtime)
            case Rename():
                self._rename(normalize(mutation.path), normalize(mutation.to), writer, mtime)
            case Mtime():
                self._touch(mutation, writer)
            case Unlock():
                self._unlock(mutation, writer, mtime)

    def _refuse_if(self, name: str, condition: object) -> None:
        if condition:
            raise Refused(name)

    def _parent(self, path: str) -> None:
        parent = self.nodes.get(parent_of(path))
        if parent is None:
            raise Refused("ENOENT")
        self._refuse_if("ENOTDIR", not parent.is_directory)

    def _target(self, raw: str) -> str:
        path = normalize(raw)
        self._refuse_if("EACCES", not path)
        self._parent(path)
        self._refuse_if("EACCES", path.split("/")[-1] in (".", ".."))
        return path

    def _guest(self, path: str) -> tuple[str, str] | None:
        match = GUEST.fullmatch(path)
        if match is None or int(match[3]) > 4294967295:
            return None
        return match[3], f"{match[1]}/{match[2]}"

    def _guest_rule(self, path: str, source: str = "") -> None:
        guest, moved = self._guest(path), self._guest(source)
        if guest and not (moved and moved[0] == guest[0]):
            self._refuse_if("EEXIST", self.guests.get(guest[0], guest[1]) != guest[1])

    def _register(self, path: str) -> None:
        guest = self._guest(path)
        if guest:
            self.guests[guest[0]] = guest[1]

    def _unregister(self, path: str) -> None:
        guest = self._guest(path)
        if guest:
            self.guests.pop(guest[0], None)

    def _advance(self, writer: int, mtime: int) -> int:
        version = self.version + 1
        self.root.published = Stamped(version, writer, mtime, b"", 0)
        return version

    def _stamp(self, node: Node, writer: int, mtime: int) -> None:
        version = self._advance(writer, mtime)
        node.published = node.published._replace(version=version, writer=writer, mtime=mtime)

    def _make(self, path: str, writer: int, mtime: int, *, is_directory: bool) -> None:
        version = self._advance(writer, mtime)
        published = Stamped(version, writer, mtime, b"", 0)
        self.nodes[path] = Node(version, is_directory=is_directory, published=published)
        self._born.append(self.nodes[path])

    def _write_or_create(self, mutation: Write | Create, writer: int, mtime: int) -> None:
        if isinstance(mutation, Write):
            self._refuse_if("EFBIG", mutation.offset + len(mutation.data) > MIB)
        path = self._target(mutation.path)
        self._guest_rule(path)
        node = self.nodes.get(path)
        self._refuse_if("ENOTDIR", node and node.is_directory)
        if isinstance(mutation, Create):
            self._refuse_if("EEXIST", node)
            self._make(path, writer, mtime, is_directory=False)
        elif node is None:
            raise Refused("ENOENT")
        else:
            self._write(node, mutation.offset, mutation.data, cut=mutation.truncate)
            self._stamp(node, writer, mtime)
        self._register(path)

    def _write(self, node: Node, offset: int, data: bytes, *, cut: bool) -> None:
        old = node.published.data
        end = offset + len(data)
        content = b"" if not old and not data else splice(old, offset, data)
        content = content[:end] if cut else content
        size = offset if not old and not data else len(content)
        node.published = node.published._replace(data=content, size=size)
        if node.is_sparse and node.dirty:
            node.dirty = Layer(0, node.visible, whole=True)

    def _delete(self, path: str, writer: int, mtime: int) -> None:
        self._refuse_if("EACCES", not path)
        self._refuse_if("ENOENT", path not in self.nodes)
        self._refuse_if("ENOTEMPTY", self.names(path))
        del self.nodes[path]
        self._advance(writer, mtime)
        self._unregister(path)

    def _rename(self, path: str, to: str, writer: int, mtime: int) -> None:
        node = self.nodes.get(path)
        if node is None:
            raise Refused("ENOENT")
        if not node.is_directory:
            self._guest_rule(to, path)
        self._refuse_if("EACCES", node.is_directory and path.startswith("priv/lock/"))
        self._refuse_if(
            "EACCES", not to
        )  # the contract leaves this order of checks open, and that of the next two
        self._parent(to)
        self._refuse_if("EACCES", not path)
        self._refuse_if("EINVAL", f"{to}/".startswith(f"{path}/"))
        self._refuse_if("ENOTEMPTY", self.names(to))
        self.nodes.pop(to, None)
        self._refuse_if("ENOTEMPTY", self.names(path))
        self.nodes[to] = self.nodes.pop(path)
        self._stamp(node, writer, mtime)
        if not node.is_directory:
            self._unregister(path)
            self._register(to)

    def _touch(self, mutation: Mtime, writer: int) -> None:
        path = self._target(mutation.path)
        node = self.nodes.get(path)
        if node is None:
            raise Refused("ENOENT")
        if node.is_directory and parent_of(path) == "priv/lock":
            known = node.published
            self._refuse_if("EACCES", writer != known.writer or mutation.mtime < known.mtime)
        self._stamp(node, writer, mutation.mtime)

    def _unlock(self, mutation: Unlock, writer: int, mtime: int) -> None:
        path = normalize(mutation.path)
        node = self.nodes.get(path)
        if node is None:
            raise Refused("ENOENT")
        self._refuse_if("EACCES", not node.is_directory or not path.startswith("priv/lock/"))
        self._refuse_if("ESTALE", self.entry_checksum(path) != mutation.checksum)
        self._refuse_if("ENOTEMPTY", self.names(path))
        del self.nodes[path]
        self._advance(writer, mtime)

    # Writing.

    def mark_written(self) -> None:
        """Take the present state as the one that ``rollback`` returns to."""
        self._written = [(path, node, node.published) for path, node in self.nodes.items()]
        self._written_guests = dict(self.guests)
        self._born: list[Node] = []

    def rollback(self) -> None:
        """Return to the state of the last ``mark_written``; unpublished layers stay.

        Nothing happens to a node that has not changed since then.
        """
        for node in self._born:
            node.published = Stamped(0, 0, 0, b"", 0)
        present = self.nodes
        self.nodes = {path: node for path, node, _ in self._written}
        for path, node, published in self._written:
            if present.get(path) is node and node.published is published:
                continue
            node.published = published
            if node.is_sparse and node.dirty:
                node.dirty = Layer(0, node.visible, whole=True)
        self.guests = dict(self._written_guests)
        self._born = []

    # Unpublished content.

    def write_unpublished(self, node: Node, offset: int, data: bytes) -> None:
        """Write bytes that stay unpublished."""
        if data:
            before = node.visible
            after = splice(before, offset, data)
            self._dirty(node, after, min(offset, len(before)), offset + len(data))

    def truncate_unpublished(self, node: Node, size: int) -> None:
        """Set the size; the change stays unpublished."""
        before = node.visible
        if size > len(before):
            self._dirty(node, before.ljust(size, b"\0"), len(before), size)
        else:
            node.dirty = Layer(0, before[:size], whole=True)

    def _dirty(self, node: Node, after: bytes, low: int, high: int) -> None:
        """Make *after* the visible content; its bytes [low, high) are dirty."""
        is_first = node.dirty is None and not node.in_flight
        if node.dirty is not None:
            low = min(low, node.dirty.offset)
            high = max(high, node.dirty.offset + len(node.dirty.data))
        if (node.dirty and node.dirty.whole) or (is_first and node.is_sparse):
            node.dirty = Layer(0, after, whole=True)
        else:
            node.dirty = Layer(low, after[low:high], whole=False)

    def take_unpublished(self, node: Node) -> Layer | None:
        """Begin a writeback: move the dirty layer to those in flight, and return it."""
        taken = None if node.is_orphan else node.dirty
        if taken:
            node.in_flight.append(taken)
            node.dirty = None
        return taken

    def finish_unpublished(self, node: Node) -> None:
        """End the oldest writeback in flight: its bytes are published."""
        del node.in_flight[:1]
        if node.dirty and node.is_sparse:
            node.dirty = Layer(0, node.visible, whole=True)

    def redirty_unpublished(self, node: Node) -> None:
        """Merge the last layer in flight, which was not sent, with the dirty one."""
        seen = node.visible
        layers = [node.in_flight.pop(), *([node.dirty] if node.dirty else [])]
        low = min(layer.offset for layer in layers)
        high = max(layer.offset + len(layer.data) for layer in layers)
        if node.is_sparse or any(layer.whole for layer in layers):
            node.dirty = Layer(0, seen, whole=True)
        else:
            node.dirty = Layer(low, seen[low:high], whole=False)

    def discard_unpublished(self, node: Node) -> None:
        """Drop all unpublished bytes."""
        node.in_flight, node.dirty = [], None

    # Checksums.

    def _fields(self, path: str) -> bytes:
        node = self.nodes[path]
        version, writer, mtime, data, size = node.published
        kind = 4 if node.is_directory else 8
        parent = self.nodes[parent_of(path)].inode
        fields = struct.pack("<QIIIBQ", version, writer, mtime, size, kind, parent)
        return fields + to_bytes(path.rpartition("/")[2]) + data

    def _in_order(self) -> list[tuple[int, bytes]]:
        return sorted((node.inode, self._fields(path)) for path, node in self.nodes.items())

    def checksum(self) -> bytes:
        """Return the SHA-256 state checksum of the whole tree."""
        parts = [struct.pack("<Q", inode) + fields for inode, fields in self._in_order()]
        return hashlib.sha256(b"".join(parts)).digest()

    def entry_checksum(self, path: str) -> bytes:
        """Return the SHA-256 checksum of the entry at *path*."""
        inode = struct.pack("<Q", self.nodes[path].inode)
        return hashlib.sha256(inode + self._fields(path)).digest()

    def index(self) -> bytes:
        """Return the index that a STATE message carries."""
        rows = self._in_order()
        version, writer, mtime, _, _ = self.root.published
        size = 32 + 40 * len(rows)
        header = struct.pack("<QQIIII", version, rows[-1][0], writer, mtime, len(rows), size)
        digests = [
            struct.pack("<Q", inode) + hashlib.sha256(fields).digest() for inode, fields in rows
        ]
        return header + b"".join(digests)
