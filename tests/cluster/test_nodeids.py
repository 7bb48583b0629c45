"""Node ids: the highest that corosync takes, and one that two daemons share."""

import contextlib
import errno
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab import Member, corosync_conf
from tests.cluster.node import POLL_INTERVAL, Process
from tests.cluster.together import Cluster
from tests.harness import PROGRAM, Control

pytestmark = [pytest.mark.needs_corosync, pytest.mark.long]

HIGH = (1, 2147483649, 4294967295)  # with a sign, the second one would be the lowest
SOON = 30.0  # seconds for steps that take one or two
EXPIRED = 1.0  # seconds
UDPU = (  # knet refuses ids from 65536 on
    ("transport: knet", "transport: udpu"),
    ("  ip_version: ipv4-6\n", ""),
    ("  link_mode: passive\n", ""),
)
LOCK = "priv/lock/held"


@pytest.fixture
def high(tmp_path: Path) -> Iterator[Cluster]:
    """A synced cluster of nodes with high ids."""
    with Cluster(tmp_path, ids=HIGH) as cluster:
        text = corosync_conf(cluster.nodes)
        for old, new in UDPU:
            assert old in text
            text = text.replace(old, new)
        for node in cluster.nodes:
            node.write_corosync_conf(text)
        cluster.start()
        yield cluster
        cluster.finish()


def listed(cluster: Cluster, ids: Sequence[int]) -> str:
    """Return the line of the log that names the members with *ids*."""
    pids = {node.nodeid: node.daemon.info()["pid"] for node in cluster.nodes if node.daemon.process}
    return ", ".join(f"{nodeid}/{pids[nodeid]}" for nodeid in ids)


def is_led_by_first(node: Member) -> bool:
    """Tell whether node 1 led the latest round that the node's log has."""
    return any("leader is 1/" in line for line in node.daemon.log_lines("leader is ")[-1:])


def verify(cluster: Cluster, *, by: int) -> bool:
    """Have one node request verifications every half second; tell whether one has come."""
    node = cluster[by]
    before = node.daemon.info()["verified"]
    node.daemon.control("deadlines", verification=0.5)
    end = time.monotonic() + 3.0
    while node.daemon.info()["verified"] == before and time.monotonic() < end:
        time.sleep(POLL_INTERVAL)
    node.daemon.control("deadlines", verification=3600.0)
    return bool(node.daemon.info()["verified"] != before)


def test_ids_are_compared_without_a_sign(high: Cluster) -> None:
    everyone = f"members: {listed(high, HIGH)}"
    high.wait_until(
        lambda: all(node.daemon.log_lines(everyone) for node in high.nodes), SOON, everyone
    )
    high.wait_until(lambda: all(map(is_led_by_first, high.nodes)), SOON, "node 1 as the leader")
    first, second, third = high.agents()
    third("mkdir", "made-by-the-highest")
    high.wait_for_agreement()
    assert "made-by-the-highest" in first("list")
    time.sleep(5)  # the verification after the first round
    assert [verify(high, by=number) for number in (3, 2, 1)] == [False, False, True]
    # Only the lowest member decides that a lock has expired.
    second.do(("mkdir", "priv"), ("mkdir", "priv/lock"))
    second("mkdir", LOCK)
    for node in high.nodes[1:]:
        node.daemon.control("lock-lifetime", seconds=EXPIRED)
    time.sleep(2 * EXPIRED)
    assert second.do(("utime", LOCK, 0))[0].error == errno.EACCES
    third("stat", LOCK)
    high[1].daemon.control("lock-lifetime", seconds=EXPIRED)
    second.do(("utime", LOCK, 0))
    high.wait_until(lambda: bool(third.do(("stat", LOCK))[0].error), SOON, "the end of the lock")
    # Without node 1, 2147483649 is the lowest, and starts the round with node 1 when it is back.
    assert high[1].daemon.stop() == 0
    high.wait_for_agreement(high[2], high[3])
    second("create", "without-the-lowest", b"x")
    assert [verify(high, by=number) for number in (3, 2)] == [False, True]
    high.launch(high[1])
    high.wait_for_agreement()
    assert first.do(("get", "without-the-lowest"))[0].value == b"x"
    leader = f"leader is 2147483649/{high[2].daemon.info()['pid']}"
    high.wait_until(lambda: bool(high[1].daemon.log_lines(leader)), SOON, leader)


def test_a_host_that_has_taken_another_node_s_id_stays_out(tmp_path: Path) -> None:
    """Each of two hosts has the id 2 in its corosync.conf; node 1 knows one of them."""
    with Cluster(tmp_path, ids=(1, 2, 2)) as cluster:
        first, second, impostor = cluster.nodes
        for node in (first, second):
            node.write_corosync_conf(corosync_conf([first, second]))
        impostor.write_corosync_conf(corosync_conf([first, impostor]))
        cluster.start_corosync(first, second)
        cluster.launch()
        cluster.wait_for_agreement(first, second)
        impostor.corosync.start()
        rejected = f"Packet rejected from {impostor.address}"
        cluster.wait_until(
            lambda: len(first.corosync.log_lines(rejected)) > 5, SOON, "rejected packets"
        )
        cluster.wait_until(
            lambda: impostor.daemon.info().get("members") == [2], SOON, "a group of its own"
        )
        assert not impostor.daemon.info()["quorate"]
        good, bad = cluster.agents(first, impostor)
        assert bad.do(("create", "by-the-impostor", b"x"))[0].error == errno.EACCES
        good("create", "by-the-first", b"x")
        cluster.wait_for_agreement(first, second)
        for node in cluster.nodes:
            assert node.daemon.stop() == 0
        assert first.stored_checksum() == second.stored_checksum()


