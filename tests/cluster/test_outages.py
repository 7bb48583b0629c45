"""Outages as users of a node see them: lost quorum, frozen members, a hanging corosync, stops."""

import errno
import os
import time
from collections.abc import Callable, Sequence

import pytest

from tests.cluster.agent import Agent, Operation, Outcome
from tests.cluster.lab import Member
from tests.cluster.together import STOP, Cluster, milliseconds

pytestmark = pytest.mark.needs_corosync

Report = Callable[[object], None]

NOTICE = 1.0  # seconds from the loss of quorum until nothing may change
DETECTION = 30.0  # seconds for corosync to notice; 2 on an idle machine
RECOVERY = 40.0  # seconds from healing to the first change; rejoining takes 5
SHORT, LONG = 2.0, 10.0  # seconds that a change may wait to be sent, if it holds a directory or not
DELIVERY = 10.0  # seconds that it may wait afterwards
SLACK = 5.0  # seconds for a busy machine
READ = 0.3  # seconds that a read may take whatever the cluster does: thrice the contract's
MUTATIONS: Sequence[Operation] = (
    ("create", "new"),
    ("mkdir", "newdir"),
    ("put", "file", b"other"),
    ("truncate", "file", 0),
    ("write", "handle", b"other"),
    ("rename", "file", "moved"),
    ("rename", "dir", "moved"),
    ("unlink", "file"),
    ("rmdir", "dir"),
    ("utime", "file", 5),
    ("utime", "dir", 5),
)
READS: Sequence[Operation] = (
    ("get", "file"),
    ("read", "handle"),
    ("stat", "file"),
    ("list", ""),
    ("list", "dir"),
    ("get", ".version"),
)


@pytest.fixture
def prepared(cluster: Cluster) -> Agent:
    """A worker on node 3, with a file, a directory and an open file, all cached by its kernel."""
    (agent,) = cluster.agents(cluster[3])
    agent.do(("mkdir", "dir"), ("put", "file", b"content"))
    agent("open", "handle", "file", os.O_RDWR)
    agent.do(("stat", "dir"), *READS)
    cluster.wait_for_agreement()
    return agent


def log_count(node: Member, text: str) -> int:
    return node.daemon.log_text().count(text)


def cut(cluster: Cluster) -> None:
    cluster.cut_off(cluster[3])


def kill(cluster: Cluster) -> None:
    cluster[3].corosync.kill()


@pytest.mark.parametrize("lose", [cut, kill])
def test_without_a_majority_changes_are_refused_and_all_files_are_readable(
    cluster: Cluster, prepared: Agent, report: Report, lose: Callable[[Cluster], None]
) -> None:
    node = cluster[3]
    outages = ["node lost quorum", "no connection to corosync", "connecting again every"]
    before = [log_count(node, text) for text in outages]
    lose(cluster)
    cluster.wait_until(lambda: not node.corosync.is_quorate(), DETECTION, "the loss of quorum")
    lost = time.monotonic()
    cluster.wait_until(lambda: not node.daemon.info()["quorate"], DETECTION, "its being told")
    told = time.monotonic() - lost
    outcomes = prepared.do(*MUTATIONS)
    errors = {
        operation: outcome.error for operation, outcome in zip(MUTATIONS, outcomes, strict=True)
    }
    assert errors == dict.fromkeys(MUTATIONS, errno.EACCES)
    assert outcomes[-1].end - lost < NOTICE + SLACK
    assert told < NOTICE + SLACK
    cluster.wait_until(lambda: node.daemon.info()["handed"], DETECTION, "the kernel to be told")
    modes = [prepared("stat", path)[0] & 0o777 for path in ("dir", "file", "")]
    assert modes == [0o555, 0o440, 0o755]
    reads = prepared.do(*READS)
    assert [outcome.error for outcome in reads] == [0] * len(READS)
    assert [outcome.value for outcome in reads[:2]] == [b"content"] * 2

    first, _ = cluster.agents(cluster[1], cluster[2])
    cluster.wait_for_agreement(cluster[1], cluster[2])
    first("put", "meanwhile", lose.__name__.encode())
    healing = time.monotonic()
    cluster.mend()
    assert prepared("get", "meanwhile") == lose.__name__.encode()
    prepared("put", "file", b"content")
    healed = time.monotonic() - healing
    assert healed < RECOVERY
    modes = [prepared("stat", path)[0] & 0o777 for path in ("dir", "file", "")]
    assert modes == [0o755, 0o640, 0o755]
    prepared("close", "handle")
    after = [log_count(node, text) for text in outages]
    told_of = [now - then for now, then in zip(after, before, strict=True)]
    is_down = lose is kill
    assert told_of == [1, 2 * is_down, 2 * is_down], "one line for each outage and connection"
    report(
        f"{lose.__name__}: EACCES {1000 * told:.0f} ms after corosync said so, "
        f"changes again {healed:.1f} s after healing"
    )


