"""The pages of an SQLite file: b-tree pages, cells, records, overflow chains and the freelist.

A reader for files that SQLite refuses, as one page is damaged. It goes on where SQLite stops: each
cell is read by itself. All bytes are untrusted: a number is compared with what is left before it is
used, no page is visited twice in one walk, and the content of all overflow chains together is
bounded. What can't be read raises ``Unreadable``, or is left out where a function says so.

It reads files as SQLite writes them without extensions: UTF-8 and no reserved bytes in a page.
Format: sqlite.org/fileformat2.html.
"""

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

PAGE_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
MAGIC = b"SQLite format 3\0"
FILE_HEADER = 100  # bytes at the start of page 1, before its b-tree header
FIRST, LAST = -(1 << 63), (1 << 63) - 1  # the smallest and the largest key

_INTERIOR, _LEAF = 5, 13  # types of the pages of a table
_INTERIOR_HEADER, _LEAF_HEADER = 12, 8  # bytes
_TRIED_CHILDREN = 16  # of a page that may be an interior page
_MIN_CELL = 4  # bytes that a cell takes at least
_FIXED_BYTES = bytes((64, 32, 32))  # of each file header, at offset 21
_U16, _U32 = struct.Struct(">H"), struct.Struct(">I")
_WIDTHS = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)  # bytes of a value, by its type below 12
_MAX_COLUMNS = 100  # of a record; the tables that are read have at most 8
_REPEATS = 4  # how often all pages together may be read as parts of overflow chains
_SPARE = 64 << 20  # bytes of chains besides, so that a small file is not limited

Value = int | float | bytes | None
Values = list[Value]


class Unreadable(Exception):
    """Bytes that can't be what they should be."""


class Cell(NamedTuple):
    """A row in a leaf. *values* is None if only a part of the row could be read."""

    key: int
    values: Values | None
    beginning: Values  # the columns that could be read


class Leaf(NamedTuple):
    """A leaf of a table, and where it stands."""

    number: int  # of its page
    low: int | None  # its keys are above this one; None: not known
    high: int  # and not above this one
    cells: Sequence[Cell]
    is_sound: bool  # all cells could be read, are all of the page, and their keys are in order

    @property
    def row_count(self) -> int:
        """The number of rows of it that could be read in full."""
        return sum(bool(cell.values) for cell in self.cells)

    @property
    def has_all(self) -> bool:
        """Whether no other row can be between its bounds."""
        if not self.is_sound or self.low is None:
            return False
        return all(self.low < cell.key <= self.high for cell in self.cells)


