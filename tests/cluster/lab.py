"""Clusters of nodes in namespaces on this machine.

A ``Lab`` has a network and nodes, each with corosync and the daemon under test in namespaces of
their own. What they write is below the lab's directory, by node: ``node1/var/log`` and so on.
``wait_until`` polls, and fails at once when a service has died by itself.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self

from pmxcfs._core import Tree
from pmxcfs.storage.database import Database
from tests.cluster.network import Network
from tests.cluster.node import Node
from tests.cluster.services import Corosync, Daemon, Service

POLL_INTERVAL = 0.02  # seconds
MEMBERS_INTERVAL = 0.1  # seconds; each check starts programs
QUORUM_PATIENCE = 30.0  # seconds; 2 on an idle machine
TOKEN = 1000  # milliseconds; corosync adds 650 for each node after the second

COROSYNC_CONF = """\
logging {{
  debug: off
  to_stderr: yes
  to_syslog: no
  timestamp: hires
}}

nodelist {{
{nodes}}}

quorum {{
  provider: corosync_votequorum
{quorum}}}

totem {{
  cluster_name: lab
  config_version: {version}
  interface {{
    linknumber: 0
  }}
  ip_version: ipv4-6
  link_mode: passive
  secauth: off
  token: {token}
  transport: knet
  version: 2
}}
"""
NODE = """\
  node {{
    name: {node.name}
    nodeid: {node.nodeid}
    quorum_votes: 1
    ring0_addr: {node.address}
  }}
"""


def corosync_conf(
    nodes: Iterable[Node],
    *,
    version: int | str = 1,
    quorum: Sequence[str] = (),
    token: int = TOKEN,
) -> str:
    """Return the configuration of a cluster of *nodes*; *quorum* are options of votequorum.

    *token* is the time in milliseconds after which a silent node is missed.
    """
    return COROSYNC_CONF.format(
        nodes="".join(NODE.format(node=node) for node in nodes),
        version=version,
        quorum="".join(f"  {line}\n" for line in quorum),
        token=token,
    )


class Member(Node):
    """A node with corosync and the daemon."""

    def __init__(self, number: int, directory: Path) -> None:
        super().__init__(number, directory)
        self.corosync = Corosync(self)
        self.daemon = Daemon(self)
        self.services: Sequence[Service] = (self.corosync, self.daemon)

    def stored_checksum(self) -> str:
        """Return the checksum of the tree in the database file; call it when no daemon runs."""
        tree = Tree()
        with closing(Database.open(self.database, now=0)) as database:
            tree.load(database.load(now=0).records)
        return tree.checksum().hex()

    def write_corosync_conf(self, text: str) -> None:
        """Replace the configuration that corosync starts with."""
        (self.directory / "etc" / "corosync" / "corosync.conf").write_text(text)


class Lab:
    """Some nodes below *directory*, booted, with a network and nothing running.

    Use it as a context manager: at its end every process, mount and device is gone.
    """

    def __init__(
        self, directory: Path, *, nodes: int = 3, ids: Sequence[int] = (), token: int = TOKEN
    ) -> None:
        """*ids* are the corosync node ids, if they are not 1 to *nodes*."""
        self.directory = directory
        self.token = token
        self.nodes = [Member(n, directory / f"node{n}") for n in range(1, (len(ids) or nodes) + 1)]
        for node, nodeid in zip(self.nodes, ids, strict=False):
            node.nodeid = nodeid
        self.network = Network()
        try:
            for node in self.nodes:
                node.boot(self.network, self.nodes)
                node.write_corosync_conf(corosync_conf(self.nodes, token=token))
            for node in self.nodes:
                node.wait_until_up()
        except BaseException:
            self.close()
            raise

    def __getitem__(self, number: int) -> Member:
        return self.nodes[number - 1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything. Fails if a node does not end, but ends the others first."""
        self.network.close()
        failures = []
        for node in self.nodes:
            try:
                node.close()
            except AssertionError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def start_corosync(self, *nodes: Member) -> None:
        """Start corosync on *nodes*, or on all, and wait until all of them are members."""
        for node in nodes or self.nodes:
            node.corosync.start()
        self.wait_for_members(*(nodes or self.nodes))

    def wait_for_members(self, *nodes: Member, seconds: float = QUORUM_PATIENCE) -> None:
        """Wait until corosync on each of these nodes sees exactly these nodes."""
        wanted = sorted(node.nodeid for node in nodes)
        self.wait_until(
            lambda: all(node.corosync.members() == wanted for node in nodes),
            seconds,
            f"nodes {wanted} to see one another",
            interval=MEMBERS_INTERVAL,
        )

    def serve_locally(self) -> None:
        """Start a daemon in local mode on each node, and wait until it has mounted."""
        for node in self.nodes:
            node.daemon.start("--local")
        for node in self.nodes:
            node.daemon.wait_until_mounted()

    def part(self, *sides: Iterable[Member]) -> None:
        """Partition the network; a node in none of the sides reaches all nodes."""
        self.network.part(*([node.name for node in side] for side in sides))

    def cut_off(self, *nodes: Member) -> None:
        """Separate these nodes from all others."""
        self.part(nodes, [node for node in self.nodes if node not in nodes])

    def heal(self) -> None:
        """Undo what was done to the network."""
        self.network.heal()

    def wait_until(
        self,
        condition: Callable[[], bool],
        seconds: float,
        wanted: str,
        *,
        interval: float = POLL_INTERVAL,
    ) -> float:
        """Return the seconds until *condition* was true; fail if that takes too long.

        Fails at once if a service has ended that the test has not stopped.
        """
        start = time.monotonic()
        while not condition():
            for node in self.nodes:
                for service in node.services:
                    service.check()
            waited = time.monotonic() - start
            assert waited < seconds, f"waited {seconds} s for {wanted}\n{self.describe()}"
            time.sleep(interval)
        return time.monotonic() - start

    def describe(self) -> str:
        """Return the ends of all logs, for messages of failed tests."""
        return "\n".join(s.log_tail() for node in self.nodes for s in node.services)
