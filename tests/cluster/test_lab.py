"""The lab itself: faults of network, corosync and daemons have the stated effects."""

import errno
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.agent import Agent
from tests.cluster.lab import Lab, Member

pytestmark = pytest.mark.needs_corosync

SETUP_TIME = 30.0  # seconds from nothing to three quorate nodes; 2 on an idle machine
DETECTION = 30.0  # seconds for corosync to see a change of the membership; 3 on an idle machine
SILENCE = 0.1  # seconds
MINUTE, HOUR = 60, 3600
DEAD = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.EIO})  # what a killed daemon leaves


def others(lab: Lab, node: Member) -> list[Member]:
    return [other for other in lab.nodes if other is not node]


def test_three_nodes_are_quorate_soon(tmp_path: Path, report: Callable[[object], None]) -> None:
    start = time.monotonic()
    with Lab(tmp_path) as lab:
        booted = time.monotonic()
        lab.start_corosync()
        quorate = time.monotonic()
        assert all(node.corosync.is_quorate() for node in lab.nodes)
    closed = time.monotonic()
    report(
        f"lab: three nodes booted in {booted - start:.2f} s, "
        f"quorate after {quorate - start:.2f} s, gone in {closed - quorate:.2f} s"
    )
    assert quorate - start < SETUP_TIME


def test_a_node_that_is_cut_off_loses_quorum_and_gets_it_back(quorate_lab: Lab) -> None:
    lab, node = quorate_lab, quorate_lab[3]
    before = time.monotonic()
    lab.cut_off(node)
    lab.wait_until(lambda: not node.corosync.is_quorate(), DETECTION, "the loss of quorum")
    lab.wait_for_members(*others(lab, node))
    assert node.corosync.members() == [3]
    assert before < node.corosync.quorum_losses()[-1] < time.monotonic()
    assert lab[1].corosync.is_quorate()
    lab.heal()
    lab.wait_for_members(*lab.nodes)
    assert node.corosync.is_quorate()


def test_a_node_without_carrier_is_cut_off_too(quorate_lab: Lab) -> None:
    lab, node = quorate_lab, quorate_lab[2]
    lab.network.unplug(node.name)
    lab.wait_until(lambda: not node.corosync.is_quorate(), DETECTION, "the loss of quorum")
    lab.wait_for_members(*others(lab, node))
    assert node.corosync.members() == [2]
    lab.network.plug(node.name)
    lab.wait_for_members(*lab.nodes)


@pytest.mark.parametrize(("percent", "least", "most"), [(0, 100, 100), (30, 40, 58), (100, 0, 0)])
def test_frames_are_lost_at_random(quorate_lab: Lab, percent: int, least: int, most: int) -> None:
    """A frame and its echo must both pass: with 30 % loss 49 % return."""
    lab = quorate_lab
    server = lab[1].start_worker("tests.cluster.echo:serve", lab[1].address)
    lab.network.lose(percent)
    silence = (
        SILENCE if percent else DETECTION
    )  # silence after which the rest of a batch counts as lost
    place = lab[1].address, server.receive()
    client = lab[2].start_worker("tests.cluster.echo:count", *place, silence)
    with closing(server), closing(client):
        assert least <= client.receive() <= most


def test_a_frozen_corosync_is_expelled_by_the_others(quorate_lab: Lab) -> None:
    lab, node = quorate_lab, quorate_lab[1]
    node.corosync.freeze()
    lab.wait_for_members(*others(lab, node))
    assert node.corosync.members() == []
    node.corosync.thaw()
    lab.wait_for_members(*lab.nodes)


def test_corosync_can_be_killed_and_restarted(quorate_lab: Lab) -> None:
    lab, node = quorate_lab, quorate_lab[2]
    node.corosync.kill()
    lab.wait_for_members(*others(lab, node))
    node.corosync.start()
    lab.wait_for_members(*lab.nodes)
    node.corosync.stop()
    node.corosync.start()
    lab.wait_for_members(*lab.nodes)


def test_a_service_that_dies_by_itself_ends_a_wait(lab: Lab) -> None:
    (lab[1].directory / "etc" / "corosync" / "corosync.conf").write_text("nonsense {")
    lab[1].corosync.start()
    with pytest.raises(AssertionError, match="corosync on node1 ended with status"):
        lab.wait_until(lambda: False, DETECTION, "nothing")


def test_each_node_has_a_mount_of_its_own(lab: Lab) -> None:
    lab.serve_locally()
    for node in lab.nodes:
        (node.path / "name").write_text(node.name)
    assert [(node.path / "name").read_text() for node in lab.nodes] == ["node1", "node2", "node3"]
    assert lab[2].run("cat", "/etc/pve/name") == "node2"
    assert lab[1].daemon.info()["checksum"] != lab[2].daemon.info()["checksum"]
    for node in lab.nodes:
        assert node.daemon.stop() == 0
    assert [node.stored_checksum() for node in lab.nodes].count(lab[1].stored_checksum()) == 1


def test_an_agent_reports_results_and_times(lab: Lab) -> None:
    lab.serve_locally()
    before = time.monotonic()
    with closing(Agent(lab[1])) as agent:
        outcomes = agent.do(
            ("create", "a", b"content"),
            ("create", "a"),
            ("open", "handle", "a", os.O_RDWR),
            ("write", "handle", b"C"),
            ("fsync", "handle"),
            ("read", "handle"),
            ("close", "handle"),
            ("mkdir", "directory"),
            ("rename", "a", "directory/b"),
            ("get", "directory/b"),
            ("list", "directory"),
        )
        values = [outcome.value for outcome in outcomes]
        errors = [outcome.error for outcome in outcomes]
        assert errors == [0, errno.EEXIST, *[0] * 9]
        assert values[5] == values[9] == b"Content"
        assert values[10] == ["b"]
        with pytest.raises(FileNotFoundError):
            agent("unlink", "a")
    times = [moment for outcome in outcomes for moment in (outcome.start, outcome.end)]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= time.monotonic()


def test_a_frozen_daemon_keeps_callers_waiting_and_a_killed_one_does_not(lab: Lab) -> None:
    lab.serve_locally()
    daemon = lab[1].daemon
    with closing(Agent(lab[1])) as agent:
        agent("put", "file", b"content")
        daemon.freeze()
        agent.begin(("put", "file", b"other"))
        with pytest.raises(TimeoutError):
            daemon.control("info")
        with pytest.raises(AssertionError, match="no answer"):
            agent.outcomes(0)
        daemon.thaw()
        assert agent.outcomes()[0].error == 0
        daemon.freeze()
        agent.begin(("get", "file"), ("get", "file"))
        daemon.kill()
        assert {outcome.error for outcome in agent.outcomes()} <= DEAD
        daemon.start("--local")
        daemon.wait_until_mounted()
        assert agent("get", "file") == b"other"


def test_an_unmounted_mountpoint_can_not_be_written(lab: Lab) -> None:
    with closing(Agent(lab[1])) as agent, pytest.raises(OSError, match="Read-only"):
        agent("create", "file")


@pytest.mark.parametrize("offset", [HOUR, -HOUR])
def test_a_wall_clock_can_be_off(lab: Lab, offset: int) -> None:
    daemon = lab[1].daemon
    daemon.start("--local", clock_offset=offset)
    daemon.wait_until_mounted()
    (lab[1].path / "file").write_text("")
    difference = (lab[1].path / "file").stat().st_mtime - time.time()
    assert abs(difference - offset) < MINUTE
    before = time.monotonic()
    daemon.control("lock-lifetime", seconds=1)
    assert daemon.stop() == 0
    assert time.monotonic() - before < DETECTION
