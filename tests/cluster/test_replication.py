"""Replication between three nodes: changes, races for names, locks, status, host files."""

import errno
import functools
import itertools
import json
import os
import stat
import time
from collections.abc import Callable

import pytest

from tests.cluster.agent import Agent
from tests.cluster.lab import Member, corosync_conf
from tests.cluster.together import Cluster, milliseconds, timed

pytestmark = pytest.mark.needs_corosync

Report = Callable[[object], None]

SOON = 30.0  # seconds for a change to be seen on the others; milliseconds on an idle machine
RELOAD = 30.0  # seconds for a new corosync.conf to be in use
CONTENDERS = 100  # times that each node takes the lock
CHANGES = 5000  # remote ones, in one directory: creations and writes of two nodes


def see(cluster: Cluster, agent: Agent, *operation: object, wanted: object) -> None:
    """Wait until an operation on another node has this outcome: a value, or an errno."""

    def is_seen() -> bool:
        (outcome,) = agent.do(operation)
        return (outcome.error if isinstance(wanted, Refusal) else outcome.value) == wanted

    cluster.wait_until(is_seen, SOON, f"{operation} to give {wanted!r}")


class Refusal(int):
    """An expected errno."""


ABSENT = Refusal(errno.ENOENT)


def test_every_kind_of_change_is_seen_on_all_nodes(cluster: Cluster, report: Report) -> None:
    agents = cluster.agents()
    times: list[float] = []
    for number, agent in enumerate(agents):
        home, others = f"from{number}", [other for other in agents if other is not agent]
        plan: list[tuple[tuple[object, ...], tuple[object, ...], object]] = [
            (("mkdir", home), ("list", home), []),
            (("create", f"{home}/a", b"one"), ("get", f"{home}/a"), b"one"),
            (("put", f"{home}/a", b"other"), ("get", f"{home}/a"), b"other"),
            (("put", f"{home}/a", bytes(1 << 20)), ("get", f"{home}/a"), bytes(1 << 20)),
            (("truncate", f"{home}/a", 3), ("get", f"{home}/a"), bytes(3)),
            (("rename", f"{home}/a", f"{home}/b"), ("list", home), ["b"]),
            (("utime", f"{home}/b", 12345), ("mtime", f"{home}/b"), 12345),
            (("unlink", f"{home}/b"), ("get", f"{home}/b"), ABSENT),
            (("rmdir", home), ("list", home), ABSENT),
        ]
        for operation, look, wanted in plan:
            for other in others:  # so that the kernel caches entries that must be invalidated
                other.do(look)
            (done,) = agent.do(operation)
            assert done.error == 0, f"{operation}: {errno.errorcode[done.error]}"
            times.append(done.seconds)
            for other in agents:
                see(cluster, other, *look, wanted=wanted)
    cluster.wait_for_agreement()
    report(f"replication: {len(times)} changes of all kinds, {milliseconds(times)}")


def test_what_is_replaced_while_a_node_stands_still_is_seen_there(cluster: Cluster) -> None:
    """Its daemon applies all of it together, and announces it then: most results are gone again."""
    writer, reader = cluster.agents(cluster[1], cluster[2])
    names = [f"file{number}" for number in range(20)]
    for name in names:
        writer("put", name, b"first")
        see(cluster, reader, "get", name, wanted=b"first")
    see(cluster, reader, "get", "moved", wanted=ABSENT)
    cluster[2].daemon.freeze()
    for content in (b"second", b"third"):
        for name in names:
            writer("put", f"{name}.tmp", content)
            writer("rename", f"{name}.tmp", name)
    writer("rename", names[0], "moved")
    cluster[2].daemon.thaw()
    cluster.wait_for_agreement()
    (seen,) = reader.do(("get", names[0]))
    assert seen.error == ABSENT
    for name in ("moved", *names[1:]):
        (found,) = reader.do(("get", name))
        assert found.value == b"third", name


def test_a_change_is_quickly_seen_on_the_others(cluster: Cluster, report: Report) -> None:
    writer, reader = cluster.agents(cluster[1], cluster[2])
    writer("put", "file", b"0")
    see(cluster, reader, "get", "file", wanted=b"0")
    written: list[float] = []
    lags: list[float] = []
    for number in range(1, 101):
        content = str(number).encode()
        (done,) = writer.do(("put", "file", content))
        written.append(done.seconds)
        while (found := reader.do(("get", "file"))[0]).value != content:
            assert found.end - done.end < SOON
        lags.append(max(0.0, found.end - done.end))
    report(
        f"replication: rewriting a file takes {milliseconds(written)}; "
        f"then it is read on another node after {milliseconds(lags)}"
    )


