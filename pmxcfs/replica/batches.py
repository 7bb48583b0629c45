"""Batches: what the database lacks of the tree, for the saver.

A batch equals the tree at one version whose records are all in the journal. It is taken with the
tree's lock held, as rows that share the tree's bytes, and written without it.
Contract: docs/spec/storage.md, "The database follows".
"""

import errno
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.replica.change_log import ChangeLog
from pmxcfs.replica.departures import Departures
from pmxcfs.storage.database import Batch
from pmxcfs.storage.divergence import Removal
from pmxcfs.storage.mark import Position
from pmxcfs.storage.repair import Row
from pmxcfs.storage.schema import entries, entry_row, signed, version_row

MAX_CHECKED = 5000  # entries of a tree that is copied, row by row, only to be checksummed: 8 ms
ATTEMPTS = 100  # to find a moment in which no record waits


class Batches:
    """The unsaved entries of *tree*.

    *write_out* writes the records that wait, without the lock. With it, *settle* lets no group of
    local mode be half written and writes its deferred changes; *keep* makes all changes so far stay
    and notes them here. *unsaved* are inodes that the database lacks at the start,
    *saved_notes* are the notes that it has.
    """

    def __init__(
        self,
        tree: Tree,
        departures: Departures,
        log: ChangeLog,
        *,
        lock: AbstractContextManager[object],
        settle: Callable[[], None],
        write_out: Callable[[], object],
        keep: Callable[[], None],
        unsaved: Iterable[int],
        must_save_all: bool,
        saved_notes: object,
    ) -> None:
        self._tree = tree
        self._departures = departures
        self._log = log
        self._lock = lock
        self._settle = settle
        self._write_out = write_out
        self._keep = keep
        self._unsaved = dict.fromkeys(unsaved)  # inodes
        self._saving: dict[int, None] = {}  # inodes of the batch that is being saved
        self._saving_removals: list[Removal] = []
        self._is_whole = must_save_all  # whether the next batch has to be the whole tree
        self._saved_notes = saved_notes  # those of the database; replayed ones are others
        self._saving_notes: object = None
        self._was_whole = self._was_bridging = False  # of the batch that is being saved

    @property
    def has_unsaved(self) -> bool:
        """Whether the tree has changed since the last batch was taken."""
        return bool(self._unsaved) or self._is_whole

    # With the tree's lock.

    def note_changed(self) -> None:
        """Note what has changed since the tree's last ``mark_written``."""
        self._tree.add_changed(self._unsaved)

    def adopted(self, notes: object, *, is_saved: bool) -> None:
        """Note that the tree was replaced, and whether the database has it and *notes*."""
        self._unsaved = {}
        self._is_whole = not is_saved
        if is_saved:
            self._saved_notes = notes

    # For the saver, without the lock.

    def take_batch(self, *, whole: bool, with_state: bool) -> tuple[Batch, Position | None] | None:
        """Return what the database lacks, and the position behind its last record. Blocks.

        The position is None if records are missing. With *whole* it is the whole tree; *with_state*
        it has all rows beside, unless these are too many. Return None if nothing has changed.
        Raises StoreError.
        """
        for _ in range(ATTEMPTS):
            self._write_out()
            self._log.await_writer()
            with self._lock:
                self._settle()
                with self._log.paused() as is_paused:
                    if is_paused:
                        has_gap = self._log.begin_bridge()
                        if has_gap or not self._log.is_waiting():
                            return self._take(
                                is_whole=whole or self._is_whole,
                                has_gap=has_gap,
                                with_state=with_state,
                            )
                        self._log.check()
        raise StoreError("the tree can't be saved while records wait to be written", errno.EAGAIN)

    def batch_saved(self) -> None:
        """Note that the last batch is in the database."""
        with self._lock:
            self._saving, self._saving_removals = {}, []
            self._saved_notes = self._saving_notes
            if self._was_bridging:
                self._log.end_bridge(is_saved=True)

    def batch_failed(self) -> None:
        """Note that the last batch could not be saved: the next one has it, too."""
        with self._lock:
            self._unsaved = {**self._saving, **self._unsaved}
            self._departures.removals = [*self._saving_removals, *self._departures.removals]
            self._saving, self._saving_removals = {}, []
            self._is_whole = self._is_whole or self._was_whole
            if self._was_bridging:
                self._log.end_bridge(is_saved=False)

    def _take(
        self, *, is_whole: bool, has_gap: bool, with_state: bool
    ) -> tuple[Batch, Position | None] | None:
        notes = self._departures.notes
        if not (is_whole or has_gap or self._unsaved or notes != self._saved_notes):
            return None
        if has_gap:  # the batch has what the missing records would have said
            self._keep()
        rows = self._all_rows() if is_whole else self._rows()
        state = None
        if with_state and (is_whole or self._tree.entry_count <= MAX_CHECKED):
            state = rows if is_whole else self._all_rows()
        batch = Batch(
            rows=rows,
            gone=[] if is_whole else self._gone(),
            version_row=version_row(self._tree.root),
            notes=notes if notes != self._saved_notes else None,
            removals=tuple(self._departures.removals),
            is_whole=is_whole,
            state=state,
        )
        self._saving, self._unsaved = self._unsaved, {}
        self._saving_removals, self._departures.removals = self._departures.removals, []
        self._saving_notes = notes
        self._was_whole, self._is_whole = is_whole, False
        self._was_bridging = has_gap
        return batch, None if has_gap else self._log.position

    def _rows(self) -> list[Row]:
        found = [self._tree.get(inode) for inode in self._unsaved]
        return [entry_row(entry) for entry in found if entry is not None]

    def _gone(self) -> list[int]:
        return [signed(inode) for inode in self._unsaved if self._tree.get(inode) is None]

    def _all_rows(self) -> list[Row]:
        return [entry_row(entry) for entry in entries(self._tree)]
