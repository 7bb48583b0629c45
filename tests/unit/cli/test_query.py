"""The text that ``pmxcfs status`` and ``pmxcfs ipc`` print of a daemon's answers."""

import errno
import json
import logging
from typing import Any

import pytest

from pmxcfs.cli import query
from pmxcfs.daemon.report import MAX_WARNINGS, RecentWarnings
from pmxcfs.errors import NoAnswer, NotRunning

REPORT: dict[str, Any] = {
    "running": True,
    "version": "1.2",
    "node": "node1",
    "pid": 77,
    "started": 0,
    "uptime": 3.0 * 86400,
    "state": "healthy",
    "findings": [],
    "session": "native",
    "quorate": True,
    "members": {"nodename": "node1", "version": 1},
    "cluster": None,
    "database": {"path": "/db", "bytes": 3 << 20, "version": 9},
    "content": {"bytes": 500, "most_bytes": 128 << 20, "entries": 3, "most_entries": 10},
    "history": {"bytes": 5 << 20, "since": 0},
    "locks": {"priv/lock/a": 3.2, "priv/lock/b": 300.0},
    "clients": 2,
    "metrics_waiting": 0,
    "troubles": [],
}
CLUSTER = {
    "nodename": "node1",
    "version": 5,
    "cluster": {"name": "lab", "version": 3, "nodes": 2, "quorate": 1},
    "nodelist": {
        "node1": {"id": 1, "online": 1, "ip": "10.0.0.1"},
        "node2": {"id": 2, "online": 0},
    },
}


def status(**changes: Any) -> str:
    return "\n".join(query._status_lines({**REPORT, **changes}))


def test_a_healthy_node_alone() -> None:
    assert status().splitlines() == [
        "state     healthy",
        "node      node1, pmxcfs 1.2, pid 77, for 3 d",
        "session   native",
        "quorum    yes",
        "members   node1",
        "sync      not in a cluster",
        "database  /db, 3.0 MiB, version 9",
        "          500 bytes of 128.0 MiB content, 3 of 10 files and directories",
        f"history   since {query._stamp(0)}, 5.0 MiB",
        "locks     priv/lock/a for 3 s",
        "          priv/lock/b for 5 min",
        "clients   2 connected, 0 metrics in the queue",
    ]


def test_a_node_without_history() -> None:
    assert "history   none, 0 bytes" in status(history={"bytes": 0, "since": None})


QUORUM = {
    "name": "no-quorum",
    "state": "failed",
    "reason": "no quorum, so it is read-only",
    "step": "see which nodes are missing",
    "meaning": "Files can be read; changes are refused. " * 4,
    "chapter": "Without quorum",
}
OFFLINE = {**QUORUM, "state": "degraded", "reason": "offline: node2", "step": "start the nodes"}


def test_a_member_of_a_cluster_that_is_not_well() -> None:
    trouble = {"time": 0, "level": "error", "domain": "database", "text": "disk full"}
    text = status(
        state="failed",
        findings=[QUORUM, OFFLINE],
        quorate=False,
        members=CLUSTER,
        cluster={"mode": "update"},
        troubles=[trouble],
    )
    assert text.startswith(
        "state     failed: no quorum, so it is read-only\n"
        "          degraded: offline: node2\n"
        "to do     see which nodes are missing\n"
        "          start the nodes\n"
    )
    assert "quorum    no\n" in text
    assert "members   node1 10.0.0.1 online\n          node2 (address unknown) offline\n" in text
    assert "sync      update\n" in text
    assert text.endswith("errors    1970-01-01 00:00:00 [database] error: disk full")


def test_an_explanation_says_for_each_finding_what_it_means_and_what_to_do() -> None:
    report = {**REPORT, "state": "failed", "findings": [QUORUM, OFFLINE]}
    text = "\n".join(query._status_lines(report, explain=True))
    for finding in (QUORUM, OFFLINE):
        assert f"because   {finding['reason']}\nmeans     Files can be read" in text
        assert f"to do     {finding['step']}\n" in text
    assert 'read      /usr/share/doc/pmxcfs/operations.md.gz, chapter "Without quorum"\n' in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("error", "name", "running"),
    [
        (NotRunning("is it running?", errno.ENOENT), "not-running", False),
        (NoAnswer("permission denied", errno.EACCES), "not-allowed", None),
        (NoAnswer("this client may only read", errno.EPERM), "not-allowed", None),
        (NoAnswer("no answer in time", errno.ETIMEDOUT), "no-answer", None),
    ],
)
def test_a_daemon_that_gives_no_report(error: NoAnswer, name: str, running: bool | None) -> None:
    report = query._no_report(error)
    assert (report["running"], report["state"]) == (running, "unknown")
    (finding,) = report["findings"]
    assert finding["name"] == name
    first, second, *_ = query._status_lines(report)
    assert first == f"state     unknown: {error}"
    assert second == f"to do     {finding['step']}"
    assert query.STATUSES[report["state"]] == 3


def test_members_of_a_cluster() -> None:
    assert list(query._member_lines(json.dumps(CLUSTER).encode())) == [
        "NODE   ID  STATE    ADDRESS",
        "node1  1   online   10.0.0.1",
        "node2  2   offline",
    ]


def test_no_guests() -> None:
    assert list(query._guest_lines(b'{"version": 1}')) == ["no guests"]


def test_guests_are_in_order() -> None:
    ids = {vmid: {"node": "n", "type": "lxc", "version": 1} for vmid in ("1000", "200", "30000")}
    lines = query._guest_lines(json.dumps({"version": 1, "ids": ids}).encode())
    assert [line.split()[0] for line in lines] == ["VMID", "200", "1000", "30000"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (1e6, "12 d")]
)
def test_spans(seconds: float, text: str) -> None:
    assert query._span(seconds) == text


def test_only_the_latest_troubles_are_kept() -> None:
    troubles = RecentWarnings()
    logger = logging.Logger("pmxcfs.status")
    logger.addHandler(troubles)
    logger.info("no trouble")
    for number in range(MAX_WARNINGS + 5):
        logger.warning("number %d", number)
    latest = troubles.latest()
    assert [entry["text"] for entry in latest] == [
        f"number {n}" for n in range(5, MAX_WARNINGS + 5)
    ]
    assert {(entry["level"], entry["domain"]) for entry in latest} == {("warning", "status")}


@pytest.mark.parametrize(("priority", "name"), [(3, "err"), (200, "200")])
def test_the_log_names_priorities_that_have_a_name(priority: int, name: str) -> None:
    entry = {"uid": 1, "time": 0, "pri": priority, "tag": "t", "pid": 9, "node": "n"}
    content = json.dumps({"data": [{**entry, "user": "u", "msg": "m"}]}).encode()
    (line,) = query._log_lines(content)
    assert line.endswith(f"n t[9] {name} u: m")
