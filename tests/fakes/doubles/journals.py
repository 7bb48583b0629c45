"""A node that writes a journal and saves its tree, reduced to what a recovery reads."""

import contextlib
import itertools
from collections.abc import Mapping
from pathlib import Path

from pmxcfs._core import Tree
from pmxcfs._cpg import encode as encode_message
from pmxcfs.errors import PmxcfsError
from pmxcfs.host.callers import UNSET
from pmxcfs.messages import Group, Mutation, Normal, Record, Write
from pmxcfs.storage import records, segments
from pmxcfs.storage._journal import frame
from pmxcfs.storage.database import Database, whole_batch
from pmxcfs.storage.divergence import Note
from pmxcfs.storage.mark import Mark, Position
from pmxcfs.storage.recovery import Found, Recovered, settle
from pmxcfs.storage.schema import entries, version_row
from pmxcfs.tree.adoption import record_of
from pmxcfs.tree.apply import HalfRenamed, apply
from pmxcfs.tree.guests import Guests

LINEAGE = bytes(range(16))


def write(path: str, data: bytes = b"x") -> Write:
    """Return a WRITE that replaces all content."""
    return Write(path, 0, data, truncate=True)


def content(tree: Tree) -> list[Record]:
    """Return what *tree* holds."""
    return [record_of(tree.root), *sorted(map(record_of, entries(tree)))]


class JournalingNode:
    """A tree whose changes are in segments of *directory*; ``save`` returns the database."""

    def __init__(
        self,
        directory: Path,
        *,
        lineage: bytes = LINEAGE,
        sequence: int = 1,
        tree: Tree | None = None,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.tree = Tree() if tree is None else tree
        self.guests = Guests()
        self.guests.rebuild(self.tree)
        self.lineage = lineage
        self.sequence = sequence  # of the next record
        self._save_ids = itertools.count(1)
        self.begin_segment()

    @property
    def segment(self) -> Path:
        """The path of the current segment."""
        return self.directory / segments.name_of(self._first)

    @property
    def position(self) -> Position:
        """The position of the next record."""
        return Position(self._first, self.segment.stat().st_size, self.sequence)

    def begin_segment(self) -> None:
        """Begin a segment."""
        self._first = self.sequence
        header = segments.Header(self.lineage, self._first, self.tree.version)
        self.segment.write_bytes(segments.encode_header(header))

    def append(self, *added: records.Record) -> None:
        """Append records."""
        with self.segment.open("ab") as file:
            file.write(frame([records.encode(record) for record in added], self.sequence))
        self.sequence += len(added)

    def change(self, *mutations: Mutation, writer: int = 1, mtime: int = 5) -> None:
        """Apply mutations and append those that were not refused."""
        for mutation in mutations:
            try:
                change = apply(self.tree, self.guests, mutation, writer=writer, mtime=mtime)
            except HalfRenamed as error:
                change = error.change
            except PmxcfsError:
                continue
            self.append(self.record(mutation, change.entry.inode, writer, mtime))

    def record(
        self, mutation: Mutation, inode: int, writer: int = 1, mtime: int = 5
    ) -> records.Change:
        """Return the record of a change that was just applied."""
        message = encode_message(Normal(mtime, 1, mutation), group=Group.TREE)
        version = self.tree.version
        return records.Change(version, writer, mtime, 0, inode, 0, 0, UNSET, b"", message)

    def found(self, mark: Mark | None = None, *, notes: Mapping[int, Note] | None = None) -> Found:
        """Return a database that holds the tree as it is."""
        root = version_row(self.tree.root)
        return Found(root, mark, content(self.tree), [], notes or {})

    def take_batch(self) -> Found:
        """Return the database that a save will write, which begins now."""
        save_id = next(self._save_ids).to_bytes(16, "little")
        return self.found(Mark(save_id, self.lineage, self.position))

    def begin_save(self, batch: Found | None = None) -> Found:
        """Append SAVING; return the database that the save writes."""
        found = batch or self.take_batch()
        assert found.mark is not None
        root = found.records[0]
        self.append(records.Saving(found.mark.save_id, root.version, root.writer, root.mtime))
        return found

    def save(self) -> Found:
        """Save; return the database."""
        found = self.begin_save()
        assert found.mark is not None
        self.append(records.Saved(found.mark.save_id))
        return found

    def save_into(self, path: Path) -> None:
        """Save into a database file, which no program has open then."""
        mark = self.begin_save().mark
        assert mark is not None
        with contextlib.closing(Database.open(path, now=1)) as database:
            database.load(now=1)
            database.save(whole_batch(self.tree), mark)
        self.append(records.Saved(mark.save_id))


def restart(recovered: Recovered, directory: Path, *, now: int = 1_795_000_000) -> JournalingNode:
    """Return the node that goes on after a recovery."""
    settle(recovered, directory, now=now)
    return JournalingNode(
        directory,
        lineage=recovered.lineage,
        sequence=recovered.sequence,
        tree=recovered.tree,
    )
