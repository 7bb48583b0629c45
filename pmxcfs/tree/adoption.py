"""Becoming another node's tree: the plan, checked in full before anything changes, and the swap.

The plan starts from the leader's index and the records that it sent, both untrusted. An entry whose
digest we have already stays; every other must have been sent, with just the digest of the index. So
the tree that comes out has the leader's index byte for byte, if it is a tree at all, and that is
the rest of the checking. What does not pass raises BadMessage.

An entry object (open handles, drafts and the kernel's node ids hang on it) is kept exactly where
inode, path and type are the same: after a fork one inode can be two files, and a descriptor of a
public one must never read a private one. All others are detached, as by a deletion.

Threads: nothing published may change from ``plan`` until after ``apply``, and ``apply`` needs the
tree's lock; ``plan`` needs none, so that requests are answered while it works.
Contract: docs/spec/cluster.md, "State machine", UPDATE_COMPLETE.
"""

from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import BadMessage
from pmxcfs.messages import MAX_FILE_SIZE, EntryType, Record
from pmxcfs.text import to_bytes, to_text
from pmxcfs.tree import index
from pmxcfs.tree._exchange import differing, exchange, highest_version, lacking, made_of
from pmxcfs.tree.index import ROOT


class Reload(NamedTuple):
    """What an adoption changed, as far as anyone can see."""

    names: list[tuple[Entry, str]]  # directory, name: there stands another object now, or none
    attributes: list[Entry]  # kept entries with another mtime
    contents: list[Entry]  # kept entries with other content


