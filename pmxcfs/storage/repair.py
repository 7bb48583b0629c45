"""Checks of a database's rows, and the repairs that let the daemon start on a damaged database.

Input are rows as SQLite stores them. Output are the records of a sound tree, and one line of text
for each repair. A damaged entry keeps its content and moves to ``priv/lost+found``, because its
content may have been secret. The lines name entries by inode, not by path, for the same reason.

A repair never raises the version: a version row that is there counts, and only a missing one gets
the highest version found. No entry is newer than the tree, and no inode is one that a future
mutation gives to a new entry. The repaired tree has mtime 0, so that at equal version an intact
member of the cluster leads the next sync and its tree replaces this one. The same rows always give
the same records, and a repaired tree needs no repair. This module uses no SQLite, no files and no
clock.
Contract: docs/spec/storage.md, "Loading".
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count, islice
from typing import Any, NamedTuple

from pmxcfs.messages import MAX_FILE_SIZE, EntryType, Record
from pmxcfs.text import to_text

VERSION_NAME = b"__version__"  # the name of the row that holds the tree's version, inode 0
FRESH_VERSION = 1  # the version of an unchanged new tree
MAX_NAME = 1024  # bytes in a name; the kernel can't list longer names

_BAD_NAME = re.compile(rb"[/\0]|\A\.\.?\Z")
_DIRECTORY = int(EntryType.DIRECTORY)  # plain integers compare faster than enum members
_FILE = int(EntryType.FILE)
_VERSIONS = range(FRESH_VERSION, 1 << 63)  # that a tree can have
_U32 = (1 << 32) - 1
_U64 = (1 << 64) - 1
LAST_INODE = (1 << 63) - 1  # SQLite's largest rowid; no version ever counts up to it

# The columns inode, parent, version, writer, mtime, type as SQLite stores them: signed integers, or
# values of any type (except the inode) if the table has no CHECKs. Then the bytes of name and data.
Row = tuple[Any, ...]


class Repaired(NamedTuple):
    """A sound tree and the repairs that were needed."""

    records: list[Record]  # the root first, then by ascending inode
    repairs: list[str]  # one line per repair; empty when the rows were sound


def has_version(row: Row | None) -> bool:
    """Tell whether the version row *row* is there and has a version that a tree can have."""
    return row is not None and type(row[2]) is int and row[2] in _VERSIONS


def repair(rows: Iterable[Row], *, vmid_of: Callable[[str], int | None]) -> Repaired:
    """Return the sound tree that keeps most of *rows*, whose inodes must be distinct.

    *vmid_of* returns the vmid for the path of a guest's configuration, None for any other path.
    """
    return _Repair(rows).run(vmid_of)


class _Repair:
    """State of one repair: the entries, which of them have to move, and the lines so far."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._entries: dict[int, Record] = {}  # by ascending inode, without the root
        self._unsound: list[int] = []  # entries whose own row is invalid
        self._displaced: dict[int, None] = {}  # entries to move to lost+found, in the order found
        self._stored_as: dict[int, int] = {}  # the inodes of renumbered entries in the rows
        self._with_data: list[Record] = []  # directories with data, which moves to lost+found
        self._lines: list[str] = []
        version_row = None
        for row in sorted(rows, key=_unsigned_inode):
            if row[0] == 0:
                version_row = row
            else:
                self._read(row)
        self._root = self._read_version(version_row)

    def run(self, vmid_of: Callable[[str], int | None]) -> Repaired:
        """Apply all rules, from single rows to the whole tree. Each relies on the earlier ones."""
        self._mend_types()
        self._mend_names()
        self._mend_versions()
        self._mend_contents()
        self._displace_orphans()
        self._displace_cycles()
        self._part_duplicates()
        self._renumber()
        self._displace_second_guests(vmid_of)
        if self._displaced or self._with_data:
            self._move_to_lost_and_found()
        root = self._root._replace(mtime=0) if self._lines else self._root
        return Repaired([root, *map(self._entries.__getitem__, sorted(self._entries))], self._lines)

    # The rows.

    def _read(self, row: Row) -> None:
        if _is_sound(row):
            record = Record._make(row)
        else:
            record = self._mend_numbers(row, f"entry {row[0] & _U64}")
            self._unsound.append(record.inode)
        self._put(record)

    def _mend_numbers(self, row: Row, label: str) -> Record:
        """Convert each number of *row* to its type and range; an invalid version becomes 1."""
        inode, parent, version, writer, mtime, kind, name, data = row
        return Record(
            inode & _U64,
            self._mend_u64(parent, label, column="parent", otherwise=_U64),
            self._mend_u64(version, label, column="version", otherwise=FRESH_VERSION),
            self._mend_u32(writer, label, column="writer"),
            self._mend_u32(mtime, label, column="mtime"),
            kind if type(kind) is int else 0,
            name or b"",
            data or None,
        )

    def _mend_u64(self, value: object, label: str, *, column: str, otherwise: int) -> int:
        if type(value) is int:
            return value & _U64  # SQLite's signed number holds all 64 bits
        self._note(f"{label}: {column} is not a number; set to {otherwise}")
        return otherwise

    def _mend_u32(self, value: object, label: str, *, column: str) -> int:
        if type(value) is int and 0 <= value <= _U32:
            return value
        mended = value & _U32 if type(value) is int else 0
        self._note(f"{label}: {column} is not a number of 32 bits; set to {mended}")
        return mended

    def _read_version(self, row: Row | None) -> Record:
        """Return the root's record, made from the version row and repaired."""
        found = (r.version for r in self._entries.values() if r.version in _VERSIONS)
        highest = max(found, default=FRESH_VERSION)
        if row is None:
            self._note(f"the version row is missing; version set to {highest}")
            return Record(0, 0, highest, 0, 0, _DIRECTORY, b"", None)
        version = row[2] if has_version(row) else highest
        if version != row[2]:
            self._note(f"version row: no version of a tree; set to {highest}, the highest found")
        root = self._mend_numbers((*row[:2], version, *row[3:]), "version row")
        if root.parent != 0:
            self._note("version row: its parent is not 0; set to 0")
        if root.name != VERSION_NAME:
            self._note(f"version row: its name is not {to_text(VERSION_NAME)}; renamed")
        if root.type not in (_DIRECTORY, _FILE):
            self._note(f"version row: unknown type; set to {_FILE}")
        if root.data:
            self._detach_data(root._replace(name=VERSION_NAME))
        return Record(0, 0, root.version, root.writer, root.mtime, _DIRECTORY, b"", None)

    # Rules for a single entry.

    def _mend_types(self) -> None:
        """Make an entry of unknown type a directory if it has children, else a file."""
        unknown = [i for i in self._unsound if self._entries[i].type not in (_DIRECTORY, _FILE)]
        parents = {r.parent for r in self._entries.values()} if unknown else set()
        for inode in unknown:
            kind = EntryType.DIRECTORY if inode in parents else EntryType.FILE
            self._put(self._entries[inode]._replace(type=int(kind)))
            self._displace(inode, f"unknown type, kept as a {kind.name.lower()}")

    def _mend_names(self) -> None:
        for inode in self._unsound:
            if not _is_name(self._entries[inode].name):
                self._displace(inode, "it has no valid name")

    def _mend_contents(self) -> None:
        for inode in self._unsound:
            record = self._entries[inode]
            if not record.data:
                continue
            if record.type == _DIRECTORY:
                self._detach_data(record)
                self._put(record._replace(data=None))
            elif len(record.data) > MAX_FILE_SIZE:
                self._put(record._replace(data=record.data[:MAX_FILE_SIZE]))
                self._displace(inode, f"{len(record.data)} bytes, cut to {MAX_FILE_SIZE}")

    def _mend_versions(self) -> None:
        """Let no entry be newer than the tree; negative numbers are above all versions."""
        newest = self._root.version
        for inode, record in self._entries.items():
            if record.version > newest:
                self._note(f"entry {inode}: version {record.version} is above {newest}; set to it")
                self._put(record._replace(version=newest))

    # Rules for the tree.

    def _displace_orphans(self) -> None:
        entries = self._entries
        for inode, record in entries.items():
            if record.parent == 0:
                continue
            above = entries.get(record.parent)
            if above is None:
                self._displace(inode, f"its parent {record.parent} does not exist")
            elif above.type != _DIRECTORY:
                self._displace(inode, f"its parent {record.parent} is not a directory")

    def _displace_cycles(self) -> None:
        """Displace the smallest inode of each cycle; the rest of the cycle stays below it."""
        grounded = {0}  # inodes whose ancestors lead to the root or to a displaced entry
        for inode, record in self._entries.items():
            if record.type == _DIRECTORY:
                trail: dict[int, None] = {}
                while inode not in grounded and inode not in trail and inode not in self._displaced:
                    trail[inode] = None
                    inode = self._entries[inode].parent
                if inode in trail:
                    members = list(trail)
                    cycle = members[members.index(inode) :]
                    self._displace(min(cycle), f"{len(cycle)} directories contain each other")
                grounded.update(trail)

    def _part_duplicates(self) -> None:
        """Let each place be that of one entry: merge directories, displace the older of others.

        From the top down, as merging two directories brings their entries to one place.
        """
        children: dict[int, list[int]] = {}
        for inode, record in self._entries.items():
            parent = -1 if inode in self._displaced else record.parent
            children.setdefault(parent, []).append(inode)
        waiting = [0, *self._displaced]
        for parent in waiting:
            places: dict[bytes, list[int]] = {}
            for inode in sorted(children.pop(parent, ())):
                places.setdefault(self._entries[inode].name, []).append(inode)
            for same in places.values():
                directories = [i for i in same if self._entries[i].type == _DIRECTORY]
                if len(directories) > 1:
                    children.setdefault(self._merge(directories, children), [])
                self._displace_older([i for i in same if i in self._entries], "name")
                waiting += [i for i in directories if i in self._entries]

    def _merge(self, directories: Sequence[int], children: dict[int, list[int]]) -> int:
        """Make one directory of several; return its inode."""
        *older, newest = sorted(directories, key=self._age)
        for inode in older:
            del self._entries[inode]
            self._note(f"entry {inode}: merged into entry {newest}, a directory of the same name")
            for child in children.pop(inode, ()):
                self._put(self._entries[child]._replace(parent=newest))
                children.setdefault(newest, []).append(child)
        return newest

    def _renumber(self) -> None:
        """Give inodes that a future mutation could give to a new entry the smallest free ones."""
        wild = [inode for inode in self._entries if inode > self._root.version]
        if not wild:
            return
        numbers = list(islice(self._free_inodes(besides=wild), len(wild)))
        kept = set(numbers).intersection(wild)  # nothing better is free
        moving = [inode for inode in wild if inode not in kept]
        fresh = dict(zip(moving, (n for n in numbers if n not in kept), strict=True))
        self._stored_as = {number: inode for inode, number in fresh.items()}
        for inode, number in fresh.items():
            self._note(f"entry {inode}: its number is above the version; now entry {number}")
        entries = (
            r._replace(inode=fresh.get(i, i), parent=fresh.get(r.parent, r.parent))
            for i, r in self._entries.items()
        )
        self._entries = {record.inode: record for record in sorted(entries)}
        self._displaced = dict.fromkeys(fresh.get(inode, inode) for inode in self._displaced)

    def _displace_second_guests(self, vmid_of: Callable[[str], int | None]) -> None:
        guests: dict[int, list[int]] = {}
        for inode, record in self._entries.items():
            # Building a path is slow, so entries that can't be a guest are skipped first.
            if record.type != _FILE or not record.name.endswith(b".conf"):
                continue
            path = self._path(record)
            vmid = None if path is None else vmid_of(path)
            if vmid is not None:
                guests.setdefault(vmid, []).append(inode)
        for vmid, same in guests.items():
            self._displace_older(same, f"vmid {vmid}")

    def _displace_older(self, inodes: Sequence[int], what: str) -> None:
        """Displace all but the newest of the entries that share *what*."""
        *older, newest = sorted(inodes, key=self._age)
        for inode in older:
            self._displace(inode, f"entry {newest} has the same {what} and is not older")

    def _age(self, inode: int) -> tuple[int, int]:
        return self._entries[inode].version, inode

    def _path(self, record: Record) -> str | None:
        """Return the path of *record*, or None if it or an ancestor is displaced."""
        names = []
        while record.inode not in self._displaced:
            names.append(record.name)
            if record.parent == 0:
                return to_text(b"/".join(reversed(names)))
            record = self._entries[record.parent]
        return None

    # Lost and found.

    def _move_to_lost_and_found(self) -> None:
        numbers = self._free_inodes()
        priv = self._ensure_directory(0, b"priv", numbers)
        first = chain((1,) if 1 not in self._entries else (), numbers)
        home = self._ensure_directory(priv, b"lost+found", first)
        taken = {r.name for r in self._entries.values() if r.parent == home}
        for inode in self._displaced:
            record = self._entries[inode]
            name = _free_name(record, taken, self._stored_as.get(inode, inode))
            self._put(record._replace(parent=home, name=name))
            taken.add(name)
        for owner in self._with_data:
            name = _free_name(owner, taken, owner.inode)
            content = (owner.data or b"")[:MAX_FILE_SIZE]
            self._put(
                owner._replace(
                    inode=next(numbers), parent=home, type=_FILE, name=name, data=content
                )
            )
            taken.add(name)

    def _ensure_directory(self, parent: int, name: bytes, numbers: Iterator[int]) -> int:
        """Return the inode of the directory *name*; make it if missing, displace a file there."""
        for inode, record in self._entries.items():
            here = record.parent == parent and record.name == name
            if here and inode not in self._displaced:
                if record.type == _DIRECTORY:
                    return inode
                self._displace(inode, f"a directory {to_text(name)} is needed in its place")
                break
        inode = next(numbers)
        self._put(Record(inode, parent, self._root.version, 0, 0, _DIRECTORY, name, None))
        self._note(f"entry {inode}: made the directory {to_text(name)}")
        return inode

    def _free_inodes(self, besides: Iterable[int] = ()) -> Iterator[int]:
        """Yield free inodes that no future mutation gives to a new entry; *besides* count as free.

        The smallest first; when all versions of the tree are in use, the largest of all downwards.
        """
        free = set(besides)
        reachable = self._root.version + 1  # the inode of the next new entry
        for inode in chain(range(2, reachable), count(LAST_INODE, -1)):
            if inode not in self._entries or inode in free:
                yield inode

    # Recording repairs.

    def _displace(self, inode: int, reason: str) -> None:
        self._displaced[inode] = None
        self._note(f"entry {inode}: {reason}; moved to priv/lost+found")

    def _detach_data(self, directory: Record) -> None:
        self._with_data.append(directory)
        size = len(directory.data or b"")
        self._note(
            f"entry {directory.inode}: a directory with {size} bytes of content; "
            f"the content moved to priv/lost+found"
        )

    def _note(self, line: str) -> None:
        self._lines.append(line)

    def _put(self, record: Record) -> None:
        self._entries[record.inode] = record


def _unsigned_inode(row: Row) -> int:
    inode: int = row[0]
    return inode & _U64


def _is_sound(row: Row) -> bool:
    """Tell whether *row* by itself is a valid entry; a fast check without reasons."""
    inode, parent, version, writer, mtime, kind, name, data = row
    return (
        type(parent) is type(version) is type(writer) is type(mtime) is type(kind) is int
        and inode > 0
        and parent >= 0
        and version >= 0
        and 0 <= writer <= _U32
        and 0 <= mtime <= _U32
        and (not data or (kind == _FILE and len(data) <= MAX_FILE_SIZE))
        and kind in (_FILE, _DIRECTORY)
        and _is_name(name)
    )


def _is_name(name: bytes | None) -> bool:
    if not name:
        return False
    return len(name) <= MAX_NAME and not _BAD_NAME.search(name)


def _free_name(record: Record, taken: set[bytes], inode: int) -> bytes:
    """Return a free name for *record* in lost+found: *inode*, ``-`` and its old name."""
    rest = record.name.replace(b"/", b"_").replace(b"\0", b"_")
    prefix = start = b"%d-" % inode
    while True:
        name = prefix + rest[: max(MAX_NAME - len(prefix), 0)]
        if name not in taken:
            return name
        prefix += start
