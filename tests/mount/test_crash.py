"""Crash safety: a daemon killed at any moment loses and tears no operation that has returned.

``kills`` has the series of kills and what they compare.
"""

import faulthandler
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.programs.mortal import POINTS
from tests.mount.kills import WRITERS, Kills, Outcome

pytestmark = pytest.mark.needs_fuse

KILLS = 300
SECONDS = 60  # that these may take
LONG_KILLS = 250  # in one part
PARTS = 8
KILLS_TO_CATCH = 200  # that a careless daemon may survive without being caught


def check(outcome: Outcome) -> None:
    """Assert that nothing was lost in a sufficient number of operations."""
    assert outcome.violations == []
    assert outcome.operations > outcome.kills.total()


def test_no_finished_operation_is_lost(
    tmp_path: Path, report: Callable[[object], None], seed: int
) -> None:
    outcome = Kills(tmp_path, seed).run(KILLS, seconds=SECONDS)
    report(outcome)
    check(outcome)


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_no_finished_operation_is_lost_in_many_kills(
    tmp_path: Path, report: Callable[[object], None], seed: int, part: int
) -> None:
    faulthandler.cancel_dump_traceback_later()  # it takes long, and nothing is wrong then
    outcome = Kills(tmp_path, seed + part * WRITERS).run(LONG_KILLS)
    report(outcome)
    check(outcome)
    assert outcome.kills.total() == LONG_KILLS
    assert not {*POINTS} - {*outcome.kills}, "points at which no daemon was killed"


@pytest.mark.parametrize(
    "sabotage",
    [
        "reply-before-append",
        "lose-a-record",
        "position-before-rows",
        "saved-before-commit",
        "drop-before-commit",
        "forget-staged",
        "ignore-staged",
    ],
)
def test_a_daemon_with_a_deliberate_bug_is_found(
    tmp_path: Path, report: Callable[[object], None], seed: int, sabotage: str
) -> None:
    outcome = Kills(tmp_path, seed, sabotage=sabotage).run(KILLS_TO_CATCH)
    report(f"{sabotage}: {outcome}")
    assert outcome.violations
