"""Watchers of corosync's quorum state and cluster configuration.

Each watcher is a thread that owns one connection to corosync. If the connection is lost, the thread
connects again, for ever. A watcher decides nothing: it passes changes to a callback, on its own
thread and without holding a lock.

Connecting blocks for as long as corosync is stopped. So the threads are daemon threads, and
``close`` waits for a thread only STOP_TIMEOUT seconds.

Contract: docs/spec/cluster.md, "Quorum and configuration".
"""

import contextlib
import logging
import select
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol

from pmxcfs.cluster._corosync import Cmap, Quorum
from pmxcfs.errors import ClusterError
from pmxcfs.host.outage import Outage
from pmxcfs.host.threads import BackgroundThread, Wakeup
from pmxcfs.messages import ClusterConfig, ClusterNode

RETRY_INTERVAL = 5.0  # seconds between attempts to connect
RELOAD_TIMEOUT = 2.0  # seconds without an event after which a reload counts as complete

_NODES = "nodelist.node."
_NAME = "totem.cluster_name"
_VERSION = "totem.config_version"
_TOKEN = "runtime.config.totem.token"  # milliseconds, as corosync uses it
_CONSENSUS = "runtime.config.totem.consensus"
_RELOADING = "config.reload_in_progress"  # 1 while corosync changes the keys, one after another

Value = str | int | None


def config_of(values: Mapping[str, Value]) -> ClusterConfig:
    """Return the cluster's configuration from corosync's cmap keys and their *values*.

    A node is left out if it has no id or no name, or if a node before it has the same id or name.
    """
    listed = [key.removeprefix(_NODES) for key in values if key.startswith(_NODES)]
    indexes = dict.fromkeys(key.partition(".")[0] for key in listed)
    nodes: dict[int, ClusterNode] = {}
    for index in indexes:
        node = _node_of(values, f"{_NODES}{index}.")
        if node and node.name not in {other.name for other in nodes.values()}:
            nodes.setdefault(node.nodeid, node)
    version, token, consensus = map(values.get, (_VERSION, _TOKEN, _CONSENSUS))
    return ClusterConfig(
        name=str(values.get(_NAME) or ""),
        version=version if isinstance(version, int) else 0,
        nodes=tuple(nodes[nodeid] for nodeid in sorted(nodes)),
        token=token if isinstance(token, int) else None,
        consensus=consensus if isinstance(consensus, int) else None,
    )


def _node_of(values: Mapping[str, Value], prefix: str) -> ClusterNode | None:
    nodeid, votes = values.get(prefix + "nodeid"), values.get(prefix + "quorum_votes")
    address = str(values.get(prefix + "ring0_addr") or "")
    name = str(values.get(prefix + "name") or address)
    if not isinstance(nodeid, int) or not name:
        return None
    return ClusterNode(name, nodeid, address, votes if isinstance(votes, int) else 1)


class _Connection(Protocol):
    def connect(self) -> None: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class _Watch(BackgroundThread, ABC):
    """A thread with one connection to corosync, which it replaces whenever it is lost."""

    def __init__(self, name: str, logger: logging.Logger, retry: float) -> None:
        super().__init__(name)
        self._log = logger
        self._retry = retry  # seconds
        self._outage: Outage[ClusterError] = Outage(
            logger, level=logging.WARNING, describe=self._describe
        )
        self._wakeup = Wakeup()

    def wake(self) -> None:
        """Wake the thread to check ``is_stopping``. Has no effect while a corosync call blocks."""
        self._wakeup.set()

    @abstractmethod
    def _serve(self) -> None:
        """Connect and pass on changes until ``is_stopping``. Raises ClusterError."""

    def run(self) -> None:
        """Connect again and again, and work while the connection lasts."""
        while not self.is_stopping:
            try:
                self._serve()
            except ClusterError as error:
                self._report(error)
                self._wait(None, self._retry)
            except Exception:  # noqa: BLE001, as a bug in a callback must not end the watcher
                self._log.exception("watching corosync failed, which is a bug")
                self._wait(None, self._retry)

    def _report(self, error: ClusterError) -> None:
        """Log the first failure of an outage."""
        if not self.is_stopping:
            self._outage.fails(error)

    def _describe(self, error: ClusterError) -> str:
        return f"no connection to corosync ({error}); trying again every {self._retry:g} s"

    def _wait(self, connection: _Connection | None, timeout: float | None) -> bool:
        """Block until an event, a wake-up or *timeout* seconds; return False on the timeout."""
        poller = select.poll()
        poller.register(self._wakeup, select.POLLIN)
        if connection is not None:
            poller.register(connection, select.POLLIN)
        found = poller.poll(None if timeout is None else timeout * 1000)
        self._wakeup.clear()
        return bool(found)


