"""What can be read of a database that SQLite refuses, and what of it is missing.

The rows come from two kinds of leaves. Those that the table's root leads to are *live*: all their
rows count. Others may have been cut off by damage above them, or be left over from an earlier state
of the file: those on the freelist are, and don't count. If the freelist can't be read in full, a
row of the others counts only in a *gap*: between the keys of the live leaves, where a part of the
table is missing. So a row that was removed does not come back from a page that nobody has
overwritten, except in a gap.

If two rows have one inode, a live one counts, one that stands between the right neighbors, then the
higher version. A live row that loses, and is not just an older version of the other one, gets
another inode: the bits of its number are damaged.

Contract: docs/spec/storage.md, "Loading".
"""

import bisect
import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pmxcfs.errors import UnreadableDatabase
from pmxcfs.storage.divergence import Note, Removal, notes_in, removals_in
from pmxcfs.storage.log_frames import LogFrames, read_frames
from pmxcfs.storage.mark import Mark, mark_of
from pmxcfs.storage.pages import (
    FILE_HEADER,
    FIRST,
    LAST,
    PAGE_SIZES,
    Cell,
    Leaf,
    Pages,
    Values,
    is_interior,
    is_leaf,
    page_size_in,
)
from pmxcfs.storage.repair import LAST_INODE, Row, has_version
from pmxcfs.storage.schema import COLUMNS, TABLE
from pmxcfs.storage.sqlite_errors import OTHER_ADVICE, translated

MAX_SIZE = 4 << 30  # bytes of a file; the database of the largest tree has less than a tenth
_SAMPLE = 64 << 20  # bytes in which a sound page is sought
_FIRST_ROOT = 2  # the root of a file's first table
_SCHEMA_COLUMNS = 5
# Of a table without constraints that have a comma, behind the statement's first words.
_STATEMENT = re.compile(r"CREATE TABLE \S+ ?\(([\x20-\x7e\s]*)\)")
_OURS = frozenset(
    b"divergence divergence_notes divergence_removals pmxcfs_incomplete pmxcfs_journal".split()
)
_DAMAGED_BYTES = 16  # of the statement that makes the table

Gap = tuple[int, int]  # its first and last inode, as SQLite stores them: signed


class Partial(NamedTuple):
    """An entry whose content can't be read."""

    inode: int  # signed
    parent: int  # signed
    name: bytes


class Damaged(NamedTuple):
    """What a damaged file holds."""

    rows: Sequence[Row]  # as stored, with the values of any type, by ascending inode
    mark: Mark | None
    notes: Mapping[int, Note]
    removals: Sequence[Removal]
    gaps: Sequence[Gap]  # where rows may be missing, which can't be read
    partial: Sequence[Partial]
    lost_pages: int  # that are not readable as what they should be
    page_count: int
    log: LogFrames
    foreign: Sequence[str]  # names of tables of other programs, which are not read

    @property
    def is_complete(self) -> bool:
        """Whether surely all rows could be read, and no transaction of the log is lost."""
        is_whole = not (self.gaps or self.partial or self.log.has_lost_header)
        return is_whole and not self.log.lost_commits and has_version(self._version_row)

    @property
    def _version_row(self) -> Row | None:
        return next((row for row in self.rows if row[0] == 0), None)


def read_damaged(path: Path) -> Damaged:
    """Read what can be read of the database *path* and its log, without SQLite. Blocks.

    Raises UnreadableDatabase if that is no database of pmxcfs, or nothing of it can be read. No
    connection of this process may have the file open: its locks would be lost.
    """
    with translated(path, "read"), contextlib.ExitStack() as opened:
        file = opened.enter_context(path.open("rb", buffering=0))
        size = os.fstat(file.fileno()).st_size
        if size > MAX_SIZE:
            raise UnreadableDatabase(f"{path} is larger than any database of pmxcfs")
        log, frames = -1, LogFrames()
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            log_file = opened.enter_context(Path(f"{path}-wal").open("rb", buffering=0))
            log = log_file.fileno()
            frames = read_frames(log, os.fstat(log).st_size)

        def pages_of(page_size: int) -> Pages:
            return Pages(
                file.fileno(), size=size, page_size=page_size, log=log, frames=frames.offsets
            )

        header = os.pread(file.fileno(), FILE_HEADER, 0)
        pages = _by_page_size(pages_of, frames.page_size or page_size_in(header))
        return _Reading(pages, path).run(frames)


