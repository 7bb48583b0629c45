"""The releases of Debian that the tests of the package run on."""

import pytest

from tests.package.machine import RELEASES


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    """Return the name of a release; the test runs for each."""
    name: str = request.param
    return name
