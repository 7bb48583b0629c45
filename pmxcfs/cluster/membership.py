"""The clustering of one node: its two groups, quorum, configuration and host corosync.conf.

``Clustering`` builds and starts these parts, and passes events from corosync to the replica, the
status and the daemon, and changes of the tree's corosync.conf to the host's file.

Threads: the parts have threads of their own. ``start`` and ``stop`` must not be called with the
tree's lock held.
Contract: docs/spec/cluster.md, "State machine"; docs/spec/operations.md, "corosync.conf".
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pmxcfs.cluster.corosync_conf import HostConfig
from pmxcfs.cluster.corosync_reload import Reload
from pmxcfs.cluster.group import GroupThread
from pmxcfs.cluster.probe import Probe
from pmxcfs.cluster.status_group import StatusContent, StatusGroup, StatusSource
from pmxcfs.cluster.tree_content import TreeContent
from pmxcfs.cluster.tree_group import TreeGroup
from pmxcfs.cluster.tree_source import Proposals, TreeSource
from pmxcfs.cluster.watchers import ConfigWatch, QuorumWatch
from pmxcfs.host.threads import Wakeup
from pmxcfs.messages import ClusterConfig, SetKey
from pmxcfs.replica.departures import room_for
from pmxcfs.replica.outbox import Outbox
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.replica.replica import Replica
from pmxcfs.status.counters import Status
from pmxcfs.status.kvstore import ADDRESS
from pmxcfs.storage.incomplete import Incomplete
from pmxcfs.tree.apply import Change

COROSYNC_CONF = "corosync.conf"  # its path in the tree
HOST_FILE_PATIENCE = 2.0  # seconds that a start waits for the host's file; 0.1 are usual


class Clustering:
    """This node's connections to the cluster, and the wiring between them and the node."""

    def __init__(
        self,
        replica: Replica,
        status: Status,
        *,
        quorum: QuorumFlag,
        lock: AbstractContextManager[object],
        lock_has_expired: Callable[[str, bytes], bool],
        host_file: Path,
        rundir: Path,
        on_quorum: Callable[[bool], None],
        incomplete: Incomplete,
    ) -> None:
        self._replica = replica
        self._status = status
        self._lock = lock
        self._on_quorum = on_quorum
        self._quorum = QuorumWatch(self._take_quorum)
        self._config = ConfigWatch(self._take_config)
        self._host_file = HostConfig(host_file, Reload(rundir))
        tree_wakeup, status_wakeup = Wakeup(), Wakeup()
        self.outbox = Outbox(quorum, wake=tree_wakeup.set)
        proposals = Proposals()
        self._content = tree = TreeContent(
            replica,
            self.outbox,
            proposals,
            lock=lock,
            quorum=self._quorum,
            lock_has_expired=lock_has_expired,
            when_synced=self._follow_host_file,
            incomplete=incomplete,
        )
        source = TreeSource(self.outbox, proposals, lock=lock)
        self.tree = TreeGroup(tree, source, wakeup=tree_wakeup, explain=self._host_file.examine)
        self.source = StatusSource(wake=status_wakeup.set)
        self.probe = Probe(self._send_address)
        content = StatusContent(status, self.source, lock=lock, on_echo=self.probe.echoed)
        self.status = StatusGroup(content, self.source, wakeup=status_wakeup)

    @property
    def _groups(self) -> Sequence[GroupThread]:
        return self.tree, self.status

    def start(self) -> None:
        """Start all threads; they connect as soon as corosync runs. Takes the tree's lock.

        Blocks until the host's file is the tree's, as corosync is started after the daemon and
        reads it then, but not for longer than HOST_FILE_PATIENCE seconds.
        """
        with self._lock:
            self._follow_host_file(reload=True)
        self._host_file.start()
        self._quorum.start()
        self._config.start()
        for group in self._groups:
            group.start()
        self.probe.start()
        self._host_file.wait(HOST_FILE_PATIENCE)

    def stop(self) -> None:
        """Leave both groups and end the threads; each wait takes half a second at most."""
        for group in self._groups:
            group.stop()
        for group in self._groups:
            group.close()
        self.probe.stop()
        self._quorum.close()
        self._config.close()
        self._host_file.close()

    def set_address(self, address: str) -> None:
        """Send this node's IP *address* to all nodes. Takes the tree's lock."""
        with self._lock:
            self._status.members.set_resolved(address)
        self._send_address()

    def _send_address(self) -> bool:
        """Queue this node's address for all nodes; return False if it is not known yet."""
        address = self._status.members.own.address
        if address:
            self.source.put(SetKey(ADDRESS, address.encode("ascii") + b"\0"))
        return bool(address)

    # Reports and test control.

    def describe(self) -> Mapping[str, object]:
        """Return this node's mode, the members and the message counters of its groups."""
        return {
            "mode": self.tree.mode.value,
            "members": [member.nodeid for member in self.tree.members],
            "twins": [member.pid for member in self.tree.dfsm.twins],
            "verified": self.tree.dfsm.verified,
            "dropped": self.tree.dropped + self.status.dropped,
            "sent_bytes": self.tree.sent_bytes,
            "corosync_error": self.corosync_error,
            "seconds_out_of_sync": round(self.seconds_out_of_sync, 1),
            "seconds_without_echo": round(self.seconds_without_echo, 1),
            "copy_error": self.tree.copy_error,
            "host_file_error": self.host_file_error,
            "host_file_fault": self.host_file_fault,
            "status_mode": self.status.mode.value,
            "status_members": [member.nodeid for member in self.status.members],
        }

    @property
    def corosync_error(self) -> str:
        """Why there is no connection to corosync; empty if there is one, or none was tried."""
        return self.tree.corosync_error or self.status.corosync_error

    @property
    def seconds_out_of_sync(self) -> float:
        """Seconds for which one of the groups has been out of sync; 0 if both are in sync."""
        return max(group.seconds_out_of_sync for group in self._groups)

    @property
    def seconds_without_echo(self) -> float:
        """Seconds for which a message of this node has not come back; 0 if none is under way."""
        oldest = self.outbox.progress.oldest
        of_tree = time.monotonic() - oldest if oldest else 0.0
        return max(of_tree, self.probe.seconds_without_echo)

    @property
    def mode(self) -> str:
        """The mode of the group that is not in sync; of the tree's if both are or neither is."""
        out_of_sync = [group for group in self._groups if group.seconds_out_of_sync]
        return (out_of_sync or self._groups)[0].mode.value

    @property
    def refusal(self) -> str:
        """Why changes are refused since one was not sent or not delivered; empty if they aren't."""
        progress = self.outbox.progress
        return str(progress.cause or "") if progress.refuses(time.monotonic()) else ""

    @property
    def host_file_error(self) -> str:
        """Why the host or corosync does not have the tree's corosync.conf; empty if they have."""
        return self._host_file.error

    @property
    def host_file_fault(self) -> str:
        """Why corosync can't start with the host's corosync.conf; empty if it can, or runs."""
        return self._host_file.fault if self.corosync_error else ""

    def force_quorum(self, on: bool | None) -> None:
        """Override corosync's quorum state with *on*; None ends the override. For tests.

        Needs the tree's lock.
        """
        self._quorum.forced = on
        self._set_quorum(self._quorum.refresh())

    def set_deadlines(self, **seconds: Any) -> None:
        """Replace some deadlines of the tree's group by *seconds*. For tests."""
        self.tree.set_deadlines(replace(self.tree.dfsm.deadlines, **seconds))

    # Events from corosync, on the watchers' and the group's threads.

    def _take_quorum(self, quorate: bool) -> None:
        if self._quorum.forced is None:
            with self._lock:
                self._set_quorum(quorate)
        self.tree.wake()

    def _set_quorum(self, quorate: bool) -> None:
        """Announce whether this node has quorum; without, refuse what was not sent."""
        self._on_quorum(quorate)
        if not quorate:
            self.outbox.refuse_unsent()

    def _take_config(self, config: ClusterConfig) -> None:
        with self._lock:
            self._status.members.configure(config)
            self._content.configure([node.nodeid for node in config.nodes])
            if config.nodes:  # else the nodes are not known
                room = room_for(config.token, config.consensus, nodes=len(config.nodes))
                self._replica.departures.set_nodes(
                    (node.nodeid for node in config.nodes), room=room
                )

    # Events from the tree, with its lock held.

    def on_change(self, change: Change, foreign: bool) -> None:
        """Update the host's corosync.conf if *change* is of the tree's corosync.conf.

        The node that issued the change has corosync reload the file. The writer decides that, not
        *foreign*: a change of this node is foreign if its issuer has given up waiting for it.
        """
        if COROSYNC_CONF in (change.path, change.source):
            is_ours = change.entry.writer == self.tree.dfsm.me.nodeid
            self._follow_host_file(reload=is_ours)

    def _follow_host_file(self, *, reload: bool = False) -> None:
        """Update the host's corosync.conf; with *reload* have corosync reload it in any case.

        After each synchronization, too: the host's file can have been changed meanwhile.
        """
        entry = self._replica.tree.find(COROSYNC_CONF)
        if entry is not None and not entry.is_directory:
            self._host_file.follow(entry.content, reload=reload)
