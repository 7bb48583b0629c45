"""Changes of the journal that did not become part of the tree, kept as ``conflicts/TIME.journal``.

Such a file is a segment: a header and records, with the rows that entries had before the changes.
So it tells by itself what the changes were, and what the files would hold (``read_kept_tree``).
Contract: docs/spec/storage.md, "Start"; operations.md, "Conflicts".
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import PmxcfsError, StoreError
from pmxcfs.host.files import make_numbered_file, make_private_directory, sync_directory
from pmxcfs.messages import Create, Delete, EntryType, Mkdir, Mutation, Rename, Unlock, Write
from pmxcfs.storage import segments
from pmxcfs.storage._journal import frame, split
from pmxcfs.storage.journal_reader import Step, mutation_of
from pmxcfs.storage.kept_copies import (
    DAMAGE,
    HOME,
    OTHER_DATABASE,
    Description,
    describe_copy,
    log_paths,
)
from pmxcfs.storage.records import BadRecord, Before, Change, Record, decode
from pmxcfs.storage.sqlite_errors import translated
from pmxcfs.text import to_text
from pmxcfs.tree.apply import apply
from pmxcfs.tree.guests import Guests
from pmxcfs.tree.modes import is_private_path

_NUMBER = slice(8, 16)  # bytes of a record's frame

_log = logging.getLogger("pmxcfs.database")


class LeftOver(NamedTuple):
    """Records of changes that the tree does not have, with rows of the entries before them."""

    steps: Sequence[Step]
    is_damage: bool  # the journal is damaged; else the database is not the one that they follow

    @property
    def changes(self) -> list[Change]:
        """The changes, in their order."""
        found = [step.record() for step in self.steps]
        return [record for record in found if isinstance(record, Change)]

    def paths(self) -> dict[str, int]:
        """Return the paths that the changes are about, with the inode of one of the entries.

        A path that only these changes have made, and that they have removed again, is left out.
        """
        paths: dict[str, int] = {}
        made = set()
        for change in self.changes:
            mutation = mutation_of(change)
            if mutation is None:
                continue
            if isinstance(mutation, Rename):
                paths[mutation.to] = change.inode
            elif isinstance(mutation, Create | Mkdir):
                made.add(mutation.path)
            paths[mutation.path] = change.inode
            if isinstance(mutation, Rename | Delete | Unlock) and mutation.path in made:
                made.remove(mutation.path)
                del paths[mutation.path]
        return paths


def keep(left_over: LeftOver, state_directory: Path, *, now: int) -> Path:
    """Write *left_over* to ``conflicts/<now>.journal``; log a warning with its paths. Blocks.

    If the directory has a file of this content already, that one is kept. *now* is in seconds since
    1970. Raises StoreError.
    """
    home = state_directory / HOME
    content = _segment_of(left_over.steps)
    with translated(home, "written"):
        make_private_directory(home)
        path = _find_equal(home, content)
        if path is not None:
            return path
        path = _write(home / f"{now}.journal", content)
        try:
            describe_copy(path, _description(left_over, now))
        except OSError:
            path.unlink()
            raise
        sync_directory(home)
    _warn(left_over, path)
    return path


def _segment_of(steps: Sequence[Step]) -> bytes:
    first = steps[0]
    header = segments.Header(first.lineage, first.sequence, 0)
    return segments.encode_header(header) + frame([step.body for step in steps], first.sequence)


def _find_equal(home: Path, content: bytes) -> Path | None:
    """Return the file of an earlier attempt, which was interrupted before the journal was cut."""
    files = (path for path in sorted(home.glob("*.journal*")) if path.suffix != ".json")
    for path in files:
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return path
    return None


def _write(path: Path, content: bytes) -> Path:
    """Write a new file, and have it on the device. Raises OSError; then it is not there."""
    made = make_numbered_file(path)
    try:
        with made.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        made.unlink()
        raise
    return made


def _description(left_over: LeftOver, now: int) -> Description:
    reason = DAMAGE if left_over.is_damage else OTHER_DATABASE
    return Description(now, reason, sorted(left_over.paths()), ())


def _warn(left_over: LeftOver, path: Path) -> None:
    count = len(left_over.changes)
    if left_over.is_damage:
        _log.warning(
            "the journal is damaged: %d changes in it could not be applied; they are kept as %s",
            count,
            path,
        )
    else:
        _log.warning(
            "the database is not the one that the journal goes on from, as after a restore: %d "
            "changes in the journal are not in it; they are kept as %s",
            count,
            path,
        )
    names = (
        f"private entry {inode}" if is_private_path(name) else name
        for name, inode in left_over.paths().items()
    )
    log_paths(_log, "changed in the journal only", names)


class KeptTree(NamedTuple):
    """The entries that a kept journal is about, and the directories above them."""

    tree: Tree  # as the changes leave them; versions are not those of the records
    lacking: frozenset[str]  # paths of private files whose content the history had left out

    def drop_lacking(self) -> None:
        """Remove the files whose content is not known from the tree."""
        for path in self.lacking:
            entry = self.tree.find(path)
            assert entry is not None, "the paths are those of entries of the tree"
            self.tree.drop(entry)


def read_kept_tree(path: Path) -> KeptTree:
    """Return what a kept journal has. Blocks. Raises StoreError if the file can't be read."""
    tree = Tree(keep_undo=False)
    known: set[int] = set()
    lacking: set[Entry] = set()
    for record in _read(path):
        if isinstance(record, Before) and record.inode not in known:
            known.add(record.inode)
            _restore(tree, record)
            found = tree.find(to_text(record.path))
            if record.is_left_out and found is not None:
                lacking.add(found)
        elif isinstance(record, Change) and (mutation := mutation_of(record)) is not None:
            _change(tree, mutation, record)
            found = tree.find(mutation.path)
            if found is None or not isinstance(mutation, Write):
                continue
            if record.left_out:
                lacking.add(found)
            elif mutation.truncate and mutation.offset == 0:
                lacking.discard(found)
    files = [entry for entry in lacking if entry.is_attached and not entry.is_directory]
    return KeptTree(tree, frozenset(entry.path for entry in files))


