"""A database and a journal with a saver, for which the double stands in as the replica."""

import contextlib
import sqlite3
import threading
from pathlib import Path

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.storage.database import Batch
from pmxcfs.storage.journal import Journal, size_of
from pmxcfs.storage.mark import Mark, Position, read_mark
from pmxcfs.storage.records import Change, Record, encode
from pmxcfs.storage.saver import Saver
from pmxcfs.storage.segments import scan
from tests.fakes.doubles.store import LINEAGE, Store, stored

WAIT = 30.0  # seconds; of a test that is about to fail


class OpenJournal(Journal):
    """A journal whose methods a test can replace, unlike those of a compiled class."""


class World:
    """A database and a journal with a saver, whose source this is."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "journal"
        self.store = Store(directory / "config.db")
        self.database = self.store.database
        self.journal = OpenJournal.start(self.directory, lineage=LINEAGE, sequence=5, version=1)
        self.now = 1000.0
        self.saver = Saver(self.database, self.journal, self, clock=lambda: self.now)
        self.calls: list[str] = []  # of the source
        self.is_gap = False  # the journal does not lead to the tree
        self.has_state = False  # its rows are offered for a checksum
        self.may_be_saved = threading.Event()  # a batch is taken only then
        self.may_be_saved.set()
        self.is_being_saved, self.was_saved = threading.Event(), threading.Event()

    @property
    def tree(self) -> Tree:
        """The tree of the node."""
        return self.store.tree

    # The source.

    def take_batch(self, *, whole: bool, with_state: bool) -> tuple[Batch, Position | None] | None:
        self.calls.append("take whole" if whole else "take")
        self.is_being_saved.set()
        assert self.may_be_saved.wait(WAIT)
        whole = whole or self.is_gap
        batch = self.store.batch(whole=whole)
        if not (whole or batch.rows or batch.gone):
            return None
        if with_state and self.has_state:
            batch = batch._replace(state=self.store.batch(whole=True).rows)
        return batch, None if self.is_gap else self.journal.position

    def batch_saved(self) -> None:
        self.calls.append("saved")
        self.store.mark_saved()
        self.is_gap = False
        self.was_saved.set()

    def batch_failed(self) -> None:
        self.calls.append("failed")

    # What a test does.

    def change(self, name: str, *, size: int = 1, is_configuration: bool = True) -> None:
        """Change a file, with records of *size* bytes and more in the journal."""
        self.store.write(name, b"x")
        self.append(size)
        self.saver.note_change(is_configuration=is_configuration)

    def append(self, size: int = 1) -> None:
        record = Change(self.tree.version, 1, 2, 3, 4, 5, 6, 7, b"p", bytes(min(size, 1 << 20)))
        bodies = [encode(record)] * max(size >> 20, 1)
        self.journal.make_room(size_of(bodies), version=1)
        self.journal.append(bodies)

    def pass_time(self, seconds: float) -> list[str]:
        """Let *seconds* pass and do what is due; return the calls of the source."""
        self.now += seconds
        self.calls.clear()
        self.saver.work()
        return self.calls

    def records(self) -> list[Record]:
        """Return all records that are in the journal."""
        return [
            found.record
            for place in scan(self.directory).segments
            for found in place.read().records
        ]

    def kinds(self) -> list[type]:
        return [type(record) for record in self.records()]

    def mark(self) -> Mark | None:
        with contextlib.closing(sqlite3.connect(self.store.path)) as connection:
            connection.text_factory = bytes
            return read_mark(connection.execute)

    def check_is_saved(self) -> None:
        assert stored(self.store.path).checksum() == self.tree.checksum()

    def close(self) -> None:
        """End the saver's thread, and close the files."""
        self.saver.close(WAIT)
        self.database.close()
        with contextlib.suppress(StoreError):
            self.journal.close()
