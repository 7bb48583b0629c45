"""Which of database and journal is right after a start, and the tree that both together give.

The journal holds changes that the database does not have yet. They are *replayed* only onto the
very database that they follow: that of the journal's last save, unchanged since. Its *mark* tells
the save, and its version row that no other program has written to it. Each change must lead to the
version that was recorded. The first one that does not, or a damaged record, ends the replay.

Any other database was restored, copied, or changed by another program: it counts as it is. Then a
new *lineage* begins, so that no later start takes the old records for changes of this database.

The records of changes that the tree does not have are *left over*. ``settle`` keeps them as
``conflicts/TIME.journal`` and ends the journal before them. ``recover`` itself writes nothing.

Contract: docs/spec/storage.md, "Start".
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from pmxcfs._core import Tree
from pmxcfs.errors import PmxcfsError, StoreError
from pmxcfs.host.directories import opened
from pmxcfs.host.files import sync_directory
from pmxcfs.messages import Kind, Mutation, Record, Rename
from pmxcfs.settings import DATABASE_NAME
from pmxcfs.storage import records
from pmxcfs.storage.connect import reader
from pmxcfs.storage.database import Database, Loaded, read_tree
from pmxcfs.storage.divergence import ENDING, Note, Removal, read_notes
from pmxcfs.storage.incomplete import read_incomplete
from pmxcfs.storage.journal_reader import (
    START,
    Break,
    JournalFiles,
    Step,
    mutation_of,
)
from pmxcfs.storage.kept_journals import LeftOver, keep
from pmxcfs.storage.mark import Mark, read_mark
from pmxcfs.storage.repair import Row
from pmxcfs.storage.schema import SELECT_ROW, entries
from pmxcfs.storage.segments import DIRECTORY_NAME, absorb_staged, scan
from pmxcfs.storage.sqlite_errors import translated
from pmxcfs.text import to_bytes
from pmxcfs.tree.adoption import record_of
from pmxcfs.tree.apply import Change, HalfRenamed, apply
from pmxcfs.tree.guests import Guests

_log = logging.getLogger("pmxcfs.database")

MAX_READINGS = 5  # of a database and a journal that a daemon writes to meanwhile
_U64 = (1 << 64) - 1
_Kind = records.Kind
_CHANGES = (_Kind.CHANGE, _Kind.CHANGE_WITHOUT_DATA)
_SAVES = (_Kind.SAVING, _Kind.SAVED)


class Found(NamedTuple):
    """What a database holds, read in one transaction."""

    version_row: Row | None  # as it is in the file
    mark: Mark | None  # of the last save; None: not written by a daemon with a journal
    records: Sequence[Record]  # the tree, repaired in RAM only
    repairs: Sequence[str]  # one line per repair
    notes: Mapping[int, Note]  # by nodeid
    is_incomplete: bool = False  # rows could not be read


class Recovered(NamedTuple):
    """The state of this node, from database and journal."""

    tree: Tree  # the caller calls its mark_written, and that of *guests*
    guests: Guests
    notes: Mapping[int, Note]
    removals: Sequence[Removal]  # that the database does not have
    replayed: int  # changes
    unsaved: Set[int]  # inodes of the entries that these have changed or removed
    repairs: Sequence[str]  # those of the database, which are in *tree*
    lineage: bytes
    sequence: int  # of the next record in the journal
    must_save: bool  # the tree must be saved before the next record is appended
    left_over: LeftOver | None
    end: Break | None  # what stands behind this place in the journal must go
    is_altered: bool = False  # the rows are not those that were saved; mtime is 0 therefore
    is_incomplete: bool = False  # rows of the database could not be read


def find(database: Database, loaded: Loaded) -> Found:
    """Return what an open *database*, which *loaded* was read from, held when it was opened."""
    return Found(
        database.version_row,
        database.mark,
        *loaded,
        notes=database.notes,
        is_incomplete=database.incomplete.is_set,
    )


def journal_of(path: Path) -> Path | None:
    """Return the directory of the journal of the database *path*.

    Only a daemon's own database has one: a copy beside it is not the one that the journal follows.
    """
    return path.with_name(DIRECTORY_NAME) if path.name == DATABASE_NAME else None


def inspect(path: Path) -> Recovered:
    """Return the tree of the database *path* and of its journal; write nothing. Blocks.

    Other users of the files are not blocked. If a daemon saves meanwhile, both are read again.
    Raises StoreError.
    """
    journal = journal_of(path)
    for _ in range(MAX_READINGS - 1):
        found = _read(path)
        with contextlib.suppress(StoreError):  # a segment that is gone meanwhile
            recovered = recover(found, journal)
            if _read_mark(path) == found.mark:
                return recovered
    return recover(_read(path), journal)


def _read(path: Path) -> Found:
    with reader(path) as connection, translated(path, "read"):
        execute = connection.execute
        execute("BEGIN")
        row = execute(SELECT_ROW, (0,)).fetchone()
        mark, notes = read_mark(execute), read_notes(execute)
        is_incomplete = read_incomplete(execute)
        return Found(row, mark, *read_tree(connection, path), notes, is_incomplete)


def _read_mark(path: Path) -> Mark | None:
    with reader(path) as connection, translated(path, "read"):
        return read_mark(connection.execute)


def recover(found: Found, directory: Path | None) -> Recovered:
    """Return the tree of a database and of the journal in *directory*. Blocks.

    A missing directory is an empty journal. Raises StoreError if the journal can't be read.
    """
    tree, guests = Tree(), Guests()
    tree.load(found.records)
    guests.rebuild(tree)
    files, mark = JournalFiles(directory), found.mark
    reading = files.read_from(mark.position, lineage=mark.lineage) if mark is not None else None
    if mark is None or reading is None or not _belongs(found, files):
        return _without_journal(found, tree, guests, files)
    is_whole = not (found.repairs or found.is_incomplete)
    is_altered = is_whole and _is_altered(tree, reading.in_order)
    replay = _Replay(tree, guests, found.notes)
    done = replay.run(reading.in_order)
    end = reading.end if done == len(reading.in_order) else reading.in_order[done].start
    changes = _changes((*reading.in_order[done:], *reading.behind))
    if is_altered or not is_whole:
        tree = _with_mtime_0(tree)
    return Recovered(
        tree,
        guests,
        replay.notes,
        replay.removals,
        replay.count,
        replay.unsaved,
        found.repairs,
        mark.lineage,
        end.sequence,
        must_save=bool(changes or found.repairs or is_altered),
        left_over=_left_over(files, changes, is_damage=True),
        end=end,
        is_altered=is_altered,
        is_incomplete=found.is_incomplete,
    )


def settle(recovered: Recovered, directory: Path, *, now: int) -> Path | None:
    """Keep what is left over, and end the journal in *directory* before it. Blocks.

    Call it before a segment is begun. *now* is in seconds since 1970. Return the path of the kept
    file, None if nothing was left over. Logs a warning with the paths of the changes. Raises
    StoreError; then the journal is as it was, or holds less of what is kept. Can be repeated.
    """
    kept = None
    if recovered.left_over is not None:
        kept = keep(recovered.left_over, directory.parent, now=now)
    with translated(directory, "written"):
        absorb_staged(directory)
        if recovered.end is not None:
            _cut(directory, recovered.end)
        _sync(directory)
    if recovered.is_altered:
        _log.warning(
            "the rows of the database are not those that were saved: another program or the device "
            "has changed them; they are used as they are"
        )
    return kept


def _is_altered(tree: Tree, steps: Iterable[Step]) -> bool:
    """Tell whether *tree*, as it was saved, has another checksum than the journal says."""
    for step in steps:
        record = step.record() if step.kind == _Kind.CHECK else None
        if isinstance(record, records.Check) and record.version == tree.version:
            return tree.checksum() != record.checksum
    return False


def _cut(directory: Path, end: Break) -> None:
    """Remove all that stands behind *end*, from the last segment on."""
    for path in reversed(JournalFiles(directory).paths_behind(end.path)):
        path.unlink()
    if end.offset <= START:
        end.path.unlink(missing_ok=True)  # so that a segment of this number can be begun
    else:
        os.truncate(end.path, end.offset)  # also gives back the space that was reserved
    sync_directory(directory)


def _sync(directory: Path) -> None:
    """Have the segments on the device, as an fsync promises that of all that was written before.

    A killed daemon may have written what it has not synced.
    """
    segments = scan(directory).segments
    for place in segments:
        if place.header is not None and not place.header.is_history:
            with opened(os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)) as descriptor:
                os.fdatasync(descriptor)
    if segments:
        sync_directory(directory)


def _with_mtime_0(tree: Tree) -> Tree:
    """Return a copy of *tree* that loses against an intact tree of the same version."""
    copy = Tree()
    rows = sorted(record_of(entry)._replace(data=entry.stored) for entry in entries(tree))
    copy.load([record_of(tree.root)._replace(mtime=0), *rows])
    return copy


def _without_journal(found: Found, tree: Tree, guests: Guests, files: JournalFiles) -> Recovered:
    """Return the state for a database that the journal does not go on from."""
    if found.is_incomplete:
        tree = _with_mtime_0(tree)
    mark = found.mark
    later = files.since(mark.position.sequence, lineage=mark.lineage) if mark else None
    changes = _unsaved(files.unsaved()) if later is None else _changes(later)
    return Recovered(
        tree,
        guests,
        found.notes,
        removals=(),
        replayed=0,
        unsaved=frozenset(),
        repairs=found.repairs,
        lineage=os.urandom(records.ID_SIZE),
        sequence=files.next_sequence,
        must_save=True,
        left_over=_left_over(files, changes, is_damage=False),
        end=None,
        is_incomplete=found.is_incomplete,
    )


def _belongs(found: Found, files: JournalFiles) -> bool:
    """Tell whether the journal goes on from this database.

    So it is if the mark is that of the last save that is known to be on the device, or that of a
    later one, and if the version row still is what that save wrote.
    """
    assert found.mark is not None
    save_id, lineage, _ = found.mark
    saving, is_last = None, False
    for step in files.unsaved():
        if step.kind not in _SAVES or step.lineage not in (lineage, b""):
            continue
        record = step.record()
        if isinstance(record, records.Saved):
            is_last = record.save_id == save_id
        elif isinstance(record, records.Saving) and record.save_id == save_id:
            saving, is_last = record, True
    row = found.version_row
    if saving is None or row is None or not is_last or type(row[2]) is not int:
        return False
    return (row[2] & _U64, *row[3:5]) == (saving.version, saving.writer, saving.mtime)


def _changes(steps: Iterable[Step]) -> list[Step]:
    return [step for step in steps if step.kind in _CHANGES]


def _unsaved(steps: Iterable[Step]) -> list[Step]:
    """Return the changes of the last lineage in *steps* that no save of this journal has.

    All others were kept when that lineage began.
    """
    lineage, waiting = b"", list[Step]()
    saves: dict[bytes, tuple[int, int]] = {}  # by id: the version, the first later number
    for step in steps:
        if step.lineage not in (lineage, b""):
            lineage, waiting, saves = step.lineage, [], {}
        if step.kind in _CHANGES:
            waiting.append(step)
        elif step.kind in _SAVES:
            record = step.record()
            if isinstance(record, records.Saving):
                saves[record.save_id] = record.version, step.sequence
            elif isinstance(record, records.Saved):
                saved = saves.get(record.save_id, (0, 0))
                waiting = [step for step in waiting if not _is_saved(step, *saved)]
    return waiting


def _is_saved(change: Step, version: int, before: int) -> bool:
    """Tell whether a save of *version* has *change*, whose number then is lower than *before*."""
    if change.sequence >= before:
        return False
    record = change.record()
    return isinstance(record, records.Change) and record.version <= version


def _left_over(files: JournalFiles, changes: Sequence[Step], *, is_damage: bool) -> LeftOver | None:
    """Return *changes* with the rows that their segments have of the entries before them."""
    if not changes:
        return None
    paths = {step.path for step in changes}
    rows = [s for s in files.unsaved() if s.kind == _Kind.BEFORE and s.path in paths]
    return LeftOver(sorted({*changes, *rows}, key=lambda step: step.sequence), is_damage)


class _Replay:
    """Applies the records of a journal to a tree."""

    def __init__(self, tree: Tree, guests: Guests, notes: Mapping[int, Note]) -> None:
        self._tree = tree
        self._guests = guests
        self.notes = notes  # the last ones
        self.removals: list[Removal] = []
        self.count = 0  # changes
        self.unsaved: set[int] = set()  # inodes

    def run(self, steps: Sequence[Step]) -> int:
        """Apply *steps* up to the first that is not possible; return how many were."""
        for number, step in enumerate(steps):
            record = step.record()
            if record is None or not self._accept(record):
                return number
        return len(steps)

    def _accept(self, record: records.Record) -> bool:
        """Apply *record*; return False, with the tree unchanged, if it does not belong here."""
        if isinstance(record, records.Change):
            return self._apply(record)
        if isinstance(record, records.Adopted):
            return record.after == self._tree.version  # its rows are only in its own save
        if isinstance(record, records.Gap):
            return record.version == self._tree.version
        if isinstance(record, records.Notes):
            self.notes = record.notes
            # Without a note, no node misses a removal.
            self.removals = [*self.removals, *record.removals] if record.notes else []
        return True

    def _apply(self, record: records.Change) -> bool:
        tree, mutation = self._tree, mutation_of(record)
        # The removal that a refused RENAME leaves behind does not raise the version.
        is_half = tree.version == record.version
        if not is_half and tree.version + 1 != record.version:
            return False
        if mutation is None or record.left_out or _can_only_be_half(tree, mutation) != is_half:
            return False
        try:
            change = apply(tree, self._guests, mutation, writer=record.writer, mtime=record.mtime)
        except HalfRenamed as error:
            change = error.change
        except PmxcfsError:
            return False
        self.count += 1
        self._note(change)
        return True

    def _note(self, change: Change) -> None:
        """Note which entry is unsaved, and which one is gone, as other nodes may miss that."""
        self.unsaved.add(change.entry.inode)
        gone = change.entry if change.kind in (Kind.DELETE, Kind.UNLOCK) else change.replaced
        if gone is None:
            return
        self.unsaved.add(gone.inode)
        parted = [note.parted for note in self.notes.values() if note.parted != ENDING]
        if gone.inode <= max(parted, default=0):
            removal = Removal(gone.inode, self._tree.version, to_bytes(change.path))
            self.removals.append(removal)


def _can_only_be_half(tree: Tree, mutation: Mutation) -> bool:
    """Tell whether *mutation* is a RENAME of a directory with entries, which is refused."""
    if not isinstance(mutation, Rename):
        return False
    entry = tree.find(mutation.path)
    return entry is not None and entry.child_count > 0
