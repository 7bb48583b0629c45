"""The demonstration shows what it says."""

import pytest

from tests.cluster import demo

pytestmark = pytest.mark.needs_corosync


def test_all_goes_as_it_should(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 0
    assert "All went as it should" in capsys.readouterr().out
