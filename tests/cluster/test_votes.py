"""Quorum by the options of votequorum: changes are allowed exactly where corosync says so.

Where two sides are quorate at once, no acknowledged change of either side is lost: it is in the
cluster's tree afterwards, or in a copy that its node has kept.
"""

import errno
import itertools
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.agent import Agent
from tests.cluster.kept import copies, trees
from tests.cluster.lab import Member, corosync_conf
from tests.cluster.node import Node
from tests.cluster.services import QuorumDevice, Witness
from tests.cluster.together import Cluster

pytestmark = [pytest.mark.needs_corosync, pytest.mark.long]

Report = Callable[[object], None]

DETECTION = 30.0  # seconds for corosync to notice; 2 on an idle machine
TOLD = 2.0  # seconds from then on until the daemon knows, on a busy machine
STATUS = (sys.executable, "-m", "pmxcfs", "status", "--json")
QUORUM = ("corosync-quorumtool", "-s")
EXPECTED = re.compile(r"^Expected votes: +(\d+)", re.MULTILINE)
CUTS = 6
PACE = 0.02  # seconds between two changes of a writer
WINDOW = 1000  # milliseconds until corosync forgets the votes of dead nodes
LAST_MAN = (
    "wait_for_all: 1",
    "auto_tie_breaker: 1",
    "last_man_standing: 1",
    f"last_man_standing_window: {WINDOW}",
)


@contextmanager
def voting(directory: Path, nodes: int, *options: str) -> Iterator[Cluster]:
    """Yield a cluster with *options* in the section ``quorum``, on which nothing runs yet."""
    with Cluster(directory, nodes=nodes) as cluster:
        for node in cluster.nodes:
            node.write_corosync_conf(corosync_conf(cluster.nodes, quorum=options))
        yield cluster


def start(cluster: Cluster, *nodes: Member) -> None:
    for node in nodes:
        node.corosync.start()
    cluster.launch(*nodes)


def power_off(node: Member) -> None:
    node.corosync.kill()
    node.daemon.kill()


def assert_quorum(
    cluster: Cluster,
    *sides: Collection[Member],
    quorate: Collection[Member],
    started: Collection[Member] = (),
) -> str:
    """Assert that corosync and each daemon agree about quorum, members and allowed changes.

    *sides* are the parts of the cluster; those nodes of them that are in *quorate* may change
    files. Return the longest time that a daemon took to learn of it. The daemons of *started* may
    have started before their corosync, so that they still have to connect.
    """
    told = [0.0]
    for node in itertools.chain(*sides):
        may_change = node in quorate
        cluster.wait_until(
            lambda: node.corosync.is_quorate() == may_change,  # noqa: B023, as it is called here
            DETECTION,
            f"corosync's quorum on {node.name} to be {may_change}",
        )
        seconds = cluster.wait_until(
            lambda: node.daemon.info()["quorate"] == may_change,  # noqa: B023
            DETECTION,
            f"quorum of the daemon on {node.name} to be {may_change}",
        )
        if node not in started:
            told.append(seconds)
    for side in sides:
        for node in side:
            assert_shown(cluster, node, side, may_change=node in quorate)
    assert max(told) < TOLD
    return f"{1000 * max(told):.0f} ms"


def assert_shown(
    cluster: Cluster, node: Member, side: Collection[Member], *, may_change: bool
) -> None:
    """Assert that *node* shows its side and its quorum, and that changes are allowed or not."""
    ids = sorted(other.number for other in side)
    (agent,) = cluster.agents(node)
    cluster.wait_until(
        lambda: node.daemon.info()["status_members"] == ids, DETECTION, f"members {ids}"
    )

    def status() -> Any:
        return json.loads(node.run(*STATUS, check=False))

    def is_status_up_to_date() -> bool:  # the cluster's name and the addresses arrive later
        shown = json.loads(agent("get", ".members"))
        return "cluster" in shown and bool(status()["members"] == shown)

    cluster.wait_until(is_status_up_to_date, DETECTION, "a status with the members")
    members = json.loads(agent("get", ".members"))
    assert members["cluster"]["quorate"] == may_change
    online = [name for name, entry in members["nodelist"].items() if entry["online"]]
    assert sorted(online) == sorted(other.name for other in side)
    assert status()["quorate"] == may_change
    if may_change:
        cluster.wait_for_agreement(*side)
    (written,) = agent.do(("put", f"by-{node.name}", b"x"))
    assert written.error == (0 if may_change else errno.EACCES)
    assert agent("stat", "corosync.conf")[0] & 0o222 == (0o200 if may_change else 0)


