"""The daemon: which parts there are, how they are joined, and in which order they start and stop.

Threads: the main thread answers the kernel (with others, if there are several workers). Beside it
run the signal waiter, the publisher's clock, the database's checkpointer, the invalidation threads,
and with ``--test-control`` the control socket. Contract: docs/spec/operations.md, "Lifecycle".
"""

import contextlib
import faulthandler
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pmxcfs._core import Entry, Tree
from pmxcfs.cluster.membership import COROSYNC_CONF, Clustering
from pmxcfs.daemon.control import Control, mutation_of
from pmxcfs.daemon.local_clients import Service
from pmxcfs.daemon.report import Parts, Troubles, describe
from pmxcfs.errors import StartError, StoreError
from pmxcfs.fuse import handlers as fuse
from pmxcfs.fuse import session
from pmxcfs.fuse.kernel_cache import KernelCache
from pmxcfs.fuse.notifier import Notifier
from pmxcfs.fuse.workers import RESERVED_WORKERS, Workers
from pmxcfs.host import log, process
from pmxcfs.host.address import AddressLookup
from pmxcfs.host.watchdog import Watchdog
from pmxcfs.replica.cluster_issuer import ClusterIssuer
from pmxcfs.replica.local_issuer import LocalIssuer
from pmxcfs.replica.outbox import Outbox
from pmxcfs.replica.replica import Policy, Replica
from pmxcfs.settings import Settings
from pmxcfs.status.counters import Status
from pmxcfs.status.files import Switch, links, status_files
from pmxcfs.storage.checkpointer import Checkpointer
from pmxcfs.storage.create import making
from pmxcfs.storage.database import Database, inspect
from pmxcfs.tree.adoption import Reload, record_of
from pmxcfs.tree.apply import Change
from pmxcfs.tree.guests import Guests, parse_guest_path
from pmxcfs.tree.index import records_needed
from pmxcfs.tree.locks import LockTable
from pmxcfs.vfs.filesystem import FileSystem
from pmxcfs.vfs.publisher import Publisher

_log = logging.getLogger("pmxcfs.main")
_quorum_log = logging.getLogger("pmxcfs.quorum")

LOCAL_WORKERS = 3  # one that reads, and more for while it waits for the disk
CLUSTER_WORKERS = 16  # most of them may wait for other nodes
MIN_ENTRY_THREADS = 2
SWITCH_INTERVAL = 0.0005  # seconds that a lost race for the interpreter may cost a request
COLLECT_AFTER = 50_000  # new objects that may be garbage in cycles, as exceptions can be


def run(settings: Settings) -> int:
    """Run the daemon; return the exit status, in the background as soon as it serves.

    Raises PmxcfsError if it can't start.
    """
    process.open_standard_streams()
    if settings.foreground:
        return serve(settings, lambda: None)
    return process.daemonize(lambda ready: serve(settings, ready), mountpoint=settings.mountpoint)


def serve(settings: Settings, ready: Callable[[], None]) -> int:
    """Mount and answer the kernel until a signal or an unmount; call *ready* once it is mounted.

    Raises PmxcfsError if it can't start.
    """
    faulthandler.enable()  # SIGABRT, as the service manager's watchdog sends it, shows all stacks
    process.name_process()
    process.keep_freed_memory()
    waiter = process.SignalWaiter()  # blocks the signals for all threads to come
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(log.start(foreground=settings.foreground, debug=settings.debug))
        gid = process.find_gid(settings.group)
        process.make_directories(settings, gid=gid)
        cleanup.enter_context(process.StateLock(settings.lockfile, mountpoint=settings.mountpoint))
        process.clear_mountpoint(settings.mountpoint)
        daemon = Daemon(settings, gid=gid, cleanup=cleanup)
        cleanup.enter_context(process.pid_file(settings.pidfile))
        waiter.start(daemon.stop)
        cleanup.callback(waiter.close)
        _log.info("serving %s for node %s", settings.mountpoint, settings.nodename)
        process.notify_service_manager("READY=1")
        ready()
        daemon.serve()
        process.notify_service_manager("STOPPING=1")
    return 0


