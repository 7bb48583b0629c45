"""A node whose changes go to a journal, for the tests of what a start makes of it."""

from pathlib import Path

import pytest

from tests.fakes.doubles.journals import JournalingNode


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The directory of the journal."""
    return tmp_path / "journal"


@pytest.fixture
def node(journal: Path) -> JournalingNode:
    return JournalingNode(journal)
