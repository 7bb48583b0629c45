"""The commands of the test control, by which tests simulate a cluster and the passage of time.

The commands exist only with ``--test-control``. They are called with the tree's lock held, except
for those in ``UNLOCKED``.
Contract: docs/spec/operations.md, "Command line".
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from pmxcfs._core import Tree
from pmxcfs.cluster.membership import Clustering
from pmxcfs.daemon.control import mutation_of
from pmxcfs.daemon.quorum import QuorumSwitch
from pmxcfs.fuse.notifier import Notifier
from pmxcfs.fuse.waits import Waits
from pmxcfs.host import clock
from pmxcfs.replica.issuer import StoppableIssuer
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.replica.replica import Replica
from pmxcfs.storage.database import inspect
from pmxcfs.storage.divergence import OTHERS
from pmxcfs.tree.adoption import record_of
from pmxcfs.tree.index import records_needed
from pmxcfs.tree.locks import LockTable
from pmxcfs.vfs.writeback import Writeback

UNLOCKED = ("adopt",)  # commands that take the tree's lock themselves


class TestedParts(NamedTuple):
    """The parts of a daemon that the commands use."""

    replica: Replica
    issuer: StoppableIssuer
    writeback: Writeback
    locks: LockTable
    quorum: QuorumFlag
    switch: QuorumSwitch
    clustering: Clustering | None  # None in local mode
    waits: Waits
    notifier: Notifier
    lock: AbstractContextManager[object]  # the tree's


class TestCommands:
    """The commands by name; each takes the other fields of a request as keyword arguments."""

    def __init__(self, parts: TestedParts) -> None:
        self._parts = parts

    def by_name(self) -> Mapping[str, Callable[..., Mapping[str, object] | None]]:
        """Return all commands."""
        return {
            "quorum": self.force_quorum,
            "hold": self._parts.issuer.hold,
            "resume": self._parts.issuer.resume,
            "inject": self.inject,
            "adopt": self.adopt,
            "lock-lifetime": self.set_lock_lifetime,
            "publish-after": self.set_publish_after,
            "deadlines": self.set_deadlines,
            "info": self.info,
        }

    def force_quorum(self, *, on: bool | None) -> None:
        """Override corosync's quorum state with *on*; None ends the override."""
        if self._parts.clustering is not None:
            self._parts.clustering.force_quorum(on)
        elif on is not None:
            self._parts.switch.set(on)

    def inject(self, *, writer: int = 99, time: int | None = None, **request: object) -> None:
        """Apply the mutation of *request* as if the node *writer* had sent it at *time*."""
        mtime = clock.seconds() if time is None else time
        self._parts.replica.inject(mutation_of(request), writer=writer, mtime=mtime)

    def adopt(self, *, path: str) -> None:
        """Adopt the tree in the database *path*, as if a synchronization had brought it.

        Nothing may change the tree meanwhile.
        """
        theirs = Tree(keep_undo=False)
        theirs.load(inspect(Path(path)).records)
        leader, lock = theirs.index(), self._parts.lock
        with lock:
            ours = self._parts.replica.state()
        needed = map(theirs.get, records_needed(leader, [ours]))
        records = [record_of(entry) for entry in needed if entry is not None]
        self._parts.replica.adopt(leader, records, side=(OTHERS,), now=clock.seconds(), lock=lock)

    def set_lock_lifetime(self, *, seconds: float) -> None:
        """Have locks expire *seconds* after their last renewal."""
        self._parts.locks.lifetime = seconds

    def set_publish_after(self, *, seconds: float) -> None:
        """Set the age in *seconds* at which the timer publishes dirty files.

        A running timer takes a shorter age into account only after its present delay.
        """
        self._parts.writeback.publish_after_ns = int(seconds * 1e9)

    def set_deadlines(self, **seconds: Any) -> None:
        """Replace some deadlines of the tree's group."""
        if self._parts.clustering is not None:
            self._parts.clustering.set_deadlines(**seconds)

    def info(self) -> Mapping[str, object]:
        """Return the state of the daemon that tests wait for."""
        parts = self._parts
        tree = parts.replica.tree
        return {
            "pid": os.getpid(),
            "version": tree.version,
            "checksum": tree.checksum().hex(),
            "entries": tree.entry_count,
            "writes": parts.replica.writes,
            "degraded": parts.replica.is_degraded,
            "waiting": parts.waits.waiting_count,
            "handed": parts.notifier.handed == parts.notifier.sequence,
            "quorate": parts.quorum.is_quorate,
            **(parts.clustering.describe() if parts.clustering is not None else {}),
        }
