"""Trees built from records, and plans to adopt one of them, for tests of forked histories."""

from collections.abc import Iterable

from pmxcfs._core import Entry, Tree
from pmxcfs.messages import EntryType, Record
from pmxcfs.tree import index
from pmxcfs.tree.adoption import Adoption, plan, record_of

ROOT = Record(0, 0, 50, 1, 1000, EntryType.DIRECTORY, b"", None)


def directory(inode: int, name: str, *, parent: int = 0, version: int = 7) -> Record:
    """Return the record of a directory."""
    return Record(inode, parent, version, 1, 1000, EntryType.DIRECTORY, name.encode(), None)


def file(inode: int, name: str, data: bytes = b"", *, parent: int = 0, version: int = 7) -> Record:
    """Return the record of a file."""
    return Record(inode, parent, version, 1, 1000, EntryType.FILE, name.encode(), data)


def tree_of(*records: Record, root: Record = ROOT) -> Tree:
    """Return a tree of *records*, without unsaved changes."""
    tree = Tree()
    tree.load([root, *records])
    return tree


def made_a_tree(records: list[Record], *, below: Iterable[Record] = ()) -> list[Record]:
    """Return those *records* that make a tree below the root and the directories *below*.

    A record whose parent is missing or whose name is taken is left out.
    """
    kept: list[Record] = []
    taken = {(record.parent, record.name) for record in below}
    directories = {0, *[record.inode for record in below]}
    while True:
        fitting = [
            record
            for record in records
            if record.parent in directories and (record.parent, record.name) not in taken
        ]
        if not fitting:
            return kept
        record = fitting[0]
        records = [other for other in records if other is not record]
        kept.append(record)
        taken.add((record.parent, record.name))
        if record.type == EntryType.DIRECTORY:
            directories.add(record.inode)


def records_of(tree: Tree, inodes: Iterable[int]) -> list[Record]:
    """Return the records that a leader with *tree* would send for *inodes*."""
    return [record_of(found(tree, inode)) for inode in inodes]


def way_to(tree: Tree, leader: Tree) -> Adoption:
    """Plan how *tree* adopts *leader*, given the records that the leader would send."""
    raw = leader.index()
    return plan(tree, raw, records_of(leader, index.records_needed(raw, [tree.index()])))


def forge(records: list[Record]) -> bytes:
    """Return an index of *records* by ascending inode, even if they do not make a tree."""
    ordered = sorted(records)
    root = ordered[0]
    header = (root.version, ordered[-1].inode, root.writer, root.mtime)
    entries = [record.inode.to_bytes(8, "little") + index.digest_of(record) for record in ordered]
    total = index.HEADER.size + index.ENTRY.size * len(ordered)
    return index.HEADER.pack(*header, len(ordered), total) + b"".join(entries)


def changed_in(tree: Tree) -> dict[int, Entry | None]:
    """Return {inode: entry, or None if it was removed} since the last ``mark_written``."""
    inodes: dict[int, None] = {}
    tree.add_changed(inodes)
    return {inode: tree.get(inode) for inode in inodes}


def found(tree: Tree, inode: int) -> Entry:
    """Return the entry with this inode; fail if there is none."""
    entry = tree.get(inode)
    assert entry is not None
    return entry


def at(tree: Tree, path: str) -> Entry:
    """Return the entry at *path*; fail if there is none."""
    entry = tree.find(path)
    assert entry is not None
    return entry
