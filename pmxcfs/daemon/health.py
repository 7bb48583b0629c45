"""Whether this node is well: what is not well, why, what it means, and what to do.

``assess`` turns facts into findings. It is pure, so each state can be tested without a daemon. A
node with a finding that is *failed* refuses changes or lets them time out; one whose findings are
only *degraded* works.

Contract: docs/spec/operations.md, "Status".
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from pmxcfs.messages import MAX_FILE_SIZE

LITTLE_SPACE = MAX_FILE_SIZE  # free bytes below which it is a finding: one change can need as many
NEARLY_FULL = 0.9  # the part of a limit above which it is a finding
PATIENCE = 2.0  # seconds without an echo, or out of sync, after which changes are refused


class State(Enum):
    """How well a node is; the worst of its findings."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    FAILED = "failed"


class Kind(NamedTuple):
    """A kind of finding."""

    state: State
    meaning: str  # what it means for users of this node
    step: str  # what to do next
    chapter: str  # of docs/operations.md


class Finding(NamedTuple):
    """One thing that is not well on this node."""

    name: str  # of the kind, a key of KINDS
    reason: str  # what is so, with names and numbers

    @property
    def kind(self) -> Kind:
        """The kind of the finding."""
        return KINDS[self.name]


class Facts(NamedTuple):
    """What is known about a node. Reasons are empty, and lists too, if all is well."""

    is_quorate: bool = True
    corosync_error: str = ""  # why there is no connection to corosync
    host_file_fault: str = ""  # why corosync can't start with the host's corosync.conf
    mode: str = ""  # of the tree's group; empty outside a cluster
    seconds_out_of_sync: float = 0.0  # of the group that is out of sync for longer
    seconds_without_echo: float = 0.0  # of the oldest own message that has not come back
    refusal: str = ""  # why changes are refused since one was not delivered
    copy_error: str = ""  # why changes that only this node has can't be copied
    store_error: str = ""  # why changes can't be stored
    save_error: str = ""  # why the database can't follow the journal
    offline: Sequence[str] = ()  # names of nodes
    twins: Sequence[int] = ()  # process ids of other members with this node's id
    is_unlisted: bool = False  # whether the cluster's configuration lacks this node's name
    host_file_error: str = ""  # why the host's corosync.conf or corosync lacks the tree's version
    free_bytes: float = math.inf  # on the device of the state directory
    conflicts: Sequence[str] = ()  # names of copies that nobody has marked as done
    repairs: int = 0  # made to the database at the start
    metrics_error: str = ""  # why metrics can't be written
    content_share: float = 0.0  # of its limit
    entries_share: float = 0.0  # of their limit


KINDS: Mapping[str, Kind] = {
    "no-corosync": Kind(
        State.FAILED,
        "Without corosync this node is no member of the cluster. Files can be read as they were "
        "when the connection was lost; changes are refused.",
        "see why corosync does not run: systemctl status corosync; journalctl -u corosync",
        "Without quorum",
    ),
    "no-quorum": Kind(
        State.FAILED,
        "No more than half of the votes of the cluster are present, or not yet all nodes since "
        "corosync was started (wait_for_all). Files can be read; changes are refused, so that two "
        "halves of a cluster can't change the same file.",
        "see which nodes are missing: corosync-quorumtool -s; start them or mend the network",
        "Without quorum",
    ),
    "copy": Kind(
        State.FAILED,
        "Another node's tree would replace changes that only this node has. They must be copied "
        "first, which fails. So this node stays out of the cluster and shows its old tree.",
        "make room in the state directory; the node joins by itself as soon as there is room",
        "What survives which failure",
    ),
    "out-of-sync": Kind(
        State.FAILED,
        "The nodes compare their trees and send what is missing. Until that ends, changes wait "
        "and then fail with EBUSY.",
        "wait some seconds; if it does not end, look for a node whose daemon hangs: pmxcfs status "
        "on each node",
        "Without quorum",
    ),
    "no-echo": Kind(
        State.FAILED,
        "A message that this node has sent to the cluster does not come back, so corosync hangs "
        "here or the network loses messages. Changes time out or are refused.",
        "see whether corosync answers: corosync-cfgtool -s; if it does not: systemctl restart "
        "corosync",
        "Without quorum",
    ),
    "refused": Kind(
        State.FAILED,
        "A change could not be sent, or was not delivered in time. Until the cluster delivers "
        "changes again, all are refused at once.",
        "see whether corosync answers: corosync-cfgtool -s; if it does not: systemctl restart "
        "corosync",
        "Without quorum",
    ),
    "not-stored": Kind(
        State.FAILED,
        "The journal can't be written, so changes of this node are refused. Files can be read. "
        "In a cluster, what other nodes change is seen here, but only in memory.",
        "make room on the device of the state directory, or mend it; no restart is needed",
        "What survives which failure",
    ),
    "not-saved": Kind(
        State.DEGRADED,
        "Changes are in the journal, so none is lost. But the database does not get them: a copy "
        "of the file config.db is older, and the journal grows until the database can be written.",
        "see the reason, and end what keeps the database from being written; the daemon tries "
        "again by itself, and at once by: pmxcfs checkpoint",
        "What survives which failure",
    ),
    "little-space": Kind(
        State.DEGRADED,
        "The device of the state directory is full or nearly so. When a change can't be saved, "
        "this node refuses changes.",
        "make room on the device of the state directory: df; journalctl --disk-usage",
        "What survives which failure",
    ),
    "synchronizing": Kind(
        State.DEGRADED,
        "The nodes compare their trees after a node came or went. Changes wait for the end.",
        "nothing, this ends by itself",
        "Without quorum",
    ),
    "offline": Kind(
        State.DEGRADED,
        "Nodes of the cluster are not there. With fewer votes present the cluster loses quorum.",
        "start the nodes; on each of them: systemctl status corosync pmxcfs",
        "Without quorum",
    ),
    "twin": Kind(
        State.DEGRADED,
        "Two daemons of this node are members of the cluster. No change is lost, but they share "
        "what belongs to a node: its locks, its keys and its state online.",
        "stop the other daemon: ps -C pmxcfs -o pid,args",
        "Without quorum",
    ),
    "unlisted": Kind(
        State.DEGRADED,
        "The cluster's configuration has no node of this node's name, so other nodes can't tell "
        "whose messages this node sends.",
        "compare the output of hostname with the names in corosync.conf, and correct one of them",
        "Form a cluster of three nodes",
    ),
    "host-file": Kind(
        State.DEGRADED,
        "The host's corosync.conf, or corosync itself, does not have what the cluster's "
        "corosync.conf says. The next start of corosync may fail or join another cluster.",
        "compare /etc/corosync/corosync.conf with /etc/pve/corosync.conf, correct the latter and "
        "raise its config_version",
        "Form a cluster of three nodes",
    ),
    "conflict": Kind(
        State.DEGRADED,
        "Changes that only this node had were replaced by the cluster's; a copy of them is kept.",
        "see what was replaced: pmxcfs conflicts list; when you have dealt with it: pmxcfs "
        "conflicts done NAME",
        "What survives which failure",
    ),
    "repaired": Kind(
        State.DEGRADED,
        "The database was damaged when the daemon was started. It was repaired, and a copy of the "
        "damaged file is kept.",
        "see what was repaired: journalctl -t pmxcfs; look for the cause, such as a failing disk",
        "A damaged database",
    ),
    "metrics": Kind(
        State.DEGRADED,
        "Metrics of nodes and guests are not recorded. Nothing else is affected.",
        "see whether rrdcached runs: systemctl status rrdcached",
        "Logging",
    ),
    "nearly-full": Kind(
        State.DEGRADED,
        "At the limit, changes that need more room fail with ENOSPC.",
        "remove what is not needed",
        "Limits",
    ),
}


