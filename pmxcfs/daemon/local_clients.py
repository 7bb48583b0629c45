"""All that serves the local clients of this node, as one part for ``daemon``.

The IPC server and what answers its requests, and the recorder of metrics, which those clients set.
What they ask about changes through listeners, which are called with the tree's lock held.

Threads: those of its parts. ``start`` and ``stop`` must not be called with the lock held.
Contract: docs/spec/ipc.md; status.md, "RRD".
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import StoreError
from pmxcfs.ipc.guest_properties import Properties
from pmxcfs.ipc.requests import Requests
from pmxcfs.ipc.server import RESTART_FLAG, IpcServer
from pmxcfs.messages import LogEntry, SetKey
from pmxcfs.rrd.writer import Recorder
from pmxcfs.settings import Settings
from pmxcfs.status.counters import Status
from pmxcfs.status.files import StatusFile
from pmxcfs.tree.apply import Change
from pmxcfs.tree.guests import Guests

BREATH = 1e-5  # seconds by which a long answer lets others go first
METRICS_STOP_TIMEOUT = 0.5  # seconds that metrics which wait get at the end


class Service:
    """What this node does for its local clients."""

    def __init__(
        self,
        tree: Tree,
        guests: Guests,
        status: Status,
        files: Mapping[str, StatusFile],
        *,
        settings: Settings,
        gid: int,
        lock: AbstractContextManager[object],
    ) -> None:
        self.recorder = Recorder(settings.rrddir, settings.rrdcached_socket)
        status.metrics.listeners.append(self.recorder.record)
        self._properties = Properties(tree, guests, lock=lock)
        self._requests = Requests(
            tree,
            guests,
            status,
            files,
            self._properties,
            lock=lock,
            clock=time.time,
            monotonic=time.monotonic,
            give_way=lambda: time.sleep(BREATH),
        )
        self.ipc = IpcServer(
            settings.ipc_name, self._requests, gid=gid, flag=settings.rundir / RESTART_FLAG
        )

    def start(self) -> None:
        """Serve from now on. Raises StartError."""
        self.recorder.start()
        self.ipc.start()

    def stop(self) -> None:
        """Disconnect the clients, and write what metrics there are."""
        self.ipc.close()
        self.recorder.close(METRICS_STOP_TIMEOUT)

    def tell_cluster(self, publish: Callable[[SetKey | LogEntry], None]) -> None:
        """Have *publish* called with whatever clients set and the other nodes have to know."""
        self._requests.publish = publish

    def set_report(self, report: Callable[[], Mapping[str, object]]) -> None:
        """Have *report* called for who asks how the daemon is, with the lock held."""
        self._requests.report = report

    # What the tree says.

    def on_change(self, change: Change, *, foreign: bool) -> None:
        """Forget what was known of a guest whose file has changed."""
        self._properties.on_change(change.path, change.source or "")

    def on_undone(self, undone: Mapping[Entry, str], error: StoreError) -> None:
        """Do the same for files that are as before."""
        self._properties.on_change(*undone.values(), *[entry.path for entry in undone])

    def on_reload(self, *_: object) -> None:
        """Forget all that was known."""
        self._properties.on_reload()
