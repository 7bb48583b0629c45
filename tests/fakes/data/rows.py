"""Rows of the table ``tree`` as SQLite stores them, and what a repair makes of them."""

from pmxcfs._core import Tree
from pmxcfs.messages import EntryType, Record
from pmxcfs.storage.repair import Repaired, Row, repair
from pmxcfs.tree.guests import vmid_of

FILE, DIRECTORY = int(EntryType.FILE), int(EntryType.DIRECTORY)
LAST = (1 << 63) - 1
VERSION = 50  # of the tree in every test that does not say otherwise
LOST = "priv/lost+found"
Contents = dict[str, bytes | None]  # by path; None for a directory


def version_row(
    version: object = VERSION,
    *,
    kind: object = FILE,
    writer: object = 7,
    mtime: object = 1000,
) -> Row:
    return (0, 0, version, writer, mtime, kind, b"__version__", None)


def row(
    inode: int,
    parent: object,
    name: bytes | None,
    data: bytes | None = None,
    *,
    kind: object = ...,
    version: object = ...,
    writer: object = 1,
    mtime: object = 1000,
) -> Row:
    """Return a row, sound by default. It is a file if *data* is given, else a directory."""
    if kind is ...:
        kind = DIRECTORY if data is None else FILE
    version = inode if version is ... else version
    return (inode, parent, version, writer, mtime, kind, name, data)


def mend(*rows: Row) -> Repaired:
    return repair(rows, vmid_of=vmid_of)


def tree_of(repaired: Repaired) -> Tree:
    tree = Tree()
    tree.load(repaired.records)
    return tree


def contents_of(repaired: Repaired) -> Contents:
    tree = tree_of(repaired)
    entries = [tree.get(record.inode) for record in repaired.records[1:]]
    return {e.path: None if e.is_directory else e.content for e in entries if e is not None}


def record_at(repaired: Repaired, path: str) -> Record:
    entry = tree_of(repaired).find(path)
    assert entry is not None, f"no {path}"
    return next(record for record in repaired.records if record.inode == entry.inode)


def found(**entries: bytes | None) -> Contents:
    """Return the contents of lost+found and its parents; ``_5_x`` stands for the name ``5-x``."""
    below = {f"{LOST}/{key[1:].replace('_', '-', 1)}": data for key, data in entries.items()}
    return {"priv": None, LOST: None, **below}
