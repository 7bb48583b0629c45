"""History: the journal's segments behind the database's position, without private content.

No start needs them any more; they only tell what has changed. So each is rewritten, compressed,
and what private files held is left out, while the fact, time, node and path of each change stay.
All of them together stay within a budget, the oldest go first, and they go before a change is
refused for lack of room.

An entry counts as private in a segment if any path that it has had in it, or has when the segment
is rewritten, is private.

Threads: ``take`` and ``trim`` are for one thread at a time, ``drop_oldest`` for any. All block.
Contract: docs/spec/storage.md, "Journal".
"""

import contextlib
import errno
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from zstandard import ZstdCompressor

from pmxcfs._core import Tree
from pmxcfs._cpg import decode as decode_message
from pmxcfs._cpg import encode as encode_message
from pmxcfs.host.files import FILE_MODE, replace_file
from pmxcfs.messages import Group, Mutation, Normal, Rename, Write
from pmxcfs.settings import HISTORY_SHARE, HISTORY_SIZE
from pmxcfs.storage._journal import frame
from pmxcfs.storage.records import BadRecord, Before, Change, Record, encode, mutation_of
from pmxcfs.storage.segments import (
    COMPRESSED,
    HISTORY,
    Header,
    Place,
    Segment,
    Verdict,
    encode_header,
    name_of,
    read,
)
from pmxcfs.storage.sqlite_errors import translated
from pmxcfs.text import to_bytes

_PRIVATE = re.compile(rb"(nodes/[^/]+/)?priv(/|\Z)")
_LEVEL = 3  # of compression; a higher one takes several times as long for a tenth of the size
_FULL = frozenset([errno.ENOSPC, errno.EDQUOT])

# Returns which of the entries with these inodes have a private path now.
PrivateNow = Callable[[Collection[int]], Collection[int]]


def private_in(tree: Tree, lock: AbstractContextManager[object]) -> PrivateNow:
    """Return a function that tells which of some inodes are private in *tree*; it takes *lock*."""

    def private_now(inodes: Collection[int]) -> Collection[int]:
        with lock:
            found = [tree.get(inode) for inode in inodes]
        return {entry.inode for entry in found if entry is not None and entry.private}

    return private_now


class History:
    """The history in the directory of a journal.

    *private_now* may take the tree's lock. *size* is the budget in bytes.
    """

    def __init__(
        self, directory: Path, *, private_now: PrivateNow, size: int = HISTORY_SIZE
    ) -> None:
        self._directory = directory
        self._private_now = private_now
        self._limit = size
        self._sizes: dict[int, int] = {}  # bytes of each segment, by its first sequence number
        self._lock = threading.Lock()  # held for moments

    @property
    def size(self) -> int:
        """The bytes that the history takes."""
        with self._lock:
            return sum(self._sizes.values())

    def note(self, place: Place) -> None:
        """Note a segment of the history that an earlier run has left."""
        with self._lock:
            self._sizes[place.first] = place.size

    def take(self, first: int, *, before: int) -> None:
        """Rewrite the segment with this first number, which the database does not need any more.

        Records with number *before* or a higher one do not count. If there is no room even without
        the older history, or no record, the segment is dropped; that of a later version of pmxcfs
        stays as it is. Raises StoreError.
        """
        path = self._directory / name_of(first)
        segment = read(path)
        if segment.verdict is Verdict.NEWER:
            return
        with translated(path, "rewritten"):
            content = self._rewritten(segment, before) if self._limit else b""
            if content and self._replace(path, content):
                with self._lock:
                    self._sizes[first] = len(content)
            else:
                _remove(path)

    def trim(self) -> None:
        """Drop the oldest segments that are beyond the budget. Raises StoreError."""
        with translated(self._directory, "read"):
            device = os.statvfs(self._directory)
        free = device.f_bavail * device.f_frsize
        while self.size > min(self._limit, free // HISTORY_SHARE) and self.drop_oldest():
            pass

    def drop_oldest(self) -> bool:
        """Drop the oldest segment; False if there is none. Raises StoreError."""
        with self._lock:
            if not self._sizes:
                return False
            first = min(self._sizes)
            del self._sizes[first]
        path = self._directory / name_of(first)
        with translated(path, "removed"):
            _remove(path)
        return True

    def _replace(self, path: Path, content: bytes) -> bool:
        """Replace a segment; False if there is no room for it. Raises OSError."""
        while True:
            try:
                replace_file(path, content, mode=FILE_MODE)
            except OSError as error:
                _remove(path.with_name(f".{path.name}.new"))
                if error.errno not in _FULL:
                    raise
                if not self.drop_oldest():
                    return False
            else:
                return True

    def _rewritten(self, segment: Segment, before: int) -> bytes:
        """Return the bytes of *segment* as history, empty without records."""
        records = [found.record for found in segment.records if found.sequence < before]
        if segment.header is None or not records:
            return b""
        mutations = [_mutation_of(record) for record in records]
        pairs = list(zip(records, mutations, strict=True))
        paths = list(_paths_in(pairs))
        private = {inode for inode, path in paths if is_private_path(path)}
        private.update(self._private_now({inode for inode, _ in paths}))
        bodies = [encode(_public(record, mutation, private)) for record, mutation in pairs]
        header = Header(
            segment.header.lineage,
            segment.header.first,
            segment.header.version,
            HISTORY | COMPRESSED,
        )
        compressor = ZstdCompressor(level=_LEVEL, write_checksum=True)
        return encode_header(header) + compressor.compress(frame(bodies, header.first))


def is_private_path(path: bytes) -> bool:
    """Tell whether only root may read what is at *path*, as the cluster has sent it."""
    return _PRIVATE.match(b"/".join(filter(None, path.split(b"/")))) is not None


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _mutation_of(record: Record) -> Mutation | None:
    """Return the mutation of a change; None for another record, or if it can't be decoded."""
    if not isinstance(record, Change):
        return None
    try:
        return mutation_of(record)
    except BadRecord:
        return None


def _paths_in(pairs: list[tuple[Record, Mutation | None]]) -> Iterator[tuple[int, bytes]]:
    """Yield inode and path for each path that an entry has had in records and their mutations."""
    for record, mutation in pairs:
        if isinstance(record, Before):
            yield record.inode, b"priv" if record.is_private else record.path
        elif isinstance(record, Change):
            yield record.inode, to_bytes(mutation.path) if mutation else b""
            if isinstance(mutation, Rename):
                yield record.inode, to_bytes(mutation.to)


def _public(record: Record, mutation: Mutation | None, private: set[int]) -> Record:
    """Return *record* without content of the entries in *private*."""
    if isinstance(record, Before) and record.inode in private:
        is_left_out = bool(record.data) or record.is_left_out
        return record._replace(data=b"", is_private=True, is_left_out=is_left_out)
    if not isinstance(record, Change):
        return record
    if mutation is None:  # nobody can tell which part of it is content
        size = len(record.message)
        return record._replace(message=b"", left_out=record.left_out + size)
    if record.inode not in private or not isinstance(mutation, Write) or not mutation.data:
        return record
    normal = decode_message(record.message, group=Group.TREE)
    assert isinstance(normal, Normal)  # or it would have no mutation
    write = mutation._replace(data=b"")
    message = encode_message(normal._replace(body=write), group=Group.TREE)
    return record._replace(message=message, left_out=len(mutation.data))
