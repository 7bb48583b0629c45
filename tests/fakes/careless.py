"""Daemons that break a promise on purpose, so that tests can show that they would notice.

Run as a program: the first argument says what is broken, the others go to the daemon.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, cast

from pmxcfs import adoption, cli, fuse, replica
from pmxcfs._core import Entry, Tree
from pmxcfs.adoption import Adoption
from pmxcfs.database import Database
from pmxcfs.messages import EntryType, Record
from pmxcfs.replica import Replica
from pmxcfs.tickets import Ticket

DELAY = 0.005  # seconds by which a commit comes too late
PAUSE = 0.001  # seconds between the pieces of a transaction


def reply_before_commit() -> None:
    """Apply mutations and answer; the database is written a moment later."""
    started: list[Replica] = []

    def save_later(replica: Replica) -> None:
        while True:
            time.sleep(DELAY)
            with fuse.LOCK:
                replica.save()

    def deliver(replica: Replica, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            replica.defer(ticket)
            ticket.finish()
        if not started:
            started.append(replica)
            threading.Thread(target=save_later, args=[replica], daemon=True).start()

    setattr(Replica, "deliver", deliver)  # noqa: B010, as mypy would object to an assignment


class Piece(NamedTuple):
    """One row of what a tree has unsaved."""

    root: Entry
    rows: dict[int, Entry | None]

    def unsaved(self) -> dict[int, Entry | None]:
        """Return what is to be saved."""
        return self.rows


def commit_in_pieces() -> None:
    """Save each row in a transaction of its own."""
    save_all = Database.save

    def save(database: Database, tree: Tree) -> None:
        for inode, entry in tree.unsaved().items():
            save_all(database, cast(Tree, Piece(tree.root, {inode: entry})))
            time.sleep(PAUSE)

    setattr(Database, "save", save)  # noqa: B010


def forget_to_sync() -> None:
    """Answer an fsync without asking the device for anything."""
    setattr(Database, "sync", lambda database: None)  # noqa: B010


def skip_update() -> None:
    """In each sync, do without one of the new files that the leader has sent."""
    plan = adoption.plan

    def plan_less(tree: Tree, leader: bytes, records: Iterable[Record]) -> Adoption:
        planned = plan(tree, leader, records)
        for inode, record in list(planned.written.items()):
            if record.type == EntryType.FILE and tree.get(inode) is None:
                del planned.written[inode]
                break
        return planned

    setattr(replica, "plan", plan_less)  # noqa: B010


SABOTAGE: Mapping[str, Callable[[], None]] = {
    "reply-before-commit": reply_before_commit,
    "commit-in-pieces": commit_in_pieces,
    "forget-to-sync": forget_to_sync,
    "skip-update": skip_update,
}

if __name__ == "__main__":
    SABOTAGE[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[2:]))
