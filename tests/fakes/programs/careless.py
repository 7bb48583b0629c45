"""Daemons with a deliberate bug, which show that a test would find it.

The first argument names an entry of ``SABOTAGE``; the others go to the daemon.
"""

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pmxcfs._core import Tree
from pmxcfs.cli import main as cli
from pmxcfs.daemon import daemon, storage
from pmxcfs.messages import EntryType, Record
from pmxcfs.replica import replica
from pmxcfs.replica.local_issuer import LocalIssuer
from pmxcfs.replica.replica import Replica
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage import segments
from pmxcfs.storage.database import Batch, Database
from pmxcfs.storage.journal import Journal
from pmxcfs.storage.mark import Mark
from pmxcfs.storage.records import Kind, Notes, Saved, encode
from pmxcfs.storage.staging import StagingFile
from pmxcfs.tree import adoption
from pmxcfs.tree.adoption import Adoption

DELAY = 0.005  # seconds between an answer and its record
PAUSE = 0.01  # seconds between two steps that should be one, or in the other order
LOST = 50  # one of so many records is lost
SEGMENT_HEADER = 64  # bytes ahead of what is staged, in memory


def reply_before_append() -> None:
    """Answer before the record is written, which happens ``DELAY`` later."""
    started: list[Replica] = []

    def write_later(replica: Replica, lock: AbstractContextManager[object]) -> None:
        while True:
            time.sleep(DELAY)
            with lock:
                replica.flush()

    class Careless(Replica):
        def __init__(
            self, *parts: Any, lock: AbstractContextManager[object], **others: Any
        ) -> None:
            super().__init__(*parts, lock=lock, **others)
            self.lock = lock

        def deliver(self, tickets: Sequence[Ticket]) -> None:
            for ticket in tickets:
                self.defer(ticket)
                ticket.finish()
            if not started:
                started.append(self)
                threading.Thread(target=write_later, args=[self, self.lock], daemon=True).start()

    setattr(daemon, "Replica", Careless)  # noqa: B010, as mypy would object to an assignment


def lose_a_record() -> None:
    """Leave out some records of changes."""
    kept = itertools.count(1)

    class Careless(Journal):
        def append(self, bodies: list[bytes], seconds: float = -1.0) -> None:
            kept_bodies = [b for b in bodies if b[0] != Kind.CHANGE or next(kept) % LOST]
            super().append(kept_bodies, seconds)

    setattr(storage, "Journal", Careless)  # noqa: B010


def before_each_save(step: Callable[[Database, Batch, Mark, Journal], None]) -> None:
    """Call *step* before each save of the database, and pause between the two."""
    save = Database.save
    journals: list[Journal] = []

    class Known(Journal):
        def append(self, bodies: list[bytes], seconds: float = -1.0) -> None:
            journals[:] = [self]
            super().append(bodies, seconds)

    def save_later(database: Database, batch: Batch, mark: Mark | None) -> None:
        if mark is not None:
            step(database, batch, mark, *journals)
            time.sleep(PAUSE)
        save(database, batch, mark)

    setattr(storage, "Journal", Known)  # noqa: B010
    setattr(Database, "save", save_later)  # noqa: B010


def write_position_before_rows() -> None:
    """Commit the journal's position before the rows that it includes."""
    save = Database.save

    def write_position(database: Database, batch: Batch, mark: Mark, _: Journal) -> None:
        save(database, Batch((), (), batch.version_row), mark)

    before_each_save(write_position)


def saved_before_commit() -> None:
    """Write to the journal that a save is on the device before it begins."""

    def write_saved(database: Database, _: Batch, mark: Mark, journal: Journal) -> None:
        journal.append([encode(Saved(mark.save_id))])

    before_each_save(write_saved)


def drop_segments_before_commit() -> None:
    """Let go of the segments before the save that makes them superfluous."""

    def drop(database: Database, _: Batch, mark: Mark, journal: Journal) -> None:
        journal.release(mark.position)

    before_each_save(drop)


def forget_to_sync() -> None:
    """Answer an fsync without flushing to the device."""

    class Careless(Journal):
        def sync(self) -> None:
            pass

    setattr(storage, "Journal", Careless)  # noqa: B010


def forget_staged() -> None:
    """Write to the segment without what is staged, as if it had been written before."""
    extend, write = StagingFile.extend, os.pwrite
    waiting: list[bytes] = []
    is_staging: list[bool] = []

    def extend_and_note(file: StagingFile, frames: bytes) -> bool:
        is_staging.append(True)
        if not extend(file, frames):
            waiting.clear()
            return False
        waiting.append(frames)
        return True

    def write_less(descriptor: int, data: bytes, offset: int) -> int:
        if is_staging:
            is_staging.clear()
            return write(descriptor, data, offset)
        staged = b"".join(waiting)[SEGMENT_HEADER:]
        waiting.clear()
        return len(staged) + write(descriptor, data[len(staged) :], offset)

    setattr(StagingFile, "extend", extend_and_note)  # noqa: B010
    setattr(os, "pwrite", write_less)  # noqa: B010


def ignore_staged() -> None:
    """Start without a look at what is staged."""
    setattr(segments, "read_staged", lambda directory: [])  # noqa: B010


def skip_update() -> None:
    """Leave out one new file of the leader in each synchronization."""
    plan = adoption.plan

    def plan_less(tree: Tree, leader: bytes, records: Iterable[Record]) -> Adoption:
        planned = plan(tree, leader, records)
        for inode, record in list(planned.written.items()):
            if record.type == EntryType.FILE and tree.get(inode) is None:
                del planned.written[inode]
                planned.prepare()
                break
        return planned

    setattr(replica, "plan", plan_less)  # noqa: B010


def fail_to_finish() -> None:
    """Raise an exception while a stopping daemon ends the changes that wait."""

    class Failing(LocalIssuer):
        def refuse(self) -> None:
            raise RuntimeError("injected")

    setattr(daemon, "LocalIssuer", Failing)  # noqa: B010


def forget_departures() -> None:
    """Do not write which nodes miss changes of this node."""
    save = Database.save

    def save_without(database: Database, batch: Batch, mark: Mark | None) -> None:
        save(database, batch._replace(notes={}, removals=()), mark)

    setattr(Database, "save", save_without)  # noqa: B010
    setattr(replica, "record_notes", lambda departures: encode(Notes({}, ())))  # noqa: B010


SABOTAGE: Mapping[str, Callable[[], None]] = {
    "reply-before-append": reply_before_append,
    "lose-a-record": lose_a_record,
    "position-before-rows": write_position_before_rows,
    "saved-before-commit": saved_before_commit,
    "drop-before-commit": drop_segments_before_commit,
    "forget-to-sync": forget_to_sync,
    "forget-staged": forget_staged,
    "ignore-staged": ignore_staged,
    "skip-update": skip_update,
    "fail-to-finish": fail_to_finish,
    "forget-departures": forget_departures,
}

if __name__ == "__main__":
    SABOTAGE[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[2:]))
