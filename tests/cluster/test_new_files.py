"""New files in a cluster: announced with their content, and what other nodes do meanwhile."""

import errno
import os
import stat
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.agent import Agent
from tests.cluster.lab import Member
from tests.cluster.together import Cluster, milliseconds

pytestmark = pytest.mark.needs_corosync

Report = Callable[[object], None]

NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
SOON = 60.0  # seconds for a change to be seen on the others; milliseconds on an idle machine
LATE = 20.0  # seconds until a file is announced by time: more than any test needs to close it
AT_ONCE = 0.8  # seconds for a request that waits for no other node; below corosync's token
RACES = 60
SAVES = 150  # of a file, in each way


@pytest.fixture
def patient(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster in which no file is announced by time."""
    for node in cluster.nodes:
        node.daemon.control("publish-after", seconds=LATE)
    yield cluster
    for node in cluster.nodes:
        if node.daemon.is_running:
            node.daemon.control("publish-after", seconds=1.0)


def version(node: Member) -> int:
    return int(node.daemon.info()["version"])


def see(cluster: Cluster, agents: list[Agent], path: str, wanted: object) -> None:
    """Wait until all nodes have this content at *path*; None: nothing is there."""
    for agent in agents:
        cluster.wait_until(
            lambda agent=agent: agent.do(("get", path))[0].value == wanted,  # type: ignore[misc]
            SOON,
            f"{path} on {agent.node.name} to have {wanted!r}",
        )


def begin(agent: Agent, path: str, data: bytes = b"mine") -> None:
    """Make a file and write to it; it stays open."""
    outcomes = agent.do(("open", path, path, NEW), ("write", path, data))
    assert [outcome.error for outcome in outcomes] == [0, 0]


def close(agent: Agent, path: str) -> int:
    """Close a file; return the errno."""
    return agent.do(("close", path))[0].error


def test_an_open_that_makes_a_file_waits_for_nobody(patient: Cluster) -> None:
    agent, *others = patient.agents()
    patient[1].corosync.freeze()
    try:
        outcomes = agent.do(("open", "two", "two", NEW), ("write", "two", b"x"))
    finally:
        patient[1].corosync.thaw()
    assert [outcome.error for outcome in outcomes] == [0, 0]
    assert max(outcome.seconds for outcome in outcomes) < AT_ONCE
    patient.wait_for_agreement()
    assert close(agent, "two") == 0
    see(patient, others, "two", b"x")


def test_a_new_file_is_two_messages_and_with_a_rename_three(patient: Cluster) -> None:
    agent, *others = patient.agents()
    before = version(patient[1])
    begin(agent, "plain")
    assert version(patient[1]) == before
    assert agent("get", "plain") == b"mine"
    assert "plain" in agent("list")
    assert agent("stat", "plain")[1] == 4
    assert [other.do(("get", "plain"))[0].error for other in others] == [errno.ENOENT] * 2
    assert close(agent, "plain") == 0
    assert version(patient[1]) == before + 2
    see(patient, others, "plain", b"mine")
    begin(agent, "plain.tmp", b"renamed")
    agent("rename", "plain.tmp", "plain")
    assert version(patient[1]) == before + 5
    assert close(agent, "plain.tmp") == 0
    assert version(patient[1]) == before + 5
    see(patient, [agent, *others], "plain", b"renamed")
    see(patient, [agent, *others], "plain.tmp", None)


def test_a_file_that_stays_open_is_announced_after_a_second(cluster: Cluster) -> None:
    agent, *others = cluster.agents()
    begin(agent, "slow")
    see(cluster, others, "slow", b"mine")
    agent("write", "slow", b"more", 4)
    assert close(agent, "slow") == 0
    see(cluster, others, "slow", b"minemore")


def test_other_programs_of_the_node_use_the_file(patient: Cluster) -> None:
    agent, other = patient.agents(patient[1], patient[1])
    begin(agent, "shared")
    assert other("get", "shared") == b"mine"
    assert other.do(("create", "shared"))[0].error == errno.EEXIST
    assert other.do(("mkdir", "shared"))[0].error == errno.EEXIST
    other("put", "shared", b"theirs")
    assert close(agent, "shared") == 0
    see(patient, patient.agents(), "shared", b"theirs")


def test_another_node_makes_the_same_file_meanwhile(patient: Cluster) -> None:
    agent, *others = patient.agents()
    begin(agent, "same", b"12")
    others[0]("put", "same", b"theirs")
    see(patient, others, "same", b"theirs")
    before = version(patient[1])
    assert agent("get", "same") == b"12"
    assert close(agent, "same") == 0
    assert version(patient[1]) == before + 1
    see(patient, [agent, *others], "same", b"12")
    assert agent("stat", "same")[1] == 2


def test_another_node_replaces_the_name_by_a_finished_file(patient: Cluster) -> None:
    agent, other, third = patient.agents()
    begin(agent, "taken")
    begin(other, "taken.tmp", b"finished")
    other("rename", "taken.tmp", "taken")
    assert close(other, "taken.tmp") == 0
    see(patient, [other, third], "taken", b"finished")
    assert close(agent, "taken") == 0
    see(patient, [agent, other, third], "taken", b"mine")


def test_another_node_makes_a_directory_there(patient: Cluster) -> None:
    agent, other, third = patient.agents()
    begin(agent, "crowded")
    other("mkdir", "crowded")
    see(patient, [third], "crowded", None)
    patient.wait_until(
        lambda: stat.S_ISDIR(agent("stat", "crowded")[0]), SOON, "the directory to be seen"
    )
    assert close(agent, "crowded") == errno.EISDIR
    assert agent("list", "crowded") == []
    other("rmdir", "crowded")
    for one in (agent, other, third):
        patient.wait_until(lambda one=one: "crowded" not in one("list"), SOON, "it to go")  # type: ignore[misc]


def test_another_node_removes_the_directory(patient: Cluster) -> None:
    agent, other, third = patient.agents()
    agent("mkdir", "home")
    see_directory(patient, [other, third], "home")
    begin(agent, "home/f")
    other("rmdir", "home")
    patient.wait_until(lambda: "home" not in agent("list"), SOON, "the directory to go")
    assert close(agent, "home/f") == errno.ENOENT
    assert all("home" not in one("list") for one in (agent, other, third))


def see_directory(cluster: Cluster, agents: list[Agent], path: str) -> None:
    for agent in agents:
        cluster.wait_until(
            lambda agent=agent: agent.do(("list", path))[0].error == 0,  # type: ignore[misc]
            SOON,
            f"{path} to be seen on {agent.node.name}",
        )


def test_a_removal_sends_nothing_and_a_directory_is_not_empty(patient: Cluster) -> None:
    agent, *others = patient.agents()
    agent("mkdir", "full")
    before = version(patient[1])
    begin(agent, "full/f")
    assert agent("list", "full") == ["f"]
    assert agent.do(("rmdir", "full"))[0].error == errno.ENOTEMPTY
    agent("unlink", "full/f")
    assert agent("list", "full") == []
    assert agent.do(("get", "full/f"))[0].error == errno.ENOENT
    assert close(agent, "full/f") == 0
    assert version(patient[1]) == before
    agent("rmdir", "full")
    assert version(patient[1]) == before + 1
    see(patient, others, "full/f", None)


@pytest.mark.parametrize("operation", ["fsync", "utime", "truncate"])
def test_what_needs_the_file_announces_it(patient: Cluster, operation: str) -> None:
    agent, *others = patient.agents()
    name = f"by-{operation}"
    begin(agent, name)
    arguments = {"utime": (12345,), "truncate": (2,), "fsync": ()}[operation]
    agent(operation, name, *arguments)
    wanted = b"mi" if operation == "truncate" else b"mine"
    see(patient, others, name, wanted)
    assert close(agent, name) == 0
    if operation == "utime":
        assert agent("mtime", name) == 12345


def test_nothing_is_left_of_a_file_whose_daemon_is_killed_before_the_close(
    patient: Cluster,
) -> None:
    agent, *others = patient.agents()
    node = patient[1]
    begin(agent, "never")
    node.daemon.kill()
    assert close(agent, "never") != 0
    patient.mend()
    everyone = [*patient.agents(node), *others]
    assert ["never" in one("list") for one in everyone] == [False] * 3
    patient.wait_for_agreement()


def test_a_file_is_announced_when_the_daemon_stops(patient: Cluster) -> None:
    agent, *others = patient.agents()
    begin(agent, "last")
    assert patient[1].daemon.stop() == 0
    see(patient, others, "last", b"mine")
    patient.mend()


def test_a_close_without_quorum_removes_the_file(patient: Cluster) -> None:
    agent, *others = patient.agents()
    patient[1].daemon.control("publish-after", seconds=1.0)
    begin(agent, "lost")
    patient[1].daemon.control("quorum", on=False)
    assert agent.do(("write", "lost", b"x"))[0].error == errno.EACCES
    assert "lost" in agent("list")
    assert close(agent, "lost") == errno.EACCES
    assert "lost" not in agent("list")
    patient[1].daemon.control("quorum", on=None)
    patient.wait_for_agreement()
    agent("put", "lost", b"found")
    see(patient, [agent, *others], "lost", b"found")


def test_a_node_that_is_cut_off_announces_nothing(patient: Cluster) -> None:
    agent, *others = patient.agents()
    begin(agent, "outside")
    begin(agent, "kept")
    patient.cut_off(patient[1])
    patient.wait_until(
        lambda: not patient[1].daemon.info()["quorate"], SOON, "the quorum to be lost"
    )
    assert close(agent, "outside") == errno.EACCES
    others[0]("put", "kept", b"theirs")
    patient.heal()
    patient.wait_for_agreement()
    assert agent("get", "kept") == b"mine"
    assert close(agent, "kept") == 0
    see(patient, [agent, *others], "kept", b"mine")
    assert ["outside" in one("list") for one in (agent, *others)] == [False] * 3


def test_all_nodes_make_the_same_files_at_once(cluster: Cluster) -> None:
    agents = cluster.agents()
    agents[0]("mkdir", "race")
    see_directory(cluster, agents[1:], "race")
    contents = {agent: agent.node.name.encode() * 50 for agent in agents}
    for number in range(RACES):
        for agent in agents:
            agent.begin(("put", f"race/{number}", contents[agent]))
        assert [agent.outcomes()[0].error for agent in agents] == [0, 0, 0]
    cluster.wait_for_agreement()
    for number in range(RACES):
        found = {agent("get", f"race/{number}") for agent in agents}
        assert len(found) == 1
        assert found <= set(contents.values())


def test_saving_a_file_is_two_waits_instead_of_three(cluster: Cluster, report: Report) -> None:
    """Figures only, from one run: each way in turn."""
    (agent,) = cluster.agents(cluster[1])
    agent("put", "saved", b"x")
    times: dict[str, list[float]] = {"announced at once": [], "with its content": []}
    for number in range(SAVES):
        for way, flags in zip(times, (NEW | os.O_EXCL, NEW), strict=True):
            outcomes = agent.do(
                ("open", "h", "saved.tmp", flags),
                ("write", "h", b"%d" % number),
                ("close", "h"),
                ("rename", "saved.tmp", "saved"),
            )
            assert [outcome.error for outcome in outcomes] == [0] * 4
            times[way].append(outcomes[-1].end - outcomes[0].start)
    for way, found in times.items():
        report(f"new file, write, close, rename; {way}: {milliseconds(found)}")
    cluster.wait_for_agreement()