def test_exactly_one_of_three_exclusive_creations_succeeds(cluster: Cluster) -> None:
    agents = cluster.agents()
    agents[0]("mkdir", "race")
    for agent in agents[1:]:
        see(cluster, agent, "list", "race", wanted=[])
    for number in range(50):
        for agent in agents:
            agent.begin(("create", f"race/{number}", agent.node.name.encode()))
        outcomes = [agent.outcomes()[0] for agent in agents]
        assert sorted(outcome.error for outcome in outcomes) == [0, errno.EEXIST, errno.EEXIST]
        winner = agents[[outcome.error for outcome in outcomes].index(0)]
        for agent in agents:
            see(cluster, agent, "get", f"race/{number}", wanted=winner.node.name.encode())


def test_a_creation_that_loses_a_race_opens_the_winners_file(cluster: Cluster) -> None:
    agents = cluster.agents()
    agents[0]("mkdir", "shared")
    for agent in agents[1:]:
        see(cluster, agent, "list", "shared", wanted=[])
    for number in range(20):
        path = f"shared/{number}"
        for agent in agents:
            flags = os.O_RDWR | os.O_CREAT
            agent.begin(("open", path, path, flags), ("write", path, b"x"), ("close", path))
        for agent in agents:
            assert [outcome.error for outcome in agent.outcomes()] == [0, 0, 0]
        for agent in agents:
            see(cluster, agent, "get", path, wanted=b"x")
    cluster.wait_for_agreement()


def test_a_vmid_belongs_to_one_guest_of_the_cluster(cluster: Cluster) -> None:
    agents = cluster.agents()
    for name in ("nodes", "nodes/node1", "nodes/node2"):
        agents[0]("mkdir", name)
    for name in ("node1", "node2"):
        agents[0]("mkdir", f"nodes/{name}/qemu-server")
    for agent in agents[1:]:
        see(cluster, agent, "list", "nodes/node2/qemu-server", wanted=[])
    for number in range(100, 110):
        for agent, name in zip(agents, ("node1", "node2"), strict=False):
            agent.begin(("create", f"nodes/{name}/qemu-server/{number}.conf", b"memory: 1\n"))
        errors = [agent.outcomes()[0].error for agent in agents[:2]]
        assert sorted(errors) == [0, errno.EEXIST]
    cluster.wait_for_agreement()
    lists = [json.loads(agent("get", ".vmlist"))["ids"] for agent in agents]
    assert sorted(lists[0]) == [str(number) for number in range(100, 110)]
    homes = [{vmid: entry["node"] for vmid, entry in listed.items()} for listed in lists]
    assert homes[0] == homes[1] == homes[2]


def test_a_lock_never_has_two_holders(cluster: Cluster, report: Report) -> None:
    agents = cluster.agents()
    for name in ("priv", "priv/lock"):
        agents[0]("mkdir", name)
    for agent in agents[1:]:
        see(cluster, agent, "list", "priv/lock", wanted=[])
    held: dict[int, list[tuple[float, float]]] = {agent.node.number: [] for agent in agents}
    attempts = 0
    start = time.monotonic()
    for agent in agents:
        agent.begin(("hold", "priv/lock/one", CONTENDERS))
    for agent in agents:
        (outcome,) = agent.outcomes(120)
        assert outcome.error == 0
        spans, tries = outcome.value
        held[agent.node.number] = spans
        attempts += tries
    seconds = time.monotonic() - start
    assert {number: len(spans) for number, spans in held.items()} == dict.fromkeys(held, CONTENDERS)
    ranked = sorted(span for spans in held.values() for span in spans)
    for (_, end), (begin, _) in itertools.pairwise(ranked):
        assert end <= begin, "two nodes held the lock at once"
    report(
        f"locks: {len(ranked)} times taken and freed by three nodes in {seconds:.1f} s, "
        f"{attempts} attempts, never two holders"
    )


