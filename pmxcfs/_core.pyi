from collections.abc import Iterable
from typing import final

from pmxcfs._content import Unpublished
from pmxcfs.messages import Record

__pyx_capi__: dict[str, object]  # the C interface, for cimport

@final
class Entry:
    """One inode: a file or a directory."""

    node: int  # the FUSE node id, set by the fuse package; 0: none assigned
    # Whether the journal's segment of its last change tells all that it held since then. Set by
    # ``rows_before``, but for rows of large files by the caller, which may record a part of them.
    has_row: bool
    kernel_size: int  # the size in bytes that the kernel has of a file; set by fuse and vfs
    @property
    def listing_version(self) -> int: ...  # of a directory: counts added and removed names
    @property
    def inode(self) -> int: ...  # the inode number in the database; 0 is the root
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
    def parent(self) -> Entry | None: ...  # None for the root and for a detached entry
    @property
    def is_directory(self) -> bool: ...
    @property
    def is_attached(self) -> bool: ...  # reachable from the root (the root itself included)
    @property
    def is_orphan(self) -> bool: ...  # removed on this node while open: never published again
    @property
    def private(self) -> bool: ...  # is or is below priv or nodes/NAME/priv; kept when detached
    @property
    def path(self) -> str: ...  # '' for the root; of a detached entry its last path
    @property
    def content(self) -> bytes: ...  # published content; zeros if sparse
    @property
    def stored(self) -> bytes | None: ...  # for the database: None if a directory or sparse
    @property
    def size(self) -> int: ...  # published size
    @property
    def child_count(self) -> int: ...
    def child(self, name: str) -> Entry | None: ...
    def children(self) -> list[Entry]: ...
    # The content that readers on this node see: dirty bytes on top of the published content.
    @property
    def has_draft(self) -> bool: ...  # dirty, in writeback, or an orphan with writes
    @property
    def has_unpublished(self) -> bool: ...  # dirty bytes to be published
    @property
    def unpublished_since_ns(self) -> int: ...  # when the entry became dirty; 0 if clean
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
    def version(self) -> int: ...  # of the root
    @property
    def entry_count(self) -> int: ...  # without the root
    @property
    def content_bytes(self) -> int: ...  # sum of published sizes
    @property
    def unpublished_growth(self) -> int: ...  # sum of visible minus published sizes
    def load(self, records: Iterable[Record]) -> None: ...  # only into an empty tree
    def find(self, path: str) -> Entry | None: ...
    def find_parent(self, path: str) -> tuple[Entry | None, str]: ...  # root: (None, "")
    def get(self, inode: int) -> Entry | None: ...
    # Published mutations. Each raises the version by one and stamps version, writer and mtime.
    def create(self, parent: Entry, name: str, type: int, writer: int, mtime: int) -> Entry: ...
    def write(
        self, entry: Entry, offset: int, data: bytes, truncate: bool, writer: int, mtime: int
    ) -> None: ...
    def rename(
        self, entry: Entry, parent: Entry, name: str, writer: int, mtime: int
    ) -> Entry | None: ...
    def remove(self, entry: Entry, writer: int, mtime: int) -> None: ...
    def drop(self, entry: Entry) -> None: ...  # no new version
    def touch(self, entry: Entry, writer: int, mtime: int) -> None: ...
    # Writing to the journal. add_changed() and rollback() leave out the root.
    def add_changed(self, inodes: dict[int, None]) -> None: ...  # as keys
    def mark_written(self) -> None: ...
    def rows_before(
        self, segment: int, large: int
    ) -> list[tuple[Entry, tuple[Entry, str, tuple[int, int, int], bytes, int, bool]]]: ...
    def rollback(self) -> dict[Entry, str]: ...
    # Unpublished content. Each writeback (take) ends with finish, put_back or discard. Call finish
    # after the WRITE is applied, or (cheaper) just before while holding the lock throughout.
    # now_ns must not decrease from call to call.
    def write_unpublished(self, entry: Entry, offset: int, data: bytes, now_ns: int) -> None: ...
    def truncate_unpublished(
        self, entry: Entry, size: int, now_ns: int, opening: bool = False
    ) -> None: ...
    def take_unpublished(self, entry: Entry) -> Unpublished | None: ...
    def redirty_unpublished(self, entry: Entry, now_ns: int) -> None: ...
    def finish_unpublished(self, entry: Entry) -> None: ...
    def discard_unpublished(self, entry: Entry) -> None: ...  # dirty bytes and writebacks
    def orphan(self, entry: Entry) -> None: ...
    def unpublished(self) -> list[Entry]: ...  # dirty longest first
    # Comparison with other nodes.
    def checksum(self) -> bytes: ...
    def entry_checksum(self, entry: Entry) -> bytes: ...
    def index(self) -> bytes: ...
