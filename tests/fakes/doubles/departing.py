"""A node of a cluster whose other members come and go: a real replica, and told memberships."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pmxcfs._core import Tree
from pmxcfs.messages import Mutation
from pmxcfs.replica.departures import SETTLING
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage.divergence import Note, Removal
from pmxcfs.storage.kept_copies import kept_copies
from pmxcfs.storage.recovery import inspect
from pmxcfs.tree import index
from tests.fakes.data.trees import records_of
from tests.fakes.doubles.replicas import StoredReplica

NOW = 1234  # seconds since 1970, for all that happens
ME, NODES = 1, (1, 2, 3)


class Node:
    """A node in a cluster; ``restart`` kills it and starts it again."""

    def __init__(self, home: Path) -> None:
        self.home, self.path = home, home / "config.db"
        self.conflicts = home / "conflicts"
        self.start()

    def start(self) -> None:
        self.stored = StoredReplica(self.home, nodes=NODES)
        self.database, self.tree = self.stored.database, self.stored.tree
        self.replica = self.stored.replica

    def restart(self) -> None:
        self.close()
        self.start()

    def close(self) -> None:
        self.stored.close()

    def save(self) -> None:
        """Have the database up to date."""
        self.replica.saver.save()

    def meet(self, *others: int, now: float = 0.0) -> None:
        """Be in a group with *others*, as the last synchronization left the tree."""
        version, departures = self.tree.version, self.replica.departures
        departures.follow({ME, *others}, me=ME, version=version, now=now)
        departures.remember(version, now=now)
        self.write_notes()

    def settle(self) -> None:
        """Let the members stay in the group after a synchronization."""
        for now in (0.0, SETTLING):
            self.replica.departures.settle(is_common=True, now=now)
        self.write_notes()

    def write_notes(self) -> None:
        self.replica.save_notes()
        self.replica.write_out()

    def notes(self) -> Mapping[int, Note]:
        """Return the notes in database and journal, as they are after a crash."""
        return inspect(self.path).notes

    def removals(self) -> Sequence[Removal]:
        """Return the removals in database and journal, as they are after a crash."""
        return [*self.database.read_removals(), *inspect(self.path).removals]

    def do(self, *mutations: Mutation) -> None:
        """Deliver each mutation in a group of its own, and have it written."""
        for mutation in mutations:
            ticket = Ticket(mutation, writer=1, mtime=NOW)
            self.replica.deliver([ticket])
            self.replica.write_out()
            ticket.result()

    def change_alone(self, *mutations: Mutation) -> None:
        self.meet()
        self.do(*mutations)

    def become(self, leader: Tree, *side: int) -> None:
        raw = leader.index()
        needed = index.records_needed(raw, [self.replica.state()])
        self.replica.adopt(
            raw,
            records_of(leader, needed),
            side=side or (2, 3),
            now=NOW,
            lock=contextlib.nullcontext(),
        )
        self.replica.write_out()

    def copies(self) -> list[Path]:
        """Return the copies, without their descriptions."""
        return [copy.path for copy in kept_copies(self.path.parent)]
