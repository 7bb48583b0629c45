"""A node joins a cluster with a large tree, while the leader's users make changes."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.cluster.agent import Agent, Operation, Outcome
from tests.cluster.large_trees import give_large_tree
from tests.cluster.together import Cluster

pytestmark = pytest.mark.needs_corosync

Report = Callable[[object], None]

FEW, MANY = 10_000, 100_000  # entries
SLOWEST = 3.0  # seconds that a change of the leader may take: thrice the contract's
JOIN = 120.0  # seconds; 20 for the larger tree on an idle machine
CHANGES: Sequence[Operation] = (
    ("put", "own", b"x"),
    ("mkdir", "owndir"),
    ("rename", "own", "moved"),
    ("rmdir", "owndir"),
    ("unlink", "moved"),
)


def change_until(agent: Agent, is_over: Callable[[], bool]) -> list[Outcome]:
    """Make changes one after the other until *is_over*; return their outcomes."""
    outcomes: list[Outcome] = []
    while not is_over():
        outcomes += agent.do(*CHANGES)
    return outcomes


@pytest.mark.parametrize("entries", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
def test_the_leader_s_changes_are_made_while_it_sends_a_large_tree(
    idle_cluster: Cluster, tmp_path: Path, report: Report, entries: int
) -> None:
    cluster = idle_cluster
    give_large_tree(cluster, tmp_path / "scratch", *cluster.nodes[:2], entries=entries)
    cluster.start_corosync()
    cluster.launch(cluster[1], cluster[2])
    cluster.wait_for_agreement(cluster[1], cluster[2])
    leader, joining = cluster.agents(cluster[1])[0], cluster[3].daemon
    start = time.monotonic()
    cluster.launch(cluster[3])

    def is_joined() -> bool:
        assert time.monotonic() - start < JOIN
        info = joining.info()
        return info["mode"] == "synced" and int(info["entries"]) >= entries

    outcomes = change_until(leader, is_joined)
    seconds = time.monotonic() - start
    cluster.wait_for_agreement(seconds=JOIN)
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    report(
        f"{len(outcomes)} changes of the leader while it sent {entries} entries: median "
        f"{1000 * statistics.median(o.seconds for o in outcomes):.1f} ms, slowest "
        f"{slowest.seconds:.2f} s, begun {slowest.start - start:.1f} s after the start of the "
        f"joining node, which was in sync after {seconds:.1f} s"
    )
    assert "leader is 1/" in cluster[3].daemon.log_text()
    assert [outcome.error for outcome in outcomes] == [0] * len(outcomes)
    assert slowest.seconds < SLOWEST
    cluster.finish()
