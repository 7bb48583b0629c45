"""Entries as rows of the database's table; ``database`` says what the columns mean.

``_sqlite`` binds the same fields, without making a row of them first.
"""

from collections.abc import Iterator

from pmxcfs._core import Entry, Tree
from pmxcfs.messages import EntryType, Record
from pmxcfs.storage.repair import VERSION_NAME, Row
from pmxcfs.text import to_bytes

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
