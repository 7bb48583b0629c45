"""A corosync that is stopped while this node has much to send: the daemon must not use a CPU."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.lab import Member
from tests.cluster.large_trees import give_large_tree
from tests.cluster.together import Cluster

pytestmark = pytest.mark.needs_corosync

Report = Callable[[object], None]

KEYS = 600  # libqb uses a whole CPU from about 280 unread messages on
ENTRIES = 20_000
STOPPED = 10.0  # seconds
CPU = 1.5  # seconds of CPU time that the daemon may use meanwhile; 0.1 on an idle machine
SYNC = 60.0  # seconds; 5 on an idle machine


def cpu_seconds(node: Member) -> float:
    """Return the CPU time that the node's daemon has used so far."""
    assert node.daemon.process
    text = (node.root / "proc" / str(node.daemon.process.pid) / "stat").read_text()
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def cpu_while_stopped(node: Member, since: float) -> float:
    """Return the daemon's CPU time from *since*, its CPU time then, until STOPPED seconds later."""
    time.sleep(STOPPED)  # the time that the daemon's CPU time is measured over
    return cpu_seconds(node) - since


def set_keys(node: Member, count: int) -> None:
    """Set *count* keys of the node's status."""
    script = (
        "from pmxcfs.ipc.client import IpcClient\n"
        "client = IpcClient('pve2')\n"
        f"for number in range({count}): client.set_key(f'key{{number}}', b'x')\n"
    )
    node.run(sys.executable, "-c", script)


def test_many_status_messages(cluster: Cluster, report: Report) -> None:
    node, other = cluster[3], cluster[1]
    node.corosync.freeze()
    set_keys(node, KEYS)
    used = cpu_while_stopped(node, cpu_seconds(node))
    report(f"corosync stopped, {KEYS} status messages: {used:.2f} s of CPU in {STOPPED:.0f} s")
    node.corosync.thaw()
    cluster.mend()
    ask = [sys.executable, "-m", "pmxcfs", "ipc", "get", f"key{KEYS - 1}", "--node", node.name]
    cluster.wait_until(lambda: other.run(*ask, check=False).strip() == "x", SYNC, "the last key")
    assert used < CPU


@pytest.mark.long
def test_the_updates_of_a_leader(idle_cluster: Cluster, tmp_path: Path, report: Report) -> None:
    cluster = idle_cluster
    leader = cluster[1]
    give_large_tree(cluster, tmp_path / "scratch", *cluster.nodes[:2], entries=ENTRIES)
    cluster.start_corosync()
    cluster.launch(leader, cluster[2])
    cluster.wait_for_agreement(leader, cluster[2])
    cluster.launch(cluster[3])
    cluster.wait_until(lambda: cluster[3].daemon.info()["mode"] == "update", SYNC, "updates")
    leader.corosync.freeze()
    assert cluster[3].daemon.info()["mode"] == "update"
    used = cpu_while_stopped(leader, cpu_seconds(leader))
    report(f"corosync stopped amid a leader's updates: {used:.2f} s of CPU in {STOPPED:.0f} s")
    leader.corosync.thaw()
    cluster.wait_for_members(*cluster.nodes)
    cluster.wait_for_agreement(seconds=SYNC)
    assert used < CPU
    cluster.finish()
