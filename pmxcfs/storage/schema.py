"""The database's table: its columns, its statements, entries as its rows, and the checks of a file.

``_sqlite`` binds the same fields, without making a row of them first. What is repaired where rows
break the rules for content is ``repair``'s; nothing here changes a file.
Contract: docs/spec/storage.md, "The database".
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import StoreError
from pmxcfs.messages import EntryType, Record
from pmxcfs.storage.divergence import Execute
from pmxcfs.storage.repair import VERSION_NAME, Row
from pmxcfs.text import to_bytes

# The table as the existing implementation makes it, to the letter. inode is the row number; inode,
# parent and version are unsigned 64 bits in SQLite's signed ones. type is 8 for a file, 4 for a
# directory. name is bytes, whatever the column says. data is NULL for directories and empty files.
# Row 0 is the tree's version, writer and mtime; parent 0 is the root.
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
    "SELECT inode, parent, version, writer, mtime, type, CAST(name AS BLOB), {data} "
    "FROM tree ORDER BY inode"
)
SELECT_ROWS = _SELECT.format(data="CAST(data AS BLOB)")
SELECT_STATE = _SELECT.format(data="ifnull(length(data), 0)")
# An UPDATE in place: where size and most bytes stay the same, SQLite leaves those pages alone.
WRITE = (
    "INSERT INTO tree (inode, parent, version, writer, mtime, type, name, data) "
    "VALUES (?, ?, ?, ?, ?, ?, CAST(? AS TEXT), ?) "
    "ON CONFLICT (inode) DO UPDATE SET parent = excluded.parent, version = excluded.version, "
    "writer = excluded.writer, mtime = excluded.mtime, type = excluded.type, "
    "name = excluded.name, data = excluded.data"
)
DELETE = "DELETE FROM tree WHERE inode = ?"
_SELECT_ROW = (
    "SELECT inode, parent, version, writer, mtime, type, CAST(name AS BLOB), CAST(data AS BLOB) "
    "FROM tree WHERE inode = ?"
)
_COLUMNS = frozenset(b"inode parent version writer mtime type name data".split())

_FILE = int(EntryType.FILE)
_MAX_SIGNED = (1 << 63) - 1


def entries(tree: Tree) -> Iterator[Entry]:
    """Yield every entry but the root."""
    waiting = tree.root.children()
    while waiting:
        entry = waiting.pop()
        yield entry
        waiting.extend(entry.children())


def entry_row(entry: Entry) -> Row:
    """Return the row of an entry that is in the tree."""
    parent = entry.parent
    assert parent is not None, "an entry without a place can't be stored"
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
    """Return row 0, which has the tree's version; its *kind* tells how that came about."""
    return (0, 0, signed(root.version), root.writer, root.mtime, kind, VERSION_NAME, None)


def record_row(record: Record) -> Row:
    """Return the row of a record, the root's included."""
    if record.inode == 0:
        return version_row(record)
    inode, parent, version, *rest, data = record
    return (signed(inode), signed(parent), signed(version), *rest, data or None)


def signed(number: int) -> int:
    """Return the signed integer that SQLite keeps for an unsigned one of 64 bits."""
    return number if number <= _MAX_SIGNED else number - (1 << 64)


def is_blank(execute: Execute) -> bool:
    """Tell whether nothing was ever stored; a damaged file may look empty, but is longer."""
    tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return not tables and execute("PRAGMA page_count").fetchone()[0] <= 1


def check_format(execute: Execute, path: Path) -> None:
    """Refuse a file that was not made for a tree; its rows are not looked at."""
    found = execute(
        "SELECT 1 FROM pragma_table_list('tree') "
        "WHERE schema = 'main' AND type = 'table' AND NOT wr"
    ).fetchone()
    columns = execute("PRAGMA table_xinfo(tree)").fetchall()
    keys = [(name, kind.upper()) for _, name, kind, _, _, is_key, _ in columns if is_key]
    encoding = execute("PRAGMA encoding").fetchone()[0]
    if not found:
        reason = "it has no table named tree"
    elif {column[1] for column in columns} != _COLUMNS or keys != [(b"inode", b"INTEGER")]:
        reason = "its table has other columns"
    elif encoding != b"UTF-8":
        reason = "its names are not stored byte by byte"
    else:
        return
    raise StoreError(f"{path} is no database of pmxcfs ({reason}): restore a backup or remove it")


def check_written(execute: Execute, path: Path, *, rows: Sequence[Row], count: int) -> None:
    """Check that *rows* can be read as they were written, and that there are *count* in all."""
    for row in rows:
        if execute(_SELECT_ROW, (row[0],)).fetchone() != row:
            raise StoreError(f"{path}: entry {row[0]} is not what was just written")
    found = execute("SELECT count(*) FROM tree").fetchone()[0]
    if found != count:
        raise StoreError(f"{path} has {found} rows where {count} should be")
