"""Counting of tree changes in ``.version`` and ``.vmlist``, which local clients poll.

A counter is incremented only after the cache invalidations of the change have been sent to the
kernel. So each change is recorded with the sequence number of its last invalidation.
Contract: docs/spec/status.md.
"""

from collections.abc import Mapping

from pmxcfs._core import Entry
from pmxcfs.daemon.local_clients import LocalClients
from pmxcfs.errors import StoreError
from pmxcfs.fuse.notifier import Notifier
from pmxcfs.status.counters import Status
from pmxcfs.tree.adoption import Reload
from pmxcfs.tree.apply import Change


class ChangeCounter:
    """A listener of the replica for counters and cached guest properties. Needs the lock."""

    def __init__(self, status: Status, notifier: Notifier, clients: LocalClients) -> None:
        self._status = status
        self._notifier = notifier
        self._clients = clients

    def on_change(self, change: Change, foreign: bool) -> None:
        """Count *change* if it concerns a counted file or a guest, as few changes do."""
        if self._count(change):
            self._clients.on_change(change, foreign)

    def _count(self, change: Change) -> bool:
        """Count *change*; return whether it concerns a counted file or a guest."""
        return self._status.on_change(change.path, change.source, self._notifier.sequence)

    def on_undone(self, undone: Mapping[Entry, str], error: StoreError) -> None:
        """Count changes that were taken back: they could be seen while they were being saved."""
        for entry, path in undone.items():
            self._status.on_change(entry.path, path, sequence=self._notifier.sequence)
        self._clients.on_undone(undone, error)

    def on_reload(self, reload: Reload) -> None:
        """Count everything: the tree is another node's now."""
        self._status.on_reload(sequence=self._notifier.sequence)
        self._clients.on_reload()
