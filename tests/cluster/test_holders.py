"""Locks as cluster managers hold them: taken by mkdir, renewed, and taken over when they expire.

A holder sets the lock's mtime to the time of its node about once a second. A rival asks for the
removal of an expired lock by the mtime 0, and then tries mkdir. The clocks of the nodes are five
minutes apart.
"""

import errno
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster.agent import Agent, Outcome
from tests.cluster.lab import Member
from tests.cluster.together import Cluster

pytestmark = [pytest.mark.needs_corosync, pytest.mark.long]

Report = Callable[[object], None]

OFFSETS = {1: 0, 2: 300, 3: -300}  # seconds by which the clock of a node is off
LOCK = "priv/lock/held"
RACED = [f"priv/lock/{number}" for number in range(100)]
LIFETIME = 12.0  # seconds until a lock expires; 120 in the product
RENEWAL, ATTEMPT = 1.0, 0.2  # seconds between two renewals, and two attempts of a rival
RACE = 6.0  # seconds for two nodes to take all expired locks, less than their lifetime
LOSS = 30.0  # seconds for corosync to notice that a node is gone; 3 on an idle machine
# Not done or not known, and what a node answers whose daemon has just started, or starts.
UNKNOWN = (errno.EIO, errno.EBUSY, errno.ENOTCONN, errno.EACCES, errno.ENOENT)


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Cluster]:
    """A synced cluster of nodes with different wall clocks and short-lived locks."""
    with Cluster(tmp_path) as cluster:
        cluster.start_corosync()
        launch(cluster, *cluster.nodes)
        cluster.wait_for_agreement()
        cluster.agents(cluster[1])[0].do(("mkdir", "priv"), ("mkdir", "priv/lock"))
        cluster.wait_for_agreement()
        yield cluster


def launch(cluster: Cluster, *nodes: Member) -> None:
    for node in nodes:
        cluster.launch(node, clock_offset=OFFSETS[node.number])
        node.daemon.control("lock-lifetime", seconds=LIFETIME)


class _Loop:
    """Something done on a node again and again, until ``stop``."""

    pause = RENEWAL

    def __init__(self, agent: Agent) -> None:
        self.outcomes: list[Outcome] = []
        self._agent = agent
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over.wait(self.pause):
            self.outcomes.append(self._act())

    def _act(self) -> Outcome:
        raise NotImplementedError

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()


class Holder(_Loop):
    """Renews the lock, whatever the answers are."""

    def _act(self) -> Outcome:
        now = int(time.time()) + OFFSETS[self._agent.node.number]
        return self._agent.do(("utime", LOCK, now), seconds=60)[0]

    def renewed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.error]

    def has_renewed_since(self, moment: float) -> bool:
        return any(outcome.start > moment for outcome in self.renewed()[-1:])


class Rival(_Loop):
    """Tries to take the lock, until it has it."""

    pause = ATTEMPT
    taken: Outcome | None = None

    def _act(self) -> Outcome:
        _, outcome = self._agent.do(("utime", LOCK, 0), ("mkdir", LOCK), seconds=60)
        if not outcome.error:
            self.taken = outcome
            self._is_over.set()
        return outcome


def restart_holder(cluster: Cluster) -> None:
    cluster[2].daemon.kill()
    launch(cluster, cluster[2])


def restart_lowest(cluster: Cluster) -> None:
    cluster[1].daemon.kill()
    launch(cluster, cluster[1])


def restart_rival(cluster: Cluster) -> None:
    cluster[3].daemon.kill()
    launch(cluster, cluster[3])


def freeze_lowest(cluster: Cluster) -> None:
    cluster[1].daemon.freeze()
    time.sleep(LIFETIME / 2)
    cluster[1].daemon.thaw()


def power_off_lowest(cluster: Cluster) -> None:
    node = cluster[1]
    node.corosync.kill()
    node.daemon.kill()
    cluster.wait_for_members(cluster[2], cluster[3])
    node.corosync.start()
    launch(cluster, node)


FAULTS = (restart_holder, restart_lowest, restart_rival, freeze_lowest, power_off_lowest)