def _read(path: Path) -> Iterator[Record]:
    """Yield the sound records of a kept journal. Raises StoreError if there are none."""
    with translated(path, "read"):
        content = path.read_bytes()
    number = content[segments.HEADER_SIZE :][_NUMBER]
    start = min(segments.HEADER_SIZE, len(content))
    bounds, _ = split(content, start, int.from_bytes(number, "little"))
    if not bounds:
        raise StoreError(f"{path} can't be read: it is no part of a journal: name another copy")
    for first, end in bounds:
        with contextlib.suppress(BadRecord):
            yield decode(content[first:end])


def _restore(tree: Tree, row: Before) -> None:
    """Make the entry of *row*, unless there is one at its path."""
    path = to_text(row.path)
    if not path or tree.find(path) is not None:
        return
    directory = _make_directories(tree, path)
    name = path.rpartition("/")[2]
    if directory is not None:
        stamp = {"writer": row.writer, "mtime": row.mtime}
        entry = tree.create(directory, name, row.type, **stamp)
        if row.type == EntryType.FILE and row.data:
            tree.write(entry, row.offset, row.data, truncate=False, **stamp)


def _change(tree: Tree, mutation: Mutation, record: Change) -> None:
    """Apply *mutation* as far as that is possible.

    What a file held before is not known if it was made in the segment of the changes, before them.
    """
    _make_directories(tree, mutation.to if isinstance(mutation, Rename) else mutation.path)
    steps: list[Mutation] = [mutation]
    if isinstance(mutation, Write):
        steps.insert(0, Create(mutation.path))
    for step in steps:
        with contextlib.suppress(PmxcfsError):
            apply(tree, Guests(), step, writer=record.writer, mtime=record.mtime)


def _make_directories(tree: Tree, path: str) -> Entry | None:
    """Make the missing directories above *path*; return the last. None if a file is in the way."""
    above = tree.root
    for name in path.split("/")[:-1]:
        below = above.child(name)
        if below is None:
            below = tree.create(above, name, EntryType.DIRECTORY, writer=0, mtime=0)
        if not below.is_directory:
            return None
        above = below
    return above
