"""Unit tests leave nothing in the machine's memory."""

from collections.abc import Iterator

import pytest

from pmxcfs.storage import staging


@pytest.fixture(autouse=True)
def _without_memory() -> Iterator[None]:
    """Let journals stage nothing, unless a test gives them a directory for that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "HOMES", ())
        yield
