"""The index of a history segment: of which time it is, and of which paths it may tell.

It stands behind the compressed records, so that a reader need not decompress a segment without the
path that it looks for. A path is a *mark* in it, the path's CRC-32C; so is each directory above it,
with a slash behind it. Two paths with one mark make a reader read a segment for nothing, no more.

An index is untrusted as all of the file. One that is missing or damaged is None: then the segment
may tell of any path.
Contract: docs/spec/storage.md, "Journal". Layout: docs/formats.md, "The journal".
"""

import contextlib
import os
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pmxcfs.host.directories import opened
from pmxcfs.storage._journal import crc32c

_HEAD = struct.Struct("<QQB")
_FOOTER = struct.Struct("<II")  # bytes in front of it, and their CRC
_ALL = 1  # flag: paths are missing
_MARK_SIZE = 4  # bytes
_MAX_INDEX = 64 << 20  # bytes; more than a segment can need


class Index(NamedTuple):
    """What one segment tells of."""

    first_ns: int  # time of its first change, in ns since 1970
    last_ns: int  # of its last one
    marks: frozenset[int] | None  # None: it may tell of any path

    def may_tell_of(self, path: bytes) -> bool:
        """Tell whether a record may name *path*, or what is below it or above it."""
        if self.marks is None or not path:
            return True
        wanted = [path, path + b"/", *directories_above(path)]
        return not self.marks.isdisjoint(map(crc32c, wanted))


def marks_of(paths: Iterable[bytes]) -> frozenset[int]:
    """Return the marks of *paths* and of the directories above them."""
    marks: set[int] = set()
    for path in map(plain, set(paths)):
        marks.add(crc32c(path))
        marks.update(crc32c(directory + b"/") for directory in directories_above(path))
    return frozenset(marks)


def plain(path: bytes) -> bytes:
    """Return a path as the tree has it, without needless slashes."""
    return b"/".join(filter(None, path.split(b"/")))


def directories_above(path: bytes) -> Iterator[bytes]:
    """Yield the directories above *path*, but not the root."""
    while slash := path.rfind(b"/") + 1:
        path = path[: slash - 1]
        yield path


def encode_index(index: Index) -> bytes:
    """Return the bytes that end a segment with this *index*."""
    head = _HEAD.pack(index.first_ns, index.last_ns, _ALL if index.marks is None else 0)
    marks = array("I", sorted(index.marks or ()))
    if sys.byteorder == "big":
        marks.byteswap()
    data = head + marks.tobytes()
    return data + _FOOTER.pack(len(data), crc32c(data))


def decode_index(data: bytes, checksum: int) -> Index | None:
    """Return the index with these bytes, without the footer; None if it is not sound."""
    if len(data) < _HEAD.size or crc32c(data) != checksum:
        return None
    first_ns, last_ns, flags = _HEAD.unpack_from(data)
    if flags & ~_ALL or (len(data) - _HEAD.size) % _MARK_SIZE:
        return None
    marks = array("I", data[_HEAD.size :])
    if sys.byteorder == "big":
        marks.byteswap()
    return Index(first_ns, last_ns, None if flags else frozenset(marks))


def without_index(content: bytes, start: int) -> bytes:
    """Return what *content* has from *start* to the index that ends it; all if none can be there.

    The index is not checked: what is in front of it may be sound all the same.
    """
    end = len(content) - _FOOTER.size
    if end < start:
        return content[start:]
    size, _ = _FOOTER.unpack_from(content, end)
    return content[start : end - size] if size <= end - start else content[start:]


def read_index(path: Path, *, header_size: int) -> Index | None:
    """Return the index of the segment at *path*, whose header was read; None without one. Blocks.

    Raises nothing of the file.
    """
    with contextlib.suppress(OSError), opened(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as file:
        end = os.fstat(file).st_size - _FOOTER.size
        if end < header_size:
            return None
        footer = os.pread(file, _FOOTER.size, end)
        if len(footer) == _FOOTER.size:
            size, checksum = _FOOTER.unpack(footer)
            if size <= min(end - header_size, _MAX_INDEX):
                return decode_index(os.pread(file, size, end - size), checksum)
    return None
