"""The demonstration of ``make demo`` runs without an error."""

import pytest

from tests.cluster import demo

pytestmark = pytest.mark.needs_corosync


def test_the_demonstration_exits_with_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 0
    assert "All went as it should" in capsys.readouterr().out
