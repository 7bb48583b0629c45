"""The number of worker threads."""

import pytest

from pmxcfs.fuse.choice import workers_for
from pmxcfs.settings import Settings
from tests.conftest import ExpectLog


@pytest.mark.parametrize(("wanted", "expected"), [(None, 16), (5, 5), (40, 40)])
def test_the_number_of_workers_is_the_option_or_a_default(
    wanted: int | None, expected: int
) -> None:
    assert workers_for(Settings(nodename="a", workers=wanted)) == expected


def test_a_change_can_always_wait(expect_log: ExpectLog) -> None:
    expect_log("--workers 4 is too few: using 5")
    assert workers_for(Settings(nodename="a", workers=4)) == 5
