"""A node whose corosync hangs: nothing waits behind something stuck, and no write is lost silently.

The node sends changes that are not delivered. The first ones are answered after 10 s (EIO: their
outcome is unknown), those behind them are refused (EBUSY: they have not happened).
"""

import errno
import os
import re
import time
from collections.abc import Callable, Sequence

import pytest

from tests.cluster.agent import Agent, Operation, Outcome
from tests.cluster.lab import Member, corosync_conf
from tests.cluster.together import Cluster, milliseconds

pytestmark = pytest.mark.needs_corosync

Report = Callable[[object], None]

ANSWER = 11.0  # seconds until every request in one directory is answered
SLACK = 1.0  # seconds for a busy machine
READ = 0.3  # seconds that a read of anything else may take: thrice the contract's
AT_ONCE = 0.5  # seconds for a refusal
OUTAGE = 16.0  # seconds of load after the death of a member; a new ring takes 8
RECOVERY = 40.0  # seconds from the thaw to the first change; rejoining takes 5
CREATES = [f"many/{number}" for number in range(24)]
LOCKS = [f"priv/lock/{number}" for number in range(4)]
OTHERS = [f"other{number}" for number in range(10)]
UNDELIVERED = "was sent but not delivered within"
REFUSED = (errno.EBUSY, errno.EIO)


@pytest.fixture
def reader(cluster: Cluster) -> Agent:
    """A worker on node 3 with directories and a file, all cached by its kernel."""
    (agent,) = cluster.agents(cluster[3])
    (setup,) = cluster.agents(cluster[1])
    made = setup.do(*[("mkdir", name) for name in ("many", "priv", "priv/lock", *OTHERS)])
    assert {outcome.error for outcome in made} <= {0, errno.EEXIST}
    setup("put", "many/known", b"content")
    setup("put", "file", b"old")
    cluster.wait_for_agreement()
    agent.do(*look(OTHERS), ("stat", "many/known"), ("get", "file"))
    return agent


def look(names: Sequence[str]) -> list[Operation]:
    return [(kind, name) for name in names for kind in ("stat", "list")]


def check(cluster: Cluster, node: Member, made: Sequence[tuple[str, Outcome]]) -> list[str]:
    """Assert that each answer is true on all nodes; return the outcomes of unknown ones."""
    cluster.wait_for_agreement()
    (agent,) = cluster.agents(cluster[1])
    unknown = []
    for path, outcome in made:
        is_there = agent.do(("stat", path))[0].error == 0
        if outcome.error == errno.EBUSY:
            assert not is_there, f"{path} was refused, and exists"
        elif outcome.error == 0:
            assert is_there, f"{path} was made, and is missing"
        else:
            unknown.append("made" if is_there else "not made")
    assert node.daemon.is_running
    return unknown


def until_writable(cluster: Cluster, agent: Agent) -> float:
    """Return the seconds until a change succeeds."""
    start = time.monotonic()
    write: Operation = ("put", "again", b"x")
    cluster.wait_until(lambda: not agent.do(write)[0].error, RECOVERY, "a change", interval=0.1)
    return time.monotonic() - start


def summary(outcomes: Sequence[Outcome]) -> str:
    names = [errno.errorcode.get(outcome.error, "done") for outcome in outcomes]
    return ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names)))


def test_any_number_of_requests_in_one_directory_is_answered_within_the_time_of_one(
    cluster: Cluster, reader: Agent, report: Report
) -> None:
    node = cluster[3]
    paths = CREATES + LOCKS
    operations: list[Operation] = [("create", path) for path in CREATES]
    operations += [("mkdir", path) for path in LOCKS]
    agents = cluster.agents(*[node] * len(operations))
    (lister,) = cluster.agents(node)
    before = len(node.daemon.log_lines(UNDELIVERED))
    node.corosync.freeze()
    for agent, operation in zip(agents, operations, strict=True):
        agent.begin(operation)
    time.sleep(0.3)
    lister.begin(("list", "many"))  # waits in the kernel for the creates
    reads: list[Outcome] = []
    while not all(agent.has_answer() for agent in [*agents, lister]):
        reads += reader.do(*look(OTHERS), ("stat", "many/known"), ("get", "file"), ("list", ""))
        time.sleep(0.05)
    outcomes = [agent.outcomes()[0] for agent in agents]
    listed = lister.outcomes()[0]
    node.corosync.thaw()
    seconds = until_writable(cluster, reader)
    unknown = check(cluster, node, list(zip(paths, outcomes, strict=True)))
    took = [outcome.seconds for outcome in outcomes]
    report(
        f"corosync hangs: 24 creates and 4 locks: {summary(outcomes)} after at most "
        f"{max(took):.2f} s, a listing there after {listed.seconds:.2f} s; unknown: {unknown}; "
        f"{len(reads)} reads elsewhere: {milliseconds([read.seconds for read in reads])}; "
        f"changes {seconds:.1f} s after the thaw"
    )
    assert {outcome.error for outcome in outcomes} <= set(REFUSED)
    assert max(took) < ANSWER + SLACK
    assert listed.error == 0
    assert listed.seconds < ANSWER + SLACK
    assert {read.error for read in reads} == {0}
    assert max(read.seconds for read in reads) < READ + SLACK
    lines = node.daemon.log_lines(UNDELIVERED)[before:]
    told = [re.findall(rf"the change of (\S+) {UNDELIVERED} \d+\.\d s: ", line) for line in lines]
    paths_told = {path for (path,) in told}
    assert len(told) == sum(outcome.error == errno.EIO for outcome in outcomes)
    assert paths_told <= {*CREATES, "(private)"}
    report(f"logged as not delivered: {sorted(paths_told)}, as {lines[0]!r}")
    cluster.mend()


