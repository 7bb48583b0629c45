"""The number of worker threads."""

import pytest

from pmxcfs.daemon.daemon import workers_for
from pmxcfs.settings import Settings
from tests.conftest import ExpectLog


@pytest.mark.parametrize(
    ("wanted", "is_clustered", "expected"),
    [(None, False, 3), (1, False, 1), (None, True, 16), (5, True, 5)],
)
def test_the_number_of_workers_is_the_option_or_depends_on_the_mode(
    wanted: int | None, is_clustered: bool, expected: int
) -> None:
    settings = Settings(nodename="a", workers=wanted)
    assert workers_for(settings, is_clustered=is_clustered) == expected


def test_in_a_cluster_a_change_can_always_wait(expect_log: ExpectLog) -> None:
    expect_log("--workers 4 is too few for a cluster: using 5")
    settings = Settings(nodename="a", workers=4)
    assert workers_for(settings, is_clustered=True) == 5
