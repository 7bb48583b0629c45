"""Daemons with a deliberate bug, which show that a test would find it.

The first argument names an entry of ``SABOTAGE``; the others go to the daemon.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pmxcfs._core import Tree
from pmxcfs.cli import main as cli
from pmxcfs.daemon import daemon
from pmxcfs.fuse import session
from pmxcfs.messages import EntryType, Record
from pmxcfs.replica import replica
from pmxcfs.replica.local_issuer import LocalIssuer
from pmxcfs.replica.replica import Replica
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage import database
from pmxcfs.storage._sqlite import Statement, Writer
from pmxcfs.storage.database import Database
from pmxcfs.tree import adoption
from pmxcfs.tree.adoption import Adoption

DELAY = 0.005  # seconds between an answer and its commit
PAUSE = 0.001  # seconds between two parts of a transaction


def reply_before_commit() -> None:
    """Answer before the commit: the database is written ``DELAY`` later."""
    started: list[Replica] = []

    def save_later(replica: Replica) -> None:
        while True:
            time.sleep(DELAY)
            with session.LOCK:
                replica.save()

    class Careless(Replica):
        def deliver(self, tickets: Sequence[Ticket]) -> None:
            for ticket in tickets:
                self.defer(ticket)
                ticket.finish()
            if not started:
                started.append(self)
                threading.Thread(target=save_later, args=[self], daemon=True).start()

    setattr(daemon, "Replica", Careless)  # noqa: B010, as mypy would object to an assignment


def commit_in_pieces() -> None:
    """Commit each row of a transaction on its own."""

    class InPieces(Writer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.known: dict[str, Statement] = {}
            super().__init__(*arguments, **options)

        def run(self, statement: Statement) -> int:
            if statement.sql in ("BEGIN IMMEDIATE", "COMMIT"):
                self.known[statement.sql] = statement
            super().run(statement)
            if statement.sql.startswith(("INSERT", "DELETE")) and "COMMIT" in self.known:
                super().run(self.known["COMMIT"])
                time.sleep(PAUSE)
                super().run(self.known["BEGIN IMMEDIATE"])
            return 0

    setattr(database, "Writer", InPieces)  # noqa: B010


def forget_to_sync() -> None:
    """Answer an fsync without flushing to the device."""
    setattr(Database, "sync", lambda database: None)  # noqa: B010


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
    setattr(Database, "write_notes", lambda database, *notes: None)  # noqa: B010


SABOTAGE: Mapping[str, Callable[[], None]] = {
    "reply-before-commit": reply_before_commit,
    "commit-in-pieces": commit_in_pieces,
    "forget-to-sync": forget_to_sync,
    "skip-update": skip_update,
    "fail-to-finish": fail_to_finish,
    "forget-departures": forget_departures,
}

if __name__ == "__main__":
    SABOTAGE[sys.argv[1]]()
    sys.exit(cli.main(sys.argv[2:]))
