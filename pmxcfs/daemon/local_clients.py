"""The service for local clients: the IPC server, its requests, and the recorder of metrics.

Creates and starts these parts for ``daemon``, and passes changes of the tree to the cache of guest
properties.

Threads: those of the IPC server and the recorder. The ``on_*`` methods need the tree's lock;
``start`` and ``stop`` block and must not be called with it. Contract: docs/spec/ipc.md.
"""

import functools
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import StoreError
from pmxcfs.host import clock
from pmxcfs.ipc.guest_properties import Properties
from pmxcfs.ipc.requests import Requests, Saves
from pmxcfs.ipc.server import RESTART_FLAG, IpcServer
from pmxcfs.messages import LogEntry, SetKey
from pmxcfs.rrd.writer import Recorder
from pmxcfs.settings import Settings
from pmxcfs.status.counters import Status
from pmxcfs.status.files import StatusFile
from pmxcfs.tree.apply import Change
from pmxcfs.tree.guests import Guests

GIVE_WAY_TIME = 1e-5  # seconds of sleep in a long query, without the lock, for other threads
METRICS_STOP_TIMEOUT = 0.5  # seconds to write queued metrics at the daemon's end


class LocalClients:
    """The service for local clients of this node."""

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
        recorder: Recorder,
        publish: Callable[[SetKey | LogEntry], None] | None,
        saves: Saves,
    ) -> None:
        self.recorder = recorder
        self.ipc = IpcServer(settings.ipc_name, gid=gid, flag=settings.rundir / RESTART_FLAG)
        self._properties = Properties(tree, guests, lock=lock)
        self._make_requests = functools.partial(
            Requests,
            tree,
            guests,
            status,
            files,
            self._properties,
            lock=lock,
            clock=clock.seconds,
            monotonic=time.monotonic,
            give_way=lambda: time.sleep(GIVE_WAY_TIME),
            publish=publish,
            saves=saves,
        )

    def start(self, report: Callable[[], Mapping[str, object]]) -> None:
        """Start the recorder and the IPC server. Raises StartError.

        *report* is called for each request for the daemon's state, with the lock held.
        """
        self.recorder.start()
        self.ipc.start(self._make_requests(report=report))

    def stop(self) -> None:
        """Disconnect the clients; write queued metrics for METRICS_STOP_TIMEOUT at most. Blocks."""
        self.ipc.close()
        self.recorder.close(METRICS_STOP_TIMEOUT)

    # Listeners to changes of the tree

    def on_change(self, change: Change, foreign: bool) -> None:
        """Invalidate the cached properties of a guest if its file has changed. Needs the lock."""
        self._properties.on_change(change.path, change.source or "")

    def on_undone(self, undone: Mapping[Entry, str], error: StoreError) -> None:
        """Invalidate the cached properties of guests if changes of their files were undone."""
        self._properties.on_change(*undone.values(), *[entry.path for entry in undone])

    def on_reload(self, *_: object) -> None:
        """Invalidate the cached properties of all guests, after a reload of the tree."""
        self._properties.on_reload()