def until_writable(cluster: Cluster, agent: Agent, seconds: float) -> float:
    """Return the seconds until a change succeeds."""
    start = time.monotonic()
    cluster.wait_until(lambda: agent.do(("put", "again", b"x"))[0].error == 0, seconds, "a change")
    return time.monotonic() - start


def freeze_in_sync(cluster: Cluster, victim: Member) -> None:
    """Freeze a member, so that it does not answer in the round that node 3's restart begins."""
    other = cluster[3 - victim.number]
    cluster[3].daemon.kill()
    cluster.wait_for_agreement(victim, other)
    victim.daemon.freeze()
    cluster.launch(cluster[3])
    is_in_round = ("start-sync", "update")
    cluster.wait_until(lambda: other.daemon.info()["mode"] in is_in_round, DETECTION, "a round")


@pytest.mark.parametrize("number", [1, 2])
def test_a_round_goes_on_without_a_member_whose_corosync_froze_too(
    cluster: Cluster, report: Report, number: int
) -> None:
    """Node 1 has the lowest id, so it begins the rounds."""
    victim, other = cluster[number], cluster[3 - number]
    (agent,) = cluster.agents(other)
    freeze_in_sync(cluster, victim)
    victim.corosync.freeze()
    seconds = until_writable(cluster, agent, DETECTION + 2 * LONG)
    report(f"node {number} and its corosync froze in a sync: changes after {seconds:.1f} s")
    cluster.mend()


@pytest.mark.parametrize("number", [1, 2])
def test_a_round_waits_a_limited_time_for_a_member_whose_daemon_froze(
    cluster: Cluster, report: Report, number: int
) -> None:
    """Its corosync runs, so the node stays a member, and a round waits for its STATE."""
    victim, other = cluster[number], cluster[3 - number]
    (agent,) = cluster.agents(other)
    other.daemon.control("deadlines", restarts=[0.3, 0.6])
    freeze_in_sync(cluster, victim)
    (refused,) = agent.do(("mkdir", f"while{number}"))
    assert refused.error == errno.EBUSY
    assert SHORT <= refused.seconds < SHORT + SLACK
    (read,) = agent.do(("get", ".members"))
    assert read.error == 0
    victim.daemon.thaw()
    seconds = until_writable(cluster, agent, DETECTION)
    report(f"node {number} froze in a sync, its corosync did not: changes {seconds:.1f} s later")
    cluster.mend()


