"""Wall clocks that jump, also to times before 1970 and after 2106, while the daemon runs.

The clock is that of one daemon alone: libfaketime adds an offset, which the test changes, to the
wall clock and leaves the monotonic clock as it is, as a jump of the machine's clock does.
"""

import errno
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.agent import Agent
from tests.cluster.together import Cluster, timed

pytestmark = [pytest.mark.needs_corosync, pytest.mark.long]

HOUR, DAY = 3600, 86400
MAX_TIME = (1 << 32) - 1
SOON = 30.0  # seconds for steps that take one or two
LOCK = "priv/lock/held"
# In 2026: 1941, 2043, 2109.
FAR = {"before 1970": -2_700_000_000, "after 2038": 520_000_000, "after 2106": 2_600_000_000}


@pytest.fixture
def jumping(idle_cluster: Cluster) -> Iterator[Cluster]:
    """A synced cluster; the clocks of node 1, the lowest, and of node 2 can jump."""
    idle_cluster.start_corosync()
    for node, offset in zip(idle_cluster.nodes, (1, 1, 0), strict=True):
        idle_cluster.launch(node, clock_offset=offset)
    idle_cluster.wait_for_agreement()
    yield idle_cluster
    idle_cluster.finish()


def expected(offset: int) -> int:
    """Return the date that a change gets by a clock that is off by *offset* seconds."""
    return min(max(int(time.time()) + offset, 0), MAX_TIME)


def change_and_check(agents: list[Agent], name: str, offset: int) -> float:
    """Change files through each node, the second one's clock being off; return the most seconds."""
    longest = 0.0
    for number, agent in enumerate(agents):
        path = f"{name}-{number}"
        with timed() as took:
            agent("create", path, b"x")
            agent("put", path, b"content")
            agent("rename", path, f"{path}-renamed")
        longest = max(longest, *took)
    for reader in agents:
        for number in range(len(agents)):
            wait_for(reader, f"{name}-{number}-renamed")
            assert reader("get", f"{name}-{number}-renamed") == b"content"
    dated = agents[0]("mtime", f"{name}-1-renamed")
    assert abs(dated - expected(offset)) < SOON
    return longest


def wait_for(agent: Agent, path: str) -> None:
    end = time.monotonic() + SOON
    while agent.do(("stat", path))[0].error:
        assert time.monotonic() < end, path


@pytest.mark.parametrize("jumper", [1, 2], ids=["lowest", "other"])
def test_a_clock_that_jumps_costs_no_change_no_lock_and_no_membership(
    jumping: Cluster, jumper: int, report: Callable[[object], None]
) -> None:
    node = jumping[jumper]
    agents = jumping.agents()
    agents[jumper - 1], agents[1] = agents[1], agents[jumper - 1]  # the jumper is the second one
    owner = agents[1]
    owner.do(("mkdir", "priv"), ("mkdir", "priv/lock"))
    owner("mkdir", LOCK)
    joins = [len(one.daemon.log_lines("members: ")) for one in jumping.nodes]
    longest = {}
    offsets = {"hour": HOUR, "-hour": -HOUR, "day": DAY, "-day": -DAY, **FAR, "back": 1}
    for name, offset in offsets.items():
        node.daemon.set_clock(offset)
        longest[name] = round(change_and_check(agents, name, offset), 3)
        # Its owner can renew the lock, with its own time, and no other node gets it.
        asked = max(1, expected(offset))
        assert owner.do(("utime", LOCK, asked))[0].error == 0, name
        assert agents[2].do(("utime", LOCK, 0))[0].error == errno.EACCES
        owner("stat", LOCK)
        jumping.verify(SOON)
    assert [len(one.daemon.log_lines("members: ")) for one in jumping.nodes] == joins
    # The lock expires when its time is over, though its date is in 2106.
    for one in jumping.nodes:
        one.daemon.control("lock-lifetime", seconds=1.0)
    agents[2].do(("utime", LOCK, 0))
    started = time.monotonic()
    while not agents[2].do(("stat", LOCK))[0].error:
        agents[2].do(("utime", LOCK, 0))
        assert time.monotonic() - started < SOON
    report(f"jumps of node {jumper}: the longest three changes in s {longest}")


@pytest.mark.parametrize("name", FAR)
def test_a_node_whose_clock_is_far_off_starts_and_joins(jumping: Cluster, name: str) -> None:
    node = jumping[2]
    agents = jumping.agents()
    assert node.daemon.stop() == 0
    agents[0]("create", "while-away", b"x")
    jumping.launch(node, clock_offset=FAR[name])
    jumping.wait_for_agreement()
    assert agents[1]("get", "while-away") == b"x"
    change_and_check(agents, "joined", FAR[name])
    # It takes part in a round, and its clock jumps while it is away.
    jumping.cut_off(node)
    jumping.wait_until(lambda: not node.daemon.info()["quorate"], SOON, "loss of quorum")
    node.daemon.set_clock(HOUR)
    jumping.heal()
    jumping.wait_for_agreement()
    change_and_check(agents, "healed", HOUR)
    assert b"node2" in agents[0]("get", ".clusterlog")
    jumping.verify(SOON)
