"""Forks: two sides go on separately, and what the losing side has changed is kept.

The winner rewrites its status file again and again, as HA does: soon nothing in its tree tells when
the two sides parted.
"""

import faulthandler
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster import reboots
from tests.cluster.kept import copies, kept
from tests.cluster.lab import Member
from tests.cluster.together import Cluster
from tests.fakes.programs import careless

pytestmark = pytest.mark.needs_corosync

Report = Callable[[object], None]

CONTENT = b"memory: 512\n"
REWRITES = 12  # of the winner's status file; the loser makes two changes
LOSS = 20.0  # seconds until a separated node knows that it has no quorum
STUCK = 30.0  # seconds without room for a copy
STATUS = (sys.executable, "-m", "pmxcfs", "status")
REBOOTS = 10  # in one part


def force_quorum(cluster: Cluster, *side: Member) -> None:
    """Make a separated side quorate, as an administrator does, and wait until it is in sync."""
    cluster.wait_until(lambda: not side[0].daemon.info()["quorate"], LOSS, "the loss of quorum")
    side[0].run("corosync-quorumtool", "-e", str(len(side)))
    cluster.wait_for_agreement(*side)


def restart(cluster: Cluster, node: Member, *side: Member) -> None:
    assert node.daemon.stop(seconds=3) == 0, node.daemon.log_tail()
    cluster.launch(node)
    cluster.wait_for_agreement(*side)


def fork(cluster: Cluster, losers: Sequence[Member], winners: Sequence[Member]) -> None:
    """Let *losers* make a file while *winners* rewrite one more often; then heal."""
    (winner,) = cluster.agents(winners[0])
    for number in range(REWRITES):
        winner("put", "status", b"winner %d" % number)
    (loser,) = cluster.agents(losers[0])
    loser("create", "900.conf", CONTENT)


def assert_kept(cluster: Cluster, losers: Sequence[Member]) -> None:
    """Assert that the losers' file is in their kept copies, and that its path was logged."""
    cluster.wait_for_agreement()
    for agent in cluster.agents():
        assert agent("get", "status") == b"winner %d" % (REWRITES - 1)
        assert "900.conf" not in agent("list"), "the other side has won"
    assert kept(losers, "900.conf") == [CONTENT] * len(losers)
    for node in losers:
        cluster.wait_until(
            lambda node=node: bool(node.daemon.log_lines("another node's version: 900.conf")),  # type: ignore[misc]
            30,
            f"the log of {node.name}",
        )


@contextmanager
def separated(
    cluster: Cluster, losers: Sequence[Member], winners: Sequence[Member]
) -> Iterator[None]:
    """Separate two sides in the block, each of them quorate; heal at its end."""
    cluster.agents(cluster[1])[0].do(("put", "status", b"common"))
    cluster.wait_for_agreement()
    cluster.part(losers, winners)
    for side in (losers, winners):
        if 2 * len(side) > len(cluster.nodes):
            cluster.wait_for_agreement(*side)
        else:
            force_quorum(cluster, *side)
    yield
    cluster.heal()
    cluster.wait_for_members(*cluster.nodes)
    cluster[1].run("corosync-quorumtool", "-e", str(len(cluster.nodes)))


def test_what_a_majority_has_changed_is_kept_if_a_single_node_wins(idle_cluster: Cluster) -> None:
    cluster = idle_cluster
    cluster.start()
    losers, winners = cluster.nodes[:2], cluster.nodes[2:]
    with separated(cluster, losers, winners):
        fork(cluster, losers, winners)
    assert_kept(cluster, losers)
    assert not copies(winners)
    cluster.finish()


def test_what_one_half_has_changed_is_kept_if_the_other_half_wins(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=4) as cluster:
        cluster.start()
        losers, winners = cluster.nodes[:2], cluster.nodes[2:]
        with separated(cluster, losers, winners):
            fork(cluster, losers, winners)
        assert_kept(cluster, losers)
        assert not copies(winners)
        cluster.finish()


def fork_with_restarts(cluster: Cluster) -> None:
    """Fork, and restart the losers' daemons before the sides meet again."""
    losers, winners = cluster.nodes[:2], cluster.nodes[2:]
    cluster.start()
    with separated(cluster, losers, winners):
        fork(cluster, losers, winners)
        for node in losers:
            restart(cluster, node, *losers)
    cluster.wait_for_agreement()


def test_a_fork_is_known_after_restarts(idle_cluster: Cluster) -> None:
    fork_with_restarts(idle_cluster)
    assert_kept(idle_cluster, idle_cluster.nodes[:2])
    idle_cluster.finish()


@pytest.mark.long
def test_nodes_that_write_no_notes_are_found(idle_cluster: Cluster) -> None:
    for node in idle_cluster.nodes:
        node.daemon.program = (careless.__file__, "forget-departures")
    fork_with_restarts(idle_cluster)
    assert not kept(idle_cluster.nodes, "900.conf")


@pytest.mark.long
def test_a_node_that_can_t_keep_its_changes_stays_out_until_it_can(
    idle_cluster: Cluster, report: Report
) -> None:
    cluster = idle_cluster
    cluster.start()
    losers, winners = cluster.nodes[:2], cluster.nodes[2:]
    stuck = losers[0]
    place = stuck.database.parent / "conflicts"
    with separated(cluster, losers, winners):
        fork(cluster, losers, winners)
        place.write_bytes(b"a file where the directory should be")
    cluster.wait_for_members(*cluster.nodes)
    cluster.wait_until(lambda: bool(stuck.daemon.log_lines("staying out")), 30, "the failure")
    time.sleep(STUCK)
    assert len(stuck.daemon.log_lines("staying out")) == 1
    attempts = len(stuck.daemon.log_lines("waiting for the leader's updates"))
    assert attempts <= 4, "it joins after 5, 10 and 20 s"
    assert "can't be copied" in stuck.run(*STATUS, check=False)
    start = time.monotonic()
    place.unlink()
    assert_kept(cluster, losers)
    report(f"back {time.monotonic() - start:.1f} s after there was room")
    cluster.finish()


@pytest.mark.long
@pytest.mark.parametrize("part", range(2))
def test_reboots_under_load_keep_no_conflict(
    idle_cluster: Cluster, report: Report, part: int
) -> None:
    faulthandler.cancel_dump_traceback_later()  # it takes long, and nothing is wrong then
    idle_cluster.start()
    load = reboots.reboot_under_load(idle_cluster, REBOOTS, first=part * REBOOTS)
    report(f"{REBOOTS} reboots, {load.done} changes meanwhile")
    reboots.check(idle_cluster, load)
    idle_cluster.finish()
