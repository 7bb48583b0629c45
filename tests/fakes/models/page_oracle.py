"""A plain reader of SQLite's pages: what anybody could read of a damaged file with a ``tree``.

It was written from sqlite.org/fileformat2.html alone, to judge ``storage/damaged``. It is told page
size and root, works on the whole file in RAM, recursively, and knows no bounds of keys: it finds
each row on each page, and says whether the table's root leads to it.
"""

from collections.abc import Iterator
from typing import NamedTuple

COLUMNS = 8

Value = int | float | bytes | None
Row = tuple[Value, ...]  # inode, parent, version, writer, mtime, type, name, data


class Sighting(NamedTuple):
    """A row on a page."""

    row: Row
    is_live: bool  # the table's root leads to the page


def rows_in(content: bytes, *, page_size: int, root: int) -> list[Sighting]:
    """Return every row of the table tree that is on a page that is not free."""
    return list(_Oracle(content, page_size).sightings(root))


class _Oracle:
    def __init__(self, content: bytes, page_size: int) -> None:
        self._size = page_size
        self._pages = [b""] + [
            content[at : at + page_size] for at in range(0, len(content), page_size)
        ]

    def sightings(self, root: int) -> Iterator[Sighting]:
        reached: dict[int, None] = {}  # pages, in the order of the walk
        self._reach(root, reached)
        for number in reached:
            for row in self._rows(number):
                if len(row) >= COLUMNS:
                    yield Sighting(row[:COLUMNS], is_live=True)
        others = {1, *self._free(), *reached}
        for number, page in enumerate(self._pages):
            if number not in others and page[:1] == b"\x0d":
                for row in self._rows(number):
                    if len(row) == COLUMNS and self._is_of_tree(row):
                        yield Sighting(row, is_live=False)

    @staticmethod
    def _is_of_tree(row: Row) -> bool:
        numbers, name, data = row[1:6], row[6], row[7]
        return (
            all(isinstance(number, int) for number in numbers)
            and isinstance(name, bytes)
            and (data is None or isinstance(data, bytes))
        )

    def _page(self, number: int) -> bytes:
        return self._pages[number] if 0 < number < len(self._pages) else b""

    def _reach(self, number: int, reached: dict[int, None]) -> None:
        page = self._page(number)
        if number in reached or not page:
            return
        reached[number] = None
        # The byte with its type may be damaged, too.
        if not any(len(row) >= COLUMNS for row in self._rows(number)):
            for at in self._pointers(page, 12):
                if at + 4 < len(page):
                    self._reach(int.from_bytes(page[at : at + 4], "big"), reached)
            self._reach(int.from_bytes(page[8:12], "big"), reached)

    @staticmethod
    def _pointers(page: bytes, start: int) -> list[int]:
        count = int.from_bytes(page[3:5], "big")
        array = page[start : start + 2 * count]
        return [int.from_bytes(array[i : i + 2], "big") for i in range(0, len(array) - 1, 2)]

    def _rows(self, number: int) -> Iterator[Row]:
        page = self._page(number)
        for at in self._pointers(page, 8):
            try:
                yield self._row(page, at)
            except (ValueError, IndexError):
                continue

    def _row(self, page: bytes, at: int) -> Row:
        total, at = self._number(page, at)
        key, at = self._number(page, at)
        if key >= 1 << 63:
            key -= 1 << 64
        most = self._size - 35
        stored = total
        if total > most:
            least = (self._size - 12) * 32 // 255 - 23
            stored = least + (total - least) % (self._size - 4)
            stored = least if stored > most else stored
        record = page[at : at + stored]
        if len(record) < stored or not 0 < total < len(self._pages) * self._size:
            raise ValueError("cut")
        if stored < total:
            record += self._overflow(page[at + stored : at + stored + 4], total - stored)
        return (key, *self._values(record)[1:]) if record else (key,)

    def _overflow(self, pointer: bytes, wanted: int) -> bytes:
        content, seen = b"", []
        while len(content) < wanted:
            number = int.from_bytes(pointer, "big")
            page = self._page(number)
            if number in seen or number == 1 or len(pointer) < 4 or page[:1] in (b"\x0d", b"\x05"):
                raise ValueError("no page")
            seen.append(number)
            part = page[4 : 4 + wanted - len(content)]
            if len(part) < min(self._size - 4, wanted - len(content)):
                raise ValueError("cut")
            content += part
            pointer = page[:4]
        return content

    def _values(self, record: bytes) -> list[Value]:
        end, at = self._number(record, 0)
        types = []
        while at < end:
            kind, at = self._number(record, at)
            types.append(kind)
        if at != end:
            raise ValueError("header")
        values: list[Value] = []
        for kind in types:
            if kind >= 1 << 63:
                raise ValueError("type")
            size = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 8}.get(kind, 0)
            size = (kind - 12) // 2 if kind > 11 else size
            part, at = record[at : at + size], at + size
            if len(part) < size:
                raise ValueError("value")
            if kind > 11:
                values.append(part)
            elif kind in (8, 9):
                values.append(kind - 8)
            elif kind == 7:
                values.append(0.5)  # any number that is not whole
            else:
                values.append(int.from_bytes(part, "big", signed=True) if size else None)
        if at != len(record):
            raise ValueError("rest")
        return values

    @staticmethod
    def _number(content: bytes, at: int) -> tuple[int, int]:
        number = 0
        for index in range(8):
            byte = content[at + index]
            number = number * 128 + byte % 128
            if byte < 128:
                return number, at + index + 1
        return number * 256 + content[at + 8], at + 9

    def _free(self) -> set[int]:
        free: set[int] = set()
        trunk = int.from_bytes(self._page(1)[32:36], "big") if len(self._page(1)) > 99 else 0
        while 1 < trunk < len(self._pages) and trunk not in free:
            free.add(trunk)
            page = self._page(trunk)
            count = int.from_bytes(page[4:8], "big")
            if len(page) < self._size or count > self._size // 4 - 2:
                break
            for i in range(count):
                free.add(int.from_bytes(page[8 + 4 * i : 12 + 4 * i], "big"))
            trunk = int.from_bytes(page[:4], "big")
        return free