class Writer:
    """Makes files of its own on a node, one after the other; ``made`` are the acknowledged ones."""

    def __init__(self, agent: Agent) -> None:
        self.made: list[str] = []
        self._agent = agent
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for number in itertools.count():
            if self._is_over.wait(PACE):
                return
            path = f"{self._agent.node.name}.{number}"
            (outcome,) = self._agent.do(("create", path, b"x"), seconds=120)
            if not outcome.error:
                self.made.append(path)

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()


def missing(cluster: Cluster, writers: Sequence[Writer]) -> set[str]:
    """Return what the writers have made and what is neither in the tree nor in a kept copy."""
    found = set(cluster.agents(cluster[1])[0]("list", ""))
    for tree in trees(cluster.nodes):
        found |= {entry.path for entry in tree.root.children()}
    return {path for writer in writers for path in writer.made} - found


def test_each_of_two_nodes_is_quorate_alone_after_it_has_seen_the_other(
    tmp_path: Path, report: Report
) -> None:
    with voting(tmp_path, 2, "two_node: 1") as cluster:
        one, two = cluster.nodes
        start(cluster, one)
        before = assert_quorum(cluster, [one], quorate=[])
        start(cluster, two)
        joined = assert_quorum(cluster, [one, two], quorate=[one, two], started=[two])
        power_off(two)
        cluster.wait_for_agreement(one)
        alone = assert_quorum(cluster, [one], quorate=[one])
        cluster.agents(one)[0]("put", "meanwhile", b"x")
        one.corosync.stop()
        one.corosync.start()
        again = assert_quorum(cluster, [one], quorate=[])
        start(cluster, two)
        assert_quorum(cluster, [one, two], quorate=[one, two], started=[one, two])
        assert cluster.agents(two)[0]("get", "meanwhile") == b"x"
        assert not copies(cluster.nodes)
        report(f"two_node: told after {before}, {joined}, {alone}, {again}")
        cluster.finish()


def test_no_change_is_lost_when_the_link_of_two_nodes_is_cut_again_and_again(
    tmp_path: Path, report: Report
) -> None:
    with voting(tmp_path, 2, "two_node: 1") as cluster:
        cluster.start()
        one, two = cluster.nodes
        writers = [Writer(agent) for agent in cluster.agents()]
        try:
            for cut in range(CUTS):
                cluster.cut_off(one)
                assert_quorum(cluster, [one], [two], quorate=[one, two])
                if cut % 3:
                    victim = cluster[cut % 3]
                    victim.daemon.kill()
                    cluster.launch(victim)
                    cluster.wait_for_agreement(victim)
                time.sleep(cut % 2)
                cluster.heal()
                cluster.wait_for_members(one, two)
                cluster.wait_for_agreement()
        finally:
            for writer in writers:
                writer.stop()
        cluster.wait_for_agreement()
        kept = [len(copies([node])) for node in cluster.nodes]
        made = [len(writer.made) for writer in writers]
        report(f"two_node: {CUTS} cuts, {made} files made, {kept} copies kept")
        assert not missing(cluster, writers)
        assert sum(kept) >= CUTS
        cluster.finish()


def test_a_majority_waits_for_all_after_it_was_shut_down(tmp_path: Path, report: Report) -> None:
    with voting(tmp_path, 3, "wait_for_all: 1") as cluster:
        cluster.start()
        one, two, three = cluster.nodes
        for node in cluster.nodes:
            assert node.daemon.stop(seconds=3) == 0
            node.corosync.stop()
        start(cluster, one, two)
        waiting = assert_quorum(cluster, [one, two], quorate=[])
        start(cluster, three)
        whole = assert_quorum(cluster, cluster.nodes, quorate=cluster.nodes, started=[three])
        power_off(three)
        assert_quorum(cluster, [one, two], quorate=[one, two])
        report(f"wait_for_all: told after {waiting}, {whole}")
        start(cluster, three)
        cluster.wait_for_agreement()
        cluster.finish()


def wait_for_expected_votes(cluster: Cluster, node: Member, votes: int) -> None:
    cluster.wait_until(
        lambda: votes == int(EXPECTED.findall(node.run(*QUORUM, check=False))[0]),
        DETECTION,
        f"{votes} expected votes",
        interval=0.1,
    )


