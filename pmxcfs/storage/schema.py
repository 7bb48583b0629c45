"""The table of the database: its SQL, the conversion of entries to rows, and checks of a file.

``repair`` handles rows that break the rules for content. Only ``write_rows``
changes a file.
Contract: docs/spec/storage.md, "The database".
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import StoreError, UnreadableDatabase
from pmxcfs.messages import EntryType, Record
from pmxcfs.storage.divergence import Execute
from pmxcfs.storage.repair import VERSION_NAME, Row
from pmxcfs.storage.sqlite_errors import OTHER_ADVICE
from pmxcfs.text import to_bytes

# Exactly the text by which the existing implementation creates the table. inode is the rowid.
# inode, parent and version are unsigned 64-bit numbers, stored as signed ones. type is 8 for a
# file, 4 for a directory. name holds bytes, although the column is TEXT. data is NULL for
# directories and empty files. Row 0 holds version, writer and mtime of the tree; parent 0 is the
# root.
TABLE = (
    "CREATE TABLE tree (  inode INTEGER PRIMARY KEY NOT NULL,"
    "  parent INTEGER NOT NULL CHECK(typeof(parent)=='integer'),"
    "  version INTEGER NOT NULL CHECK(typeof(version)=='integer'),"
    "  writer INTEGER NOT NULL CHECK(typeof(writer)=='integer'),"
    "  mtime INTEGER NOT NULL CHECK(typeof(mtime)=='integer'),"
    "  type INTEGER NOT NULL CHECK(typeof(type)=='integer'),"
    "  name TEXT NOT NULL,  data BLOB)"
)
_SELECT = (
    "SELECT inode, parent, version, writer, mtime, type, CAST(name AS BLOB), CAST(data AS BLOB) "
    "FROM tree "
)
SELECT_ROWS = _SELECT + "ORDER BY inode"
SELECT_ROW = _SELECT + "WHERE inode = ?"
# An UPDATE in place: SQLite does not rewrite pages whose bytes stay the same.
WRITE = (
    "INSERT INTO tree (inode, parent, version, writer, mtime, type, name, data) "
    "VALUES (?, ?, ?, ?, ?, ?, CAST(? AS TEXT), ?) "
    "ON CONFLICT (inode) DO UPDATE SET parent = excluded.parent, version = excluded.version, "
    "writer = excluded.writer, mtime = excluded.mtime, type = excluded.type, "
    "name = excluded.name, data = excluded.data"
)
DELETE = "DELETE FROM tree WHERE inode = ?"
COLUMNS = tuple(b"inode parent version writer mtime type name data".split())

_FILE = int(EntryType.FILE)
_U64 = (1 << 64) - 1
# What a state checksum has of an entry: inode, version, writer, mtime, size, type, parent.
_SUMMED = struct.Struct("<QQIIIBQ")
_MAX_SIGNED = (1 << 63) - 1


def entries(tree: Tree) -> Iterator[Entry]:
    """Yield every entry of *tree* except the root."""
    waiting = tree.root.children()
    while waiting:
        entry = waiting.pop()
        yield entry
        waiting.extend(entry.children())


def entry_row(entry: Entry) -> Row:
    """Return the row of an entry that is attached to the tree and is not the root."""
    parent = entry.parent
    assert parent is not None, "an entry outside the tree can't be stored"
    return (
        signed(entry.inode),
        signed(parent.inode),
        signed(entry.version),
        entry.writer,
        entry.mtime,
        entry.type,
        to_bytes(entry.name),
        entry.stored or None,
    )


def version_row(root: Entry | Record, *, kind: int = _FILE) -> Row:
    """Return row 0 with the tree's version, writer and mtime.

    *kind* is its type: FILE if an operation made this version, DIRECTORY if a sync did.
    """
    return (0, 0, signed(root.version), root.writer, root.mtime, kind, VERSION_NAME, None)


def record_row(record: Record) -> Row:
    """Return the row of a record; the root's record gives the version row."""
    if record.inode == 0:
        return version_row(record)
    inode, parent, version, *rest, data = record
    return (signed(inode), signed(parent), signed(version), *rest, data or None)