class Pages:
    """The pages of a file, with those of its write-ahead log over them."""

    def __init__(
        self,
        descriptor: int,
        *,
        size: int,
        page_size: int,
        log: int = -1,
        frames: Mapping[int, int] | None = None,
    ) -> None:
        """*size* is that of the file. *frames*: offsets in the file *log*, by page number."""
        self._descriptor = descriptor
        self._log = log
        self._frames = frames or {}
        self._size = size
        self.page_size = page_size
        self.count = max([-(-size // page_size), *self._frames])
        self.chained: set[int] = set()  # overflow pages of all payloads that could be read
        self._chain_bytes = _REPEATS * self.count * page_size + _SPARE

    def read(self, number: int) -> bytes:
        """Return a page; fewer bytes where the file is cut off, none beyond it. Blocks."""
        if not 1 <= number <= self.count:
            return b""
        offset = self._frames.get(number)
        if offset is not None:
            return os.pread(self._log, self.page_size, offset)
        offset = (number - 1) * self.page_size
        return os.pread(self._descriptor, max(min(self.page_size, self._size - offset), 0), offset)

    # B-trees

    def walk(self, root: int, visited: set[int]) -> Iterator[Leaf]:
        """Yield the leaves of the table with this root, in the order of keys. Blocks.

        *visited* are pages that are left out; those of the table are added. What can't be read is
        left out: the keys between the bounds of the leaves are then missing.
        """
        waiting: list[tuple[int, int | None, int]] = [(root, FIRST - 1, LAST)]
        while waiting:
            number, low, high = waiting.pop()
            if number in visited or not 1 <= number <= self.count:
                continue
            visited.add(number)
            page = self.read(number)
            leaf = self._leaf_or_none(number, page, low, high)
            if leaf is not None:
                yield leaf
            else:
                waiting += reversed(list(self._bounded_children(number, page, low, high)))

    def _leaf_or_none(self, number: int, page: bytes, low: int | None, high: int) -> Leaf | None:
        """Return a page of a table if it is a leaf, None if it is an interior page.

        The byte with the type counts least, as it may be damaged. By chance, a cell of an interior
        page can be read as a row, and one of a leaf as the number of a page: the more count.
        """
        found, is_sound = self.children(number, page)
        if is_interior(number, page) and is_sound:
            return None
        leaf = self.leaf(number, page, low, high)
        children = dict.fromkeys(child for child, _ in found if 2 <= child <= self.count)
        if leaf.row_count and leaf.row_count >= len(children):
            return leaf
        return None if is_interior(number, page) or self._lead_to_rows(children) else leaf

    def _lead_to_rows(self, children: Iterable[int]) -> bool:
        """Tell whether one of the first of these pages is a leaf with rows, or leads to others."""
        return any(self._leads_to_rows(child) for child in islice(children, _TRIED_CHILDREN))

    def _leads_to_rows(self, number: int) -> bool:
        page = self.read(number)
        if is_interior(number, page) and self.children(number, page)[1]:
            return True
        return self.leaf(number, page, None, LAST).row_count > 0

    def children(self, number: int, page: bytes) -> tuple[list[tuple[int, int | None]], bool]:
        """Return the children of an interior page with their highest keys; None for the last.

        And tell whether these are all, as far as the page shows.
        """
        found: list[tuple[int, int | None]] = []
        offsets = _cell_offsets(number, page, header=_INTERIOR_HEADER)
        spans = []
        for at in offsets:
            with contextlib.suppress(Unreadable):
                key, end = _varint(page, at + 4)
                found.append((_u32(page, at), key))
                spans.append((at, end))
        is_sound = len(found) == len(offsets) and self._fill(number, page, _INTERIOR_HEADER, spans)
        with contextlib.suppress(Unreadable):
            found.append((_u32(page, _start(number) + 8), None))
        return found, is_sound

    def _bounded_children(
        self, number: int, page: bytes, low: int | None, high: int
    ) -> Iterator[tuple[int, int | None, int]]:
        """Yield the children of an interior page with their bounds, which may be unknown."""
        children, is_sound = self.children(number, page)
        bounds = [low, *(key for _, key in children if key is not None), high]
        is_sound = is_sound and None not in bounds and _ascend(bounds)
        for child, key in children:
            if not is_sound:
                yield child, None, LAST
            else:
                top = high if key is None else key
                yield child, low, top
                low = top

    def leaf(self, number: int, page: bytes, low: int | None, high: int) -> Leaf:
        """Read the cells of a page as those of a leaf; those that can't be read are left out."""
        cells: list[Cell] = []
        offsets = _cell_offsets(number, page, header=_LEAF_HEADER)
        spans = []
        for at in offsets:
            with contextlib.suppress(Unreadable):
                cell, end = self._cell(page, at)
                cells.append(cell)
                spans.append((at, end))
        is_sound = (
            is_leaf(number, page)
            and len(cells) == len(offsets)
            and all(cell.values is not None for cell in cells)
            and _ascend([cell.key for cell in cells])
            and self._fill(number, page, _LEAF_HEADER, spans)
        )
        return Leaf(number, low, high, cells, is_sound)

    def _fill(
        self, number: int, page: bytes, header: int, spans: Sequence[tuple[int, int]]
    ) -> bool:
        """Tell whether these cells and what the page says is free are all of the page."""
        start = _start(number)
        if len(page) < self.page_size:
            return False
        block, count, content, fragments = struct.unpack_from(">HHHB", page, start + 1)
        content = content or 65536
        used = fragments + sum(max(end - at, _MIN_CELL) for at, end in spans)
        while block:
            if block < content or block + 4 > len(page):
                return False
            following, size = struct.unpack_from(">HH", page, block)
            if size < 4 or 0 < following <= block:
                return False
            used += size
            block = following
        return bool(start + header + 2 * count <= content == self.page_size - used)

    # Rows

    def _cell(self, page: bytes, at: int) -> tuple[Cell, int]:
        """Read the cell at an offset; return it and the offset of its end. Raises Unreadable."""
        size, at = _varint(page, at)
        key, at = _varint(page, at)
        if not 0 < size <= self.count * self.page_size:
            raise Unreadable("a payload without a sensible size")
        local = self._local_size(size)
        if local > len(page) - at:
            raise Unreadable("a payload beyond the page")
        payload = page[at : at + local]
        if local == size:
            return Cell(key, _columns(payload, size, is_whole=True), []), at + local
        end = at + local + 4
        try:
            payload += self._chain(_u32(page, at + local), size - local)
        except Unreadable:
            beginning = _columns(payload, size, is_whole=False)
            if not beginning:
                raise
            return Cell(key, None, beginning), end
        return Cell(key, _columns(payload, size, is_whole=True), []), end

    def _local_size(self, size: int) -> int:
        """Return how many bytes of a payload are in the leaf."""
        usable = self.page_size
        most, least = usable - 35, (usable - 12) * 32 // 255 - 23
        if size <= most:
            return size
        local = least + (size - least) % (usable - 4)
        return local if local <= most else least

    def _chain(self, number: int, size: int) -> bytes:
        """Return *size* bytes from the overflow pages from *number* on. Raises Unreadable."""
        self._chain_bytes -= size
        if self._chain_bytes < 0:
            raise Unreadable("too many overflow pages")
        parts, visited = [], set[int]()
        while size:
            page = self.read(number)
            part = page[4 : 4 + size]
            if number in visited or number < 2 or len(part) < min(size, self.page_size - 4):
                raise Unreadable("an overflow page that is not there")
            if is_leaf(number, page) or is_interior(number, page):  # never the number of a page
                raise Unreadable("another page in the place of an overflow page")
            visited.add(number)
            parts.append(part)
            size -= len(part)
            number = _u32(page, 0)
        self.chained |= visited
        return b"".join(parts)

    # The freelist

    def free(self) -> tuple[set[int], bool]:
        """Return the numbers of the pages that are known to be free, and whether they are all.

        Blocks.
        """
        found: set[int] = set()
        listed = 0
        header = self.read(1)
        if len(header) < FILE_HEADER:
            return found, False
        number, expected = struct.unpack_from(">II", header, 32)
        while 2 <= number <= self.count and number not in found:
            found.add(number)
            listed += 1
            page = self.read(number)
            if len(page) < self.page_size:
                break
            number, count = struct.unpack_from(">II", page)
            if count > self.page_size // 4 - 2:
                break
            leaves = [leaf for (leaf,) in _U32.iter_unpack(page[8 : 8 + 4 * count])]
            found.update(leaf for leaf in leaves if 2 <= leaf <= self.count)
            listed += count
        is_whole = page_size_in(header) == self.page_size and number == 0
        return found, is_whole and listed == expected == len(found)

    def count_in_header(self) -> int:
        """Return the number of pages that the file should have; 0 if it does not say so. Blocks."""
        header = self.read(1)
        if page_size_in(header) != self.page_size or header[24:28] != header[92:96]:
            return 0
        count: int = _U32.unpack_from(header, 28)[0]
        return count


def page_size_in(header: bytes) -> int:
    """Return the page size that a file's first 100 bytes name; 0 if they are no sound header."""
    if len(header) < FILE_HEADER or header[:16] != MAGIC or header[21:24] != _FIXED_BYTES:
        return 0
    named = _U16.unpack_from(header, 16)[0]
    size = 65536 if named == 1 else named
    return size if size in PAGE_SIZES and header[20] == 0 else 0


def _start(number: int) -> int:
    """Return the offset of a page's b-tree header."""
    return FILE_HEADER if number == 1 else 0


def is_leaf(number: int, page: bytes) -> bool:
    """Tell whether a page says that it is the leaf of a table."""
    return page[_start(number) : _start(number) + 1] == bytes([_LEAF])


def is_interior(number: int, page: bytes) -> bool:
    """Tell whether a page says that it is an interior page of a table."""
    return page[_start(number) : _start(number) + 1] == bytes([_INTERIOR])


def _cell_offsets(number: int, page: bytes, *, header: int) -> list[int]:
    start = _start(number)
    first = start + header
    if len(page) < first:
        return []
    count = min(_U16.unpack_from(page, start + 3)[0], (len(page) - first) // 2)
    return [at for (at,) in _U16.iter_unpack(page[first : first + 2 * count])]


def _ascend(keys: Sequence[Any]) -> bool:
    return not any(one >= other for one, other in pairwise(keys))


def _u32(page: bytes, at: int) -> int:
    if at + 4 > len(page):
        raise Unreadable("a number beyond the page")
    number: int = _U32.unpack_from(page, at)[0]
    return number


def _varint(page: bytes, at: int) -> tuple[int, int]:
    """Return the signed number of 1 to 9 bytes at an offset, and the offset behind it."""
    number, size = 0, len(page)
    for end in range(at + 1, at + 10):
        if end > size:
            break
        byte = page[end - 1]
        if end == at + 9:
            number = number << 8 | byte
            return (number - (1 << 64) if number >> 63 else number), end
        if byte < 0x80:
            return number << 7 | byte, end
        number = number << 7 | byte & 0x7F
    raise Unreadable("a number beyond the page")


def _columns(payload: bytes, size: int, *, is_whole: bool) -> Values:
    """Return the columns of a record of *size* bytes.

    Raises Unreadable; unless *is_whole*, what *payload* lacks is left out instead.
    """
    values: Values = []
    try:
        kinds, at = _kinds(payload, size)
        left = len(payload)
        for kind in kinds:
            width = (kind - 12) // 2 if kind >= 12 else _WIDTHS[kind]
            end = at + width
            if end > left:
                raise Unreadable("a column beyond the record")
            if 0 < kind < 7:
                values.append(int.from_bytes(payload[at:end], "big", signed=True))
            elif kind >= 12:
                values.append(payload[at:end])
            else:
                values.append(_constant(kind, payload[at:end]))
            at = end
        if at != size:
            raise Unreadable("a record of another size than its columns")
    except Unreadable:
        if is_whole:
            raise
    return values


def _kinds(payload: bytes, size: int) -> tuple[list[int], int]:
    """Return the types of a record's columns and the offset of the first. Raises Unreadable."""
    end, at = _varint(payload, 0)
    if not at <= end <= size or end > len(payload):
        raise Unreadable("a record without a sensible header")
    kinds: list[int] = []
    while at < end:
        kind = payload[at]
        if kind < 0x80:
            at += 1
        else:
            kind, at = _varint(payload, at)
        kinds.append(kind)
    if at > end or len(kinds) > _MAX_COLUMNS or min(kinds, default=0) < 0:
        raise Unreadable("a record without a sensible header")
    return kinds, end


def _constant(kind: int, stored: bytes) -> Value:
    """Return a value that is no integer with bytes, and no text or blob."""
    if kind == 7:
        number: Any = struct.unpack(">d", stored)[0]
        return float(number) if number == number else None  # SQLite has no NaN
    return kind - 8 if kind in (8, 9) else None
