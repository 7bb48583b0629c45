"""A replica on a real database and a real journal, as a daemon has it."""

import contextlib
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from pmxcfs._core import Tree
from pmxcfs.daemon.storage import Storage
from pmxcfs.messages import Mutation
from pmxcfs.replica.departures import Departures
from pmxcfs.replica.replica import Policy, Replica
from pmxcfs.replica.tickets import Ticket
from pmxcfs.replica.waiting import Yielding
from pmxcfs.storage.records import Change, Record, mutation_of
from pmxcfs.storage.segments import scan
from tests.fakes.doubles.yielding import SingleYielding

WAIT = 30.0  # seconds; of a test that is about to fail


class StoredReplica:
    """A replica in *directory*; what is there already is loaded and replayed.

    *nodes* are the other nodes of its cluster, none of which is there.
    """

    def __init__(
        self,
        directory: Path,
        *,
        policy: Policy = Policy.KEEP,
        yielding: Yielding | None = None,
        lock: AbstractContextManager[object] | None = None,
        nodes: Collection[int] = (),
    ) -> None:
        self.path, self.directory = directory / "config.db", directory / "journal"
        lock = lock or contextlib.nullcontext()
        self.storage = Storage.open(
            self.path, self.directory, now=7, lock=lock, scratch=self.path.parent
        )
        recovered = self.storage.recovered
        self.database, self.journal = self.storage.database, self.storage.journal
        self.tree, self.guests = recovered.tree, recovered.guests
        self.yielding = yielding or SingleYielding()
        self.notices = 0  # of records that wait
        self.wall_clock_ns = time.time_ns
        self.replica = Replica(
            self.tree,
            self.guests,
            self.database,
            self.journal,
            departures=Departures(recovered.notes, removals=recovered.removals),
            policy=policy,
            yielding=self.yielding,
            lock=lock,
            on_pending=self._notice,
            unsaved=recovered.unsaved,
            must_save_all=recovered.must_save,
            wall_clock_ns=lambda: self.wall_clock_ns(),
        )
        self.replica.departures.set_nodes(nodes)
        if recovered.must_save:
            self.replica.saver.save(whole=True)

    def _notice(self) -> None:
        self.notices += 1

    def deliver(self, *mutations: Mutation, writer: int = 2, mtime: int = 5) -> list[Ticket]:
        """Deliver *mutations* of another node, as one group."""
        tickets = [Ticket(m, writer=writer, mtime=mtime, foreign=True) for m in mutations]
        self.replica.deliver(tickets)
        return tickets

    def records(self) -> list[Record]:
        """Return all records that are in the journal."""
        places = scan(self.directory).segments
        return [found.record for place in places for found in place.read().records]

    def changes(self) -> list[tuple[int, Mutation]]:
        """Return the version and the mutation of each change in the journal."""
        changes = [record for record in self.records() if isinstance(record, Change)]
        return [(change.version, mutation_of(change)) for change in changes]

    def close(self) -> None:
        """End the saver's thread, and close the files, without saving. Can be called twice."""
        self.replica.saver.close(WAIT)
        self.storage.close()


@contextlib.contextmanager
def replica_in(directory: Path, *, policy: Policy = Policy.KEEP) -> Iterator[Replica]:
    """Make a replica in *directory* until the block ends."""
    with contextlib.closing(StoredReplica(directory, policy=policy)) as stored:
        yield stored.replica


def recovered_tree(directory: Path) -> Tree:
    """Return the tree that a start would make of database and journal, which are closed."""
    with contextlib.closing(StoredReplica(directory)) as stored:
        return stored.tree
