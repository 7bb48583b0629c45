"""How the existing implementation reads config.db: strictly, with sqlite3 alone.

Written from the specification ("The database", "Loading"), not from the code. It refuses to start
on everything that the daemon would repair.
"""

import contextlib
import hashlib
import re
import sqlite3
import struct
from pathlib import Path
from typing import Any, NamedTuple

DIRECTORY, FILE = 4, 8
LARGEST = 1 << 20  # bytes of a file
NUMBERS = ("inode", "parent", "version", "writer", "mtime", "type")
GUEST = re.compile(rb"nodes/[^/]+/(?:qemu-server|lxc|openvz)/([1-9][0-9]*)\.conf")


class Refused(Exception):
    """The existing implementation would not start."""


class Row(NamedTuple):
    """A row of the table, with unsigned numbers."""

    inode: int
    parent: int
    version: int
    writer: int
    mtime: int
    kind: int
    name: bytes
    data: bytes


class Original(NamedTuple):
    """What it serves: the tree's version, each content by path (None: a directory), checksum."""

    version: int
    contents: dict[str, bytes | None]
    checksum: str


def read(path: Path) -> Original:
    """Read the database file *path*, and what its log has. Raises Refused."""
    rows = _rows(path)
    root = rows.pop(0, None)
    if root is None or (root.name, root.parent) != (b"__version__", 0):
        raise Refused("no version row")
    rows_by_path = {_path(rows, row): row for row in rows.values()}
    if len(rows_by_path) != len(rows):
        raise Refused("two entries with one path")
    guests = [match[1] for path in rows_by_path if (match := GUEST.fullmatch(path))]
    if len(set(guests)) != len(guests):
        raise Refused("two guests with one number")
    for row in rows.values():
        _check(row, root)
    contents = {
        found.decode("utf-8", "surrogateescape"): None if row.kind == DIRECTORY else row.data
        for found, row in rows_by_path.items()
    }
    top = root._replace(kind=DIRECTORY, name=b"", data=b"")
    return Original(root.version, contents, _checksum([top, *map(rows.__getitem__, sorted(rows))]))


def _rows(path: Path) -> dict[int, Row]:
    types = ", ".join(f"typeof({name})" for name in (*NUMBERS, "name"))
    columns = ", ".join((*NUMBERS, "CAST(name AS BLOB)", "data"))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for kinds in connection.execute(f"SELECT {types} FROM tree"):
            if kinds != (*["integer"] * len(NUMBERS), "text"):
                raise Refused(f"types {kinds}")
        found = [_row(*row) for row in connection.execute(f"SELECT {columns} FROM tree")]
    return {row.inode: row for row in found}


def _row(*columns: Any) -> Row:
    inode, parent, version, writer, mtime, kind, name, data = columns
    inode, parent, version = (number & (1 << 64) - 1 for number in (inode, parent, version))
    return Row(inode, parent, version, writer, mtime, kind, name, data or b"")


def _check(row: Row, root: Row) -> None:
    if row.kind not in (DIRECTORY, FILE):
        raise Refused(f"type {row.kind} of {row.inode}")
    if row.kind == DIRECTORY and row.data:
        raise Refused(f"content of the directory {row.inode}")
    if len(row.data) > LARGEST:
        raise Refused(f"{len(row.data)} bytes of {row.inode}")
    if row.version > root.version:
        raise Refused(f"version {row.version} of {row.inode}, and {root.version} of the tree")


def _path(rows: dict[int, Row], row: Row) -> bytes:
    names = [row.name]
    while row.parent:
        parent = rows.get(row.parent)
        if parent is None or parent.kind != DIRECTORY:
            raise Refused(f"no directory {row.parent}")
        row = parent
        names.append(row.name)
        if len(names) > len(rows):
            raise Refused("a directory that contains itself")
    return b"/".join(reversed(names))


def _checksum(rows: list[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        numbers = (row.inode, row.version, row.writer, row.mtime, len(row.data), row.kind)
        digest.update(struct.pack("<QQIIIBQ", *numbers, row.parent) + row.name + row.data)
    return digest.hexdigest()