def test_the_last_node_that_stands_goes_on_alone(tmp_path: Path, report: Report) -> None:
    with voting(tmp_path, 3, *LAST_MAN) as cluster:
        cluster.start()
        one, two, three = cluster.nodes
        cluster.cut_off(three)
        first = assert_quorum(cluster, [one, two], [three], quorate=[one, two])
        wait_for_expected_votes(cluster, one, 2)
        power_off(two)
        second = assert_quorum(cluster, [one], [three], quorate=[one])
        cluster.agents(one)[0]("put", "meanwhile", b"x")
        cluster.heal()
        start(cluster, two)
        cluster.wait_for_members(*cluster.nodes)
        assert_quorum(cluster, cluster.nodes, quorate=cluster.nodes, started=[two])
        for agent in cluster.agents():
            assert agent("get", "meanwhile") == b"x"
        assert not copies(cluster.nodes)
        report(f"last_man_standing: told after {first}, {second}")
        cluster.finish()


def test_votes_that_change_at_run_time_count_at_once(tmp_path: Path, report: Report) -> None:
    with voting(tmp_path, 3) as cluster:
        cluster.start()
        one, two, three = cluster.nodes
        one.run("corosync-quorumtool", "-e", "5")
        assert_quorum(cluster, cluster.nodes, quorate=cluster.nodes)
        three.corosync.kill()
        raised = assert_quorum(cluster, [one, two], quorate=[])
        one.run("corosync-quorumtool", "-e", "3")
        lowered = assert_quorum(cluster, [one, two], quorate=[one, two])
        three.corosync.start()
        cluster.wait_for_members(*cluster.nodes)
        cluster.wait_for_agreement()
        one.run("corosync-quorumtool", "-v", "3", "-n", "1")
        wait_for_expected_votes(cluster, three, 5)
        cluster.cut_off(one)
        heavy = assert_quorum(cluster, [one], [two, three], quorate=[one])
        cluster.heal()
        cluster.wait_for_members(*cluster.nodes)
        cluster.wait_for_agreement()
        one.run("corosync-quorumtool", "-v", "1", "-n", "1")
        assert_quorum(cluster, cluster.nodes, quorate=cluster.nodes)
        assert not copies(cluster.nodes)
        report(f"votes at run time: told after {raised}, {lowered}, {heavy}")
        cluster.finish()


def test_half_of_the_nodes_goes_on_if_it_has_the_lowest(tmp_path: Path, report: Report) -> None:
    with voting(tmp_path, 4, "auto_tie_breaker: 1") as cluster:
        cluster.start()
        one, two, three, four = cluster.nodes
        cluster.part([one, four], [two, three])
        told = assert_quorum(cluster, [one, four], [two, three], quorate=[one, four])
        cluster.heal()
        cluster.wait_for_members(*cluster.nodes)
        assert_quorum(cluster, cluster.nodes, quorate=cluster.nodes)
        assert not copies(cluster.nodes)
        report(f"auto_tie_breaker: told after {told}")
        cluster.finish()


def test_a_witness_decides_between_two_nodes(tmp_path: Path, report: Report) -> None:
    with closing(Node(3, tmp_path / "witness")) as host:
        net = ("net {", f"host: {host.address}", "algorithm: ffsplit", "tls: off", "}")
        device = ("device {", "model: net", "votes: 1", *net, "}")
        with voting(tmp_path, 2, *device) as cluster:
            host.boot(cluster.network, [*cluster.nodes, host])
            host.wait_until_up()
            one, two = cluster.nodes
            witness, devices = Witness(host), [QuorumDevice(node) for node in cluster.nodes]
            witness.start()
            cluster.start()
            for each in devices:
                each.start()
            cluster.wait_until(lambda: has_vote(one) and has_vote(two), DETECTION, "its votes")
            told = [assert_quorum(cluster, [one, two], quorate=[one, two])]
            cluster.part([one], [two])
            cluster.wait_until(lambda: not two.corosync.is_quorate(), DETECTION, "a loss")
            told.append(assert_quorum(cluster, [one], [two], quorate=[one]))
            cluster.heal()
            cluster.wait_for_members(one, two)
            told.append(assert_quorum(cluster, [one, two], quorate=[one, two]))
            power_off(one)
            told.append(assert_quorum(cluster, [two], quorate=[two]))
            witness.kill()
            told.append(assert_quorum(cluster, [two], quorate=[]))
            witness.start()
            told.append(assert_quorum(cluster, [two], quorate=[two]))
            devices[1].kill()
            told.append(assert_quorum(cluster, [two], quorate=[]))
            devices[1].start()
            told.append(assert_quorum(cluster, [two], quorate=[two]))
            start(cluster, one)
            cluster.wait_for_agreement()
            assert not copies(cluster.nodes)
            report(f"qdevice: told after {told}")
            cluster.finish()


def has_vote(node: Member) -> bool:
    """Tell whether the vote of the witness counts on *node*."""
    return "Total votes:      3" in node.run(*QUORUM, check=False)