class QuorumWatch(_Watch):
    """Calls *on_change* on its thread when this node gains or loses quorum; initially it has none.

    Without a connection to corosync the node has no quorum. ``refresh`` may return a new state
    before the thread has called *on_change* with it.
    """

    def __init__(self, on_change: Callable[[bool], None], *, retry: float = RETRY_INTERVAL) -> None:
        super().__init__("quorum", logging.getLogger("pmxcfs.quorum"), retry)
        self._on_change = on_change
        self.forced: bool | None = None  # set by a test: what ``refresh`` returns
        # Guards the three attributes below. Not held during blocking calls.
        self._lock = threading.Lock()
        self._connection: Quorum | None = None
        self._arrivals = select.poll()  # for events of the connection
        self._is_quorate = False
        self._announced = False  # last state given to on_change; used by the thread only

    def refresh(self) -> bool:
        """Dispatch pending events and return whether this node has quorum.

        For any thread; does not block. Without a connection it returns False and has the watcher's
        thread connect at once: the caller has just heard from corosync, so corosync is running.
        """
        if self.forced is not None:
            return self.forced
        with self._lock:
            if self._connection is None:
                self._wakeup.set()
            elif not self._arrivals.poll(0):  # much cheaper than a dispatch
                return self._is_quorate
            before = self._is_quorate
            with contextlib.suppress(ClusterError):  # the thread gets the same error and logs it
                self._drain()
            if self._is_quorate != before:
                self._wakeup.set()
            return self._is_quorate

    def _serve(self) -> None:
        with contextlib.closing(Quorum()) as connection:
            connection.connect()
            arrivals = select.poll()
            arrivals.register(connection, select.POLLIN)
            with self._lock:
                self._connection, self._arrivals = connection, arrivals
            try:
                self._follow(connection)
            finally:
                with self._lock:
                    self._connection = None
                    self._is_quorate = False
                if not self.is_stopping:
                    self._announce()  # before the connection is closed, which can block

    def _follow(self, connection: Quorum) -> None:
        while not self.is_stopping:
            with self._lock:
                self._drain()
            self._outage.works()
            self._announce()
            self._wait(connection, None)

    def _drain(self) -> None:
        """Dispatch all pending events. Needs ``_lock``; raises ClusterError."""
        if self._connection is None:
            return
        try:
            drain(self._connection)
            self._is_quorate = self._connection.is_quorate
        except ClusterError:
            self._is_quorate = False
            raise

    def _announce(self) -> None:
        with self._lock:
            current = self._is_quorate
        if current != self._announced:
            self._announced = current
            self._on_change(current)


class ConfigWatch(_Watch):
    """Calls *on_change* on its thread with the configuration, at first and when it has changed."""

    def __init__(
        self, on_change: Callable[[ClusterConfig], None], *, retry: float = RETRY_INTERVAL
    ) -> None:
        super().__init__("confdb", logging.getLogger("pmxcfs.confdb"), retry)
        self._on_change = on_change
        self._announced: ClusterConfig | None = None

    def _serve(self) -> None:
        with contextlib.closing(Cmap()) as connection:
            connection.connect()
            for prefix in (_NODES, _NAME, _VERSION, _RELOADING):
                connection.track(prefix)
            while not self.is_stopping:
                self._read(connection)
                self._outage.works()
                self._wait(connection, None)

    def _read(self, connection: Cmap) -> None:
        """Pass on the configuration if it changed, but not in the middle of a reload."""
        self._wait_for_reload(connection)
        config = load(connection)
        while self._wait_for_reload(connection) and not self.is_stopping:  # changed during load
            config = load(connection)
        if config != self._announced:
            self._announced = config
            self._on_change(config)

    def _wait_for_reload(self, connection: Cmap) -> bool:
        """Dispatch pending events, to the end of a reload; return whether there was an event.

        Blocks during a reload, but not once no event has come for RELOAD_TIMEOUT seconds.
        """
        is_changed = drain(connection)
        while connection.get(_RELOADING) == 1 and self._wait(connection, RELOAD_TIMEOUT):
            if self.is_stopping:
                break
            is_changed |= drain(connection)
        return is_changed


def load(connection: Cmap) -> ClusterConfig:
    """Return corosync's current configuration. Blocks; raises ClusterError."""
    keys = [_NAME, _VERSION, _TOKEN, _CONSENSUS, *connection.keys(_NODES)]
    return config_of({key: connection.get(key) for key in keys})


def drain(connection: Quorum | Cmap) -> bool:
    """Dispatch all pending events; return whether there was one. Does not block."""
    found = False
    while connection.dispatch_one():
        found = True
    return found