def state_checksum(rows: Iterable[Row], root: Row) -> bytes:
    """Return the state checksum of a tree with these *rows*; *root* is its version row. Slow."""
    _, _, version, writer, mtime, *_ = root
    top = (0, 0, version, writer, mtime, int(EntryType.DIRECTORY), b"", None)
    digest = hashlib.sha256()
    for row in sorted([top, *rows], key=lambda row: row[0] & _U64):
        inode, parent, version, writer, mtime, kind, name, data = row
        size = len(data or b"")
        digest.update(
            _SUMMED.pack(inode & _U64, version & _U64, writer, mtime, size, kind, parent & _U64)
        )
        digest.update(name)
        digest.update(data or b"")  # large ones without the interpreter's lock
    return digest.digest()


def signed(number: int) -> int:
    """Return the signed integer that SQLite stores for an unsigned 64-bit *number*."""
    return number if number <= _MAX_SIGNED else number - (1 << 64)


def is_blank(execute: Execute) -> bool:
    """Tell whether the file never held a table.

    A damaged file can seem to have no tables, but is longer than one page.
    """
    tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return not tables and execute("PRAGMA page_count").fetchone()[0] <= 1


def data_version(execute: Execute) -> object:
    """Return a value that is another one when another connection has committed."""
    return execute("PRAGMA data_version").fetchone()[0]


def check_format(execute: Execute, path: Path) -> None:
    """Raise UnreadableDatabase if a file does not have the table of pmxcfs. Reads no rows."""
    found = execute(
        "SELECT 1 FROM pragma_table_list('tree') "
        "WHERE schema = 'main' AND type = 'table' AND NOT wr"
    ).fetchone()
    columns = execute("PRAGMA table_xinfo(tree)").fetchall()
    keys = [(name, kind.upper()) for _, name, kind, _, _, is_key, _ in columns if is_key]
    encoding = execute("PRAGMA encoding").fetchone()[0]
    if not found:
        reason = "it has no table named tree"
    elif {column[1] for column in columns} != set(COLUMNS) or keys != [(b"inode", b"INTEGER")]:
        reason = "its table has other columns"
    elif encoding != b"UTF-8":
        reason = "its names are not stored byte by byte"
    else:
        return
    raise UnreadableDatabase(
        f"{path} is the database of another program ({reason}): {OTHER_ADVICE}"
    )


def check_written(execute: Execute, path: Path, *, rows: Sequence[Row], count: int) -> None:
    """Read *rows* back inside the transaction that wrote them, and count all rows.

    Raises StoreError if a row differs, or if the table does not have *count* rows.
    """
    for row in rows:
        if execute(SELECT_ROW, (row[0],)).fetchone() != row:
            raise StoreError(f"{path}: entry {row[0]} reads back different from what was written")
    found = execute("SELECT count(*) FROM tree").fetchone()[0]
    if found != count:
        raise StoreError(f"{path} has {found} rows instead of {count}")


def write_rows(execute: Execute, rows: Iterable[Row], gone: Iterable[int] = ()) -> None:
    """Delete the inodes *gone* and write *rows*, in the open transaction."""
    for inode in gone:
        execute(DELETE, (inode,))
    for row in rows:
        execute(WRITE, row)


def difference(execute: Execute, rows: Iterable[Row]) -> tuple[list[Row], list[int]]:
    """Return which of *rows*, those of the whole tree, the file lacks, and inodes to delete."""
    lacking = {row[0]: row for row in rows}
    gone = []
    for found in execute(SELECT_ROWS):
        inode = found[0]
        row = lacking.get(inode)
        if row is None and inode != 0:
            gone.append(inode)
        elif row == found:
            del lacking[inode]
    return list(lacking.values()), gone
