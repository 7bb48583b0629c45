"""What corosync says about the cluster besides messages: quorum, and who belongs to it.

Two watchers, each a thread that owns a connection and makes a new one when it is lost, for ever.
Neither decides anything; what they learn goes to a callback, on the watcher's thread and without a
lock held. Contract: docs/spec/cluster.md, "Quorum and configuration".

Connecting blocks for as long as corosync is stopped, so the threads are daemon threads: ``close``
does not wait for one that hangs there.
"""

import contextlib
import logging
import os
import select
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol

from pmxcfs.cluster._corosync import Cmap, Quorum
from pmxcfs.errors import ClusterError
from pmxcfs.messages import ClusterConfig, ClusterNode

RETRY = 5.0  # seconds between attempts to connect
STOP_TIMEOUT = 0.5  # seconds that the end of a thread is waited for
RELOAD = 2.0  # seconds that a configuration may be half read before it is taken as it is

_NODES = "nodelist.node."
_NAME = "totem.cluster_name"
_VERSION = "totem.config_version"
_RELOADING = "config.reload_in_progress"  # 1 while corosync changes one key after the other

Value = str | int | None


def config_of(values: Mapping[str, Value]) -> ClusterConfig:
    """Read the configuration from corosync's keys.

    A node without an id or any name is left out, and so is one whose id or name is taken already.
    """
    listed = [key.removeprefix(_NODES) for key in values if key.startswith(_NODES)]
    indexes = dict.fromkeys(key.partition(".")[0] for key in listed)
    nodes: dict[int, ClusterNode] = {}
    for index in indexes:
        node = _node_of(values, f"{_NODES}{index}.")
        if node and node.name not in {other.name for other in nodes.values()}:
            nodes.setdefault(node.nodeid, node)
    version = values.get(_VERSION)
    return ClusterConfig(
        name=str(values.get(_NAME) or ""),
        version=version if isinstance(version, int) else 0,
        nodes=tuple(nodes[nodeid] for nodeid in sorted(nodes)),
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


class _Watch(ABC):
    """A thread with one connection to corosync, made again whenever it is lost."""

    def __init__(self, name: str, logger: logging.Logger, retry: float) -> None:
        self._log = logger
        self._retry = retry  # seconds
        self._is_closing = False
        self._is_out = False  # an outage was logged
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; one that corosync makes hang is left behind after half a second."""
        self._is_closing = True
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT)

    def __del__(self) -> None:
        # Not before: the thread, and whoever wakes it, may use the descriptor until nobody can.
        os.close(self._wake)

    @abstractmethod
    def _serve(self) -> None:
        """Connect, then work until ``_is_closing``; raises ClusterError when that fails."""

    def _run(self) -> None:
        while not self._is_closing:
            try:
                self._serve()
            except ClusterError as error:
                self._report(error)
                self._wait(None, self._retry)
            except Exception:  # noqa: BLE001, as the watcher must outlive any bug in a callback
                self._log.exception("watching corosync failed, which is a bug")
                self._wait(None, self._retry)

    def _report(self, error: ClusterError) -> None:
        """Log the first failure of an outage."""
        if not self._is_out and not self._is_closing:
            self._log.warning(
                "no connection to corosync (%s); trying again every %g s", error, self._retry
            )
        self._is_out = True

    def _wait(self, connection: _Connection | None, timeout: float | None) -> bool:
        """Wait for an event, a wake-up or *timeout* seconds; tell whether there was any."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        if connection is not None:
            poller.register(connection, select.POLLIN)
        found = poller.poll(None if timeout is None else timeout * 1000)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        return bool(found)


class QuorumWatch(_Watch):
    """Calls *on_change* whenever this node gains or loses quorum; it begins without.

    Losing the connection is losing quorum. ``refresh`` may know of a change before *on_change*
    does, which is always told in the end, by the watcher's thread.
    """

    def __init__(self, on_change: Callable[[bool], None], *, retry: float = RETRY) -> None:
        super().__init__("quorum", logging.getLogger("pmxcfs.quorum"), retry)
        self._on_change = on_change
        self._lock = threading.Lock()  # over the three below; held for no call that blocks
        self._connection: Quorum | None = None
        self._arrivals = select.poll()  # on it
        self._is_quorate = False
        self._announced = False  # the thread's own

    def refresh(self) -> bool:
        """Take what waits on the connection and tell whether this node has quorum. Any thread.

        Without a connection the next attempt to make one is now: who asks has heard from corosync.
        """
        with self._lock:
            if self._connection is None:
                os.eventfd_write(self._wake, 1)
            elif not self._arrivals.poll(0):  # at a fraction of the cost of a dispatch
                return self._is_quorate
            before = self._is_quorate
            with contextlib.suppress(ClusterError):  # the thread meets it again, and reports it
                self._drain()
            if self._is_quorate != before:
                os.eventfd_write(self._wake, 1)
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
                if not self._is_closing:
                    self._announce()  # before the connection is closed, which can block

    def _follow(self, connection: Quorum) -> None:
        while not self._is_closing:
            with self._lock:
                self._drain()
            self._is_out = False
            self._announce()
            self._wait(connection, None)

    def _drain(self) -> None:
        """Dispatch all that waits. Needs the lock."""
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
    """Calls *on_change* with the cluster's configuration once it is known, and when it changes."""

    def __init__(self, on_change: Callable[[ClusterConfig], None], *, retry: float = RETRY) -> None:
        super().__init__("confdb", logging.getLogger("pmxcfs.confdb"), retry)
        self._on_change = on_change
        self._announced: ClusterConfig | None = None

    def _serve(self) -> None:
        with contextlib.closing(Cmap()) as connection:
            connection.connect()
            for prefix in (_NODES, _NAME, _VERSION, _RELOADING):
                connection.track(prefix)
            while not self._is_closing:
                self._read(connection)
                self._is_out = False
                self._wait(connection, None)

    def _read(self, connection: Cmap) -> None:
        """Announce the configuration if it changed, and never one that is half changed."""
        self._settle(connection)
        config = load(connection)
        while self._settle(connection) and not self._is_closing:  # it changed while we read
            config = load(connection)
        if config != self._announced:
            self._announced = config
            self._on_change(config)

    def _settle(self, connection: Cmap) -> bool:
        """Take what waits, up to the end of a reload; tell whether anything did."""
        is_changed = drain(connection)
        while connection.get(_RELOADING) == 1 and self._wait(connection, RELOAD):
            if self._is_closing:
                break
            is_changed |= drain(connection)
        return is_changed


def load(connection: Cmap) -> ClusterConfig:
    """Return the configuration that corosync has now. Blocks."""
    keys = [_NAME, _VERSION, *connection.keys(_NODES)]
    return config_of({key: connection.get(key) for key in keys})


def drain(connection: Quorum | Cmap) -> bool:
    """Take all events that wait; tell whether there was one. Does not block."""
    found = False
    while connection.dispatch_one():
        found = True
    return found
