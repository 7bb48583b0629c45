"""The index: one digest per entry, by which nodes compare their trees without the content.

An index is a header and then inode and digest of each entry, by ascending inode. An index from a
peer is untrusted and checked in full. The header holds only the root's stamp and values that
follow from the entries, so two valid indexes with equal entries and root stamps are equal bytes.
Contract: docs/spec/storage.md, "Checksums and index"; docs/spec/cluster.md, "STATE".
"""

import hashlib
import struct
from collections.abc import Iterable
from typing import NamedTuple

from pmxcfs.errors import BadMessage
from pmxcfs.messages import Record
from pmxcfs.tree._digests import mark_differing, rises

HEADER = struct.Struct("<QQIIII")  # version, last inode, writer, mtime, count, total bytes
ENTRY = struct.Struct("<Q32s")  # inode, digest
ROOT = 0  # inode of the root
_META = struct.Struct("<QIIIBQ")  # version, writer, mtime, size, type, parent


class Header(NamedTuple):
    """The root's stamp, from the header of an index. ``dfsm.election`` ranks members by it."""

    version: int  # of the tree
    mtime: int  # of the root, seconds
    writer: int  # of the root


class Index(NamedTuple):
    """A parsed index."""

    header: Header
    digests: dict[int, bytes]  # inode -> SHA-256 of the entry, by ascending inode


def parse_header(raw: bytes) -> Header:
    """Return the header of an index without checking its entries. Raises BadMessage."""
    if len(raw) < HEADER.size:
        raise BadMessage(f"an index of {len(raw)} bytes is shorter than its header")
    version, _, writer, mtime, count, total = HEADER.unpack_from(raw)
    if total != len(raw):
        raise BadMessage(f"an index of {len(raw)} bytes states a size of {total} bytes")
    if count == 0 or (len(raw) - HEADER.size) != count * ENTRY.size:
        raise BadMessage(f"an index of {len(raw)} bytes states {count} entries")
    return Header(version, mtime, writer)


def below_all(raw: bytes) -> bytes:
    """Return an index with the lowest rank of all: another member's tree leads, if there is one."""
    _, last_inode, writer, _, count, total = HEADER.unpack_from(raw)
    return HEADER.pack(1, last_inode, writer, 0, count, total) + raw[HEADER.size :]


def check(raw: bytes) -> Header:
    """Check an index from another node in full, and return its header. Raises BadMessage."""
    header = parse_header(raw)
    if _inode_at(raw, HEADER.size) != ROOT:
        raise BadMessage("the first entry of an index is not the root")
    if not rises(raw):
        raise BadMessage("the entries of an index are not in ascending order")
    last, stated = _inode_at(raw, len(raw) - ENTRY.size), HEADER.unpack_from(raw)[1]
    if last != stated:
        raise BadMessage(f"the last inode of an index is {last}, its header states {stated}")
    return header


def parse(raw: bytes) -> Index:
    """Parse and check an index from another node. Raises BadMessage."""
    header = check(raw)
    return Index(header, dict(ENTRY.iter_unpack(memoryview(raw)[HEADER.size :])))


def records_needed(leader: bytes, others: Iterable[bytes]) -> list[int]:
    """Return the inodes that the leader must send, in ascending order, the root included.

    Those are the entries of the index *leader* that any index of *others* lacks or has with another
    digest. Raises BadMessage.
    """
    different = [other for other in others if other != leader]
    if not different:
        return []
    check(leader)
    entries = memoryview(leader)[HEADER.size :]
    marks = bytearray(len(entries) // ENTRY.size)
    for other in different:
        check(other)
        mark_differing(leader, other, marks)
    return [
        inode for (inode, _), mark in zip(ENTRY.iter_unpack(entries), marks, strict=True) if mark
    ]


def _inode_at(raw: bytes, place: int) -> int:
    inode: int = ENTRY.unpack_from(raw, place)[0]
    return inode


def digest_of(record: Record, *, sparse: bool = False) -> bytes:
    """Return the digest of a record in the index; of a *sparse* file the data is not hashed."""
    data = record.data or b""
    meta = _META.pack(
        record.version, record.writer, record.mtime, len(data), record.type, record.parent
    )
    return hashlib.sha256(meta + record.name + (b"" if sparse else data)).digest()