class Adoption:
    """A checked way from a tree to another node's. Made by ``plan``, gone by ``apply``."""

    def __init__(
        self, tree: Tree, written: dict[int, Record], deleted: list[Entry], *, sparse: set[int]
    ) -> None:
        self.written = written  # inode -> what differs from ours, the root's included
        self.deleted = deleted  # entries of ours that the leader lacks
        self._tree = tree
        self._sparse = sparse  # of the written: have a size, but no bytes are known
        self._deleted = {entry.inode for entry in deleted}
        self._paths = {ROOT: ""}  # inode -> where it will be
        # The swap: what goes, what comes into which directory, what is kept and changes to what.
        self._leaving: list[Entry] = []
        self._arriving: list[tuple[Entry, int]] = []
        self._staying: list[tuple[Entry, Record]] = []

    @property
    def root(self) -> Record:
        """The root as it will be."""
        return self.written.get(ROOT) or record_of(self._tree.root)

    @property
    def count(self) -> int:
        """How many entries there will be, without the root."""
        new = sum(self._tree.get(inode) is None for inode in self.written)
        return self._tree.entry_count + new - len(self.deleted)

    def overwritten(self) -> list[Entry]:
        """Return the entries of ours, the root apart, of which the leader has another version."""
        found = (self._tree.get(inode) for inode in self.written if inode != ROOT)
        return [entry for entry in found if entry is not None]

    def common_version(self) -> int:
        """Return the highest version of what both trees have alike; 0 if that is nothing."""
        return highest_version(self._tree, self.written.keys() | self._deleted)

    def stored(self, inode: int) -> Record:
        """Return what was written for *inode* as the database keeps it."""
        record = self.written[inode]
        return record._replace(data=None) if inode in self._sparse else record

    def apply(self) -> Reload:
        """Swap the entries and tell what that changed. All that could fail has been checked."""
        notes = _Notes()
        for entry in self._leaving:
            notes.note_name(entry)
        for entry, record in self._staying:
            notes.note_change(entry, record)
        exchange(self._tree, self._leaving, self._arriving, self._staying, self._sparse)
        for entry in chain((entry for entry, _ in self._arriving), notes.relinked):
            notes.note_name(entry)
        return notes.reload()

    def prepare(self) -> None:
        """Do all that can be done before the swap, which everybody waits for."""
        self._staying = self._find_staying()
        kept = {entry.inode for entry, _ in self._staying}
        replaced = [entry for entry in self.overwritten() if entry.inode not in kept]
        moved = self._find_moved(replaced)
        self._leaving = [*self.deleted, *replaced, *moved]
        self._sparse |= {entry.inode for entry in moved if _is_sparse(entry)}
        records = [record for inode, record in self.written.items() if inode not in kept]
        records += map(record_of, moved)
        records.sort(key=lambda record: self._path(record.inode))
        entries = made_of(records, self._sparse)
        parents = [record.parent for record in records]
        self._arriving = list(zip(entries, parents, strict=True))

    def _find_staying(self) -> list[tuple[Entry, Record]]:
        """Return the entries that are kept as objects and change, each with its new record."""
        staying = []
        for inode, record in self.written.items():
            entry = self._tree.get(inode)
            if entry is not None and self._is_same(entry, record):
                staying.append((entry, record))
        return staying

    def _is_same(self, entry: Entry, record: Record) -> bool:
        return entry.type == record.type and entry.path == self._path(record.inode)

    def _find_moved(self, replaced: list[Entry]) -> list[Entry]:
        """Return what changes in nothing but its path, because a directory above it moves."""
        moved = []
        waiting = [entry for entry in replaced if entry.is_directory]
        while waiting:
            for entry in waiting.pop().children():
                if self._stays(entry.inode):
                    moved.append(entry)
                    waiting.append(entry)
        return moved

    def _stays(self, inode: int) -> bool:
        """Tell whether an entry of ours is the leader's, too, in all but perhaps its path."""
        return inode not in self.written and inode not in self._deleted

    def _path(self, inode: int) -> str:
        """Return where *inode* will be."""
        names: list[str] = []
        below: list[int] = []
        while inode not in self._paths:
            below.append(inode)
            inode, name = self._place(inode)
            names.append(name)
        path = self._paths[inode]
        for known, name in zip(reversed(below), reversed(names), strict=True):
            path = self._paths[known] = f"{path}/{name}" if path else name
        return path

    def _place(self, inode: int) -> tuple[int, str]:
        """Return the directory's inode and the name that *inode* will have."""
        record = self.written.get(inode)
        if record is not None:
            return record.parent, to_text(record.name)
        entry = self._tree.get(inode)
        assert entry is not None, "what was not sent is in our tree"
        assert entry.parent is not None, "the root is where every path ends"
        return entry.parent.inode, entry.name

    # Checking that the outcome is a tree.

    def check(self) -> None:
        """Raise BadMessage if the outcome would be no tree."""
        for record in self.written.values():
            _check_record(record)
            if record.inode != ROOT:
                self._check_parent(record)
        self._check_left_behind()
        self._check_names()
        self._check_cycles()

    def _check_parent(self, record: Record) -> None:
        if self._type(record.parent) != EntryType.DIRECTORY:
            raise BadMessage(f"entry {record.inode} is in {record.parent}, which is no directory")

    def _type(self, inode: int) -> int | None:
        """Return the type that *inode* will have; None if it will not be there."""
        record = self.written.get(inode)
        if record is not None:
            return record.type
        entry = self._tree.get(inode)
        return None if entry is None or inode in self._deleted else entry.type

    def _check_left_behind(self) -> None:
        """Check that nothing stays in a directory that goes, or becomes a file."""
        for entry in chain(self.deleted, self.overwritten()):
            if self._type(entry.inode) != EntryType.DIRECTORY:
                for child in entry.children():
                    if self._stays(child.inode):
                        raise BadMessage(
                            f"entry {child.inode} is in {entry.inode}, which is no directory"
                        )

    def _check_names(self) -> None:
        """Check that no two entries have one name in one directory."""
        taken: set[tuple[int, bytes]] = set()
        for record in self.written.values():
            if record.inode == ROOT:
                continue
            place = (record.parent, record.name)
            directory = self._tree.get(record.parent)
            mine = directory.child(to_text(record.name)) if directory is not None else None
            if place in taken or (mine is not None and self._stays(mine.inode)):
                raise BadMessage(f"entry {record.inode} has the name of another one")
            taken.add(place)

    def _check_cycles(self) -> None:
        """Check that every path ends at the root. Each cycle has a directory that was written."""
        grounded = {ROOT}
        for inode, record in self.written.items():
            if record.type == EntryType.DIRECTORY:
                trail: set[int] = set()
                while inode not in grounded:
                    if inode in trail:
                        raise BadMessage(f"directory {inode} contains itself")
                    trail.add(inode)
                    inode, _ = self._place(inode)
                grounded |= trail


