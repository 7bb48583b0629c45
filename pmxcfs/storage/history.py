"""History: the journal's segments behind the database's position, without private content.

No start needs them any more; they only tell what has changed. So each is rewritten, compressed,
and what private files held is left out, while the fact, time, node and path of each change stay.
All of them together stay within a budget, the oldest go first, and they go before a change is
refused for lack of room. They also go when they are old.

An entry counts as private in a segment if any path that it has had in it, or has when the segment
is rewritten, is private. If the daemon was told to keep what private files held, the segment says
so from its beginning, since also a command that runs after a crash may rewrite it.

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
from typing import NamedTuple

from zstandard import ZstdCompressor

from pmxcfs._core import Tree
from pmxcfs._cpg import decode as decode_message
from pmxcfs._cpg import encode as encode_message
from pmxcfs.host import clock
from pmxcfs.host.files import FILE_MODE, replace_file
from pmxcfs.messages import Group, Mutation, Normal, Rename, Write
from pmxcfs.settings import HISTORY_SHARE, HistoryLimits
from pmxcfs.storage._journal import frame
from pmxcfs.storage.changes import outlines
from pmxcfs.storage.history_index import Index, encode_index, marks_of, plain, read_index
from pmxcfs.storage.records import (
    MAX_LEFT_OUT,
    Adopted,
    BadRecord,
    Before,
    Change,
    Gap,
    Record,
    encode,
    mutation_of,
)
from pmxcfs.storage.segments import (
    COMPRESSED,
    HEADER_SIZE,
    HISTORY,
    INDEXED,
    WITH_PRIVATE,
    Header,
    Place,
    Segment,
    Verdict,
    encode_header,
    name_of,
    read,
    read_bodies,
    read_place,
)
from pmxcfs.storage.sqlite_errors import translated
from pmxcfs.text import to_bytes

_PRIVATE = re.compile(rb"(nodes/[^/]+/)?priv(/|\Z)")
_LEVEL = 3  # of compression; a higher one takes several times as long for a tenth of the size
_FULL = frozenset([errno.ENOSPC, errno.EDQUOT])
_SECOND = 10**9  # ns
_REWRITTEN = HISTORY | COMPRESSED | INDEXED

# Of a record: is it a change, its time, inode, is it private, path, other path, has it content.
Outline = tuple[bool, int, int, bool, bytes, bytes | None, bool]
# Returns which of the entries with these inodes have a private path now.
PrivateNow = Callable[[Collection[int]], Collection[int]]


def private_in(tree: Tree, lock: AbstractContextManager[object]) -> PrivateNow:
    """Return a function that tells which of some inodes are private in *tree*; it takes *lock*."""

    def private_now(inodes: Collection[int]) -> Collection[int]:
        with lock:
            found = [tree.get(inode) for inode in inodes]
        return {entry.inode for entry in found if entry is not None and entry.private}

    return private_now


class _Kept(NamedTuple):
    """A segment of the history."""

    size: int  # bytes
    first_ns: int  # time of its first change, in ns since 1970
    last_ns: int  # of its last one


class History:
    """The history in the directory of a journal.

    *private_now* may take the tree's lock. Without *limits* nothing is dropped but for room.
    """

    def __init__(
        self,
        directory: Path,
        *,
        private_now: PrivateNow,
        limits: HistoryLimits | None = None,
        clock_ns: Callable[[], int] = clock.nanoseconds,
    ) -> None:
        self._directory = directory
        self._private_now = private_now
        self._limits = limits
        self._clock_ns = clock_ns  # ns since 1970
        self._kept: dict[int, _Kept] = {}  # by first sequence number
        self._lock = threading.Lock()  # held for moments

    @property
    def flags(self) -> int:
        """What a new segment of the journal says of the history that becomes of it."""
        return WITH_PRIVATE if self._limits is not None and self._limits.keeps_private else 0

    @property
    def size(self) -> int:
        """The bytes that the history takes."""
        with self._lock:
            return sum([kept.size for kept in self._kept.values()])

    @property
    def begin_ns(self) -> int | None:
        """The time of its oldest change, in ns since 1970; None without a history."""
        with self._lock:
            return self._kept[min(self._kept)].first_ns if self._kept else None

    def note(self, place: Place) -> None:
        """Note a segment of the history that an earlier run has left. Blocks."""
        index = read_index(place.path, header_size=HEADER_SIZE)
        if index is not None:
            kept = _Kept(place.size, index.first_ns, index.last_ns)
        else:
            time_ns = 0
            with contextlib.suppress(OSError):
                time_ns = place.path.stat().st_mtime_ns
            kept = _Kept(place.size, time_ns, time_ns)
        with self._lock:
            self._kept[place.first] = kept

    def take(self, first: int, *, before: int) -> None:
        """Rewrite the segment with this first number, which the database does not need any more.

        Records with number *before* or a higher one do not count. If there is no room even without
        the older history, or no record, the segment is dropped; that of a later version of pmxcfs
        stays as it is. Raises StoreError.
        """
        path = self._directory / name_of(first)
        verdict = read_place(path).verdict
        if verdict is Verdict.NEWER:
            return
        with translated(path, "rewritten"):
            found = self._rewritten(path, before) if self._is_wanted else None
            if found is not None and self._replace(path, found[0]):
                content, index = found
                with self._lock:
                    self._kept[first] = _Kept(len(content), index.first_ns, index.last_ns)
            else:
                _remove(path)

    @property
    def _is_wanted(self) -> bool:
        return self._limits is None or self._limits.size > 0

    def trim(self) -> None:
        """Drop the oldest segments that are beyond the budget, and one that is old.

        Not more of them, because a clock can jump. Raises StoreError.
        """
        with translated(self._directory, "read"):
            device = os.statvfs(self._directory)
        most = device.f_bavail * device.f_frsize // HISTORY_SHARE
        if self._limits is not None:
            most = min(most, self._limits.size)
        while self.size > most and self.drop_oldest():
            pass
        if self._is_oldest_too_old():
            self.drop_oldest()

    def _is_oldest_too_old(self) -> bool:
        if self._limits is None:
            return False
        eldest = self._clock_ns() - self._limits.age * _SECOND
        with self._lock:
            return bool(self._kept) and self._kept[min(self._kept)].last_ns < eldest

    def drop_oldest(self) -> bool:
        """Drop the oldest segment; False if there is none. Raises StoreError."""
        with self._lock:
            if not self._kept:
                return False
            first = min(self._kept)
            del self._kept[first]
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

    def _rewritten(self, path: Path, before: int) -> tuple[bytes, Index] | None:
        """Return the bytes of a segment as history, and its index; None without records."""
        header, content, bounds = read_bodies(path)
        bounds = bounds[: max(before - header.first, 0)] if header else []
        if header is None or not bounds:
            return None
        found = self._as_it_is(header, content, bounds)
        found = found or self._without_private(header, read(path), before)
        if found is None:
            return None
        records, index = found
        header = header._replace(flags=header.flags | _REWRITTEN)
        compressed = ZstdCompressor(level=_LEVEL, write_checksum=True).compress(records)
        return b"".join([encode_header(header), compressed, encode_index(index)]), index

    def _as_it_is(
        self, header: Header, content: bytes, bounds: list[tuple[int, int]]
    ) -> tuple[bytes | memoryview, Index] | None:
        """Return the records' bytes, not copied, and their index; None if one has to be decoded.

        Most segments hold nothing that is private, and decoding takes five times as long as
        compressing.
        """
        entries = outlines(content, bounds)
        if entries is None or (not header.keeps_private and self._has_private_content(entries)):
            return None
        times = [time_ns for is_change, time_ns, *_ in entries if is_change] or [self._clock_ns()]
        paths = {path for *_, path, _, _ in entries}
        paths.update([other for *_, other, _ in entries if other is not None])
        records = memoryview(content)[HEADER_SIZE : bounds[-1][1]]
        return records, Index(min(times), max(times), marks_of(paths))

    def _has_private_content(self, entries: list[Outline]) -> bool:
        private = {
            inode
            for _, _, inode, is_private, path, other, _ in entries
            if is_private or is_private_path(path) or (other and is_private_path(other))
        }
        private.update(self._private_now({inode for _, _, inode, *_ in entries}))
        return any([has_content and inode in private for _, _, inode, *_, has_content in entries])

    def _without_private(
        self, header: Header, segment: Segment, before: int
    ) -> tuple[bytes, Index] | None:
        """Return the records' bytes without what is private, and their index; None if none."""
        records = [found.record for found in segment.records if found.sequence < before]
        if not records:
            return None
        mutations = [_mutation_of(record) for record in records]
        pairs = list(zip(records, mutations, strict=True))
        paths = list(_paths_in(pairs))
        if not header.keeps_private:
            private = {inode for inode, path in paths if is_private_path(path)}
            private.update(self._private_now({inode for inode, _ in paths}))
            pairs = [(_public(record, mutation, private), mutation) for record, mutation in pairs]
        bodies = [encode(record) for record, _ in pairs]
        return frame(bodies, header.first), _index_of(pairs, now_ns=self._clock_ns())