def test_changes_in_many_directories_share_the_time_of_the_oldest(
    cluster: Cluster, reader: Agent, report: Report
) -> None:
    """Those that come later than 2 s after the first are never sent."""
    node = cluster[3]
    paths = [f"{name}/x{n}" for name in OTHERS[:4] for n in range(3)]
    first, *agents = cluster.agents(*[node] * (len(paths) + 1))
    node.corosync.freeze()
    first.begin(("mkdir", "priv/lock/first"))
    cluster.wait_until(lambda: node.daemon.info()["waiting"] == 1, ANSWER, "a change in flight")
    time.sleep(3)
    for agent, path in zip(agents, paths, strict=True):
        agent.begin(("create", path))
    outcomes = [agent.outcomes()[0] for agent in agents]
    oldest = first.outcomes()[0]
    node.corosync.thaw()
    until_writable(cluster, reader)
    check(cluster, node, list(zip(paths, outcomes, strict=True)))
    last = max(outcome.end for outcome in outcomes) - oldest.start
    report(f"behind an overdue change: {summary(outcomes)}, {last:.2f} s after that one began")
    assert oldest.error == errno.EIO
    assert {outcome.error for outcome in outcomes} == {errno.EBUSY}
    assert last < ANSWER + SLACK
    cluster.mend()


def test_a_shell_hears_that_its_write_is_not_kept(
    cluster: Cluster, reader: Agent, report: Report
) -> None:
    """A shell ignores the result of close(2), so the open or the write has to fail."""
    node = cluster[3]
    reader("open", "early", "file", os.O_WRONLY)
    node.corosync.freeze()
    (first,) = cluster.agents(node)[0].do(("put", "other0/first", b"x"))
    assert first.error in REFUSED
    for command in ("echo x > /etc/pve/file", "echo x >> /etc/pve/file", "echo x > /etc/pve/new"):
        start = time.monotonic()
        told = node.run("sh", "-c", f"if {command}; then echo done; fi; cat /etc/pve/file")
        assert time.monotonic() - start < AT_ONCE + SLACK
        assert "cannot create" in told or "echo: I/O error" in told
        assert "done" not in told
        assert told.endswith("old")
    write, close = reader.do(("write", "early", b"new"), ("close", "early"))
    assert (write.error, close.error) == (errno.EBUSY, errno.EBUSY)
    assert reader("get", "file") == b"old"
    changes: list[Operation] = [
        ("create", "other1/c"),
        ("mkdir", "other1/d"),
        ("unlink", "file"),
        ("rename", "file", "other1/file"),
        ("truncate", "file", 0),
        ("utime", "file", 5),
        ("put", "file", b"new"),
    ]
    refused = reader.do(*changes)
    assert {outcome.error for outcome in refused} == {errno.EBUSY}
    assert max(outcome.seconds for outcome in refused) < AT_ONCE
    node.corosync.thaw()
    seconds = until_writable(cluster, reader)
    cluster.wait_for_agreement()
    for agent in cluster.agents():
        assert agent("get", "file") == b"old"
        assert "new" not in agent("list", "")
    assert node.run("sh", "-c", "echo x > /etc/pve/file && cat /etc/pve/file") == "x\n"
    report(
        f"stuck: refused after {milliseconds([outcome.seconds for outcome in refused])}, "
        f"changes {seconds:.1f} s after the thaw"
    )
    cluster.mend()


def kill(cluster: Cluster) -> None:
    cluster[3].corosync.kill()


def power_off(cluster: Cluster) -> None:
    cluster.cut_off(cluster[3])


def batch(home: str, number: int) -> list[Operation]:
    return [
        ("mkdir", f"{home}/lock"),
        ("put", f"{home}/status.tmp", b"%d" % number),
        ("rename", f"{home}/status.tmp", f"{home}/status"),
        ("create", f"{home}/new", b"x"),
        ("utime", f"{home}/new", 1000 + number),
        ("unlink", f"{home}/new"),
        ("rmdir", f"{home}/lock"),
    ]


@pytest.mark.long
@pytest.mark.parametrize("lose", [kill, power_off])
def test_nobody_is_refused_when_a_member_dies_under_default_timeouts(
    idle_cluster: Cluster, report: Report, lose: Callable[[Cluster], None]
) -> None:
    cluster = idle_cluster
    for node in cluster.nodes:
        text = corosync_conf(cluster.nodes)
        assert "  token: 1000\n" in text
        node.write_corosync_conf(text.replace("  token: 1000\n", ""))
    cluster.start()
    agents = dict(enumerate(cluster.agents(*cluster.nodes[:2] * 3)))
    for number, agent in agents.items():
        agent("mkdir", f"home{number}")
        agent.begin(*batch(f"home{number}", 0))
    lose(cluster)
    start, outcomes, count = time.monotonic(), list[Outcome](), 0
    while time.monotonic() - start < OUTAGE:
        for number, agent in agents.items():
            if agent.has_answer():
                count += 1
                outcomes += agent.outcomes()
                agent.begin(*batch(f"home{number}", count))
        time.sleep(0.01)
    for agent in agents.values():
        outcomes += agent.outcomes()
    longest = max(outcome.seconds for outcome in outcomes)
    report(
        f"{lose.__name__}: {len(outcomes)} changes on the others: {summary(outcomes)}, "
        f"the slowest after {longest:.1f} s"
    )
    assert {outcome.error for outcome in outcomes} == {0}
    assert longest > 2.0, "no ring was lost"
