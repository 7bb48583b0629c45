"""Sixteen nodes with 10,000 files: they join, are killed, cut off, healed, and lose no write.

Each change of the membership is measured (``changes``) and must leave one tree on all nodes.
"""

import faulthandler
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.changes import Changes
from tests.cluster.lab import Member
from tests.cluster.large_trees import give_large_tree
from tests.cluster.together import Cluster

pytestmark = [pytest.mark.needs_corosync, pytest.mark.long]

Report = Callable[[object], None]

NODES, QUORUM = 16, 9
ENTRIES = 10_200  # of which 102 are directories
TOKEN = 10_000  # milliseconds: two processors have to run sixteen corosyncs
CHANGE = 180.0  # seconds for a change of the membership; a lost node is missed after 42
START = 300.0  # seconds until sixteen nodes that start at once can write
AGREEMENT = 60.0
VERIFICATION = 60.0  # seconds; one on an idle machine


@pytest.fixture
def sixteen(tmp_path: Path) -> Iterator[Cluster]:
    """Sixteen nodes, on which nothing runs yet. The first one has 10,000 files."""
    faulthandler.cancel_dump_traceback_later()  # it takes long, and nothing is wrong then
    with Cluster(tmp_path, nodes=NODES, token=TOKEN) as cluster:
        give_large_tree(cluster, tmp_path / "scratch", cluster[1], entries=ENTRIES)
        yield cluster


def test_sixteen_nodes_join_are_killed_cut_off_and_healed(sixteen: Cluster, report: Report) -> None:
    with closing(Changes(sixteen)) as changes:
        try:
            prepare(sixteen, changes)
            start_at_once(sixteen, changes)
            kill_and_start(sixteen, changes)
            cut_and_heal(sixteen, changes)
            join_one_by_one(sixteen, changes)
            sixteen.verify(VERIFICATION)
        finally:
            report(changes.table())
        lost = changes.lost()
        report(f"{changes.promised} acknowledged lines, {len(lost)} lost")
    assert not lost
    sixteen.finish()


def prepare(cluster: Cluster, changes: Changes) -> None:
    """Make the writers' files in the tree of the first node."""
    first = cluster[1].daemon
    first.start("--local")
    first.wait_until_mounted()
    changes.prepare(cluster[1])
    assert first.stop() == 0


def launch(*nodes: Member) -> None:
    """Start all services of *nodes*."""
    for node in nodes:
        node.corosync.start()
    for node in nodes:
        node.daemon.start()
    for node in nodes:
        node.daemon.wait_until_mounted(START)


def end(*nodes: Member) -> None:
    """Kill all processes of *nodes* that are the cluster's, as a power cut does."""
    for node in nodes:
        node.corosync.kill()
        node.daemon.kill()


def have_one_tree(nodes: Sequence[Member]) -> bool:
    """Tell whether the trees of *nodes* are equal."""
    return len({node.daemon.info()["checksum"] for node in nodes}) == 1


def start_at_once(cluster: Cluster, changes: Changes) -> None:
    nodes = cluster.nodes
    changes.measure(
        "16 start at once, 15 are empty", partial(launch, *nodes), *nodes, seconds=START
    )
    cluster.wait_for_agreement(seconds=AGREEMENT)


def kill_and_start(cluster: Cluster, changes: Changes) -> None:
    """Kill the highest node, then the lowest, which starts rounds; each comes back."""
    for victim in (cluster[NODES], cluster[1]):
        others = [node for node in cluster.nodes if node is not victim]
        changes.measure(
            f"{victim.name} is killed",
            partial(end, victim),
            *others,
            killed=[victim],
            seconds=CHANGE,
        )
        cluster.wait_for_agreement(*others, seconds=AGREEMENT)
        changes.measure(
            f"{victim.name} starts", partial(launch, victim), *cluster.nodes, seconds=CHANGE
        )
        cluster.wait_for_agreement(seconds=AGREEMENT)


def cut_and_heal(cluster: Cluster, changes: Changes) -> None:
    """Cut off one node, then almost half of them; then all of them meet again."""
    for alone in (cluster.nodes[7:8], cluster.nodes[QUORUM:]):
        others = [node for node in cluster.nodes if node not in alone]
        changes.measure(
            f"{len(alone)} cut off",
            partial(cluster.cut_off, *alone),
            *others,
            cut_off=alone,
            seconds=CHANGE,
        )
        cluster.wait_for_agreement(*others, seconds=AGREEMENT)
        changes.measure(f"{len(alone)} healed", cluster.heal, *cluster.nodes, seconds=CHANGE)
        cluster.wait_for_agreement(seconds=AGREEMENT)


def join_one_by_one(cluster: Cluster, changes: Changes) -> None:
    """Stop all nodes, and start one after the other; they can write from the ninth on."""
    for node in cluster.nodes:
        assert node.daemon.stop() == 0
    for node in cluster.nodes:
        node.corosync.stop()
    for number, node in enumerate(cluster.nodes, 1):
        there = cluster.nodes[:number]
        changes.measure(f"{node.name} joins", partial(launch, node), *there, seconds=CHANGE)
        cluster.wait_until(partial(have_one_tree, there), AGREEMENT, "equal trees")
    cluster.wait_for_agreement(seconds=AGREEMENT)