def test_a_renewed_lock_stays_with_its_holder(apart: Cluster, report: Report) -> None:
    cluster = apart
    agent, other = cluster.agents(cluster[2], cluster[3])
    agent("mkdir", LOCK)
    holder, rival = Holder(agent), Rival(other)
    gaps = {}
    try:
        for fault in FAULTS:
            start = time.monotonic()
            fault(cluster)
            over = time.monotonic()
            cluster.wait_until(
                lambda: holder.has_renewed_since(over),  # noqa: B023, as it is called here
                LOSS,
                "a renewal",
            )
            cluster.wait_for_agreement()
            times = [start, *(each.start for each in holder.renewed() if each.start > start)]
            gaps[fault.__name__] = max(b - a for a, b in itertools.pairwise(times))
            time.sleep(2 * RENEWAL)
    finally:
        holder.stop()
        rival.stop()
    report(f"longest times without a renewal, of {LIFETIME:.0f} s: {gaps}")
    assert rival.taken is None
    assert {outcome.error for outcome in holder.outcomes} <= {0, *UNKNOWN}
    assert {outcome.error for outcome in rival.outcomes} <= {errno.EEXIST, *UNKNOWN}
    cluster.finish()


@pytest.mark.parametrize("number", [1, 3])
def test_a_holder_that_is_cut_off_loses_its_lock_and_knows_it(
    apart: Cluster, report: Report, number: int
) -> None:
    """Node 1 has the lowest id, so the decision about the removal passes to node 2."""
    cluster = apart
    agent, other = cluster.agents(cluster[number], cluster[2])
    agent("mkdir", LOCK)
    holder, rival = Holder(agent), Rival(other)
    try:
        cluster.wait_until(lambda: len(holder.renewed()) > 1, LOSS, "renewals")
        cluster.cut_off(cluster[number])
        cut = time.monotonic()
        cluster.wait_until(lambda: rival.taken is not None, LOSS + LIFETIME, "the lock's expiry")
        assert rival.taken
        last = holder.renewed()[-1]
        assert rival.taken.end > last.start + LIFETIME
        time.sleep(2 * RENEWAL)
        assert holder.outcomes[-1].error == errno.EACCES
        cluster.heal()
        cluster.wait_for_members(*cluster.nodes)
        cluster.wait_for_agreement()
        time.sleep(2 * RENEWAL)
    finally:
        holder.stop()
        rival.stop()
    assert holder.renewed()[-1] == last, "it was renewed after another node had taken it"
    assert holder.outcomes[-1].error == errno.EACCES
    assert agent.do(("mkdir", LOCK))[0].error == errno.EEXIST
    assert agent.do(("utime", LOCK, 0))[0].error == errno.EACCES
    other("utime", LOCK, int(time.time()) + OFFSETS[2])
    report(
        f"holder on node {number} cut off: last renewal {last.start - cut:.1f} s after the cut, "
        f"the lock was taken {rival.taken.end - last.start:.1f} s after that"
    )
    cluster.finish()


@pytest.mark.parametrize("numbers", [(1, 3), (2, 3)])
def test_exactly_one_of_two_nodes_gets_an_expired_lock(
    apart: Cluster, report: Report, numbers: Sequence[int]
) -> None:
    cluster = apart
    (holder,) = cluster.agents(cluster[6 - sum(numbers)])
    assert not any(outcome.error for outcome in holder.do(*[("mkdir", path) for path in RACED]))
    time.sleep(LIFETIME)
    racers = cluster.agents(*(cluster[number] for number in numbers))
    for racer in racers:
        racer.begin(("seize", RACED, RACE))
    first, second = (racer.outcomes()[0].get() for racer in racers)
    assert sorted([*first, *second]) == sorted(RACED)
    for agent in [holder, *racers]:
        now = int(time.time()) + OFFSETS[agent.node.number]
        renewals = agent.do(*[("utime", path, now) for path in RACED])
        renewed = {path for path, each in zip(RACED, renewals, strict=True) if not each.error}
        assert renewed == {holder: set(), racers[0]: set(first), racers[1]: set(second)}[agent]
        assert {each.error for each in renewals} <= {0, errno.EACCES}
    report(f"{len(RACED)} expired locks: {len(first)} and {len(second)} on nodes {numbers}")
    cluster.finish()
