"""The daemon: creates and connects the parts of a node, and starts and stops them in order.

The constructor of a part takes the other parts that it uses. Its ``start`` takes what exists only
later: the FUSE session, the IPC requests. docs/concurrency.md lists the threads.
Contract: docs/spec/operations.md, "Lifecycle".
"""

import contextlib
import faulthandler
import gc
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pmxcfs._core import Tree
from pmxcfs.cluster.membership import COROSYNC_CONF, Clustering
from pmxcfs.daemon.change_counter import ChangeCounter
from pmxcfs.daemon.commands import UNLOCKED, TestCommands, TestedParts
from pmxcfs.daemon.control import Control
from pmxcfs.daemon.local_clients import LocalClients
from pmxcfs.daemon.quorum import QuorumSwitch
from pmxcfs.daemon.report import RecentWarnings, ReportSources, describe, summary
from pmxcfs.daemon.save_requests import SaveRequests
from pmxcfs.daemon.state_directory import StateDirectory
from pmxcfs.daemon.storage import Storage
from pmxcfs.errors import StoreError
from pmxcfs.fuse.choice import make_session
from pmxcfs.fuse.handlers import Handlers
from pmxcfs.fuse.kernel_cache import KernelCache
from pmxcfs.fuse.node_ids import NodeIds
from pmxcfs.fuse.notifier import Notifier
from pmxcfs.host import clock, log, mountpoint, process
from pmxcfs.host.address import AddressLookup
from pmxcfs.host.callers import Callers
from pmxcfs.host.log_limit import Reporter
from pmxcfs.host.watchdog import Watchdog
from pmxcfs.replica.cluster_issuer import ClusterIssuer
from pmxcfs.replica.departures import Departures
from pmxcfs.replica.issuer import StoppableIssuer
from pmxcfs.replica.local_issuer import LocalIssuer
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.replica.record_writer import RecordWriter
from pmxcfs.replica.replica import Policy, Replica
from pmxcfs.rrd.writer import Recorder
from pmxcfs.settings import Settings
from pmxcfs.status.counters import Status
from pmxcfs.status.files import links, status_files
from pmxcfs.storage.conflicts import keep_incomplete
from pmxcfs.storage.create import traces_of_use, tree_with
from pmxcfs.tree.locks import LockTable
from pmxcfs.vfs.filesystem import FileSystem
from pmxcfs.vfs.ownership import Ownership
from pmxcfs.vfs.publisher import Publisher

_log = logging.getLogger("pmxcfs.main")

STOP_SAVE_TIMEOUT = 2.0  # seconds that a stop waits for the database
SPARE_ENTRY_THREADS = 4
SWITCH_INTERVAL = 0.0005  # seconds until a waiting thread requests the GIL (default: 0.005)
COLLECT_AFTER = 50_000  # gc threshold of generation 0; exceptions can form reference cycles


def run(settings: Settings) -> int:
    """Run the daemon; return the exit status, in the background as soon as it serves.

    Raises PmxcfsError if it can't start.
    """
    process.open_standard_streams()
    process.check_user()
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
        reporter = Reporter()
        reporter.start()
        cleanup.callback(reporter.close)
        mountpoint.check_places(settings)
        gid = process.find_gid(settings.group)
        process.make_directories(settings, gid=gid)
        _warn_of_missing_database(settings.database)
        cleanup.enter_context(process.StateLock(settings.lockfile, mountpoint=settings.mountpoint))
        cleanup.enter_context(mountpoint.claimed(settings.mountpoint))
        process.forget_pid(settings.pidfile)
        daemon = Daemon(settings, gid=gid, cleanup=cleanup)
        cleanup.enter_context(process.pid_file(settings.pidfile))
        waiter.start(daemon.stop)
        cleanup.callback(waiter.close)
        _log.info(
            "serving %s for node %s, FUSE session %s",
            settings.mountpoint,
            settings.nodename,
            daemon.session_name,
        )
        process.notify_service_manager("READY=1")
        ready()
        status = daemon.serve()
        process.notify_service_manager("STOPPING=1")
    return status if daemon.could_save else status or 1


