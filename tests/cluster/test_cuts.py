"""Many cuts of clusters: what was acknowledged is in the common tree or in a kept copy."""

import faulthandler
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.cuts import Cuts, Tally
from tests.cluster.together import Cluster
from tests.fakes.programs import careless

pytestmark = [pytest.mark.needs_corosync, pytest.mark.long]

Report = Callable[[object], None]

CUTS = 25  # in one part
RESTARTS = 0.4  # the probability that one side's daemons are restarted in a cut
CUTS_TO_CATCH = 8


def check(tally: Tally) -> None:
    assert not tally.lost
    assert not tally.unequal
    assert not tally.unlogged


@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("nodes", [3, 4])
def test_no_acknowledged_change_is_lost_by_a_cut(
    tmp_path: Path, report: Report, seed: int, nodes: int, part: int
) -> None:
    faulthandler.cancel_dump_traceback_later()  # it takes long, and nothing is wrong then
    with Cluster(tmp_path, nodes=nodes) as cluster:
        cluster.start()
        cuts = Cuts(cluster, f"{seed}.{nodes}.{part}", restarts=RESTARTS)
        try:
            for _ in range(CUTS):
                cuts.run()
        finally:
            report(cuts.tally)
        check(cuts.tally)
        cluster.finish()


def test_nodes_that_write_no_notes_lose_changes(tmp_path: Path, report: Report, seed: int) -> None:
    faulthandler.cancel_dump_traceback_later()
    with Cluster(tmp_path) as cluster:
        for node in cluster.nodes:
            node.daemon.program = (careless.__file__, "forget-departures")
        cluster.start()
        cuts = Cuts(cluster, str(seed), restarts=1)
        while not cuts.tally.lost and cuts.tally.cuts < CUTS_TO_CATCH:
            cuts.run()
    report(cuts.tally)
    assert cuts.tally.lost
