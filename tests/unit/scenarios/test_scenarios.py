"""The stories in tests/scenarios, each replayed and compared with what it says."""

from pathlib import Path

import pytest

from tests.fakes.simulation.scenario import rewritten
from tests.places import SCENARIOS

STORIES = sorted(SCENARIOS.glob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_story_goes_as_written(path: Path) -> None:
    assert rewritten(path.read_text()) == path.read_text()


def test_there_are_stories() -> None:
    assert len(STORIES) >= 10
