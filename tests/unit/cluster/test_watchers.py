"""The watchers without corosync: cmap keys to a configuration, and connections that fail."""

import os
import queue
from collections.abc import Callable

import pytest

from pmxcfs.cluster import watchers as module
from pmxcfs.cluster.watchers import QuorumWatch, config_of
from pmxcfs.errors import Disconnected
from pmxcfs.messages import ClusterConfig, ClusterNode

TIMEOUT = 30.0  # seconds until a wait fails the test
RETRY = 0.001  # seconds

NODE = "nodelist.node."


def test_the_configuration_is_read_from_cmap_keys() -> None:
    values: dict[str, str | int | None] = {
        "totem.cluster_name": "lab",
        "totem.config_version": 3,
        "nodelist.node.1.name": "node2",
        "nodelist.node.1.nodeid": 1,
        "nodelist.node.1.ring0_addr": "10.99.0.2",
        "nodelist.node.1.quorum_votes": 2,
        "nodelist.node.10.nodeid": 7,
        "nodelist.node.10.ring0_addr": "host",
        "nodelist.node.10.ring1_addr": "other",
        "nodelist.node.0.nodeid": 2,
        "nodelist.node.0.name": "node1",
        "runtime.config.totem.token": 3650,
        "runtime.config.totem.consensus": 4380,
    }
    assert config_of(values) == ClusterConfig(
        "lab",
        3,
        (
            ClusterNode("node2", 1, "10.99.0.2", 2),
            ClusterNode("node1", 2, "", 1),
            ClusterNode("host", 7, "host", 1),
        ),
        token=3650,
        consensus=4380,
    )


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({f"{NODE}0.name": "a"}, []),  # no id
        ({f"{NODE}0.nodeid": 1}, []),  # no name
        ({f"{NODE}0.nodeid": "1", f"{NODE}0.name": "a"}, []),  # an id that is not a number
        ({f"{NODE}0.nodeid": 1, f"{NODE}0.name": None, f"{NODE}0.ring0_addr": "b"}, ["b"]),
        (
            {f"{NODE}{n}.nodeid": 1 for n in range(2)}
            | {f"{NODE}{n}.name": f"{n}" for n in (0, 1)},
            ["0"],
        ),
        (
            {f"{NODE}{n}.nodeid": n for n in range(2)} | {f"{NODE}{n}.name": "a" for n in (0, 1)},
            ["a"],
        ),
    ],
)
def test_an_incomplete_or_duplicate_node_is_left_out(
    values: dict[str, str | int | None], names: list[str]
) -> None:
    config = config_of(values)
    assert [node.name for node in config.nodes] == names
    assert (config.name, config.version) == ("", 0)


class FakeQuorum:
    """A quorum connection that fails *failures* times, then reports quorum once and is lost."""

    failures = 0
    attempts = 0

    def __init__(self) -> None:
        self.is_quorate = False
        self._events = [True]
        self._descriptor = os.eventfd(0)
        self._is_lost = False

    def connect(self) -> None:
        FakeQuorum.attempts += 1
        if FakeQuorum.attempts <= FakeQuorum.failures:
            raise Disconnected("quorum_initialize", 2, "CS_ERR_LIBRARY")

    def dispatch_one(self) -> bool:
        self.is_quorate = True
        return bool(self._events and self._events.pop())

    def fileno(self) -> int:
        if self._is_lost:
            raise Disconnected("quorum_dispatch", 2, "CS_ERR_LIBRARY")
        self._is_lost = True  # from the second call on
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeQuorum]:
    monkeypatch.setattr(module, "Quorum", FakeQuorum)
    monkeypatch.setattr(FakeQuorum, "attempts", 0)
    monkeypatch.setattr(FakeQuorum, "failures", 3)
    return FakeQuorum


def watched(on_change: Callable[[bool], None]) -> QuorumWatch:
    watch = QuorumWatch(on_change, retry=RETRY)
    watch.start()
    return watch


@pytest.mark.expect_log(r"no connection to corosync \(quorum_initialize: CS_ERR_LIBRARY \(code 2\)")
@pytest.mark.expect_log(r"no connection to corosync \(quorum_dispatch")
@pytest.mark.usefixtures("fake")
def test_each_outage_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    told: queue.Queue[bool] = queue.Queue()
    watch = watched(told.put)
    assert [told.get(timeout=TIMEOUT) for _ in range(2)] == [True, False]
    first = [record.message for record in caplog.records][:1]
    assert told.get(timeout=TIMEOUT) is True
    watch.close()
    assert FakeQuorum.attempts >= 3 + 2
    initial = [r.message for r in caplog.records if "quorum_initialize" in r.message]
    assert initial == first  # of three attempts
    lost = [r.message for r in caplog.records if "quorum_dispatch" in r.message]
    assert len(lost) >= 1  # another outage, another line


@pytest.mark.expect_log("no connection to corosync")
def test_a_refresh_without_connection_connects_at_once(fake: type[FakeQuorum]) -> None:
    fake.failures = 1
    told: queue.Queue[bool] = queue.Queue()
    watch = QuorumWatch(told.put, retry=100 * TIMEOUT)
    watch.start()
    assert not watch.refresh()
    assert told.get(timeout=TIMEOUT) is True
    watch.close()


@pytest.mark.expect_log("watching corosync failed, which is a bug")
@pytest.mark.expect_log("no connection to corosync")
@pytest.mark.usefixtures("fake")
def test_a_bug_in_the_callback_does_not_end_the_watcher() -> None:
    told: queue.Queue[bool] = queue.Queue()

    def buggy(quorate: bool) -> None:
        told.put(quorate)
        raise RuntimeError("a bug")

    watch = watched(buggy)
    assert [told.get(timeout=TIMEOUT) for _ in range(3)] == [True, False, True]
    watch.close()


def test_a_watcher_that_was_never_started_closes() -> None:
    watch = QuorumWatch(lambda _: None)
    assert not watch.refresh()
    watch.close()
