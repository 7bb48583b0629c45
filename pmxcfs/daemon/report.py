"""The report on the daemon's state for ``pmxcfs status``: plain data, and what is not well.

``health`` says what is not well; this module collects the facts for it.

Threads: ``describe`` needs the tree's lock and does not block.
Contract: docs/spec/operations.md, "Status".
"""

import json
import logging
import os
import time
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import pmxcfs
from pmxcfs._core import Tree
from pmxcfs.cluster.membership import Clustering
from pmxcfs.daemon.health import Facts, Finding, assess, state_of
from pmxcfs.daemon.local_clients import LocalClients
from pmxcfs.daemon.state_directory import StateDirectory
from pmxcfs.host.log import domain_of, texts_of
from pmxcfs.messages import MAX_ENTRIES, MAX_TOTAL_SIZE
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.replica.replica import Replica
from pmxcfs.settings import Settings
from pmxcfs.status.files import StatusFile
from pmxcfs.status.members import Members
from pmxcfs.storage.history import History
from pmxcfs.tree.locks import LockTable

MAX_WARNINGS = 10  # warnings and errors in the report


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
    history: History
    quorum: QuorumFlag
    locks: LockTable
    members: Members
    members_file: StatusFile
    clients: LocalClients
    clustering: Clustering | None  # None: not in a cluster
    state: StateDirectory
    repairs: int  # of the database, made at the start
    troubles: RecentWarnings
    start_time: int  # seconds since 1970
    running_since: float  # monotonic second of the start
    session: str  # the kind of session with the kernel


def describe(parts: ReportSources) -> Mapping[str, object]:
    """Return the report, which ``pmxcfs status --json`` prints. Needs the lock."""
    findings = find(parts)
    return {
        "version": pmxcfs.__version__,
        "node": parts.settings.nodename,
        "pid": os.getpid(),
        "started": parts.start_time,
        "uptime": round(time.monotonic() - parts.running_since, 1),
        "state": state_of(findings).value,
        "findings": [_as_data(finding) for finding in findings],
        "session": parts.session,
        "quorate": parts.quorum.is_quorate,
        "members": json.loads(parts.members_file.content),
        "cluster": parts.clustering.describe() if parts.clustering else None,
        "database": {
            "path": str(parts.settings.database),
            "bytes": parts.state.database_bytes,
            "version": parts.tree.version,
        },
        "journal": {
            "path": str(parts.settings.journal),
            "bytes": parts.state.journal_bytes,
            "unsaved_bytes": parts.replica.saver.waiting_bytes,
        },
        "history": {"bytes": parts.history.size, "since": _begin_of(parts.history)},
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


def _begin_of(history: History) -> int | None:
    """Return how far *history* reaches back, in seconds since 1970; None if there is none."""
    begin_ns = history.begin_ns
    return None if begin_ns is None else begin_ns // 10**9


def summary(parts: ReportSources) -> str:
    """Return the state and its first reason in one line, for systemd. Needs the lock."""
    findings = find(parts)
    state = state_of(findings).value
    reason = f": {findings[0].reason}" if findings else ""
    tree = parts.tree
    return f"{state}{reason}; {tree.entry_count} entries, version {tree.version}"


def find(parts: ReportSources) -> list[Finding]:
    """Return what is not well on this node, the worst first. Needs the lock."""
    facts = Facts(
        is_quorate=parts.quorum.is_quorate,
        store_error=str(parts.replica.store_error or parts.state.store_error),
        save_error=str(parts.replica.save_error or parts.state.save_error),
        free_bytes=parts.state.free_bytes,
        conflicts=parts.state.copies,
        repairs=parts.repairs,
        metrics_error=parts.clients.recorder.trouble,
        content_share=parts.tree.content_bytes / MAX_TOTAL_SIZE,
        entries_share=parts.tree.entry_count / MAX_ENTRIES,
    )
    clustering = parts.clustering
    if clustering is None:
        return assess(facts)
    return assess(
        facts._replace(
            corosync_error=clustering.corosync_error,
            host_file_fault=clustering.host_file_fault,
            mode=clustering.mode,
            seconds_out_of_sync=clustering.seconds_out_of_sync,
            seconds_without_echo=clustering.seconds_without_echo,
            refusal=clustering.refusal,
            copy_error=clustering.tree.copy_error,
            host_file_error=clustering.host_file_error,
            offline=parts.members.offline(),
            twins=[member.pid for member in clustering.tree.dfsm.twins],
            is_unlisted=parts.members.is_unlisted,
        )
    )


def _as_data(finding: Finding) -> Mapping[str, str]:
    kind = finding.kind
    return {
        "name": finding.name,
        "state": kind.state.value,
        "reason": finding.reason,
        "step": kind.step,
        "meaning": kind.meaning,
        "chapter": kind.chapter,
    }