def is_private_path(path: bytes) -> bool:
    """Tell whether only root may read what is at *path*, as the cluster has sent it."""
    return _PRIVATE.match(plain(path)) is not None


def _index_of(pairs: list[tuple[Record, Mutation | None]], *, now_ns: int) -> Index:
    """Return the index of a segment with these records and their mutations.

    Without a change, its time is *now_ns*.
    """
    times = [record.time_ns for record, _ in pairs if isinstance(record, Change)] or [now_ns]
    paths: list[bytes] = []
    for record, mutation in pairs:
        if isinstance(record, Before):
            paths.append(record.path)
        elif mutation is not None:
            paths.append(to_bytes(mutation.path))
            if isinstance(mutation, Rename):
                paths.append(to_bytes(mutation.to))
        elif isinstance(record, Adopted) and not record.is_short:
            paths.extend(record.paths)
        elif isinstance(record, Change | Adopted | Gap):
            return Index(min(times), max(times), None)
    return Index(min(times), max(times), marks_of(paths))


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
        size = record.left_out + len(record.message)
        return record._replace(message=b"", left_out=min(size, MAX_LEFT_OUT))
    if record.inode not in private or not isinstance(mutation, Write) or not mutation.data:
        return record
    normal = decode_message(record.message, group=Group.TREE)
    assert isinstance(normal, Normal)  # or it would have no mutation
    write = mutation._replace(data=b"")
    message = encode_message(normal._replace(body=write), group=Group.TREE)
    return record._replace(message=message, left_out=len(mutation.data))
