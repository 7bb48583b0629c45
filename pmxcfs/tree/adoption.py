"""Adoption of the leader's tree: a plan that is checked in full, and then the swap of entries.

The plan is made from the leader's index and the records that the leader sent; both are untrusted.
An entry with an unchanged digest stays. Every other entry must have been sent, with exactly the
digest in the index. So the result has the leader's index byte for byte, and the remaining checks
are those that make it a valid tree. Any failed check raises BadMessage.

Open handles, drafts and FUSE node ids refer to entry objects. An object is kept exactly if inode,
path and type stay the same: after a divergence the same inode can be two different files, and a
descriptor of a public file must never read a private one. Other objects are detached, as by a
deletion.

Threads: the published tree must not change between ``plan`` and the end of ``apply``. ``apply``
needs the tree's lock. ``plan`` needs no lock, so requests are served while it works.
Contract: docs/spec/cluster.md, "UPDATE_COMPLETE".
"""

from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import BadMessage
from pmxcfs.messages import MAX_FILE_SIZE, EntryType, Record
from pmxcfs.text import to_bytes, to_text
from pmxcfs.tree import index
from pmxcfs.tree._exchange import differing, entries_not_in, exchange, highest_version, new_entries
from pmxcfs.tree.index import ROOT


class Reload(NamedTuple):
    """The visible changes of an adoption."""

    names: list[tuple[Entry, str]]  # (directory, name) that has another object now, or none
    attributes: list[Entry]  # kept entries with a new mtime
    contents: list[Entry]  # kept entries with new content
    gone: list[Entry]  # objects that are no longer in the tree


