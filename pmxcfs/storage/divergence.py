"""Tables for what other nodes miss of this node's changes; the original ignores them.

``divergence_notes`` has a row for each node that misses changes, or may miss some. It is written
*before* the first change that this node does not get. It is removed when the node has the whole
tree again. So a crash can leave a row without such a change, which is harmless, but never such a
change without a row. ``divergence_removals`` has the entries that were removed while there was a
row, and which a node with a row can still have; a removal is in one transaction with its row. It
also has those that were removed in the last moments before a node departed.

An earlier version of pmxcfs had the table ``divergence`` with one row for all other nodes together.

Contract: docs/spec/cluster.md, "Forks"; storage.md, "The database".
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Execute = Callable[..., Any]  # sqlite3.Connection.execute: statement, parameters -> cursor

# As *parted*: the node has our tree again, unless it departs soon. A start of the daemon drops the
# note, as this node may have been rebooted right after the other one.
ENDING = (1 << 63) - 1
OTHERS = 0  # stands for every node without a row of its own; corosync gives no node this id


class Note(NamedTuple):
    """What one node has of our history. All versions are those of our tree."""

    common: int  # the last version that the node surely had, too
    parted: int  # later changes have surely not reached the node; never below *common*


class Removal(NamedTuple):
    """An entry that was removed while another node could not see it."""

    inode: int
    version: int  # of our tree at the end of the transaction that removed the entry
    path: bytes


_NOTES = (
    "CREATE TABLE IF NOT EXISTS divergence_notes (nodeid INTEGER PRIMARY KEY, "
    "version INTEGER NOT NULL, parted INTEGER NOT NULL)"
)
_REMOVALS = (
    "CREATE TABLE IF NOT EXISTS divergence_removals (inode INTEGER PRIMARY KEY, "
    "version INTEGER NOT NULL, path BLOB NOT NULL)"
)
_KNOWN = "SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB 'divergence*'"
_U64 = (1 << 64) - 1  # SQLite's integers are signed, versions are not


def read_notes(execute: Execute) -> dict[int, Note]:
    """Return the note of each node that may miss changes, by its nodeid."""
    notes = {}
    known = _known(execute)
    if b"divergence" in known:
        version = execute("SELECT min(version) FROM divergence").fetchone()[0]
        if type(version) is int:
            notes[OTHERS] = Note(version & _U64, version & _U64)
    if b"divergence_notes" in known:
        rows = execute("SELECT nodeid, version, parted FROM divergence_notes").fetchall()
        notes |= notes_in(rows)
    return notes


def notes_in(rows: Iterable[Sequence[Any]]) -> dict[int, Note]:
    """Return the notes in rows of nodeid, version and parted; damaged ones are left out."""
    return {
        nodeid: Note(version & _U64, parted & _U64)
        for nodeid, version, parted in rows
        if type(version) is int and type(parted) is int
    }


def removals_in(rows: Iterable[Sequence[Any]]) -> list[Removal]:
    """Return the removals in rows of inode, version and path; damaged ones are left out."""
    return [
        Removal(inode & _U64, version & _U64, path)
        for inode, version, path in rows
        if type(version) is int and isinstance(path, bytes)
    ]


def write_notes(
    execute: Execute, notes: Mapping[int, Note], removals: Iterable[Removal] = ()
) -> None:
    """Replace all notes, and add *removals*. Without any note, forget all removals."""
    known = _known(execute)
    if not notes and not known:
        return
    execute(_NOTES)
    execute("DELETE FROM divergence_notes")
    for nodeid, (common, parted) in notes.items():
        row = nodeid, _signed(common), _signed(parted)
        execute("INSERT INTO divergence_notes VALUES (?, ?, ?)", row)
    if notes and removals:
        add_removals(execute, removals)
    elif not notes and b"divergence_removals" in known:
        execute("DELETE FROM divergence_removals")
    if b"divergence" in known:
        execute("DROP TABLE divergence")


def read_removals(execute: Execute) -> list[Removal]:
    """Return the removals since the notes."""
    if b"divergence_removals" not in _known(execute):
        return []
    return removals_in(execute("SELECT inode, version, path FROM divergence_removals").fetchall())


def add_removals(execute: Execute, removals: Iterable[Removal]) -> None:
    """Add *removals*, in the transaction that removes the entries."""
    execute(_REMOVALS)
    for inode, version, path in removals:
        row = _signed(inode), _signed(version), path
        execute("INSERT OR REPLACE INTO divergence_removals VALUES (?, ?, ?)", row)


def _known(execute: Execute) -> set[bytes]:
    """Return the names of our tables that the file has."""
    return {name for (name,) in execute(_KNOWN).fetchall()}


def _signed(number: int) -> int:
    return number - (number >> 63 << 64)