class Daemon:
    """All parts of a running node. Functions that stop them are pushed on *cleanup*."""

    def __init__(self, settings: Settings, *, gid: int, cleanup: contextlib.ExitStack) -> None:
        self._settings = settings
        self._gid = gid
        self._is_stopping = False
        self.could_save = True  # False if the database could not be brought up to date at the stop
        self._session = make_session(settings)
        self._troubles = RecentWarnings()
        logging.getLogger().addHandler(self._troubles)
        cleanup.callback(logging.getLogger().removeHandler, self._troubles)
        self._load(cleanup)
        # This node belongs to a cluster if its tree has a corosync.conf. ``_load`` has imported the
        # host's file into a new tree.
        has_peers = self._tree.find(COROSYNC_CONF) is not None
        is_clustered = has_peers and not settings.local
        self._make_replica(is_clustered=is_clustered, has_peers=has_peers)
        if is_clustered and self._storage.database.incomplete.is_set:
            self._keep_incomplete()
        self._make_status()
        self._make_kernel_cache()
        self._clustering = self._make_clustering() if is_clustered else None
        self._issuer = self._make_issuer()
        self._make_files()
        self._make_clients()
        self._subscribe()
        self._mount(cleanup)
        self._start_threads(cleanup)
        _keep_collector_off_the_tree()

    @property
    def session_name(self) -> str:
        """The kind of session that serves the mount."""
        return self._session.name

    # Making the parts

    def _load(self, cleanup: contextlib.ExitStack) -> None:
        settings, now = self._settings, clock.seconds()
        is_new = not settings.local and not os.path.lexists(settings.database)
        self._storage = Storage.open(
            settings.database,
            settings.journal,
            now=now,
            lock=self._session.lock,
            scratch=settings.rundir,
            fresh=_tree_by_host_file(settings.corosync_conf, now=now) if is_new else None,
            host_file=None if settings.local else settings.corosync_conf,
            limits=settings.history,
        )
        cleanup.callback(self._storage.close)
        self._tree, self._guests = self._storage.recovered.tree, self._storage.recovered.guests
        self._repairs = len(self._storage.recovered.repairs) + len(self._storage.salvaged)
        self._stamp = _stamp(self._tree)
        self._locks = LockTable()
        self._locks.reload(self._tree, now=time.monotonic())

    def _make_replica(self, *, is_clustered: bool, has_peers: bool) -> None:
        self._quorum = QuorumFlag(is_quorate=not is_clustered)  # until corosync says otherwise
        self._record_writer = RecordWriter()
        recovered = self._storage.recovered
        self._replica = Replica(
            self._tree,
            self._guests,
            self._storage.database,
            self._storage.journal,
            departures=Departures(recovered.notes, removals=recovered.removals),
            policy=Policy.KEEP if is_clustered else Policy.ROLL_BACK,
            yielding=self._session.waits,
            lock=self._session.lock,
            on_pending=self._record_writer.notice,
            unsaved=recovered.unsaved,
            must_save_all=recovered.must_save,
        )
        if not has_peers:
            self._replica.departures.set_nodes(())  # no other node misses a change
        if recovered.must_save:
            with contextlib.suppress(StoreError):  # which the saver has logged
                self._replica.saver.save(whole=True)

    def _keep_incomplete(self) -> None:
        """Keep a copy of our tree, which lacks entries: any other node's replaces it."""
        try:
            self._replica.saver.save()
            keep_incomplete(self._storage.database, now=clock.seconds())
        except StoreError as error:
            _log.error("no copy of the damaged database is kept: %s", error)

    def _make_status(self) -> None:
        self._start_time, self._running_since = clock.seconds(), time.monotonic()
        self._recorder = Recorder(
            self._settings.rrddir,
            self._settings.rrdcached_socket,
            scratch=self._settings.rundir,
        )
        self._status = Status(
            self._settings.nodename,
            self._guests,
            start_time=self._start_time,
            record=self._recorder.record,
        )
        self._status.log.begin(pid=os.getpid(), time=self._start_time)

    def _make_kernel_cache(self) -> None:
        self._node_ids = NodeIds(self._tree.root)
        # Each waiting change of a name can block the notifications of one directory.
        self._notifier = Notifier(entry_threads=self._session.waits.limit + SPARE_ENTRY_THREADS)
        self._cache = KernelCache(
            self._notifier,
            self._tree,
            self._node_ids.objects,
            handles=self._node_ids.handles,
            may_be_absent=self._node_ids.may_be_absent,
        )
        self._quorum_switch = QuorumSwitch(self._quorum, self._status.members, self._cache)

    def _make_clustering(self) -> Clustering:
        return Clustering(
            self._replica,
            self._status,
            quorum=self._quorum,
            lock=self._session.lock,
            lock_has_expired=self._lock_has_expired,
            host_file=self._settings.corosync_conf,
            rundir=self._settings.rundir,
            on_quorum=self._quorum_switch.set,
            incomplete=self._storage.database.incomplete,
        )

    def _lock_has_expired(self, path: str, checksum: bytes) -> bool:
        return self._locks.may_unlock(self._tree, path, checksum, now=time.monotonic())

    def _make_issuer(self) -> StoppableIssuer:
        if self._clustering is None:
            return LocalIssuer(self._replica, clock=clock.seconds, yielding=self._session.waits)
        return ClusterIssuer(
            self._replica,
            self._clustering.outbox,
            yielding=self._session.waits,
            dispatch_until=self._clustering.tree.dispatch_until,
        )

    def _make_files(self) -> None:
        self._publisher = Publisher(self._session.lock)
        self._files = FileSystem(
            self._tree,
            self._issuer,
            quorum=self._quorum,
            locks=self._locks,
            monotonic_ns=time.monotonic_ns,
            wall_clock=clock.seconds,
            on_unpublished=self._publisher.notice,
            on_displaced=self._cache.on_displaced,
            on_name_gone=self._cache.on_name_gone,
            is_known=self._node_ids.is_known,
        )

    def _make_clients(self) -> None:
        notifier = self._notifier
        self._status_files = status_files(
            self._status, handed=lambda: notifier.handed, monotonic=time.monotonic
        )
        self._clients = LocalClients(
            self._tree,
            self._guests,
            self._status,
            self._status_files,
            settings=self._settings,
            gid=self._gid,
            lock=self._session.lock,
            recorder=self._recorder,
            publish=self._clustering.source.put if self._clustering is not None else None,
            saves=SaveRequests(self._save_for_client),
        )

    def _save_for_client(self) -> None:
        """Save all that is unsaved, so that the database file alone has it. Raises StoreError."""
        saver = self._replica.saver
        saver.save()
        if saver.is_blocked:
            raise StoreError(
                f"{self._settings.database} has all changes, but only with its -wal file: another "
                "program reads it: try again when that has ended"
            )

    def _subscribe(self) -> None:
        """Subscribe the parts to the replica's changes; listeners are called in this order."""
        files, cache = self._files, self._cache
        counter = ChangeCounter(self._status, self._notifier, self._clients)
        for listener in (files, cache, counter):
            self._replica.subscribe(
                on_change=listener.on_change,
                on_undone=listener.on_undone,
                on_reload=listener.on_reload,
            )
        if self._clustering is not None:
            self._replica.subscribe(
                on_applied=files.pending.on_applied, on_change=self._clustering.on_change
            )

    def _mount(self, cleanup: contextlib.ExitStack) -> None:
        handlers = Handlers(
            self._files,
            self._node_ids,
            status_files=self._status_files,
            links=links(self._settings.nodename),
            ownership=Ownership(
                self._gid,
                lenient=self._settings.permissions == "lenient",
                program_of=process.program_name,
            ),
            callers=Callers(monotonic_ns=time.monotonic_ns),
            on_debug=_turn_debug,
            start_time=self._start_time,
            monotonic_ns=time.monotonic_ns,
        )
        handlers.is_logging_requests = self._settings.debug
        self._session.mount(handlers, self._settings.mountpoint)
        cleanup.callback(self._session.close)

    # Starting the threads

    def _start_threads(self, cleanup: contextlib.ExitStack) -> None:
        self._replica.saver.start()
        cleanup.callback(self._save_at_stop)
        self._record_writer.start(self._replica)
        cleanup.callback(self._record_writer.close)
        self._session.waits.stalls.start()
        cleanup.callback(self._session.waits.stalls.close)
        self._notifier.start(self._session.notification_channel())
        cleanup.callback(self._notifier.close)
        self._publisher.start(self._files.writeback.publish_due)
        cleanup.callback(self._publish_the_rest)
        cleanup.callback(self._publisher.close)
        if self._clustering is not None:
            self._clustering.start()
            cleanup.callback(self._clustering.stop)
            cleanup.callback(self._finish_changes)  # while there is a group
        if not self._settings.local:
            self._start_lookup(cleanup)
        self._start_clients(cleanup)
        if self._settings.test_control:
            self._start_control(cleanup)

    def _start_lookup(self, cleanup: contextlib.ExitStack) -> None:
        """Find this node's address. A node that is alone may be part of a cluster soon."""
        take = self._clustering.set_address if self._clustering is not None else self._take_address
        lookup = AddressLookup(self._settings.nodename, take)
        lookup.start()
        cleanup.callback(lookup.stop)

    def _take_address(self, address: str) -> None:
        with self._session.lock:
            self._status.members.set_resolved(address)

    def _start_clients(self, cleanup: contextlib.ExitStack) -> None:
        state = StateDirectory(self._settings)
        state.start()
        cleanup.callback(state.close)
        parts = ReportSources(
            settings=self._settings,
            tree=self._tree,
            replica=self._replica,
            history=self._storage.history,
            quorum=self._quorum,
            locks=self._locks,
            members=self._status.members,
            members_file=self._status_files[".members"],
            clients=self._clients,
            clustering=self._clustering,
            state=state,
            repairs=self._repairs,
            troubles=self._troubles,
            start_time=self._start_time,
            running_since=self._running_since,
            session=self._session.name,
        )
        self._clients.start(lambda: describe(parts))
        cleanup.callback(self._clients.stop)
        if process.has_service_manager():
            self._start_watchdog(parts, cleanup)

    def _start_watchdog(self, parts: ReportSources, cleanup: contextlib.ExitStack) -> None:
        watchdog = Watchdog(
            self._session.lock,
            lambda: summary(parts),
            notify=process.notify_service_manager,
            timeout=process.watchdog_timeout(),
        )
        watchdog.start()
        cleanup.callback(watchdog.close)

    def _start_control(self, cleanup: contextlib.ExitStack) -> None:
        parts = TestedParts(
            replica=self._replica,
            issuer=self._issuer,
            writeback=self._files.writeback,
            locks=self._locks,
            quorum=self._quorum,
            switch=self._quorum_switch,
            clustering=self._clustering,
            waits=self._session.waits,
            notifier=self._notifier,
            lock=self._session.lock,
        )
        control = Control(
            self._settings.control_socket,
            TestCommands(parts).by_name(),
            lock=self._session.lock,
            unlocked=UNLOCKED,
        )
        control.start()
        cleanup.callback(control.close)

    # Running and stopping

    def serve(self) -> int:
        """Answer the kernel until a stop or an unmount. Return the exit status.

        It is 1 if the connection to the kernel was ended without an unmount.
        """
        try:
            self._session.serve()
        except BaseException:  # in the background stderr goes nowhere
            _log.critical("the FUSE main loop failed, which is a bug", exc_info=True)
            raise
        if self._is_stopping or not self._session.was_aborted():
            return 0
        _log.error(
            "the connection to the kernel was aborted, as by umount --force of a mount in use: "
            "removing the dead mount from %s and ending",
            self._settings.mountpoint,
        )
        return 1

    def stop(self) -> None:
        """Publish written data, then make ``serve`` return. For the signal waiter."""
        _log.info("stopping")
        self._is_stopping = True
        try:
            self._finish_changes()
        finally:  # a bug there must not keep it running
            self._session.end()

    def _finish_changes(self) -> None:
        """Answer all requests that wait for a change, and publish what can be."""
        with self._session.lock:
            self._issuer.refuse()
            self._files.writeback.publish_all()
            self._issuer.abandon()

    def _publish_the_rest(self) -> None:
        with self._session.lock:
            self._files.writeback.publish_all()

    def _save_at_stop(self) -> None:
        """Bring the database up to date, so that the original could start with it."""
        self._replica.write_out()
        try:
            self._replica.saver.save_now(timeout=STOP_SAVE_TIMEOUT)
        except StoreError as error:
            self._note_unsaved(error)
        self._replica.saver.close()

    def _note_unsaved(self, error: StoreError) -> None:
        """Tell what is not in the database at the stop, and where it is."""
        is_unchanged = _stamp(self._tree) == self._stamp and not self._storage.recovered.replayed
        if is_unchanged:  # all is on disk as this daemon has found it
            return
        self.could_save = False
        if self._clustering is not None and self._replica.is_degraded:
            _log.error(
                "%s: the last changes are in no file of this node; it gets them from the cluster "
                "at the next start",
                error,
            )
        else:
            _log.error(
                "%s: the last changes are in %s only; pmxcfs checkpoint brings them into the "
                "database, and so does the next start",
                error,
                self._settings.journal,
            )


def _stamp(tree: Tree) -> tuple[int, int, int]:
    """Return what every change of *tree* changes."""
    return tree.root.version, tree.root.writer, tree.root.mtime


def _turn_debug(on: bool) -> None:
    log.set_verbose(on)
    _log.info("debug messages are %s", "on" if on else "off")


def _warn_of_missing_database(path: Path) -> None:
    """Log a warning if the database is missing or empty where one was in use before."""
    if traces := traces_of_use(path):
        _log.warning(
            "the database %s is missing or empty, although this directory was in use before (it "
            "has %s): starting with an empty file system; to use a backup, stop the daemon, put "
            "the backup there, and start the daemon",
            path,
            ", ".join(traces),
        )


def _tree_by_host_file(host_file: Path, *, now: int) -> Tree | None:
    """Return a new tree with a copy of the host's corosync.conf, if the host has that file."""
    try:
        content = host_file.read_bytes()
    except FileNotFoundError:
        return None
    return tree_with(COROSYNC_CONF, content, now=now)


def _keep_collector_off_the_tree() -> None:
    """Exclude the loaded tree from garbage collection, which would block requests for long.

    The tree has no reference cycles. Also set the interpreter's switch interval.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
