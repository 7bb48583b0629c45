"""Writing what only the journal has into the database, while no daemon runs.

Afterwards the database alone is the whole state: the original can be started on it, and a copy of
the file is complete. Contract: docs/spec/storage.md, "Handing over".
"""

import contextlib
import os
from pathlib import Path

from pmxcfs.storage.connect import COMPANIONS
from pmxcfs.storage.database import Batch, Database, whole_batch
from pmxcfs.storage.history import History, private_in
from pmxcfs.storage.journal import Journal
from pmxcfs.storage.mark import Position
from pmxcfs.storage.recovery import Recovered, find, inspect, recover, settle
from pmxcfs.storage.saver import Saver
from pmxcfs.storage.schema import entry_row, signed, version_row
from pmxcfs.storage.segments import DIRECTORY_NAME


def fold(path: Path, *, now: int, alone: bool = False, mend: bool = False) -> Recovered:
    """Bring the database *path* up to its journal; return what was missing. Blocks.

    *path* must be a daemon's own (``journal_of``), and no daemon may use it. What is left over of
    the journal is kept in conflicts/. Without anything to write, the files stay as they are, except
    that a log of the database is folded, too. With *mend*, repairs are written also if they are all
    that there is. *now* is in seconds since 1970; *alone* as in ``Database.open``. Raises
    StoreError.
    """
    recovered = inspect(path)
    is_mended = bool(recovered.repairs) or recovered.is_incomplete
    if not (recovered.replayed or recovered.left_over or (mend and is_mended)):
        if any(os.path.lexists(f"{path}{suffix}") for suffix in COMPANIONS[1:]):
            Database.open(path, now=now, alone=alone).close()
        return recovered
    directory = path.with_name(DIRECTORY_NAME)
    with contextlib.closing(Database.open(path, now=now, alone=alone)) as database:
        recovered = recover(find(database, database.load(now=now)), directory)
        settle(recovered, directory, now=now)
        _save(database, recovered, directory)
    return recovered


def _save(database: Database, recovered: Recovered, directory: Path) -> None:
    tree = recovered.tree
    journal = Journal.start(
        directory,
        lineage=recovered.lineage,
        sequence=recovered.sequence,
        version=tree.version,
        history=History(directory, private_now=private_in(tree, contextlib.nullcontext())),
    )
    with contextlib.closing(journal):
        if journal.failure is not None:
            raise journal.failure
        Saver(database, journal, _Missing(recovered, journal)).save(whole=database.needs_whole)


class _Missing:
    """What the database lacks, for the saver."""

    def __init__(self, recovered: Recovered, journal: Journal) -> None:
        self._recovered = recovered
        self._journal = journal

    def take_batch(self, *, whole: bool, with_state: bool) -> tuple[Batch, Position | None] | None:
        """Return all of it, or the whole tree."""
        position = Position(*self._journal.position)
        return self._batch(is_whole=whole), position

    def batch_saved(self) -> None:
        """Do nothing: there is no other batch."""

    def batch_failed(self) -> None:
        """Do nothing: the error ends the fold."""

    def _batch(self, *, is_whole: bool) -> Batch:
        tree, notes = self._recovered.tree, self._recovered.notes
        removals = self._recovered.removals
        if is_whole:
            return whole_batch(tree)._replace(notes=notes, removals=removals)
        found = {inode: tree.get(inode) for inode in self._recovered.unsaved}
        return Batch(
            rows=[entry_row(entry) for entry in found.values() if entry is not None],
            gone=[signed(inode) for inode, entry in found.items() if entry is None],
            version_row=version_row(tree.root),
            notes=notes,
            removals=removals,
        )
