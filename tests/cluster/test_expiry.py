"""Expiry of locks on nodes whose wall clocks are an hour apart."""

import errno
import time
from collections.abc import Callable

import pytest

from tests.cluster.together import Cluster

pytestmark = pytest.mark.needs_corosync

HOUR = 3600
LIFETIME = 3.0  # seconds until a lock expires; 120 in the product
SLACK = 30.0  # seconds for a membership change and a busy machine
LOCK = "priv/lock/held"


@pytest.fixture(params=[(HOUR, 0, -HOUR), (-HOUR, HOUR, 0)], ids=["falling", "mixed"])
def apart(idle_cluster: Cluster, request: pytest.FixtureRequest) -> Cluster:
    """A cluster of nodes with different wall clocks."""
    idle_cluster.start_corosync()
    for node, offset in zip(idle_cluster.nodes, request.param, strict=True):
        idle_cluster.launch(node, clock_offset=offset)
    idle_cluster.wait_for_agreement()
    for node in idle_cluster.nodes:
        node.daemon.control("lock-lifetime", seconds=LIFETIME)
    return idle_cluster


def test_the_lock_of_a_crashed_holder_is_freed_in_time(
    apart: Cluster, report: Callable[[object], None]
) -> None:
    cluster = apart
    taker, renewer, holder = cluster.agents()
    taker.do(("mkdir", "priv"), ("mkdir", "priv/lock"))
    cluster.wait_for_agreement()
    holder("mkdir", LOCK)
    for _ in range(2):  # a living holder renews its lock and keeps it
        now = holder("mtime", LOCK) + 1
        (renewed,) = holder.do(("utime", LOCK, now))
        assert renewed.error == 0
    cluster.wait_for_agreement()
    assert renewer.do(("utime", LOCK, now + HOUR))[0].error == errno.EACCES
    cluster[3].daemon.kill()
    attempts = 0
    while (outcome := taker.do(("mkdir", LOCK))[0]).error:
        assert outcome.error in (errno.EEXIST, errno.EBUSY)
        assert time.monotonic() - renewed.end < LIFETIME + SLACK
        (asked,) = taker.do(("utime", LOCK, 0))
        assert asked.error in (errno.EACCES, errno.ENOENT, errno.EBUSY)
        attempts += 1
    freed = outcome.end - renewed.start
    assert freed >= LIFETIME
    assert attempts > 1
    report(
        f"locks: with clocks an hour apart, a crashed holder's lock was free after {freed:.1f} s, "
        f"its lifetime is {LIFETIME:.0f} s"
    )
    cluster.launch(cluster[3])
    cluster.wait_for_agreement()
    cluster.finish()