def assess(facts: Facts) -> list[Finding]:
    """Return what is not well, what is failed first."""
    found = [*_of_cluster(facts), *_of_disk(facts), *_of_limits(facts)]
    return sorted(found, key=lambda finding: finding.kind.state is not State.FAILED)


def state_of(findings: Sequence[Finding]) -> State:
    """Return the worst state of *findings*."""
    states = {finding.kind.state for finding in findings}
    return next(
        (state for state in (State.FAILED, State.DEGRADED) if state in states), State.HEALTHY
    )


def _of_cluster(facts: Facts) -> Iterator[Finding]:
    if facts.corosync_error:
        why = facts.host_file_fault or facts.corosync_error
        yield Finding("no-corosync", f"no connection to corosync, so it is read-only: {why}")
    elif not facts.is_quorate:
        yield Finding("no-quorum", "no quorum, so it is read-only")
    if facts.copy_error:
        yield Finding(
            "copy", f"changes that only this node has can't be copied: {facts.copy_error}"
        )
    elif facts.mode:
        yield from _of_sync(facts)
    if facts.offline and not facts.corosync_error:  # without a connection nobody knows
        yield Finding("offline", f"offline: {', '.join(facts.offline)}")
    if facts.twins:
        pids = ", ".join(map(str, facts.twins))
        yield Finding("twin", f"other daemons with this node's id are members: pid {pids}")
    if facts.is_unlisted:
        yield Finding("unlisted", "the cluster's configuration has no node of this node's name")
    if facts.host_file_error:
        yield Finding("host-file", facts.host_file_error)


def _of_sync(facts: Facts) -> Iterator[Finding]:
    out, silent = facts.seconds_out_of_sync, facts.seconds_without_echo
    if facts.corosync_error:
        return
    if out > PATIENCE:  # then messages wait unsent, so none can come back
        yield Finding("out-of-sync", f"not in sync for {out:.0f} s: {facts.mode}")
    elif silent > PATIENCE:
        yield Finding("no-echo", f"a message of this node has not come back for {silent:.0f} s")
    elif out > 0:
        yield Finding("synchronizing", "synchronizing with the other nodes")
    elif facts.refusal:
        yield Finding("refused", f"changes are refused: {facts.refusal}")


def _of_disk(facts: Facts) -> Iterator[Finding]:
    if facts.store_error:
        yield Finding("not-stored", f"changes are refused: {facts.store_error}")
    if facts.save_error:
        yield Finding("not-saved", f"the database is not up to date: {facts.save_error}")
    if facts.free_bytes < LITTLE_SPACE:
        kilobytes = facts.free_bytes // 1024
        yield Finding(
            "little-space", f"free on the device of the state directory: {kilobytes:.0f} KiB"
        )
    if facts.conflicts:
        yield Finding("conflict", f"copies of replaced changes: {', '.join(facts.conflicts)}")
    if facts.repairs:
        yield Finding("repaired", f"{facts.repairs} repairs were made to the database at the start")
    if facts.metrics_error:
        yield Finding("metrics", f"metrics: {facts.metrics_error}")


def _of_limits(facts: Facts) -> Iterator[Finding]:
    for name, share in (
        ("content", facts.content_share),
        ("files and directories", facts.entries_share),
    ):
        if share > NEARLY_FULL:
            yield Finding("nearly-full", f"{name}: {share:.0%} of the limit")