def test_changes_fail_in_time_and_reads_go_on_while_corosync_hangs(
    cluster: Cluster, prepared: Agent, report: Report
) -> None:
    node = cluster[3]
    changing: dict[str, tuple[Agent, Operation]] = {
        "unlink": (cluster.agents(node)[0], ("unlink", "dir/gone")),
        "mkdir": (cluster.agents(node)[0], ("mkdir", "made/x")),
        "put": (cluster.agents(node)[0], ("put", "file", b"unknown")),
        "utime": (cluster.agents(node)[0], ("utime", "alone", 5)),
    }
    prepared.do(("create", "dir/gone"), ("mkdir", "made"), ("mkdir", "alone"))
    node.corosync.freeze()
    start = time.monotonic()
    for agent, operation in changing.values():
        agent.begin(operation)
    reads: list[Outcome] = []
    while not all(agent.has_answer() for agent, _ in changing.values()):
        assert time.monotonic() - start < LONG + DELIVERY + SLACK
        reads += prepared.do(*READS[:4], READS[5])
    outcomes = {name: agent.outcomes()[0] for name, (agent, _) in changing.items()}
    for name, outcome in outcomes.items():
        assert outcome.error in (errno.EIO, errno.EBUSY), f"{name}: {outcome}"
        assert outcome.seconds < DELIVERY + SLACK
    assert {outcome.error for outcome in reads} == {0}
    seconds = [outcome.seconds for outcome in reads]
    node.corosync.thaw()
    cluster.mend()
    prepared("close", "handle")
    ranked = sorted(seconds)
    assert ranked[len(ranked) * 99 // 100] < READ
    named = {name: errno.errorcode[outcome.error] for name, outcome in outcomes.items()}
    report(
        f"corosync hangs: {named}, the last after "
        f"{max(outcome.seconds for outcome in outcomes.values()):.1f} s; "
        f"{len(reads)} reads meanwhile: {milliseconds(seconds)}"
    )


# Stopping.


def stop(cluster: Cluster, node: Member) -> float:
    """Stop a daemon as systemd does; return the seconds until its end."""
    start = time.monotonic()
    assert node.daemon.stop(seconds=STOP) == 0, node.daemon.log_tail()
    seconds = time.monotonic() - start
    assert not cluster.is_mounted(node)
    assert not list(node.database.parent.glob("config.db-*"))
    assert "Traceback" not in node.daemon.log_text()
    return seconds


def test_a_stop_under_load_loses_no_acknowledged_change(cluster: Cluster, report: Report) -> None:
    node = cluster[2]
    writers = cluster.agents(node, node, node, cluster[1])
    writers[0]("mkdir", "load")
    cluster.wait_until((cluster[3].path / "load").is_dir, 20, "the directory on the other node")
    for number, writer in enumerate(writers):
        writer.begin(*[("create", f"load/{number}-{n}", b"x") for n in range(400)])
    cluster.wait_until(lambda: len(os.listdir(cluster[3].path / "load")) > 100, 20, "some load")
    seconds = stop(cluster, node)
    done = [writer.outcomes(60) for writer in writers]
    cluster.mend()
    names = set(os.listdir(cluster[3].path / "load"))
    made = {
        f"{number}-{n}"
        for number, outcomes in enumerate(done)
        for n, outcome in enumerate(outcomes)
        if not outcome.error
    }
    assert made <= names
    assert len(made) > 100
    report(f"stop under load: {seconds:.2f} s, {len(made)} of {sum(map(len, done))} answered")


def test_a_stop_with_waiting_changes_is_quick(cluster: Cluster, report: Report) -> None:
    node = cluster[2]
    agents = cluster.agents(node, node, node)
    agents[0].do(("mkdir", "wait"), ("mkdir", "alone"))
    node.daemon.control("hold")
    agents[0].begin(("mkdir", "wait/a"))
    agents[1].begin(("put", "waitfile", b"x"))
    # Not in the same directory: the kernel holds its lock for the first change.
    agents[2].begin(("utime", "alone", 7))
    cluster.wait_until(lambda: node.daemon.info()["waiting"] == 3, DETECTION, "three waiters")
    seconds = stop(cluster, node)
    errors = [agent.outcomes()[0].error for agent in agents]
    assert set(errors) <= {errno.EBUSY, errno.EIO, errno.ENOTCONN}
    report(f"stop with waiting changes: {seconds:.2f} s")


def test_a_stop_while_corosync_hangs_is_quick(cluster: Cluster, report: Report) -> None:
    node = cluster[2]
    agents = cluster.agents(node, node, node)
    agents[0].do(("mkdir", "hang"), ("mkdir", "alone"))
    agents[0]("open", "open", "hanging", os.O_RDWR | os.O_CREAT)
    node.corosync.freeze()
    agents[0]("write", "open", b"never published")
    agents[1].begin(("mkdir", "hang/a"))
    agents[2].begin(("utime", "alone", 7))
    cluster.wait_until(lambda: node.daemon.info()["waiting"] >= 2, DETECTION, "two waiters")
    seconds = stop(cluster, node)
    assert [agent.outcomes()[0].error != 0 for agent in agents[1:]] == [True, True]
    report(f"stop while corosync hangs: {seconds:.2f} s")
