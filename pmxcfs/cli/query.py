"""The commands that ask a running daemon: ``pmxcfs ipc`` and ``pmxcfs status``.

The daemon's answers are JSON. With ``--json`` a command prints them unchanged, else as text.
Contract: docs/spec/operations.md.
"""

import argparse
import errno
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pmxcfs.errors import IpcError, NotRunning
from pmxcfs.ipc.client import IpcClient
from pmxcfs.messages import PRIORITIES

# Exit statuses of ``status`` by the state of the node.
STATUSES = {"healthy": 0, "degraded": 1, "failed": 2, "unknown": 3}
STATUS_TIMEOUT_MS = 3000

WIDTH = 88  # columns of explanations
DOCUMENT = "/usr/share/doc/pmxcfs/operations.md.gz"

# What stands for the daemon's findings if it gives none.
_NOT_RUNNING = {
    "name": "not-running",
    "meaning": "No daemon serves this name, so nothing is mounted by it.",
    "step": "start it: systemctl start pmxcfs, or pve-cluster on a node of Proxmox VE; if it runs "
    "under another name, give --ipc-name",
    "chapter": "Start",
}
_NOT_ALLOWED = {
    "name": "not-allowed",
    "meaning": "The daemon tells its state only root and the members of its group, www-data.",
    "step": "ask as root",
    "chapter": "Commands that ask the daemon",
}
_NO_ANSWER = {
    "name": "no-answer",
    "meaning": "The daemon runs but does not answer in time.",
    "step": "see its log: journalctl -t pmxcfs; if it stays so, restart the daemon",
    "chapter": "Logging",
}

Printer = Callable[[bytes], Iterator[str]]


def ask(question: str, arguments: argparse.Namespace) -> int:
    """Run ``pmxcfs ipc``: one of QUESTIONS. Return the exit status. Raises IpcError."""
    with IpcClient(arguments.ipc_name) as client:
        return QUESTIONS[question](client, arguments)


def _show(content: bytes, printer: Printer, arguments: argparse.Namespace) -> int:
    """Print JSON unchanged, or the lines of text that *printer* makes of it; return 0."""
    if arguments.json:
        sys.stdout.buffer.write(content)
    else:
        print("\n".join(printer(content)))
    return 0


def _show_raw(content: bytes, arguments: argparse.Namespace) -> int:
    """Print bytes unchanged, or with ``--json`` as a JSON string; return 0."""
    if arguments.json:
        print(json.dumps(content.decode("utf-8", "replace")))
    else:
        sys.stdout.buffer.write(content)
        if sys.stdout.isatty() and not content.endswith(b"\n"):
            print()
    return 0


# The questions


def version(client: IpcClient, arguments: argparse.Namespace) -> int:
    """Print the version counters."""
    return _show(client.version(), _version_lines, arguments)


def members(client: IpcClient, arguments: argparse.Namespace) -> int:
    """Print the nodes of the cluster."""
    return _show(client.members(), _member_lines, arguments)


def guests(client: IpcClient, arguments: argparse.Namespace) -> int:
    """Print the guests."""
    return _show(client.guests(), _guest_lines, arguments)


def cluster_log(client: IpcClient, arguments: argparse.Namespace) -> int:
    """Print the cluster log."""
    content = client.cluster_log(most=arguments.most, user=arguments.user)
    return _show(content, _log_lines, arguments)


def properties(client: IpcClient, arguments: argparse.Namespace) -> int:
    """Print properties of guests."""
    content = client.properties(arguments.names, vmid=arguments.vmid)
    return _show(content, _property_lines, arguments)


def metrics(client: IpcClient, arguments: argparse.Namespace) -> int:
    """Print the latest metrics."""
    content = client.metrics()
    return _show_raw(content if content or arguments.json else b"no metrics\n", arguments)


def config(client: IpcClient, arguments: argparse.Namespace) -> int:
    """Print the content of a file."""
    return _show_raw(client.config(arguments.path), arguments)


def get_key(client: IpcClient, arguments: argparse.Namespace) -> int:
    """Print the value of a key of a node."""
    return _show_raw(client.get_key(arguments.key, node=arguments.node), arguments)


def set_key(client: IpcClient, arguments: argparse.Namespace) -> int:
    """Set a key of this node."""
    value = _read_input() if arguments.value == "-" else os.fsencode(arguments.value)
    client.set_key(arguments.key, value)
    return 0


def _read_input() -> bytes:
    """Return all of standard input. Raises OSError that names it."""
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard input") from None


def log(client: IpcClient, arguments: argparse.Namespace) -> int:
    """Append an entry to the cluster log."""
    client.log(
        arguments.message,
        ident=arguments.user,
        tag=arguments.tag,
        priority=PRIORITIES.index(arguments.priority),
    )
    return 0


QUESTIONS: Mapping[str, Callable[[IpcClient, argparse.Namespace], int]] = {
    "version": version,
    "members": members,
    "guests": guests,
    "config": config,
    "get": get_key,
    "set": set_key,
    "log": log,
    "clusterlog": cluster_log,
    "rrd": metrics,
    "property": properties,
}


# Answers as text


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _version_lines(content: bytes) -> Iterator[str]:
    status = json.loads(content)
    keys = status.pop("kvstore")
    rows = [(name, str(count)) for name, count in status.items()]
    rows += [
        (f"{node}: {key}", str(count)) for node, own in keys.items() for key, count in own.items()
    ]
    return _table(rows)


