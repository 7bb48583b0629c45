"""``cluster.watchers`` and ``cluster.corosync_conf`` on a real corosync."""

import queue
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import pytest

from pmxcfs.cluster.corosync_conf import HostConfig
from pmxcfs.cluster.corosync_reload import Reload
from pmxcfs.cluster.watchers import ConfigWatch, QuorumWatch
from pmxcfs.messages import ClusterConfig, ClusterNode
from tests.cluster.single import Corosync, configuration, own_network, start, started

pytestmark = pytest.mark.needs_corosync

PATIENCE = 30.0
RETRY = 0.01  # seconds between two attempts; 5 in the product
STOP = 0.5  # seconds within which a watcher must be gone, whatever corosync does
SLACK = 6  # on a busy machine

T = TypeVar("T")
NODES = tuple(ClusterNode(f"node{n}", n, f"127.0.0.{n}", 1) for n in (1, 2))
TIMEOUTS = (1000, 1200)  # milliseconds: token and consensus of a single node of the tests


class Told(Generic[T]):
    """A callback that records its calls; a test can wait for them."""

    def __init__(self) -> None:
        self._queue: queue.Queue[T] = queue.Queue()

    def __call__(self, value: T) -> None:
        self._queue.put(value)

    def next(self) -> T:
        return self._queue.get(timeout=PATIENCE)

    def is_quiet(self) -> bool:
        return self._queue.empty()


@pytest.fixture
def corosync(tmp_path: Path) -> Iterator[Corosync]:
    with own_network(), started(tmp_path) as corosync:
        yield corosync


def reload(corosync: Corosync, *, version: int, nodes: int) -> None:
    """Let corosync load another configuration, by the code of the daemon."""
    host = HostConfig(corosync.conf, Reload(corosync.conf.parent), reload_delay=0)
    host.start()
    host.follow(configuration(version=version, nodes=nodes).encode(), reload=True)
    host.close()


@pytest.mark.usefixtures("corosync")
def test_each_quorum_change_is_reported_once() -> None:
    told = Told[bool]()
    watch = QuorumWatch(told)
    assert not watch.refresh()
    watch.start()
    assert told.next()
    assert watch.refresh()
    watch.close()
    assert told.is_quiet()
    assert not watch.refresh()


def test_the_quorum_follows_the_configuration(corosync: Corosync) -> None:
    told = Told[bool]()
    watch = QuorumWatch(told)
    watch.start()
    assert told.next()
    reload(corosync, version=2, nodes=2)  # one of two votes is no majority
    assert not told.next()
    assert not watch.refresh()
    reload(corosync, version=3, nodes=1)
    assert told.next()
    watch.close()


def test_a_refresh_returns_the_quorum_before_the_watcher_reports_it(corosync: Corosync) -> None:
    release: queue.Queue[None] = queue.Queue()
    told = Told[bool]()

    def slow(quorate: bool) -> None:
        told(quorate)
        release.get(timeout=PATIENCE)

    watch = QuorumWatch(slow)
    watch.start()
    assert told.next()
    reload(corosync, version=2, nodes=2)  # the thread of the watcher is still in its callback
    deadline = time.monotonic() + PATIENCE
    while watch.refresh():
        assert time.monotonic() < deadline
    assert told.is_quiet()
    release.put(None)
    assert not told.next()
    release.put(None)
    watch.close()


@pytest.mark.expect_log(r"pmxcfs\.quorum WARNING no connection to corosync \(quorum_dispatch")
def test_a_dead_corosync_means_no_quorum_until_it_is_back(
    corosync: Corosync, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told[bool]()
    watch = QuorumWatch(told, retry=RETRY)
    watch.start()
    assert told.next()
    corosync.kill()
    assert not told.next()
    assert not watch.refresh()
    again = start(corosync.conf.parent)  # attempts fail meanwhile; only the first is logged
    try:
        assert told.next()
        watch.close()
    finally:
        again.kill()
    assert len([r for r in caplog.records if r.name == "pmxcfs.quorum"]) == 1


def test_the_configuration_is_reported_once_it_is_complete(corosync: Corosync) -> None:
    told = Told[ClusterConfig]()
    watch = ConfigWatch(told)
    watch.start()
    assert told.next() == ClusterConfig("single", 1, NODES[:1], *TIMEOUTS)
    reload(corosync, version=2, nodes=2)
    assert told.next() == ClusterConfig("single", 2, NODES, *TIMEOUTS)
    reload(corosync, version=3, nodes=1)
    assert told.next() == ClusterConfig("single", 3, NODES[:1], *TIMEOUTS)
    watch.close()
    assert told.is_quiet()


@pytest.mark.expect_log(r"pmxcfs\.confdb WARNING no connection to corosync \(cmap_")
def test_a_restart_of_corosync_reports_changes_only(corosync: Corosync) -> None:
    told = Told[ClusterConfig]()
    watch = ConfigWatch(told, retry=RETRY)
    watch.start()
    assert told.next().version == 1
    corosync.kill()
    corosync.conf.write_text(configuration(version=5, nodes=2))
    again = start(corosync.conf.parent)
    try:
        assert told.next() == ClusterConfig("single", 5, NODES, *TIMEOUTS)
        watch.close()
    finally:
        again.kill()
    assert told.is_quiet()


@pytest.mark.parametrize("moment", ["connecting", "connected"])
def test_a_stopped_corosync_does_not_delay_the_end_of_the_watchers(
    corosync: Corosync, moment: str
) -> None:
    told, configs = Told[bool](), Told[ClusterConfig]()
    watches = [QuorumWatch(told), ConfigWatch(configs)]
    if moment == "connecting":
        corosync.send(signal.SIGSTOP)
    for watch in watches:
        watch.start()
    if moment == "connected":
        assert told.next()
        assert configs.next()
        corosync.send(signal.SIGSTOP)
    for watch in watches:
        began = time.monotonic()
        watch.close()
        assert time.monotonic() - began < STOP * SLACK
    corosync.kill()  # so that the hanging threads go on and end


@pytest.mark.expect_log("pmxcfs.confdb ERROR can't ask corosync to reload its configuration")
def test_the_host_file_is_replaced_while_corosync_is_dead(corosync: Corosync) -> None:
    corosync.kill()
    wanted = configuration(version=2)
    host = HostConfig(corosync.conf, Reload(corosync.conf.parent), reload_delay=0)
    host.start()
    host.follow(wanted.encode(), reload=True)
    host.close()
    assert corosync.conf.read_text() == wanted
