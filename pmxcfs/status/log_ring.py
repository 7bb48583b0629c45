"""The ring buffer of the cluster log: its binary layout, and reading rings of any content.

All numbers are little endian. The ring begins with its size and the offset of the newest entry (0
if it is empty). Entries follow from offset 8, each padded to a multiple of 8 bytes::

    u32 offset of the next older entry (0: none)   u32 offset behind this entry
    u32 uid   u32 time   u64 node digest   u64 ident digest   u32 pid   u8 priority
    u8 u8 u8 u32 lengths of node, ident, tag, message (with NUL); then these strings with NUL
    4 bytes without meaning, copied as received so that the rings of all nodes are equal

A new entry overwrites the oldest ones, so a walk from newer to older entries must stop at the first
entry that was overwritten. A ring from another node can hold any bytes.
Contract: docs/spec/status.md, "Cluster log".
"""

import struct
from collections.abc import Iterable, Iterator

from pmxcfs.errors import BadMessage
from pmxcfs.messages import LogEntry

SIZE = 131072  # bytes
MAX_ENTRY = 4096  # bytes of one entry: OVERHEAD and the lengths of its strings
MAX_NAME = 254  # bytes of node, ident and tag, without NUL
OVERHEAD = 48  # bytes of an entry beside its strings

_FIRST = 8  # offset of the first entry
_START = struct.Struct("<II")
_HEADER = struct.Struct("<IIIIQQIBBBBI")
_TRAILING = OVERHEAD - _HEADER.size
_ROOM = SIZE - _FIRST - MAX_ENTRY  # bytes after which a merge stops; one more entry fits


def nominal_size(entry: LogEntry) -> int:
    """Return the size of *entry* in a LOG message, in bytes."""
    lengths = len(entry.node) + len(entry.ident) + len(entry.tag) + len(entry.message)
    return OVERHEAD + lengths + 4  # 4: one NUL per string


def occupied_size(entry: LogEntry) -> int:
    """Return the size of *entry* in a ring, in bytes."""
    return -(-nominal_size(entry) // 8) * 8


def fits(entry: LogEntry) -> bool:
    """Tell whether *entry* can be stored. An entry from another node may be too large."""
    names = max(len(entry.node), len(entry.ident), len(entry.tag))
    return names <= MAX_NAME and nominal_size(entry) <= MAX_ENTRY


class LogRing:
    """A ring that this node writes, so its content is valid."""

    def __init__(self) -> None:
        self._raw = bytearray(SIZE)
        self._newest = 0  # offset of the newest entry; 0 while the ring is empty
        self._end = _FIRST  # offset behind the newest entry
        _START.pack_into(self._raw, 0, SIZE, 0)

    @classmethod
    def of(cls, entries: Iterable[LogEntry]) -> "LogRing":
        """Return a ring of *entries*, given oldest first."""
        ring = cls()
        for entry in entries:
            ring.append(entry)
        return ring

    def __bytes__(self) -> bytes:
        return bytes(self._raw)

    def __iter__(self) -> Iterator[LogEntry]:
        """Yield the entries, newest first."""
        return walk(self._raw)

    def append(self, entry: LogEntry) -> None:
        """Add *entry*, which must fit, as the newest; overwrite the oldest entries if needed."""
        size = occupied_size(entry)
        place = self._end if self._end + size < SIZE else _FIRST
        self._raw[place : place + size] = _pack(
            entry, older=self._newest, end=place + size, size=size
        )
        self._newest, self._end = place, place + size
        _START.pack_into(self._raw, 0, SIZE, place)


def _pack(entry: LogEntry, *, older: int, end: int, size: int) -> bytes:
    strings = (entry.node, entry.ident, entry.tag, entry.message)
    header = _HEADER.pack(older, end, *entry[:6], *[len(string) + 1 for string in strings])
    return (header + b"\0".join(strings) + b"\0" + entry.trailing).ljust(size, b"\0")


def walk(raw: bytes | bytearray) -> Iterator[LogEntry]:
    """Yield the entries of a ring, newest first, up to the first overwritten or invalid one.

    *raw* can hold any bytes. An entry must end before the next newer one begins, and the walk can
    wrap around only once. So it terminates, and no byte is read as part of two entries.
    """
    newest = _start_of(raw)
    offset, limit = newest, SIZE
    while offset:
        try:
            entry, older = _unpack(raw, offset, limit=limit)
        except BadMessage:
            return
        yield entry
        if older < offset and (offset <= newest or older > newest + MAX_ENTRY):
            limit = offset
        elif offset <= newest and older > newest + MAX_ENTRY:
            limit = SIZE
        else:  # it was overwritten
            return
        offset = older


def _start_of(raw: bytes | bytearray) -> int:
    """Return the offset of the newest entry; 0 if *raw* is empty or not a ring."""
    if len(raw) != SIZE:
        return 0
    size, newest = _START.unpack_from(raw)
    return newest if size == SIZE else 0


def _unpack(raw: bytes | bytearray, offset: int, *, limit: int) -> tuple[LogEntry, int]:
    """Return the entry at *offset* and the offset of the next older entry.

    Raises BadMessage if no valid entry is at *offset*, or if it ends behind *limit*.
    """
    if offset % 8 or not _FIRST <= offset <= SIZE - OVERHEAD:
        raise BadMessage(f"no entry can begin at {offset}")
    older, _, *numbers, node, ident, tag, message = _HEADER.unpack_from(raw, offset)
    size = OVERHEAD + node + ident + tag + message
    if size > MAX_ENTRY or offset + size > limit:
        raise BadMessage(f"the entry at {offset} is too long")
    strings: list[bytes] = []
    place = offset + _HEADER.size
    for length in (node, ident, tag, message):
        place += length
        if not length or raw[place - 1]:
            raise BadMessage(f"a string of the entry at {offset} has no NUL at its end")
        strings.append(bytes(raw[place - length : place - 1]))
    trailing = bytes(raw[place : place + _TRAILING])
    return LogEntry._make((*numbers, *strings, trailing)), older


def in_order(raw: bytes | bytearray) -> bytes:
    """Return the ring with its entries sorted, oldest first: the payload of a STATE message."""
    return bytes(LogRing.of(sorted(walk(raw), key=order)))


def merged(rings: Iterable[bytes]) -> list[LogEntry]:
    """Return the newest entries of all *rings* that fit into one ring, oldest first, no duplicates.

    The result does not depend on the order of *rings*.
    """
    found: dict[tuple[int, int, int], LogEntry] = {}
    for raw in set(rings):  # many are equal, as the members were in sync before
        for entry in walk(raw):
            key = order(entry)
            if key not in found or found[key] < entry:
                found[key] = entry
    chosen: list[LogEntry] = []
    used = 0
    for key in sorted(found, reverse=True):
        if used >= _ROOM:
            break
        chosen.append(found[key])
        used += occupied_size(found[key])
    chosen.reverse()
    return chosen


def order(entry: LogEntry) -> tuple[int, int, int]:
    """Return the sort key of *entry*, which also identifies duplicates."""
    return (entry.time, entry.node_digest, entry.uid)