def _member_lines(content: bytes) -> Iterator[str]:
    status = json.loads(content)
    if "cluster" not in status:
        return iter([f"{status['nodename']} is not in a cluster"])
    rows = [("NODE", "ID", "STATE", "ADDRESS")]
    rows += [
        (name, str(node["id"]), "online" if node["online"] else "offline", node.get("ip", ""))
        for name, node in status["nodelist"].items()
    ]
    return _table(rows)


def _guest_lines(content: bytes) -> Iterator[str]:
    found = json.loads(content).get("ids", {})
    if not found:
        return iter(["no guests"])
    rows = [("VMID", "TYPE", "NODE", "VERSION")]
    rows += [
        (vmid, guest["type"], guest["node"], str(guest["version"]))
        for vmid, guest in sorted(found.items(), key=lambda pair: int(pair[0]))
    ]
    return _table(rows)


def _log_lines(content: bytes) -> Iterator[str]:
    entries = json.loads(content)["data"]
    if not entries:
        yield "no entries in the cluster log"
    for entry in reversed(entries):
        yield (
            f"{_stamp(entry['time'])} {entry['node']} {entry['tag']}[{entry['pid']}] "
            f"{_priority(entry['pri'])} {entry['user']}: {entry['msg']}"
        )


def _priority(number: int) -> str:
    """Return the name of a syslog priority, or its number: other nodes may send any number."""
    return PRIORITIES[number] if number < len(PRIORITIES) else str(number)


def _property_lines(content: bytes) -> Iterator[str]:
    by_guest = json.loads(content)
    if not any(by_guest.values()):
        yield "no such properties"
    for vmid, found in by_guest.items():
        for name, value in found.items():
            yield f"{vmid} {name}: {value}"


def _stamp(seconds: int) -> str:
    return time.strftime("%F %T", time.localtime(seconds))


# pmxcfs status


def show_status(arguments: argparse.Namespace) -> int:
    """Run ``pmxcfs status``: print the daemon's report. Return one of STATUSES."""
    try:
        with IpcClient(arguments.ipc_name, timeout_ms=STATUS_TIMEOUT_MS) as client:
            report: Mapping[str, Any] = {"running": True, **json.loads(client.report())}
    except IpcError as error:
        report = _no_report(error)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(_status_lines(report, explain=arguments.explain)))
    return STATUSES[report["state"]]


def _no_report(error: IpcError) -> Mapping[str, Any]:
    """Return what stands for the report of a daemon that gives none."""
    finding = _NOT_RUNNING if isinstance(error, NotRunning) else _NO_ANSWER
    if error.errno in (errno.EPERM, errno.EACCES):
        finding = _NOT_ALLOWED
    running = False if finding is _NOT_RUNNING else None  # None: not known
    return {
        "running": running,
        "state": "unknown",
        "findings": [{"state": "unknown", "reason": str(error), **finding}],
    }


def _status_lines(report: Mapping[str, Any], *, explain: bool = False) -> Iterator[str]:
    findings = report["findings"]
    states = [_state_line(finding) for finding in findings] or [report["state"]]
    for label, values in (("state", states), *_steps(findings, explain), *_details(report)):
        for number, value in enumerate(values):
            yield f"{label if number == 0 else '':9} {value}".rstrip()


def _state_line(finding: Mapping[str, str]) -> str:
    return f"{finding['state']}: {finding['reason']}"


def _steps(findings: Sequence[Mapping[str, str]], explain: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield what to do for each finding; with *explain* also what it means."""
    if not explain:
        yield "to do", list(dict.fromkeys(finding["step"] for finding in findings))
        return
    for finding in findings:
        yield "", [""]
        yield "because", [finding["reason"]]
        yield "means", textwrap.wrap(finding["meaning"], WIDTH)
        yield "to do", textwrap.wrap(finding["step"], WIDTH)
        yield "read", [f'{DOCUMENT}, chapter "{finding["chapter"]}"']


def _details(report: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    if "node" not in report:  # the daemon did not answer
        return
    running = _span(report["uptime"])
    yield (
        "node",
        [f"{report['node']}, pmxcfs {report['version']}, pid {report['pid']}, for {running}"],
    )
    yield "session", [report["session"]]
    yield "quorum", ["yes" if report["quorate"] else "no"]
    yield "members", _members_of(report["members"])
    cluster = report["cluster"]
    yield "sync", [cluster["mode"] if cluster else "not in a cluster"]
    database, content = report["database"], report["content"]
    yield (
        "database",
        [
            f"{database['path']}, {_size(database['bytes'])}, version {database['version']}",
            f"{_size(content['bytes'])} of {_size(content['most_bytes'])} content, "
            f"{content['entries']} of {content['most_entries']} files and directories",
        ],
    )
    history = report["history"]
    begin = "none" if history["since"] is None else f"since {_stamp(history['since'])}"
    yield "history", [f"{begin}, {_size(history['bytes'])}"]
    yield "locks", [f"{path} for {_span(age)}" for path, age in report["locks"].items()]
    waiting = report["metrics_waiting"]
    yield "clients", [f"{report['clients']} connected, {waiting} metrics in the queue"]
    yield "errors", [_trouble(trouble) for trouble in report["troubles"]]


def _members_of(status: Mapping[str, Any]) -> list[str]:
    if "nodelist" not in status:
        return [status["nodename"]]
    return [
        f"{name} {node.get('ip', '(address unknown)')} {'online' if node['online'] else 'offline'}"
        for name, node in status["nodelist"].items()
    ]


def _trouble(trouble: Mapping[str, Any]) -> str:
    return f"{_stamp(trouble['time'])} [{trouble['domain']}] {trouble['level']}: {trouble['text']}"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(count: int) -> str:
    for unit, length in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} bytes"
