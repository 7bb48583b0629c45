"""Reboots of nodes while every node changes files, as in a cluster that is maintained."""

import errno
import itertools
import threading
import time
from collections.abc import Callable, Sequence

from tests.cluster.agent import Agent
from tests.cluster.kept import copies
from tests.cluster.lab import Member
from tests.cluster.together import Cluster

BEFORE, AFTER = 2.0, 0.5  # seconds of load around each end of a node
NOTICE = 0.2  # seconds in which a daemon sees that its corosync has gone
BACK = 60.0  # seconds for a node to be in sync after its start
CALLS = 120.0  # seconds for some changes
PAUSE = 0.05  # seconds after a failure
HOME = "load"
Way = Callable[[Member], None]


class Load:
    """Changes on some nodes, one after the other on each: new files, rewrites, removals."""

    def __init__(self, agents: Sequence[Agent]) -> None:
        self.done = 0  # acknowledged changes
        self.last: dict[str, int] = {}  # the last number that was written, by path
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[agent]) for agent in agents]
        for thread in self._threads:
            thread.start()

    def _run(self, agent: Agent) -> None:
        path = f"{HOME}/{agent.node.name}"
        for number in itertools.count():
            if self._is_over.is_set():
                return
            outcomes = agent.do(
                ("create", f"{path}.{number}", b"x"),
                ("put", path, b"%d" % number),
                ("mkdir", f"{path}.lock"),
                ("rmdir", f"{path}.lock"),
                ("unlink", f"{path}.{number}"),
                seconds=CALLS,
            )
            self.done += sum(not outcome.error for outcome in outcomes)
            if not outcomes[1].error:
                self.last[path] = number
            if any(outcome.error in (errno.ENOTCONN, errno.ENOENT) for outcome in outcomes):
                self._is_over.wait(PAUSE)  # the node has no daemon

    def stop(self) -> None:
        """End the changes, after those that are begun."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()


def shut_down(node: Member) -> None:
    """Stop the services in the order of a shutdown."""
    assert node.daemon.stop() == 0, node.daemon.log_tail()
    node.corosync.stop()


def shut_down_corosync_first(node: Member) -> None:
    """Stop the services in the other order."""
    node.corosync.stop()
    time.sleep(NOTICE)
    assert node.daemon.stop() == 0, node.daemon.log_tail()


def power_off(node: Member) -> None:
    """Kill corosync, and the daemon a moment later."""
    node.corosync.kill()
    node.daemon.kill()


def power_off_daemon_first(node: Member) -> None:
    """Kill the daemon, and corosync a moment later."""
    node.daemon.kill()
    node.corosync.kill()


WAYS: Sequence[Way] = (shut_down, power_off, shut_down_corosync_first, power_off_daemon_first)


def reboot(cluster: Cluster, node: Member, way: Way) -> None:
    """End a node and start it again; return when it is in sync with all others."""
    time.sleep(BEFORE)
    way(node)
    time.sleep(AFTER)
    node.corosync.start()
    cluster.wait_for_members(*cluster.nodes)
    cluster.launch(node)

    def is_back() -> bool:
        info = node.daemon.info()
        return info["mode"] == "synced" and len(info["members"]) == len(cluster.nodes)

    cluster.wait_until(is_back, BACK, f"{node.name} to be in sync")


def reboot_under_load(cluster: Cluster, count: int, *, first: int = 0) -> Load:
    """Reboot the nodes in turn, in each way, while all change files; return the load.

    *first* is the number of the first reboot, which tells its node and its way.
    """
    cluster.agents(cluster[1])[0]("mkdir", HOME)
    load = Load(cluster.agents())
    try:
        for number in range(first, first + count):
            node = cluster.nodes[-1 - number % len(cluster.nodes)]
            reboot(cluster, node, WAYS[number % len(WAYS)])
    finally:
        load.stop()
    cluster.wait_for_agreement()
    return load


def check(cluster: Cluster, load: Load) -> None:
    """Assert that no copy was kept, and that no file is older than its last acknowledged change."""
    assert not copies(cluster.nodes), [copy_log(node) for node in cluster.nodes]
    (agent,) = cluster.agents(cluster[1])
    for path, number in load.last.items():
        assert int(agent("get", path) or number) >= number


def copy_log(node: Member) -> list[str]:
    """Return what a node has logged of its copies, in its present life."""
    return node.daemon.log_lines("warning: ")