class Twin:
    """A second daemon on the third node, with all of its places changed but the cluster."""

    def __init__(self, cluster: Cluster, *, ipc_name: str = "twin") -> None:
        self.node = cluster[3]
        self.path = self.node.root / "run" / "twin" / "pve"
        self.path.mkdir(parents=True, exist_ok=True)
        self.log = self.node.log.with_name("pmxcfs-twin.log")
        options = {
            "mountpoint": "/run/twin/pve",
            "statedir": "/run/twin/state",
            "rundir": "/run/twin/run",
            "rrddir": "/run/twin/rrd",
            "nodename": self.node.name,
            "ipc-name": ipc_name,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        with self.log.open("ab") as log:
            self.process: Process = self.node.spawn(
                [sys.executable, *PROGRAM, "-f", "--test-control", *words], output=log.fileno()
            )

    def info(self) -> dict[str, Any]:
        """Return the state of the daemon."""
        with Control(self.node.root / "run/twin/run/control.sock", patience=SOON) as control:
            return control("info")

    def is_member(self) -> bool:
        """Tell whether the daemon runs and is in sync."""
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return bool(self.info()["mode"] == "synced" and self.path.is_mount())
        return False


TWINS = [1, 2, 3, 3]


def infos(cluster: Cluster, twin: Twin) -> list[dict[str, Any]]:
    return [*[node.daemon.info() for node in cluster.nodes], twin.info()]


def are_one(cluster: Cluster, twin: Twin) -> bool:
    """Tell whether the nodes and the twin are a synced cluster with one tree."""
    found = infos(cluster, twin)
    return len({info["checksum"] for info in found}) == 1 and all(
        info["members"] == info["status_members"] == TWINS
        and info["mode"] == info["status_mode"] == "synced"
        for info in found
    )


def test_two_daemons_of_one_node_lose_no_change_and_say_so(cluster: Cluster) -> None:
    refused = Twin(cluster, ipc_name="pve2")
    assert refused.process.wait(SOON) == 1
    assert "another process answers local clients as 'pve2'" in refused.log.read_text()
    twin = Twin(cluster)
    cluster.wait_until(twin.is_member, SOON, "the twin")
    cluster.wait_until(lambda: are_one(cluster, twin), SOON, "members with one tree")
    third = cluster[3].daemon
    assert third.info()["twins"] == [twin.info()["pid"]]
    assert twin.info()["twins"] == [third.info()["pid"]]
    assert cluster[1].daemon.info()["twins"] == []
    cluster.wait_until(
        lambda: (
            "has this node's id: stop" in twin.log.read_text()
            and bool(third.log_lines("has this node's id: stop"))
        ),
        SOON,
        "a line in both logs",
    )
    # Both send at once, with the same counters: each gets the answer to its own changes.
    (first, third_agent) = cluster.agents(cluster[1], cluster[3])
    first("mkdir", "twins")
    cluster.wait_until(lambda: are_one(cluster, twin), SOON, "the directory on all")
    third_agent.begin(*[("mkdir", f"twins/{number}") for number in range(50)])
    won = []
    for number in range(50):
        with contextlib.suppress(FileExistsError):
            (twin.path / "twins" / str(number)).mkdir()
            won.append(number)
        (twin.path / "twins" / f"by-twin-{number}").write_text(str(number))
    lost = [n for n, outcome in enumerate(third_agent.outcomes()) if outcome.error]
    assert won == lost  # of two mkdirs of one name exactly one succeeds
    for number in range(50):
        third_agent("create", f"twins/by-third-{number}", b"x")
    cluster.wait_until(lambda: are_one(cluster, twin), SOON, "one tree")
    assert len(first("list", "twins")) == 150
    assert first("get", "twins/by-twin-49") == b"49"
    # One of them is killed, and the other stays a member and takes changes.
    twin.process.signal(signal.SIGKILL)
    twin.process.wait()
    cluster[3].run("umount", "-l", "/run/twin/pve", check=False)
    cluster.wait_for_agreement()
    assert third.info()["twins"] == []
    third_agent("create", "twins/alone", b"x")
    assert first.do(("get", "twins/alone"))[0].error in (0, errno.ENOENT)
    # It comes back with an old tree, and gets what it has missed.
    twin = Twin(cluster)
    cluster.wait_until(twin.is_member, SOON, "the twin")
    cluster.wait_until(lambda: are_one(cluster, twin), SOON, "members with one tree")
    assert (twin.path / "twins" / "alone").read_text() == "x"
    assert not list((twin.node.root / "run/twin/state").glob("conflicts/*"))
    twin.process.signal(signal.SIGTERM)
    assert twin.process.wait(SOON) == 0
    cluster.wait_for_agreement()