def test_foreign_changes_arrive_while_a_mkdir_waits_in_their_directory(
    cluster: Cluster, report: Report
) -> None:
    """The waiting mkdir holds the kernel's lock of the directory, which notifications need."""
    node = cluster[1]
    agent, *writers = cluster.agents()
    agent("mkdir", "busy")
    for writer in writers:
        see(cluster, writer, "list", "busy", wanted=[])
    paths = [f"busy/{w.node.name}-{n}" for w in writers for n in range(CHANGES // 4)]
    agent.do(*[("stat", path) for path in paths])  # the kernel has negative entries for them
    for writer in writers:
        writer.begin(("fill", f"busy/{writer.node.name}-", CHANGES // 4))
    node.daemon.control("hold")
    refused, elsewhere = 0, []
    (reader,) = cluster.agents(node)
    with timed() as elapsed:
        agent.begin(("mkdir", "busy/mine"))
        while not all(writer.has_answer() for writer in writers):
            (looked,) = reader.do(("list", ""))
            elsewhere.append(looked.seconds)
            if agent.has_answer():
                assert agent.outcomes()[0].error == errno.EBUSY
                refused += 1
                agent.begin(("mkdir", "busy/mine"))
        assert [writer.outcomes()[0].error for writer in writers] == [0, 0]
        node.daemon.control("resume")
        assert agent.outcomes()[0].error in (0, errno.EBUSY)
    cluster.wait_for_agreement()
    assert {f"busy/{name}" for name in agent("list", "busy")} - {"busy/mine"} == set(paths)
    stats = agent.do(*[("stat", path) for path in paths])
    assert {outcome.value[1] for outcome in stats} == {1}
    report(
        f"waiting mkdir: {CHANGES} remote changes beside it in {elapsed[0]:.1f} s, it was refused "
        f"{refused} times; listing another directory meanwhile: {milliseconds(elsewhere)}"
    )


# Status.


def status(agent: Agent, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(agent("get", name))
    return found


def test_each_node_lists_all_members(cluster: Cluster) -> None:
    agents = cluster.agents()

    def nodes_of(agent: Agent) -> object:
        return status(agent, ".members").get("nodelist")

    wanted = {
        node.name: {"id": node.number, "online": 1, "ip": node.address} for node in cluster.nodes
    }
    cluster.wait_until(
        lambda: all(nodes_of(agent) == wanted for agent in agents), SOON, "all addresses"
    )
    for agent in agents:
        listed = status(agent, ".members")["cluster"]
        assert listed == {"name": "lab", "version": 1, "nodes": 3, "quorate": 1}
    ours = [set(status(agent, ".version")["kvstore"]) for agent in agents]  # type: ignore[call-overload]
    assert all(node.name in known for node, known in zip(cluster.nodes, ours, strict=True))


def test_all_nodes_have_one_cluster_log(cluster: Cluster) -> None:
    agents = cluster.agents()
    logs = [status(agent, ".clusterlog") for agent in agents]
    assert logs[0] == logs[1] == logs[2]
    lines = logs[0]["data"]
    assert isinstance(lines, list)
    assert {line["node"] for line in lines} == {"node1", "node2", "node3"}
    assert {line["msg"] for line in lines} == {"starting cluster log"}


def test_a_verification_finds_all_trees_equal(cluster: Cluster) -> None:
    before = [node.daemon.info()["verified"] for node in cluster.nodes]
    for node in cluster.nodes:
        node.daemon.control("deadlines", verification=0.5)

    def are_verified() -> bool:
        counts = [node.daemon.info()["verified"] for node in cluster.nodes]
        return all(now > then for now, then in zip(counts, before, strict=True))

    cluster.wait_until(are_verified, SOON, "a verification on all nodes")
    for node in cluster.nodes:
        assert node.daemon.log_lines("data verification successful")


def test_the_corosync_conf_of_each_host_follows_the_tree(cluster: Cluster) -> None:
    (agent,) = cluster.agents(cluster[2])
    text = corosync_conf(cluster.nodes, version=7)
    agent("put", "corosync.conf.new", text.encode())
    agent("rename", "corosync.conf.new", "corosync.conf")

    def host_file(node: Member) -> str:
        return (node.directory / "etc" / "corosync" / "corosync.conf").read_text()

    cluster.wait_until(
        lambda: all(host_file(node) == text for node in cluster.nodes), SOON, "the host files"
    )

    def versions() -> list[object]:
        listed = [status(agent, ".members")["cluster"] for agent in cluster.agents()]
        return [each["version"] for each in listed if isinstance(each, dict)]

    cluster.wait_until(lambda: versions() == [7, 7, 7], RELOAD, "the reload", interval=0.5)
    for node in cluster.nodes:
        mode = (node.directory / "etc" / "corosync" / "corosync.conf").stat().st_mode
        assert stat.S_IMODE(mode) == 0o644
    assert sum("asked corosync to reload" in node.daemon.log_text() for node in cluster.nodes) == 1
    older = corosync_conf(cluster.nodes, version=3)
    agent("put", "corosync.conf", older.encode())
    cluster.wait_until(
        lambda: all("is not replaced" in node.daemon.log_text() for node in cluster.nodes),
        SOON,
        "refusals",
    )

    def is_refused(version: str) -> bool:
        told = f"has config_version {version}, but it must be a number from 1"
        return all(node.daemon.log_lines(told) for node in cluster.nodes)

    for version in ("0", str(1 << 64), "8x"):  # the last two would end corosync
        agent("put", "corosync.conf", corosync_conf(cluster.nodes, version=version).encode())
        cluster.wait_until(functools.partial(is_refused, version), SOON, f"refusal of {version}")
    for node in cluster.nodes:
        assert node.daemon.log_lines("; set config_version to 8 or more in the cluster's")
    assert {host_file(node) for node in cluster.nodes} == {text}
    agent("put", "corosync.conf", text.encode())
    cluster.wait_for_agreement()
