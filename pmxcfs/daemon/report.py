"""The report on the daemon's state for ``pmxcfs status``: plain data, and a list of problems.

A node with at least one problem in the list is *degraded*.

Threads: ``describe`` needs the tree's lock and does not block.
Contract: docs/spec/operations.md, "Status".
"""

import contextlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pmxcfs
from pmxcfs._core import Tree
from pmxcfs.daemon.local_clients import LocalClients
from pmxcfs.dfsm.effects import Mode
from pmxcfs.host.log import domain_of, texts_of
from pmxcfs.messages import MAX_ENTRIES, MAX_TOTAL_SIZE
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.replica.replica import Replica
from pmxcfs.settings import Settings
from pmxcfs.status.files import StatusFile
from pmxcfs.tree.locks import LockTable

MAX_WARNINGS = 10  # warnings and errors in the report
NEARLY_FULL = 0.9  # the part of a limit above which it is a problem


class RecentWarnings(logging.Handler):
    """A log handler that keeps the latest warnings and errors of this process."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._latest: deque[Mapping[str, object]] = deque(maxlen=MAX_WARNINGS)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first line of a record."""
        self._latest.append(
            {
                "time": int(record.created),
                "level": record.levelname.lower(),
                "domain": domain_of(record.name),
                "text": next(texts_of(record)),
            }
        )

    def latest(self) -> list[Mapping[str, object]]:
        """Return the kept warnings and errors, the oldest first."""
        return list(self._latest)


class ReportSources(NamedTuple):
    """The parts of the daemon that the report describes."""

    settings: Settings
    tree: Tree
    replica: Replica
    quorum: QuorumFlag
    locks: LockTable
    members: StatusFile
    clients: LocalClients
    cluster: Callable[[], Mapping[str, object]] | None  # None: not in a cluster
    troubles: RecentWarnings
    start_time: int  # seconds since 1970


def describe(parts: ReportSources) -> Mapping[str, object]:
    """Return the report, which ``pmxcfs status --json`` prints. Needs the lock."""
    cluster = parts.cluster() if parts.cluster else None
    return {
        "version": pmxcfs.__version__,
        "node": parts.settings.nodename,
        "pid": os.getpid(),
        "started": parts.start_time,
        "problems": list(_problems(parts, cluster)),
        "quorate": parts.quorum.is_quorate,
        "members": json.loads(parts.members.content),
        "cluster": cluster,
        "database": {
            "path": str(parts.settings.database),
            "bytes": _size_of(parts),
            "version": parts.tree.version,
        },
        "content": {
            "bytes": parts.tree.content_bytes,
            "most_bytes": MAX_TOTAL_SIZE,
            "entries": parts.tree.entry_count,
            "most_entries": MAX_ENTRIES,
        },
        "locks": {path: round(age, 1) for path, age in parts.locks.ages(time.monotonic()).items()},
        "clients": parts.clients.ipc.connections,
        "metrics_waiting": parts.clients.recorder.waiting,
        "troubles": parts.troubles.latest(),
    }


def _problems(parts: ReportSources, cluster: Mapping[str, object] | None) -> list[str]:
    found = []
    if not parts.quorum.is_quorate:
        found.append("this node has no quorum: the file system is read-only")
    if cluster and cluster["mode"] != Mode.SYNCED.value:
        found.append(f"not in sync with the other nodes: {cluster['mode']}")
    if cluster and cluster["copy_error"]:
        found.append(f"changes that only this node has can't be copied: {cluster['copy_error']}")
    if parts.replica.is_degraded:
        found.append("the database can't be written: see the latest errors")
    if parts.clients.recorder.trouble:
        found.append(f"metrics: {parts.clients.recorder.trouble}")
    if parts.tree.content_bytes > NEARLY_FULL * MAX_TOTAL_SIZE:
        found.append(f"the content takes more than {NEARLY_FULL:.0%} of its limit")
    if parts.tree.entry_count > NEARLY_FULL * MAX_ENTRIES:
        found.append(f"files and directories are more than {NEARLY_FULL:.0%} of their limit")
    return found


def _size_of(parts: ReportSources) -> int:
    """Return the size in bytes of the database file and its write-ahead log."""
    path = parts.settings.database
    total = 0
    for file in (path, path.with_name(f"{path.name}-wal")):
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total