class Adoption:
    """A checked plan to make a tree equal to the leader's. ``plan`` makes it, ``apply`` runs it."""

    def __init__(
        self, tree: Tree, written: dict[int, Record], deleted: list[Entry], *, sparse: set[int]
    ) -> None:
        self.written = written  # inode -> record of a new or changed entry, root included
        self.deleted = deleted  # our entries that the leader lacks
        self._tree = tree
        self._sparse = sparse  # inodes in *written* that have a size, but no bytes
        self._deleted = {entry.inode for entry in deleted}
        self._paths = {ROOT: ""}  # inode -> future path
        # The swap: objects to detach, new ones with the directory's inode, kept ones to update.
        self._leaving: list[Entry] = []
        self._arriving: list[tuple[Entry, int]] = []
        self._staying: list[tuple[Entry, Record]] = []

    @property
    def root(self) -> Record:
        """The future record of the root."""
        return self.written.get(ROOT) or record_of(self._tree.root)

    @property
    def count(self) -> int:
        """The future number of entries, without the root."""
        new = sum(self._tree.get(inode) is None for inode in self.written)
        return self._tree.entry_count + new - len(self.deleted)

    def overwritten(self) -> list[Entry]:
        """Return our entries, without the root, that the leader has in another version."""
        found = (self._tree.get(inode) for inode in self.written if inode != ROOT)
        return [entry for entry in found if entry is not None]

    def common_version(self) -> int:
        """Return the highest version of an entry that is equal in both trees; 0 if none."""
        return highest_version(self._tree, self.written.keys() | self._deleted)

    def stored(self, inode: int) -> Record:
        """Return the new record of *inode* as the database stores it."""
        record = self.written[inode]
        return record._replace(data=None) if inode in self._sparse else record

    def apply(self) -> Reload:
        """Swap the entries and return the visible changes. Can't fail. Needs the tree's lock."""
        builder = _ReloadBuilder(self._leaving)
        for entry in self._leaving:
            builder.note_name(entry)
        for entry, record in self._staying:
            builder.note_change(entry, record)
        exchange(self._tree, self._leaving, self._arriving, self._staying, self._sparse)
        for entry in chain((entry for entry, _ in self._arriving), builder.relinked):
            builder.note_name(entry)
        return builder.reload()

    def prepare(self) -> None:
        """Prepare the swap as far as possible, to keep the time under the lock short."""
        self._staying = self._find_staying()
        kept = {entry.inode for entry, _ in self._staying}
        replaced = [entry for entry in self.overwritten() if entry.inode not in kept]
        moved = self._find_moved(replaced)
        self._leaving = [*self.deleted, *replaced, *moved]
        self._sparse |= {entry.inode for entry in moved if _is_sparse(entry)}
        records = [record for inode, record in self.written.items() if inode not in kept]
        records += map(record_of, moved)
        records.sort(key=lambda record: self.path_of(record.inode))
        entries = new_entries(records, self._sparse)
        parents = [record.parent for record in records]
        self._arriving = list(zip(entries, parents, strict=True))

    def _find_staying(self) -> list[tuple[Entry, Record]]:
        """Return the changed entries whose objects are kept, each with its new record."""
        staying = []
        for inode, record in self.written.items():
            entry = self._tree.get(inode)
            if entry is not None and self._is_same(entry, record):
                staying.append((entry, record))
        return staying

    def _is_same(self, entry: Entry, record: Record) -> bool:
        return entry.type == record.type and entry.path == self.path_of(record.inode)

    def _find_moved(self, replaced: list[Entry]) -> list[Entry]:
        """Return the unchanged entries that get a new path because a directory above moves."""
        moved = []
        waiting = [entry for entry in replaced if entry.is_directory]
        while waiting:
            for entry in waiting.pop().children():
                if self._stays(entry.inode):
                    moved.append(entry)
                    waiting.append(entry)
        return moved

    def _stays(self, inode: int) -> bool:
        """Tell whether our entry is equal to the leader's, except perhaps for its path."""
        return inode not in self.written and inode not in self._deleted

    def path_of(self, inode: int) -> str:
        """Return the future path of *inode*."""
        names: list[str] = []
        below: list[int] = []
        while inode not in self._paths:
            below.append(inode)
            inode, name = self._position(inode)
            names.append(name)
        path = self._paths[inode]
        for known, name in zip(reversed(below), reversed(names), strict=True):
            path = self._paths[known] = f"{path}/{name}" if path else name
        return path

    def _position(self, inode: int) -> tuple[int, str]:
        """Return the future parent inode and name of *inode*."""
        record = self.written.get(inode)
        if record is not None:
            return record.parent, to_text(record.name)
        entry = self._tree.get(inode)
        assert entry is not None, "an entry that was not sent is in our tree"
        assert entry.parent is not None, "the root has no place"
        return entry.parent.inode, entry.name

    # Checks that the result is a valid tree.

    def check(self) -> None:
        """Raise BadMessage if the result is not a valid tree."""
        for record in self.written.values():
            _check_record(record)
            if record.inode != ROOT:
                self._check_parent(record)
        self._check_left_behind()
        self._check_names()
        self._check_cycles()

    def _check_parent(self, record: Record) -> None:
        if self._type(record.parent) != EntryType.DIRECTORY:
            raise BadMessage(
                f"entry {record.inode} is in {record.parent}, which is not a directory"
            )

    def _type(self, inode: int) -> int | None:
        """Return the future type of *inode*; None if it will not exist."""
        record = self.written.get(inode)
        if record is not None:
            return record.type
        entry = self._tree.get(inode)
        return None if entry is None or inode in self._deleted else entry.type

    def _check_left_behind(self) -> None:
        """Check that no entry stays in a directory that is deleted or becomes a file."""
        for entry in chain(self.deleted, self.overwritten()):
            if self._type(entry.inode) != EntryType.DIRECTORY:
                for child in entry.children():
                    if self._stays(child.inode):
                        raise BadMessage(
                            f"entry {child.inode} is in {entry.inode}, which is not a directory"
                        )

    def _check_names(self) -> None:
        """Check that no two entries of a directory have the same name."""
        taken: set[tuple[int, bytes]] = set()
        for record in self.written.values():
            if record.inode == ROOT:
                continue
            place = (record.parent, record.name)
            directory = self._tree.get(record.parent)
            mine = directory.child(to_text(record.name)) if directory is not None else None
            if place in taken or (mine is not None and self._stays(mine.inode)):
                raise BadMessage(
                    f"entry {record.inode} has the same name as another entry of its directory"
                )
            taken.add(place)

    def _check_cycles(self) -> None:
        """Check that every path starts at the root.

        A cycle needs a new or changed directory, so only paths of those are followed.
        """
        rooted = {ROOT}
        for inode, record in self.written.items():
            if record.type == EntryType.DIRECTORY:
                visited: set[int] = set()
                while inode not in rooted:
                    if inode in visited:
                        raise BadMessage(f"directory {inode} contains itself")
                    visited.add(inode)
                    inode, _ = self._position(inode)
                rooted |= visited


