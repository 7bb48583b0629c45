"""The ring that holds the cluster log: its layout, and walking one that nobody vouches for.

Everything is little endian. The ring begins with its size and the offset of the newest entry (0
when there is none); entries follow from offset 8, each in a multiple of 8 bytes::

    u32 offset of the next older entry (0: none)   u32 offset behind this entry
    u32 uid   u32 time   u64 node digest   u64 ident digest   u32 pid   u8 priority
    u8 u8 u8 u32 lengths of node, ident, tag, message; then those, each with its NUL in its length
    4 bytes that mean nothing, but differ between rings unless they are copied

Space is taken from the oldest entries by writing over them, so a walk back must notice where it
would leave what is still whole. A ring of another node can hold anything. Contract: docs/spec/status.md,
"Cluster log".
"""

import struct
from collections.abc import Iterable, Iterator

from pmxcfs.errors import BadMessage
from pmxcfs.messages import LogEntry

SIZE = 131072
MAX_ENTRY = 4096  # bytes of one entry, the lengths of its strings and 48
MAX_NAME = 254  # bytes of node, ident and tag, without NUL
OVERHEAD = 48  # bytes of an entry beside its strings

_FIRST = 8  # where the first entry goes
_START = struct.Struct("<II")
_HEADER = struct.Struct("<IIIIQQIBBBBI")
_TRAILING = OVERHEAD - _HEADER.size
_ROOM = (
    SIZE - _FIRST - MAX_ENTRY
)  # a merge goes on until this much is used; the last one still fits


def nominal_size(entry: LogEntry) -> int:
    """Return the bytes of *entry* in a LOG message."""
    lengths = len(entry.node) + len(entry.ident) + len(entry.tag) + len(entry.message)
    return OVERHEAD + lengths + 4  # with four NULs


def occupied_size(entry: LogEntry) -> int:
    """Return the bytes that *entry* takes in a ring."""
    return -(-nominal_size(entry) // 8) * 8


def fits(entry: LogEntry) -> bool:
    """Tell whether *entry* can be stored; those of other nodes may not."""
    names = max(len(entry.node), len(entry.ident), len(entry.tag))
    return names <= MAX_NAME and nominal_size(entry) <= MAX_ENTRY


class LogRing:
    """A ring that was written here."""

    def __init__(self) -> None:
        self._raw = bytearray(SIZE)
        self._newest = 0  # offset, 0 while there is none
        self._end = _FIRST  # offset behind the newest
        _START.pack_into(self._raw, 0, SIZE, 0)

    @classmethod
    def of(cls, entries: Iterable[LogEntry]) -> "LogRing":
        """Make a ring of *entries*, oldest first."""
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
        """Put *entry*, which fits, behind the newest, over the oldest if there is no room."""
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
    """Yield the entries of a ring, newest first, as far back as they are whole.

    Takes any bytes. Every entry ends where the next newer one begins, or before, and there is one
    step from the low end to the high one; so a walk ends, and yields no byte twice.
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
        else:  # overwritten since
            return
        offset = older


def _start_of(raw: bytes | bytearray) -> int:
    """Return the offset of the newest entry, 0 if these are no bytes of a ring."""
    if len(raw) != SIZE:
        return 0
    size, newest = _START.unpack_from(raw)
    return newest if size == SIZE else 0


def _unpack(raw: bytes | bytearray, offset: int, *, limit: int) -> tuple[LogEntry, int]:
    """Return the entry at *offset*, and the offset of the next older.

    Raises BadMessage if there is none that ends before *limit*.
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
            raise BadMessage(f"a text of the entry at {offset} does not end")
        strings.append(bytes(raw[place - length : place - 1]))
    trailing = bytes(raw[place : place + _TRAILING])
    return LogEntry._make((*numbers, *strings, trailing)), older


def in_order(raw: bytes | bytearray) -> bytes:
    """Return the ring with its entries in order, oldest first: the payload of a STATE message."""
    return bytes(LogRing.of(sorted(walk(raw), key=order)))


def merged(rings: Iterable[bytes]) -> list[LogEntry]:
    """Return the newest entries of all *rings* that fit into one, oldest first, each once.

    The result depends on what the rings hold and not on their order.
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
    """Return what entries are sorted by, and known by."""
    return (entry.time, entry.node_digest, entry.uid)
