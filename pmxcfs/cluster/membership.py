"""All that joins this node to the others, as one part for ``daemon``.

The two groups, quorum and configuration as corosync tells them, and the host's corosync.conf. What
they learn is brought here to those whom it concerns, with the tree's lock held.

Threads: those of its parts. ``start`` and ``stop`` must not be called with the lock held.
Contract: docs/spec/cluster.md; operations.md, "corosync.conf".
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pmxcfs.cluster.corosync_conf import HostConfig
from pmxcfs.cluster.group import GroupThread
from pmxcfs.cluster.status_group import StatusContent, StatusGroup, StatusSource
from pmxcfs.cluster.tree_group import Proposals, TreeContent, TreeGroup, TreeSource
from pmxcfs.cluster.watchers import ConfigWatch, QuorumWatch
from pmxcfs.host.threads import BackgroundThread
from pmxcfs.messages import ClusterConfig, Member, SetKey
from pmxcfs.replica.outbox import Outbox
from pmxcfs.replica.replica import Replica
from pmxcfs.status.counters import Status
from pmxcfs.status.kvstore import ADDRESS
from pmxcfs.tree.apply import Change

_log = logging.getLogger("pmxcfs.dcdb")

COROSYNC_CONF = "corosync.conf"  # its path in the tree
CATCH_UP_INTERVAL = 1.0  # seconds between attempts to write a database that could not be written


class Clustering:
    """This node's part in the cluster."""

    def __init__(
        self,
        replica: Replica,
        outbox: Outbox,
        status: Status,
        *,
        lock: AbstractContextManager[object],
        lock_has_expired: Callable[[str, bytes], bool],
        host_file: Path,
        on_quorum: Callable[[bool], None],
    ) -> None:
        self.forced_quorum: bool | None = None  # by a test, whatever corosync says
        self._replica = replica
        self._status = status
        self._lock = lock
        self._on_quorum = on_quorum
        self._quorum = QuorumWatch(self._take_quorum)
        self._config = ConfigWatch(self._take_config)
        self._host_file = HostConfig(host_file)
        self._catching_up = _CatchUp(replica, lock)
        proposals = Proposals()
        tree = TreeContent(
            replica,
            outbox,
            proposals,
            lock=lock,
            quorum=self,
            lock_has_expired=lock_has_expired,
        )
        tree.on_common = self._note_common
        self.tree = TreeGroup(tree, TreeSource(outbox, proposals, lock=lock))
        outbox.wake = self.tree.wake
        outbox.dispatch_until = self.tree.dispatch_until
        self.source = StatusSource()
        self.status = StatusGroup(StatusContent(status, self.source, lock=lock), self.source)
        self.source.wake = self.status.wake

    @property
    def _groups(self) -> Sequence[GroupThread]:
        return self.tree, self.status

    def start(self) -> None:
        """Connect to corosync, now or as soon as it is there."""
        with self._lock:
            self._follow_host_file(reload=True)
        self._host_file.start()
        self._catching_up.start()
        self._quorum.start()
        self._config.start()
        for group in self._groups:
            group.start()

    def stop(self) -> None:
        """Leave the groups; nothing that hangs is waited for much longer than half a second."""
        for group in self._groups:
            group.stop()
        for group in self._groups:
            group.close()
        self._quorum.close()
        self._config.close()
        self._catching_up.stop()
        self._host_file.close()

    def refresh(self) -> bool:
        """Tell whether this node has quorum, after a look at what corosync may have said since."""
        if self.forced_quorum is not None:
            return self.forced_quorum
        return self._quorum.refresh()

    def set_address(self, address: str) -> None:
        """Tell all nodes how this one is reached."""
        with self._lock:
            self._status.members.set_resolved(address)
            told = self._status.members.own.address
        self.source.put(SetKey(ADDRESS, told.encode("ascii") + b"\0"))

    # For tests and for whoever looks.

    def describe(self) -> Mapping[str, object]:
        """Return where this node stands in both groups."""
        return {
            "mode": self.tree.mode.value,
            "members": [member.nodeid for member in self.tree.members],
            "dropped": self.tree.dropped + self.status.dropped,
            "sent_bytes": self.tree.sent_bytes,
            "status_mode": self.status.mode.value,
            "status_members": [member.nodeid for member in self.status.members],
        }

    def set_deadlines(self, **seconds: Any) -> None:
        """Use other deadlines for the tree's group from now on: for tests."""
        self.tree.set_deadlines(replace(self.tree.dfsm.deadlines, **seconds))

    # What corosync says.

    def _take_quorum(self, quorate: bool) -> None:
        if self.forced_quorum is None:
            self._on_quorum(quorate)
        self.tree.wake()

    def _take_config(self, config: ClusterConfig) -> None:
        with self._lock:
            self._status.members.configure(config)

    def _note_common(self, members: Sequence[Member]) -> None:
        """The tree is that of *members*, and what changes now reaches all of them."""
        self._replica.synced(with_others=len(members) > 1)

    # What the tree says.

    def on_change(self, change: Change, *, foreign: bool) -> None:
        """Keep the host's corosync.conf in step.

        The node that changed it has corosync reload it, also if nobody waits for the change here
        any more and it counts as *foreign* therefore.
        """
        if COROSYNC_CONF in (change.path, change.source):
            is_ours = change.entry.writer == self.tree.dfsm.me.nodeid
            self._follow_host_file(reload=is_ours)

    def on_reload(self, *_: object) -> None:
        """Do the same after a synchronization."""
        self._follow_host_file(reload=False)

    def _follow_host_file(self, *, reload: bool) -> None:
        entry = self._replica.tree.find(COROSYNC_CONF)
        if entry is not None and not entry.is_directory:
            self._host_file.follow(entry.content, reload=reload)


class _CatchUp(BackgroundThread):
    """Writes the database, once that works again, up to what is in RAM."""

    def __init__(self, replica: Replica, lock: AbstractContextManager[object]) -> None:
        super().__init__("catch-up")
        self._replica = replica
        self._lock = lock

    def run(self) -> None:
        """Write the database while the node is degraded, until that works."""
        while not self.pause(CATCH_UP_INTERVAL):
            if self._replica.is_degraded:
                with self._lock:
                    self._replica.catch_up()