def lost_of_log(path: Path) -> str:
    """Return what the log of the database *path* has lost by damage; empty if nothing. Blocks."""
    with contextlib.suppress(OSError), Path(f"{path}-wal").open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return describe_log(read_frames(file.fileno(), size))
    return ""


def describe_log(log: LogFrames) -> str:
    """Return what a log has lost by damage, as a line; empty if nothing."""
    if log.has_lost_header:
        return "the write-ahead log has no valid header: nothing of it counts"
    if log.lost_commits:
        return f"the write-ahead log is damaged: {log.lost_commits} later transactions don't count"
    return ""


def _by_page_size(pages_of: Callable[[int], Pages], named: int) -> Pages:
    """Return the pages of a size that makes sense; *named* is what the file says, or 0."""
    sizes = [named, *PAGE_SIZES] if named else list(PAGE_SIZES)
    for size in sizes:
        pages = pages_of(size)
        for number in range(1, min(pages.count, _SAMPLE // size) + 1):
            page = pages.read(number)
            leaf = pages.leaf(number, page, None, LAST) if is_leaf(number, page) else None
            if leaf is not None and leaf.is_sound and leaf.cells:
                return pages

    def count_rows(size: int) -> int:
        return sum(len(leaf.cells) for leaf in pages_of(size).walk(_FIRST_ROOT, set()))

    return pages_of(max(sizes, key=count_rows))


class _Reading:
    """One reading of a damaged file."""

    def __init__(self, pages: Pages, path: Path) -> None:
        self._pages = pages
        self._path = path
        self._free, self._is_free_known = pages.free()
        self._visited: set[int] = set()  # pages of tables
        self._tables: dict[bytes, list[Cell]] = {}  # of all tables but tree
        self._children: set[int] = set()  # of interior pages
        self._leaves: list[int] = []  # all pages that look like leaves
        self._live: list[Leaf] = []
        self._orphans: list[Leaf] = []
        self._foreign = "has no rows that can be read"  # what the file is, if it has no rows

    def run(self, log: LogFrames) -> Damaged:
        """Read all. Raises UnreadableDatabase."""
        self._look_at_pages()
        root = self._read_tables()
        if root is not None:
            self._live = [*self._pages.walk(root, self._visited)]
        for number in self._leaves:
            if number not in self._visited and number not in self._free:
                page = self._pages.read(number)
                self._orphans.append(self._pages.leaf(number, page, None, LAST))
        rows, partial = self._rows()
        if not rows and not partial:
            raise UnreadableDatabase(f"{self._path} {self._foreign}: {OTHER_ADVICE}")
        lost_pages = self._lost_pages(log)
        return Damaged(
            rows=rows,
            mark=self._mark(),
            notes=self._notes(),
            removals=self._removals(),
            gaps=() if self._has_all_leaves(lost_pages) else self._gaps(rows),
            partial=partial,
            lost_pages=lost_pages,
            page_count=self._page_count(log),
            log=log,
            foreign=sorted(
                name.decode("utf-8", "backslashreplace") for name in self._tables.keys() - _OURS
            ),
        )

    # Pages

    def _look_at_pages(self) -> None:
        for number in range(1, self._pages.count + 1):
            page = self._pages.read(number)
            if is_leaf(number, page):
                self._leaves.append(number)
            elif is_interior(number, page) and number not in self._free:
                children, _ = self._pages.children(number, page)
                self._children.update(child for child, _ in children)

    def _read_tables(self) -> int | None:
        """Read all tables but the tree's; return the root of that one, if it is known.

        Raises UnreadableDatabase if the file is that of another program.
        """
        schema = self._walk_other(1)
        tables = {
            values[1]: (values[3], values[4])
            for leaf in schema
            for _, values, _ in leaf.cells
            if values and len(values) == _SCHEMA_COLUMNS and values[0] == b"table"
        }
        ours = [name for name, (_, sql) in tables.items() if name == b"tree" or _is_ours(sql)]
        root, sql = tables.pop(ours[0]) if ours else (None, None)
        if isinstance(sql, bytes) and not _is_ours(sql):
            self._check_columns(sql)
        elif not ours and tables and all(leaf.has_all for leaf in schema):
            names = b", ".join(name for name in tables if isinstance(name, bytes))
            shown = names.decode("utf-8", "backslashreplace")
            self._foreign = (
                f"is the database of another program (it has no table named tree, but {shown})"
            )
        for name, (other, _) in tables.items():
            if type(other) is int and isinstance(name, bytes) and other not in (root, 1):
                self._tables[name] = [c for leaf in self._walk_other(other) for c in leaf.cells]
        for candidate in (root, _FIRST_ROOT):
            if isinstance(candidate, int) and self._is_root(candidate):
                return candidate
        return None

    def _walk_other(self, root: int) -> list[Leaf]:
        """Return the leaves of another table; those with rows of the tree are orphans."""
        leaves = [*self._pages.walk(root, self._visited)]
        self._orphans += [leaf for leaf in leaves if leaf.number != 1 and _has_rows(leaf)]
        return leaves

    def _check_columns(self, statement: bytes) -> None:
        """Raise UnreadableDatabase if the table tree has other columns, or in another order.

        Only if the statement makes sense: else it is damaged.
        """
        text = statement.decode("utf-8", "replace")
        made = _STATEMENT.fullmatch(text)
        if made is None:
            return
        found = [part.split(None, 1)[0] for part in made[1].split(",") if part.strip()]
        if [name.encode() for name in found] != list(COLUMNS):
            raise UnreadableDatabase(
                f"{self._path} is the database of another program (its table has other columns): "
                f"{OTHER_ADVICE}"
            )

    def _is_root(self, number: int) -> bool:
        """Tell whether a page can be the root of the tree's table."""
        others = (self._children, self._free, self._visited)
        return 2 <= number <= self._pages.count and not any(number in found for found in others)

    def _has_all_leaves(self, lost_pages: int) -> bool:
        """Tell whether all leaves are known, although nothing tells where each one belongs."""
        return not self._live and not lost_pages and all(leaf.is_sound for leaf in self._orphans)

    def _lost_pages(self, log: LogFrames) -> int:
        """Return the number of pages that are not known to be of any use."""
        known = self._visited | self._free | self._pages.chained
        known.update(leaf.number for leaf in self._orphans if _has_rows(leaf))
        used = {number for number in known if not self._is_empty(number)}
        return self._page_count(log) - len(used)

    def _page_count(self, log: LogFrames) -> int:
        """Return the number of pages, those included that were cut off."""
        return max(self._pages.count, log.page_count or self._pages.count_in_header())

    def _is_empty(self, number: int) -> bool:
        """Tell whether a page of a table is neither a leaf nor an interior page."""
        if number not in self._visited:
            return False
        page = self._pages.read(number)
        return not is_leaf(number, page) and not is_interior(number, page)

    # Rows

    def _rows(self) -> tuple[list[Row], list[Partial]]:
        """Return all rows that count, by ascending inode, and what can be read in part only."""
        # How well each row is in order, its version, and the row.
        live: dict[int, list[tuple[int, int, Row]]] = {}
        partial: dict[int, Partial] = {}
        for leaf in self._live:
            low = FIRST - 1 if leaf.low is None else leaf.low
            keys = [low, *(cell.key for cell in leaf.cells), leaf.high + 1]
            for at, cell in enumerate(leaf.cells):
                key, values, _ = cell
                if values is not None and len(values) >= len(COLUMNS):
                    row = (key, *values[1 : len(COLUMNS)])
                    order = (low < key <= leaf.high) + (keys[at] < key) + (key < keys[at + 2])
                    live.setdefault(key, []).append((order, _version(row), row))
                elif values is None and (found := _partial(cell)):
                    partial[key] = found
        rows, homeless = dict[int, Row](), list[Row]()
        for key, found_rows in live.items():
            # Equally in order: an entry's number is its first version, and often the last one.
            *others, winner = sorted(found_rows, key=lambda f: (f[0], f[1] == f[2][0], f[1]))
            rows[key] = winner[2]
            homeless += [row for *_, row in others if (row[1], row[6]) != _place(winner[2])]
        for key, row in self._orphan_rows(live.keys() | partial.keys(), partial):
            rows[key] = row
        number = LAST_INODE
        for row in homeless:
            while number in rows:
                number -= 1
            rows[number] = (number, *row[1:])
        lost = [partial[key] for key in sorted(partial) if key not in rows]
        return [rows[key] for key in sorted(rows)], lost

    def _orphan_rows(
        self, live: Iterable[int], partial: dict[int, Partial]
    ) -> Iterator[tuple[int, Row]]:
        """Yield the rows of orphaned leaves that count, none with the keys *live*.

        Add to *partial* those of which only a part can be read.
        """
        seen = set(live)
        covered = _Ranges((leaf.low, leaf.high) for leaf in self._live if self._covers(leaf))
        if self._is_free_known:  # then no orphan is left over from an earlier state
            covered = _Ranges(())
        found: dict[int, Row] = {}
        for leaf in self._orphans:
            for cell in leaf.cells:
                if cell.key in seen or cell.key in covered:
                    continue
                if _is_row(cell.values):
                    row = (cell.key, *(cell.values or ())[1:])
                    known = found.get(cell.key)
                    if known is None or _version(row) > _version(known):
                        found[cell.key] = row
                elif cell.values is None and (beginning := _partial(cell)):
                    partial[cell.key] = beginning
        yield from found.items()

    def _covers(self, leaf: Leaf) -> bool:
        """Tell whether all rows between the bounds of a live leaf are in it."""
        is_ours = all(len(cell.values or ()) >= len(COLUMNS) for cell in leaf.cells)
        return leaf.has_all and is_ours and leaf.number not in self._free

    def _gaps(self, rows: Sequence[Row]) -> list[Gap]:
        """Return the ranges in which rows may be missing."""
        known = [(leaf.low, leaf.high) for leaf in self._live if self._covers(leaf)]
        keys = [row[0] for row in rows]
        for leaf in self._orphans:
            if leaf.is_sound and _has_rows(leaf):
                first, last = leaf.cells[0].key, leaf.cells[-1].key
                within = bisect.bisect_right(keys, last) - bisect.bisect_left(keys, first)
                if within == len(leaf.cells):  # else one of its keys is damaged
                    known.append((first - 1, last))
        known += [(key - 1, key) for key in keys]
        gaps, end = [], FIRST - 1
        for low, high in sorted((low, high) for low, high in known if low is not None):
            if low > end:
                gaps.append((end + 1, low))
            end = max(end, high)
        if end < LAST:
            gaps.append((end + 1, LAST))
        return [gap for gap in gaps if gap[1] > 0]  # inodes are positive

    # The other tables

    def _notes(self) -> dict[int, Note]:
        return notes_in(self._table(b"divergence_notes", 3))

    def _removals(self) -> list[Removal]:
        return removals_in(self._table(b"divergence_removals", 3))

    def _mark(self) -> Mark | None:
        rows = [row[1:] for row in self._table(b"pmxcfs_journal", 6)]
        return mark_of(rows[0]) if len(rows) == 1 else None

    def _table(self, name: bytes, columns: int) -> list[Values]:
        """Return the rows of a table whose key is the first column."""
        return [
            [key, *values[1:]]
            for key, values, _ in self._tables.get(name, ())
            if values is not None and len(values) == columns
        ]


def _is_ours(statement: object) -> bool:
    """Tell whether this is the statement that makes our table, apart from some damaged bytes."""
    if not isinstance(statement, bytes) or len(statement) != len(TABLE):
        return False
    pairs = zip(statement, TABLE.encode("ascii"), strict=True)
    return sum(one != other for one, other in pairs) <= _DAMAGED_BYTES


class _Ranges:
    """Some ranges of keys, each above its low and not above its high bound."""

    def __init__(self, ranges: Iterable[tuple[int | None, int]]) -> None:
        found = sorted((low, high) for low, high in ranges if low is not None)
        self._lows = [low for low, _ in found]
        self._highs = [high for _, high in found]
        for at in range(1, len(self._highs)):
            self._highs[at] = max(self._highs[at - 1 : at + 1])

    def __contains__(self, key: int) -> bool:
        at = bisect.bisect_left(self._lows, key) - 1
        return at >= 0 and key <= self._highs[at]


def _is_row(values: Values | None) -> bool:
    """Tell whether these are the columns of a row of the tree, and of no other table."""
    if values is None or len(values) != len(COLUMNS):
        return False
    key, *numbers, name, data = values
    are_numbers = all(type(number) is int for number in numbers)
    return (
        key is None and are_numbers and isinstance(name, bytes) and isinstance(data, bytes | None)
    )


def _has_rows(leaf: Leaf) -> bool:
    return bool(leaf.cells) and all(
        _is_row(cell.values) or _partial(cell) is not None for cell in leaf.cells
    )


def _partial(cell: Cell) -> Partial | None:
    """Return what the beginning of a row names; None if that is no row of the tree."""
    if cell.values is not None or len(cell.beginning) < len(COLUMNS) - 1:
        return None
    _, parent, *_, name = cell.beginning[: len(COLUMNS) - 1]
    if not isinstance(parent, int) or not isinstance(name, bytes):
        return None
    return Partial(cell.key, parent, name)


def _version(row: Row) -> int:
    return row[2] if type(row[2]) is int else -1


def _place(row: Row) -> tuple[object, object]:
    return row[1], row[6]
