"""The mark in a database: which save wrote it, and from where the journal goes on behind that save.

The table ``pmxcfs_journal`` has one row, which each save replaces in its own transaction. The
original ignores the table. A copy that is meant for another place leaves it out, since the journal
of this place does not go on from there.

Contract: docs/spec/storage.md, "The database" and "Writing".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pmxcfs.storage.divergence import Execute

ID_SIZE = 16  # bytes of a save's id and of a lineage
_TABLE = (
    "CREATE TABLE IF NOT EXISTS pmxcfs_journal (id INTEGER PRIMARY KEY, save_id BLOB NOT NULL, "
    "lineage BLOB NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL, "
    "sequence INTEGER NOT NULL)"
)
_KNOWN = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'pmxcfs_journal'"
_COLUMNS = frozenset(b"id save_id lineage segment offset sequence".split())
_MAX_NUMBER = (1 << 63) - 1  # SQLite's integers are signed


class Position(NamedTuple):
    """A place in the journal: that of the next record."""

    segment: int  # the first sequence number of the segment
    offset: int  # bytes from the start of the segment's file
    sequence: int  # of the record at this place


class Mark(NamedTuple):
    """What a save leaves in the database for the next start."""

    save_id: bytes  # random; the journal has it, too
    lineage: bytes  # of the journal
    position: Position  # behind the last record that the save includes


def read_mark(execute: Execute) -> Mark | None:
    """Return the mark; None if there is none, or if what is there can't be one."""
    columns = {row[1] for row in execute("PRAGMA table_info(pmxcfs_journal)").fetchall()}
    if columns != _COLUMNS:
        return None
    rows = execute(
        "SELECT save_id, lineage, segment, offset, sequence FROM pmxcfs_journal LIMIT 2"
    ).fetchall()
    return mark_of(rows[0]) if len(rows) == 1 else None


def mark_of(row: Sequence[Any]) -> Mark | None:
    """Return the mark in the columns behind the id; None if they can't be one."""
    if not _is_sound(row):
        return None
    save_id, lineage, *position = row
    return Mark(save_id, lineage, Position(*position))


def write_mark(execute: Execute, mark: Mark | None) -> None:
    """Replace the mark in the open transaction; None removes it."""
    if mark is None:
        drop_mark(execute)
        return
    execute(_TABLE)
    row = mark.save_id, mark.lineage, *mark.position
    execute("INSERT OR REPLACE INTO pmxcfs_journal VALUES (0, ?, ?, ?, ?, ?)", row)


def drop_mark(execute: Execute) -> None:
    """Remove the table of the mark, if there is one."""
    if execute(_KNOWN).fetchone():
        execute("DROP TABLE pmxcfs_journal")


def _is_sound(row: Sequence[Any]) -> bool:
    ids, numbers = row[:2], row[2:]
    return all(type(value) is bytes and len(value) == ID_SIZE for value in ids) and all(
        type(value) is int and 0 <= value <= _MAX_NUMBER for value in numbers
    )
