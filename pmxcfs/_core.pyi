from collections.abc import Iterable
from typing import final

from pmxcfs._content import Unpublished
from pmxcfs.messages import Record

__pyx_capi__: dict[str, object]  # what a cimport looks the C interface up in

@final
class Entry:
    """One inode: a file or a directory."""

    node: int  # the kernel's id for it, kept for the FUSE edge; 0 until it gives one
    @property
    def listing_version(self) -> int: ...  # of a directory: counts its names that come and go
    @property
    def inode(self) -> int: ...  # the database's number; the root's is 0
    @property
    def version(self) -> int: ...
    @property
    def writer(self) -> int: ...
    @property
    def mtime(self) -> int: ...
    @property
    def type(self) -> int: ...  # EntryType: 8 file, 4 directory
    @property
    def name(self) -> str: ...
    @property
    def parent(self) -> Entry | None: ...  # None for the root and for what is not in the tree
    @property
    def is_directory(self) -> bool: ...
    @property
    def is_attached(self) -> bool: ...  # reachable from the root (the root itself included)
    @property
    def is_orphan(self) -> bool: ...  # removed here while it is open: never published again
    @property
    def private(self) -> bool: ...  # priv or nodes/NAME/priv, or below; stays when detached
    @property
    def path(self) -> str: ...  # '' for the root; of a detached entry the path it had last
    @property
    def content(self) -> bytes: ...  # published bytes; zeros where only a size is known
    @property
    def stored(self) -> bytes | None: ...  # for the database: None where only a size is known
    @property
    def size(self) -> int: ...  # published size
    @property
    def child_count(self) -> int: ...
    def child(self, name: str) -> Entry | None: ...
    def children(self) -> list[Entry]: ...
    # What readers on this node see: the published content under the unpublished writes.
    @property
    def has_draft(self) -> bool: ...  # what readers see is not, or not yet, published
    @property
    def has_unpublished(self) -> bool: ...  # bytes that no WRITE carries yet
    @property
    def unpublished_since_ns(self) -> int: ...  # time of the first of them; 0 if none
    @property
    def visible_size(self) -> int: ...
    def read(self, offset: int, size: int) -> bytes: ...

@final
class Tree:
    """The inode table."""

    def __new__(cls, *, keep_undo: bool = True) -> Tree: ...
    @property
    def root(self) -> Entry: ...
    @property
    def version(self) -> int: ...  # the root's
    @property
    def entry_count(self) -> int: ...  # without the root
    @property
    def content_bytes(self) -> int: ...  # sum of published sizes
    @property
    def unpublished_growth(self) -> int: ...  # by which visible sizes exceed published ones
    def load(self, records: Iterable[Record]) -> None: ...  # only into a fresh tree
    def find(self, path: str) -> Entry | None: ...
    def find_parent(self, path: str) -> tuple[Entry | None, str]: ...  # root: (None, "")
    def get(self, inode: int) -> Entry | None: ...
    # Published mutations. Each raises the version by one and stamps it, writer and mtime.
    def create(self, parent: Entry, name: str, type: int, *, writer: int, mtime: int) -> Entry: ...
    def write(
        self, entry: Entry, offset: int, data: bytes, *, truncate: bool, writer: int, mtime: int
    ) -> None: ...
    def rename(
        self, entry: Entry, parent: Entry, name: str, *, writer: int, mtime: int
    ) -> Entry | None: ...
    def remove(self, entry: Entry, *, writer: int, mtime: int) -> None: ...
    def drop(self, entry: Entry) -> None: ...  # no new version
    def touch(self, entry: Entry, *, writer: int, mtime: int) -> None: ...
    # Saving. The root is in neither; its row is the version row.
    @property
    def has_unsaved(self) -> bool: ...
    @property
    def unsaved_bytes(self) -> int: ...
    def unsaved(self) -> dict[int, Entry | None]: ...
    def mark_saved(self) -> None: ...
    def rollback(self) -> dict[Entry, str]: ...
    # Unpublished content. Every WRITE taken ends with finish or discard; finish comes after, or
    # in the same hold of the lock just before (cheaper), the WRITE is applied. now_ns never falls.
    def write_unpublished(self, entry: Entry, offset: int, data: bytes, *, now_ns: int) -> None: ...
    def truncate_unpublished(self, entry: Entry, size: int, *, now_ns: int) -> None: ...
    def take_unpublished(self, entry: Entry) -> Unpublished | None: ...
    def put_back_unpublished(self, entry: Entry, now_ns: int) -> None: ...
    def finish_unpublished(self, entry: Entry) -> None: ...
    def discard_unpublished(self, entry: Entry) -> None: ...  # dirty and in flight
    def orphan(self, entry: Entry) -> None: ...
    def unpublished(self) -> list[Entry]: ...  # oldest first
    # Comparing with other nodes.
    def checksum(self) -> bytes: ...
    def entry_checksum(self, entry: Entry) -> bytes: ...
    def index(self) -> bytes: ...
