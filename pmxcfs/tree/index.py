"""The index: what a node tells about its tree in a sync, without telling any content.

One digest per entry, in ascending inode order, behind a header that follows from the entries. What
peers send is untrusted and checked in full: of two indexes that ``parse`` accepts, equal entries
mean equal bytes, as the header has nothing of its own but the root's stamp.
Contract: docs/spec/storage.md, "Checksums and index"; cluster.md, "State machine", STATE.
"""

import hashlib
import struct
from collections.abc import Iterable
from typing import NamedTuple

from pmxcfs.errors import BadMessage
from pmxcfs.messages import Record

HEADER = struct.Struct("<QQIIII")  # version, last inode, writer, mtime, count, total bytes
ENTRY = struct.Struct("<Q32s")  # inode, digest
ROOT = 0  # its inode
_META = struct.Struct("<QIIIBQ")  # version, writer, mtime, size, type, parent


class Header(NamedTuple):
    """What an index says of the tree as a whole; whoever has the highest leads the sync."""

    version: int
    mtime: int  # of the root, seconds
    writer: int  # of the root


class Index(NamedTuple):
    """A parsed index."""

    header: Header
    digests: dict[int, bytes]  # inode -> SHA-256 of the entry, by ascending inode; 0 is the root


def parse_header(raw: bytes) -> Header:
    """Return the header of an index without looking at its entries. Raises BadMessage."""
    if len(raw) < HEADER.size:
        raise BadMessage(f"an index of {len(raw)} bytes has no header")
    version, _, writer, mtime, count, total = HEADER.unpack_from(raw)
    if total != len(raw):
        raise BadMessage(f"an index of {len(raw)} bytes says that it has {total}")
    if count == 0 or (len(raw) - HEADER.size) != count * ENTRY.size:
        raise BadMessage(f"an index of {len(raw)} bytes can't hold {count} entries")
    return Header(version, mtime, writer)


def parse(raw: bytes) -> Index:
    """Return an index that another node sent. Raises BadMessage."""
    header = parse_header(raw)
    _, last_inode, _, _, count, _ = HEADER.unpack_from(raw)
    digests = dict(ENTRY.iter_unpack(memoryview(raw)[HEADER.size :]))
    inodes = list(digests)
    if inodes[0] != ROOT:
        raise BadMessage("an index begins with the root")
    if len(inodes) != count or sorted(inodes) != inodes:
        raise BadMessage("the entries of an index are in ascending order")
    if inodes[-1] != last_inode:
        raise BadMessage(f"an index ends with entry {inodes[-1]} and says {last_inode}")
    return Index(header, digests)


def records_needed(leader: bytes, others: Iterable[bytes]) -> list[int]:
    """Return the inodes that a leader has to send, ascending: what any other lacks or has
    otherwise, the root included. Raises BadMessage.
    """
    different = [parse(other).digests for other in others if other != leader]
    if not different:
        return []
    return [
        inode
        for inode, digest in parse(leader).digests.items()
        if any(digests.get(inode) != digest for digests in different)
    ]


def digest_of(record: Record, *, sparse: bool = False) -> bytes:
    """Return what the index has for a record; a *sparse* file has a size, but nothing is hashed."""
    data = record.data or b""
    meta = _META.pack(
        record.version, record.writer, record.mtime, len(data), record.type, record.parent
    )
    return hashlib.sha256(meta + record.name + (b"" if sparse else data)).digest()