class Daemon:
    """All parts of a running node, joined. What must be undone at the end is left to *cleanup*."""

    def __init__(self, settings: Settings, *, gid: int, cleanup: contextlib.ExitStack) -> None:
        self._settings = settings
        self._is_stopping = False
        self._finished = threading.Event()  # llfuse.main has returned
        self._main_thread = threading.get_ident()
        self._troubles = Troubles()
        logging.getLogger().addHandler(self._troubles)
        cleanup.callback(logging.getLogger().removeHandler, self._troubles)
        self._load(cleanup)
        self._guests.rebuild(self._tree)
        # The tree says whether this is a node of a cluster; the host's file counts for a new one.
        has_peers = self._tree.find(COROSYNC_CONF) is not None
        self._replica.is_shared = not has_peers  # without any, nobody misses a change
        is_clustered = has_peers and not settings.local
        workers = workers_for(settings, is_clustered=is_clustered)
        self._workers = Workers(workers, lock_released=session.LOCK_RELEASED)
        self._outbox = Outbox(is_quorate=lambda: self._files.quorate)
        self._issuer = self._make_issuer() if is_clustered else self._make_local_issuer()
        self._locks = LockTable()
        self._locks.reload(self._tree, now=time.monotonic())
        self._make_files(gid)
        self._clustering = self._make_clustering() if is_clustered else None
        self._mount(cleanup)
        self._join()
        self._start_threads(cleanup)
        _keep_collector_off_the_tree()

    def _load(self, cleanup: contextlib.ExitStack) -> None:
        path, now = self._settings.database, _seconds()
        if not self._settings.local and not os.path.lexists(path):
            _make_by_host_file(path, self._settings.corosync_conf, now=now)
        self._database = Database.open(path, now=now)
        cleanup.callback(self._database.close)
        self._tree = Tree()
        self._guests = Guests()
        self._tree.load(self._database.load(now=now).records)
        self._replica = Replica(self._tree, self._guests, self._database)

    def _make_local_issuer(self) -> LocalIssuer:
        return LocalIssuer(self._replica, clock=time.time, yielding=self._workers)

    def _make_issuer(self) -> ClusterIssuer:
        self._replica.policy = Policy.KEEP
        return ClusterIssuer(self._replica, self._outbox, yielding=self._workers)

    def _make_clustering(self) -> Clustering:
        self._files.quorate = False  # until corosync says otherwise
        return Clustering(
            self._replica,
            self._outbox,
            self._status,
            lock=session.LOCK,
            lock_has_expired=self._files.lock_has_expired,
            host_file=self._settings.corosync_conf,
            on_quorum=self._take_quorum,
        )

    def _make_files(self, gid: int) -> None:
        start = int(time.time())
        self._status = Status(self._settings.nodename, self._guests, start_time=start)
        self._status.log.begin(pid=os.getpid(), time=start)
        self._files = FileSystem(
            self._tree,
            self._issuer,
            locks=self._locks,
            gid=gid,
            monotonic_ns=time.monotonic_ns,
        )
        self._publisher = Publisher(session.LOCK, self._files.publish_due)
        debug = Switch(
            ".debug", is_on=lambda: self._operations.is_logging_requests, turn=self._turn_debug
        )
        self._shown = status_files(
            self._status, handed=lambda: self._notifier.handed, monotonic=time.monotonic
        )
        self._service = Service(
            self._tree,
            self._guests,
            self._status,
            self._shown,
            settings=self._settings,
            gid=gid,
            lock=session.LOCK,
        )
        self._operations = fuse.Operations(
            self._files,
            status_files=self._shown,
            fixed=[*links(self._settings.nodename), debug],
            start_time=start,
            monotonic_ns=time.monotonic_ns,
            workers=self._workers,
        )
        self._operations.is_logging_requests = self._settings.debug

    def _mount(self, cleanup: contextlib.ExitStack) -> None:
        self._session = session.Mount(
            self._operations, self._settings.mountpoint, workers=self._workers
        )
        cleanup.callback(self._unmount)
        self._notifier = Notifier(
            self._session.notification_channel(),
            entry_threads=max(MIN_ENTRY_THREADS, self._workers.count),
        )
        node_ids = self._operations.node_ids
        self._cache = KernelCache(
            self._notifier, self._tree, node_ids.objects, may_be_absent=node_ids.may_be_absent
        )

    def _unmount(self) -> None:
        """End requests that nobody answers any more, too.

        The kernel would not: one of them can hold a directory's lock that a notification waits
        for, whose thread then keeps the session open.
        """
        if self._is_stopping:  # else somebody has unmounted it, and may have mounted another
            with contextlib.suppress(StartError):
                process.detach(self._settings.mountpoint)
        self._session.close()

    def _join(self) -> None:
        """Connect those who change something with those who need to know."""
        self._files.on_unpublished = self._publisher.notice
        self._files.on_displaced = self._cache.on_displaced
        self._replica.listeners += [
            self._files.on_change,
            self._cache.on_change,
            self._tell_of_counted,
        ]
        self._replica.reload_listeners += [
            self._files.on_reload,
            self._cache.on_reload,
            self._count_reload,
            self._service.on_reload,
        ]
        self._replica.undo_listeners += [
            self._files.on_undone,
            self._cache.on_undone,
            self._count_undone,
            self._service.on_undone,
        ]

    def _tell_of_counted(self, change: Change, *, foreign: bool) -> None:
        """Tell those who care for files that are counted, and for guests: few changes are such."""
        for path in (change.path, change.source):
            if path in self._status.counters or parse_guest_path(path) is not None:
                sequence = self._notifier.sequence
                self._status.on_change(change.path, change.source, sequence=sequence)
                self._service.on_change(change, foreign=foreign)
                break

    def _count_undone(self, undone: Mapping[Entry, str], error: StoreError) -> None:
        """Count what others may have seen while it was being saved."""
        for entry, path in undone.items():
            self._status.on_change(entry.path, path, sequence=self._notifier.sequence)

    def _count_reload(self, reload: Reload) -> None:
        self._status.on_reload(sequence=self._notifier.sequence)

    def _start_threads(self, cleanup: contextlib.ExitStack) -> None:
        checkpointer = Checkpointer(self._database)
        checkpointer.start()
        cleanup.callback(checkpointer.close, None)
        self._notifier.start()
        cleanup.callback(self._notifier.close)
        self._publisher.start()
        cleanup.callback(self._publish_the_rest)
        cleanup.callback(self._publisher.close)
        if self._clustering is not None:
            self._start_clustering(self._clustering, cleanup)
        if not self._settings.local:
            self._start_lookup(cleanup)
        self._start_service(cleanup)
        if process.has_service_manager():
            watchdog = Watchdog(
                session.LOCK,
                self._describe,
                notify=process.notify_service_manager,
                timeout=process.watchdog_timeout(),
            )
            watchdog.start()
            cleanup.callback(watchdog.close)
        if self._settings.test_control:
            control = Control(self._settings.control_socket, self._commands(), lock=session.LOCK)
            control.start()
            cleanup.callback(control.close)

    def _start_service(self, cleanup: contextlib.ExitStack) -> None:
        parts = Parts(
            settings=self._settings,
            tree=self._tree,
            replica=self._replica,
            files=self._files,
            locks=self._locks,
            members=self._shown[".members"],
            service=self._service,
            cluster=self._clustering.describe if self._clustering is not None else None,
            troubles=self._troubles,
            start_time=self._status.start_time,
        )
        self._service.set_report(lambda: describe(parts))
        self._service.start()
        cleanup.callback(self._service.stop)

    def _start_clustering(self, clustering: Clustering, cleanup: contextlib.ExitStack) -> None:
        self._replica.listeners.append(clustering.on_change)
        self._replica.reload_listeners.append(clustering.on_reload)
        self._service.tell_cluster(clustering.source.put)
        clustering.start()
        cleanup.callback(clustering.stop)
        cleanup.callback(self._finish_changes)  # while there is a group

    def _start_lookup(self, cleanup: contextlib.ExitStack) -> None:
        """Find this node's address. One that is alone may be part of a cluster soon."""
        take = self._clustering.set_address if self._clustering is not None else self._take_address
        lookup = AddressLookup(self._settings.nodename, take)
        lookup.start()
        cleanup.callback(lookup.stop)

    def _take_address(self, address: str) -> None:
        with session.LOCK:
            self._status.members.set_resolved(address)

    def _take_quorum(self, quorate: bool) -> None:
        with session.LOCK:
            self._set_quorum(on=quorate)

    def _set_quorum(self, *, on: bool) -> None:
        if on == self._files.quorate:
            return
        self._files.quorate = on
        _quorum_log.info("node has quorum" if on else "node lost quorum")
        self._status.members.set_quorate(on)
        self._cache.on_quorum()
        if not on:
            self._issuer.on_quorum_lost()

    def _describe(self) -> str:
        quorum = "quorate" if self._files.quorate else "NOT quorate: read-only"
        return f"{quorum}; {self._tree.entry_count} entries, version {self._tree.version}"

    def serve(self) -> None:
        """Answer the kernel until it is over."""
        try:
            self._session.serve()
        except BaseException:  # in the background nobody sees stderr any more
            _log.critical("answering the kernel failed, which is a bug", exc_info=True)
            raise
        finally:
            self._finished.set()

    def stop(self) -> None:
        """Let ``serve`` return, without losing what was written. For the signal waiter."""
        _log.info("stopping")
        self._is_stopping = True
        try:
            self._finish_changes()
        finally:  # a bug there must not keep it running
            with session.LOCK:
                self._workers.close()
            process.end_llfuse_main(self._main_thread, self._finished)

    def _finish_changes(self) -> None:
        """Let nobody wait any more, and publish what can be."""
        with session.LOCK:
            self._issuer.refuse()
            self._files.publish_all()
            self._issuer.abandon()

    def _publish_the_rest(self) -> None:
        with session.LOCK:
            self._files.publish_all()

    def _turn_debug(self, on: bool) -> None:
        log.set_verbose(on)
        self._operations.is_logging_requests = on
        _log.info("debug messages are %s", "on" if on else "off")

    # Test control

    def _commands(self) -> Mapping[str, Callable[..., Mapping[str, object] | None]]:
        return {
            "quorum": self._force_quorum,
            "hold": self._issuer.hold,
            "resume": self._issuer.resume,
            "inject": self._inject,
            "adopt": self._adopt,
            "lock-lifetime": self._set_lock_lifetime,
            "publish-after": self._set_publish_after,
            "deadlines": self._set_deadlines,
            "info": self._info,
        }

    def _force_quorum(self, *, on: bool | None) -> None:
        """Be quorate or not, whatever corosync says; None: as corosync says."""
        if self._clustering is not None:
            self._clustering.forced_quorum = on
            on = self._clustering.refresh()
        if on is not None:
            self._set_quorum(on=on)

    def _inject(self, *, writer: int = 99, time: int | None = None, **request: object) -> None:
        now = _seconds() if time is None else time
        self._replica.inject(mutation_of(request), writer=writer, mtime=now)

    def _set_deadlines(self, **seconds: Any) -> None:
        if self._clustering is not None:
            self._clustering.set_deadlines(**seconds)

    def _adopt(self, *, path: str) -> None:
        """Become the tree of another database, as if a sync had brought it."""
        theirs = Tree(keep_undo=False)
        theirs.load(inspect(Path(path)).records)
        leader = theirs.index()
        needed = map(theirs.get, records_needed(leader, [self._replica.state()]))
        records = [record_of(entry) for entry in needed if entry is not None]
        is_held = contextlib.nullcontext()  # the lock, as for every command
        self._replica.adopt(leader, records, now=_seconds(), lock=is_held)

    def _set_lock_lifetime(self, *, seconds: float) -> None:
        self._locks.lifetime = seconds

    def _set_publish_after(self, *, seconds: float) -> None:
        """Publish by time later than usual; sooner only if nothing waits for its time yet."""
        self._files.publish_after_ns = int(seconds * 1e9)

    def _info(self) -> Mapping[str, object]:
        return {
            "pid": os.getpid(),
            "version": self._tree.version,
            "checksum": self._tree.checksum().hex(),
            "entries": self._tree.entry_count,
            "transactions": self._replica.transactions,
            "degraded": self._replica.is_degraded,
            "waiting": self._workers.waiting_count,
            "handed": self._notifier.handed == self._notifier.sequence,
            "quorate": self._files.quorate,
            **(self._clustering.describe() if self._clustering is not None else {}),
        }


def workers_for(settings: Settings, *, is_clustered: bool) -> int:
    """Return how many threads answer the kernel."""
    if not is_clustered:
        return settings.workers or LOCAL_WORKERS
    workers = settings.workers or CLUSTER_WORKERS
    least = RESERVED_WORKERS + 1  # with fewer no change could wait, so all would be refused
    if workers < least:
        _log.warning("%d workers are too few in a cluster: there will be %d", workers, least)
    return max(workers, least)


def _make_by_host_file(path: Path, host_file: Path, *, now: int) -> None:
    """Make a new database part of the cluster that the host's corosync.conf is of, if any.

    All of it or nothing: a start that fails here must not leave a database that serves alone.
    """
    with contextlib.suppress(FileNotFoundError):
        content = host_file.read_bytes()
        with making(path, now=now) as database:
            Replica(Tree(), Guests(), database).import_configuration(content, now=now)


def _seconds() -> int:
    return int(time.time())


def _keep_collector_off_the_tree() -> None:
    """The tree has no garbage in cycles, but looking for it would take long while requests wait."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
