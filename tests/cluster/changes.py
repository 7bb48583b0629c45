"""What a change of a cluster's membership costs: time without writes, CPU time, memory, bytes.

``Changes.measure`` has a writer on each node that appends lines all the time, makes the change, and
waits until the nodes that are to write have done so with the new members. Then the writers stop and
the nodes are compared. ``Changes.table`` tells of all changes so far.
"""

import contextlib
import re
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from tests.cluster.agent import Agent
from tests.cluster.appending import FOLDER, Appender
from tests.cluster.lab import Member
from tests.cluster.node import PATIENCE
from tests.cluster.services import Service
from tests.cluster.together import Cluster

INTERVAL = 0.5  # seconds between looks at the nodes; each takes milliseconds of each daemon
SENT = re.compile(r"^ *eth0:(?: +\d+){8} +(\d+)", re.MULTILINE)  # bytes, in /proc/net/dev
# The begin and the end of a round of the tree's group in the daemon's log, with their times.
ROUND = re.compile(r"^(\S+ \S+) pmxcfs\[\d+\]: \[dcdb\] info: (members: |all data)", re.MULTILINE)
LOG_TIME = "%Y-%m-%d %H:%M:%S.%f"
MEMORY = re.compile(r"^(VmHWM|VmRSS):\s+(\d+) kB$", re.MULTILINE)
RESET_PEAK = "5"  # for /proc/PID/clear_refs


class Usage(NamedTuple):
    """What the services of a node have used since they were started."""

    daemon: int  # its pid
    daemon_cpu: float  # seconds
    corosync_cpu: float
    messages: int  # bytes that the daemon has sent to the tree's group
    network: int  # bytes that the node has sent, since its boot


class Cost(NamedTuple):
    """What a change has cost."""

    name: str
    members: int  # afterwards
    seconds: float  # until all nodes had written with the new members, or were in sync
    rounds: Sequence[float]  # seconds of the last round of each member, which follows corosync's
    silences: Sequence[float]  # the longest time without a write, of each node that can write
    daemon_cpu: Sequence[float]  # seconds, of each node
    corosync_cpu: Sequence[float]
    resident: int  # MiB, the most of a daemon, afterwards
    peak: int  # MiB, the most of a daemon, meanwhile
    messages: int  # bytes that the daemons have sent to the tree's group
    network: int  # bytes that the nodes have sent

    def row(self) -> str:
        """Return the line of the table."""
        silences, cpu = self.silences or [float("nan")], self.daemon_cpu
        return (
            f"{self.name:<31}{self.members:>3}{self.seconds:>9.1f}"
            f"{statistics.median(silences):>9.1f}{max(silences):>7.1f}{max(self.rounds):>7.1f}"
            f"{statistics.median(cpu):>9.2f}{max(cpu):>7.2f}{sum(self.corosync_cpu):>9.1f}"
            f"{self.resident:>7}{self.peak:>6}"
            f"{self.messages / 1e6:>10.2f}{self.network / 1e6:>9.1f}"
        )


HEAD = (
    f"{'':<34}{'all':>9}{'without':>9}{'write':>7}{'round':>7}{'daemon':>9}{'CPU':>7}"
    f"{'corosync':>9}{'RSS':>7}{'peak':>6}{'messages':>10}{'network':>9}\n"
    f"{'change':<31}{'n':>3}{'write, s':>9}{'median':>9}{'worst':>7}{'worst':>7}{'median':>9}"
    f"{'worst':>7}{'CPU sum':>9}{'MiB':>7}{'MiB':>6}{'MB':>10}{'MB':>9}"
)