def plan(tree: Tree, leader: bytes, records: Iterable[Record]) -> Adoption:
    """Return the way from *tree* to the leader's: its index, and the records that it sent.

    Raises BadMessage; nothing is changed.
    """
    header, digests = index.parse(leader)
    sent, sparse = _check_sent(records, digests)
    changed = differing(tree, digests)
    unsent = [inode for inode in changed if inode not in sent]
    if unsent:
        raise BadMessage(f"{len(unsent)} entries were not sent, the first is {unsent[0]}")
    written = {inode: sent[inode] for inode in changed}
    adoption = Adoption(tree, written, lacking(tree, digests), sparse=sparse & written.keys())
    root = adoption.root
    if header != index.Header(root.version, root.mtime, root.writer):
        raise BadMessage("the leader's index contradicts its root")
    adoption.check()
    adoption.prepare()
    return adoption


def record_of(entry: Entry) -> Record:
    """Return the record of an entry, as an UPDATE carries it."""
    return Record(
        entry.inode,
        entry.parent.inode if entry.parent is not None else ROOT,
        entry.version,
        entry.writer,
        entry.mtime,
        entry.type,
        to_bytes(entry.name),
        None if entry.is_directory else entry.content,
    )


def _check_sent(
    records: Iterable[Record], digests: dict[int, bytes]
) -> tuple[dict[int, Record], set[int]]:
    """Return by inode the records that are those of the index, and which of them are sparse.

    A record can't say that nothing but the size is known of a file; zeros stand for it, and only
    the digest tells.
    """
    sent: dict[int, Record] = {}
    sparse: set[int] = set()
    for record in records:
        inode, digest = record.inode, digests.get(record.inode)
        if digest is None or inode in sent:
            raise BadMessage(f"entry {inode} was sent twice, or is not in the leader's index")
        if index.digest_of(record) != digest:
            if (
                not record.data
                or any(record.data)
                or index.digest_of(record, sparse=True) != digest
            ):
                raise BadMessage(f"entry {inode} is not the one in the leader's index")
            sparse.add(inode)
        sent[inode] = record
    return sent, sparse


def _check_record(record: Record) -> None:
    """Raise BadMessage for what is no entry by itself. Names have no limit, as in delivery."""
    size = len(record.data or b"")
    if record.type not in (EntryType.FILE, EntryType.DIRECTORY):
        raise BadMessage(f"entry {record.inode} has unknown type {record.type}")
    if size > (MAX_FILE_SIZE if record.type == EntryType.FILE else 0):
        raise BadMessage(f"entry {record.inode} has {size} bytes of content, which it can't")
    if record.inode == ROOT:
        if record.parent or record.name or record.type != EntryType.DIRECTORY:
            raise BadMessage("the root has a place of its own")
    elif not record.name or b"/" in record.name or b"\0" in record.name:
        raise BadMessage(f"the name of entry {record.inode} is none")


def _is_sparse(entry: Entry) -> bool:
    return entry.size > 0 and entry.stored is None


class _Notes:
    """Collects what a reload has to tell."""

    def __init__(self) -> None:
        self._names: dict[tuple[Entry, str], None] = {}
        self._attributes: list[Entry] = []
        self._contents: list[Entry] = []
        self.relinked: list[Entry] = []  # those whose directory is replaced by another one

    def note_name(self, entry: Entry) -> None:
        """*entry* leaves the place where it is, or has entered it."""
        assert entry.parent is not None, "the root stays"
        self._names[entry.parent, entry.name] = None

    def note_change(self, entry: Entry, record: Record) -> None:
        """A kept *entry* is about to be as *record* says."""
        if entry.inode == ROOT:
            return  # nothing of it is to be seen, its times are the daemon's start
        if entry.parent is not None and entry.parent.inode != record.parent:
            self.note_name(entry)
            self.relinked.append(entry)
        if not entry.is_directory and entry.content != (record.data or b""):
            self._contents.append(entry)
        elif entry.mtime != record.mtime:
            self._attributes.append(entry)

    def reload(self) -> Reload:
        """Return all that was noted."""
        return Reload(list(self._names), self._attributes, self._contents)
