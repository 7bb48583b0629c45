"""Consistency of a cluster under faults: no acknowledged change is lost, all trees are equal."""

import faulthandler
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.storm import Storm, Summary
from tests.cluster.together import Cluster
from tests.fakes.programs import careless

pytestmark = pytest.mark.needs_corosync

Report = Callable[[object], None]

MINUTES_IN_CI, MINUTES = 0.5, 12
SHARE_IN_CI = 1 / 30  # of the work of the long run: at least one fault of each kind
SECONDS_TO_CATCH = 20
PATIENCE = 10.0  # seconds for the nodes of a cluster that can't agree
EXPECTED = re.compile(r"nodes that agree|several trees|other files|not there|has lost")
OPERATIONS = 20_000  # acknowledged in the long run
FAULTS = 30  # of each kind in the long run
KINDS = {
    "kill": ("kill daemon",),
    "freeze": ("freeze daemon",),
    "partition": ("partition", "unplug"),
    "corosync restart": ("restart corosync",),
    "packet loss": ("packet loss",),
}


def storm(directory: Path, seed: int, minutes: float) -> Summary:
    """Run a storm on a new cluster, and return its results."""
    faulthandler.cancel_dump_traceback_later()  # it takes long, and nothing is wrong then
    with Cluster(directory) as lab:
        lab.start()
        return Storm(lab, seed).run(60 * minutes)


def check(summary: Summary, *, share: float) -> None:
    """Assert that no promise was broken in a sufficient number of operations."""
    assert summary.violations == []
    assert summary.operations >= share * OPERATIONS
    for kind, names in KINDS.items():
        assert sum(summary.faults.get(name, 0) for name in names) >= share * FAULTS, kind


def test_a_storm_breaks_no_promise(tmp_path: Path, seed: int, report: Report) -> None:
    summary = storm(tmp_path, seed, MINUTES_IN_CI)
    report(summary)
    check(summary, share=SHARE_IN_CI)


def test_a_cluster_that_skips_an_update_is_found(tmp_path: Path, seed: int, report: Report) -> None:
    with Cluster(tmp_path) as lab:
        for node in lab.nodes:
            node.daemon.program = (careless.__file__, "skip-update")
        lab.start()
        summary = Storm(lab, seed, patience=PATIENCE).run(SECONDS_TO_CATCH)
    report(summary)
    assert any(EXPECTED.search(violation) for violation in summary.violations)


@pytest.mark.long
def test_a_long_storm_breaks_no_promise(tmp_path: Path, seed: int, report: Report) -> None:
    summary = storm(tmp_path, seed, MINUTES)
    report(summary)
    check(summary, share=1)
