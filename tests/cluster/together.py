"""A cluster of nodes that run corosync and the daemon.

``Cluster`` starts them and waits until they are synced. At the end it stops them and asserts that
each has exited cleanly and that all have the same tree, also in their databases.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from tests.cluster.agent import Agent
from tests.cluster.lab import TOKEN, Lab, Member

AGREEMENT = 60.0  # seconds for nodes to agree; 6 on an idle machine after a rejoin
STOP = 3.0  # seconds that a stop may take, whatever corosync does
INFO_INTERVAL = 0.05  # seconds
PRESENCE = ("mode", "status_mode", "members", "status_members", "quorate", "checksum")


class Cluster(Lab):
    """A lab whose nodes also run the daemon."""

    def __init__(
        self, directory: Path, *, nodes: int = 3, ids: Sequence[int] = (), token: int = TOKEN
    ) -> None:
        self._agents = ExitStack()  # first: a failure below closes this lab
        super().__init__(directory, nodes=nodes, ids=ids, token=token)

    def close(self) -> None:
        self._agents.close()
        super().close()

    def agents(self, *nodes: Member) -> list[Agent]:
        """Return a new worker on each node, on all unless some are named."""
        made = [closing(Agent(node)) for node in nodes or self.nodes]
        return [self._agents.enter_context(agent) for agent in made]

    def launch(self, *nodes: Member, clock_offset: int = 0) -> None:
        """Start the daemon on these nodes, and wait for the mounts only."""
        for node in nodes or self.nodes:
            node.daemon.start(clock_offset=clock_offset)
        for node in nodes or self.nodes:
            node.daemon.wait_until_mounted()

    def start(self) -> None:
        """Start all services, and wait until the nodes are one synced cluster."""
        self.start_corosync()
        self.launch()
        self.wait_for_agreement()

    def verify(self, seconds: float) -> None:
        """Have the lowest node request a verification; wait until it has succeeded on all nodes."""
        before = [node.daemon.info()["verified"] for node in self.nodes]
        self[1].daemon.control("deadlines", verification=0.5)
        self.wait_until(
            lambda: all(
                node.daemon.info()["verified"] > then
                for node, then in zip(self.nodes, before, strict=True)
            ),
            seconds,
            "a verification on each node",
        )
        self[1].daemon.control("deadlines", verification=3600.0)

    def wait_for_agreement(self, *nodes: Member, seconds: float = AGREEMENT) -> float:
        """Wait until exactly these nodes are a cluster with one tree; return the seconds."""
        wanted = nodes or self.nodes
        numbers = sorted(node.nodeid for node in wanted)

        def agree() -> bool:
            infos = [node.daemon.info() for node in wanted]
            alike = {str([info.get(key) for key in PRESENCE]) for info in infos}
            info = infos[0]
            modes = [info.get("mode"), info.get("status_mode")]
            groups = [info.get("members"), info.get("status_members")]
            is_whole = modes == ["synced"] * 2 and groups == [numbers] * 2 and info["quorate"]
            return len(alike) == 1 and is_whole and all(each["handed"] for each in infos)

        return self.wait_until(agree, seconds, f"agreement of {numbers}", interval=INFO_INTERVAL)

    def mend(self) -> None:
        """Undo the faults of a test, and start the services that it has ended."""
        self.heal()
        for node in self.nodes:
            for service in node.services:
                service.thaw()
            if not node.corosync.is_running:
                node.corosync.start()
        self.wait_for_members(*self.nodes)
        for node in self.nodes:
            if not node.daemon.is_running:
                self.launch(node)
            node.daemon.control("quorum", on=None)
            node.daemon.control("resume")
            node.daemon.control("deadlines", **DEADLINES)
        self.wait_for_agreement()

    def is_mounted(self, node: Member) -> bool:
        """Tell whether the node's kernel has the mount, dead or alive."""
        return " /etc/pve fuse" in node.run("cat", "/proc/mounts")

    def bytes_sent(self, *nodes: Member) -> int:
        """Return the bytes that the daemons have sent to the tree's group since their start."""
        return sum(int(node.daemon.info()["sent_bytes"]) for node in nodes or self.nodes)

    def finish(self) -> None:
        """Stop all daemons; assert that they exit quickly, cleanly, and with one tree."""
        for node in self.nodes:
            assert node.daemon.stop(seconds=STOP) == 0, node.daemon.log_tail()
        assert len({node.stored_checksum() for node in self.nodes}) == 1
        for node in self.nodes:
            for log in sorted(node.log.parent.glob("pmxcfs*.log")):
                text = log.read_text(errors="replace")
                assert "which is a bug" not in text, text[-4000:]
                assert "Traceback" not in text, text[-4000:]


# The defaults of pmxcfs/dfsm/timeouts.py, for ``mend``.
DEADLINES: dict[str, Any] = {
    "restarts": [5.0, 10.0, 20.0, 40.0, 60.0],
    "silence": 90.0,
    "updates": 15.0,
    "leave_interval": 60.0,
    "rejoin": 5.0,
    "verification": 3600.0,
    "after_updates": 3.0,
}


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """Measure the block; the list gets its seconds."""
    found: list[float] = []
    start = time.monotonic()
    yield found
    found.append(time.monotonic() - start)


def milliseconds(values: Sequence[float]) -> str:
    """Return median and maximum of some durations, as text in milliseconds."""
    ranked = sorted(values)
    return f"median {1000 * ranked[len(ranked) // 2]:.1f} ms, worst {1000 * ranked[-1]:.1f} ms"
