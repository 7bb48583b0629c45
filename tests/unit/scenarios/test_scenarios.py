"""Each scenario of tests/scenarios, replayed on simulated nodes and compared with its effects."""

from pathlib import Path

import pytest

from tests.fakes.simulation.scenario import rewritten
from tests.places import SCENARIOS

FILES = sorted(SCENARIOS.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_scenario_has_the_effects_that_are_written_in_it(path: Path) -> None:
    assert rewritten(path.read_text()) == path.read_text()


def test_the_scenarios_are_found() -> None:
    assert len(FILES) >= 10