class Changes:
    """The measured changes of *cluster*."""

    def __init__(self, cluster: Cluster) -> None:
        self.costs: list[Cost] = []
        self._cluster = cluster
        self._appenders = {node: Appender(node) for node in cluster.nodes}
        self._quorum = len(cluster.nodes) // 2 + 1

    def close(self) -> None:
        """End the writers."""
        for appender in self._appenders.values():
            appender.close()

    def prepare(self, node: Member) -> None:
        """Make the writers' files through *node*, which is in no cluster or can write."""
        with contextlib.closing(Agent(node)) as agent:
            agent("mkdir", FOLDER)
            for other in self._cluster.nodes:
                agent("create", f"{FOLDER}/{other.name}")

    def measure(
        self,
        name: str,
        change: Callable[[], object],
        *members: Member,
        cut_off: Sequence[Member] = (),
        killed: Sequence[Member] = (),
        seconds: float,
    ) -> None:
        """Make a change after which *members* are the cluster; fail after *seconds*.

        *cut_off* are nodes that run on, but must not be able to write any more; *killed* ones run
        before only. All nodes that can write before the change are writing when it comes.
        """
        nodes = [*members, *cut_off]
        before = {node: self._usage(node) for node in nodes}
        for node in [*nodes, *killed]:
            self._appenders[node].start()
        self._wait_for_writes(
            [node for node in [*nodes, *killed] if _can_write(node)], f"before: {name}", seconds
        )
        start = time.monotonic()
        change()
        self._cluster.wait_until(
            lambda: all(self._is_in(node, members) for node in members),
            seconds,
            f"{len(members)} members after: {name}",
            interval=INTERVAL,
        )
        silent = self._wait_for_loss(cut_off, seconds)
        if len(members) >= self._quorum:
            self._wait_for_writes(members, f"after: {name}", seconds)
        took = time.monotonic() - start
        memory = [_memory(node.daemon) for node in nodes]
        after = {node: self._usage(node) for node in nodes}
        self._stop(start, cut_off, silent, killed)
        spent = [_difference(before[node], after[node]) for node in nodes]
        silences = [self._appenders[node].longest_silence(start) for node in members]
        self.costs.append(
            Cost(
                name=name,
                members=len(members),
                seconds=took,
                rounds=self._rounds(members),
                silences=silences if len(members) >= self._quorum else [],
                daemon_cpu=[usage.daemon_cpu for usage in spent],
                corosync_cpu=[usage.corosync_cpu for usage in spent],
                resident=max(resident for resident, _ in memory) >> 10,
                peak=max(peak for _, peak in memory) >> 10,
                messages=sum(usage.messages for usage in spent),
                network=sum(usage.network for usage in spent),
            )
        )

    def lost(self) -> list[str]:
        """Return a line for each acknowledged line that the cluster's tree has not."""
        lost = []
        for node, appender in self._appenders.items():
            text = (self._cluster[1].path / FOLDER / node.name).read_text()
            lost += [f"line {number} of {node.name}" for number in appender.lost(text)]
        return lost

    @property
    def promised(self) -> int:
        """How many lines were acknowledged."""
        return sum(appender.promised for appender in self._appenders.values())

    def table(self) -> str:
        """Return what the changes have cost."""
        return "\n".join([HEAD, *(cost.row() for cost in self.costs)])

    def _is_in(self, node: Member, members: Sequence[Member]) -> bool:
        """Tell whether *node* is in sync with *members*, and can write if they are enough."""
        info = node.daemon.info()
        numbers = [member.nodeid for member in members]
        modes = (info.get("mode"), info.get("status_mode"))
        is_whole = info.get("members") == info.get("status_members") == sorted(numbers)
        return is_whole and modes == ("synced",) * 2 and info["quorate"] is self._enough(members)

    def _enough(self, members: Sequence[Member]) -> bool:
        return len(members) >= self._quorum

    def _rounds(self, members: Sequence[Member]) -> Sequence[float]:
        """Return how long the last round of each member has taken."""
        found: list[float | None] = []

        def are_known() -> bool:
            found[:] = [_last_round(node.daemon) for node in members]
            return None not in found

        self._cluster.wait_until(are_known, PATIENCE, "the ends of rounds in the logs")
        return [seconds for seconds in found if seconds is not None]

    def _wait_for_writes(self, members: Sequence[Member], when: str, seconds: float) -> None:
        since = time.monotonic()
        self._cluster.wait_until(
            lambda: all(self._appenders[node].has_written_since(since) for node in members),
            seconds,
            f"a write of each of {len(members)} members {when}",
        )

    def _wait_for_loss(self, nodes: Sequence[Member], seconds: float) -> float:
        """Wait until *nodes* have lost quorum; return the time since when they have."""
        self._cluster.wait_until(
            lambda: not any(node.daemon.info()["quorate"] for node in nodes),
            seconds,
            "the loss of quorum",
            interval=INTERVAL,
        )
        return time.monotonic()

    def _stop(
        self,
        start: float,
        cut_off: Sequence[Member],
        silent: float,
        killed: Sequence[Member],
    ) -> None:
        """Stop the writers; nodes that are cut off must not have written since *silent*."""
        for node, appender in self._appenders.items():
            is_lost = node in cut_off or node in killed
            appender.stop(doubtful_since=start if is_lost else float("inf"))
            assert not (node in cut_off and appender.has_written_since(silent)), node.name

    def _usage(self, node: Member) -> Usage:
        """Return what *node* has used, and have the peak of its memory counted anew."""
        daemon, corosync = node.daemon, node.corosync
        messages = 0
        if daemon.is_running and daemon.is_mounted():
            assert daemon.process
            messages = int(daemon.info().get("sent_bytes", 0))
            (node.root / "proc" / str(daemon.process.pid) / "clear_refs").write_text(RESET_PEAK)
        return Usage(
            daemon.process.pid if daemon.process else 0,
            daemon.cpu_seconds() if daemon.is_running else 0.0,
            corosync.cpu_seconds() if corosync.is_running else 0.0,
            messages,
            int(SENT.findall(node.run("cat", "/proc/net/dev"))[0]),
        )


def _can_write(node: Member) -> bool:
    """Tell whether a node is running, in sync and quorate."""
    if not (node.daemon.is_running and node.daemon.is_mounted()):
        return False
    info = node.daemon.info()
    return bool(info.get("mode") == "synced" and info["quorate"])


def _difference(before: Usage, after: Usage) -> Usage:
    """Return what was used between; a daemon that was started meanwhile had used nothing before."""
    is_same = before.daemon == after.daemon
    return Usage(
        after.daemon,
        after.daemon_cpu - before.daemon_cpu * is_same,
        max(after.corosync_cpu - before.corosync_cpu, after.corosync_cpu * (not is_same)),
        after.messages - before.messages * is_same,
        after.network - before.network,
    )


def _last_round(daemon: Service) -> float | None:
    """Return the seconds from the last change of the members until the node was in sync.

    None if the log does not tell the end yet; the daemon writes it with a delay.
    """
    began = ended = datetime.min
    for stamp, what in ROUND.findall(daemon.log_text()):
        moment = datetime.strptime(stamp, LOG_TIME)
        if what.startswith("members"):
            began = moment
        else:
            ended = moment
    return (ended - began).total_seconds() if datetime.min < began <= ended else None


def _memory(service: Service) -> tuple[int, int]:
    """Return the resident memory of a service now, and at most, in KiB."""
    assert service.process
    status = service.node.root / "proc" / str(service.process.pid) / "status"
    found = {name: int(value) for name, value in MEMORY.findall(status.read_text())}
    return found["VmRSS"], found["VmHWM"]