def plan(tree: Tree, leader: bytes, records: Iterable[Record]) -> Adoption:
    """Plan the adoption of the leader's tree, given its index and the records that it sent.

    Raises BadMessage if either is not valid. Changes nothing and needs no lock.
    """
    header, digests = index.parse(leader)
    sent, sparse = _check_sent(records, digests)
    changed = differing(tree, digests)
    unsent = [inode for inode in changed if inode not in sent]
    if unsent:
        raise BadMessage(f"{len(unsent)} entries were not sent, the first is {unsent[0]}")
    written = {inode: sent[inode] for inode in changed}
    adoption = Adoption(
        tree, written, entries_not_in(tree, digests), sparse=sparse & written.keys()
    )
    root = adoption.root
    if header != index.Header(root.version, root.mtime, root.writer):
        raise BadMessage("the leader's index contradicts its root")
    adoption.check()
    adoption.prepare()
    return adoption


def record_of(entry: Entry) -> Record:
    """Return the record of an entry, as in an UPDATE message."""
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
    """Check the records against the index; return them by inode, and the sparse inodes.

    A record has no way to mark a file as sparse: it carries zeros instead of the unknown bytes, and
    only the digest shows that no bytes were hashed.
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
                raise BadMessage(f"entry {inode} differs from the leader's index")
            sparse.add(inode)
        sent[inode] = record
    return sent, sparse


def _check_record(record: Record) -> None:
    """Raise BadMessage if a record by itself is not valid. Names have no limit, as in delivery."""
    size = len(record.data or b"")
    if record.type not in (EntryType.FILE, EntryType.DIRECTORY):
        raise BadMessage(f"entry {record.inode} has unknown type {record.type}")
    if size > (MAX_FILE_SIZE if record.type == EntryType.FILE else 0):
        raise BadMessage(
            f"entry {record.inode} has {size} bytes of content, more than its type allows"
        )
    if record.inode == ROOT:
        if record.parent or record.name or record.type != EntryType.DIRECTORY:
            raise BadMessage("the root has a parent, a name or a wrong type")
    elif not record.name or b"/" in record.name or b"\0" in record.name:
        raise BadMessage(f"entry {record.inode} has no valid name")


def _is_sparse(entry: Entry) -> bool:
    return entry.size > 0 and entry.stored is None


class _ReloadBuilder:
    """Collects the visible changes of an adoption."""

    def __init__(self, gone: list[Entry]) -> None:
        self._gone = gone
        self._names: dict[tuple[Entry, str], None] = {}
        self._attributes: list[Entry] = []
        self._contents: list[Entry] = []
        self.relinked: list[Entry] = []  # kept entries whose directory object is replaced

    def note_name(self, entry: Entry) -> None:
        """Record that the object at the place of *entry* changes."""
        assert entry.parent is not None, "the root is never replaced"
        self._names[entry.parent, entry.name] = None

    def note_change(self, entry: Entry, record: Record) -> None:
        """Record the visible changes of a kept *entry*. Call before it is updated."""
        if entry.inode == ROOT:
            return  # no field of the root is visible; its times are the start of the daemon
        if entry.parent is not None and entry.parent.inode != record.parent:
            self.note_name(entry)
            self.relinked.append(entry)
        if not entry.is_directory and entry.content != (record.data or b""):
            self._contents.append(entry)
        elif entry.mtime != record.mtime:
            self._attributes.append(entry)

    def reload(self) -> Reload:
        """Return the collected changes."""
        return Reload(list(self._names), self._attributes, self._contents, self._gone)
