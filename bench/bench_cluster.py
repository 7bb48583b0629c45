"""A client's operations on one of three nodes on this machine, and the daemons' CPU time.

The base of a change is the time of as many messages of the same size between bare members
(``member``) on the same nodes, by turns with the operations. The base of a read is the floor, on
the machine beside the cluster. Nothing is pinned.
Skipped without corosync, which `make test-deps` installs.
"""

import contextlib
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest

from bench import operations as do
from bench.conditions import favored
from bench.data import BIG_FILES, GUESTS, mounted_files
from bench.goals import KIB, MIB, Figures, Goal
from bench.member import Message, message
from bench.operations import Prepare
from bench.places import FloorPlace, Place
from bench.populate import copy_files
from bench.report import Report
from bench.servers import Session, cpu_us, floor_server
from bench.turns import Batch, p99
from tests.cluster.lab import Member
from tests.cluster.together import Cluster

TURNS = 3  # of the members and of each operation
MESSAGES = {
    60: 500,
    1100: 500,
    500 * KIB: 30,
    MIB - 4 * KIB: 20,
}  # size in bytes -> count in a turn
SHORT, CONTENT, HALF, WHOLE = MESSAGES  # a name; 1 KiB; half of the largest file; nearly all of it
CLIENT_TIMEOUT = 60.0  # seconds until a change is seen
LAGS = 200  # changes whose arrival on another node is timed
ORIGIN_CPU, PEER_CPU = Goal(2.2), Goal(1.2)  # times a bare member's CPU time per message

pytestmark = pytest.mark.skipif(not shutil.which("corosync"), reason="needs corosync")


class Change(NamedTuple):
    """A row: an operation, the sizes of the messages that it needs, and its limit."""

    name: str
    operation: Prepare
    messages: Sequence[int]
    goal: Goal
    batch: int


CHANGES = (
    Change("overwrite 1 KiB", do.overwrite, [CONTENT], Goal(1.8), 200),
    Change("tmp + write 1 KiB + close + rename", do.replace, [CONTENT, SHORT], Goal(1.8), 150),
    Change(
        "the same by file_set_contents, Perl", do.set_contents, [CONTENT, SHORT], Goal(1.8), 150
    ),
    Change("mkdir + rmdir", do.make_and_remove, [SHORT] * 2, Goal(2.0), 150),
    Change("create + write 1 KiB + close", do.create_other, [CONTENT], Goal(1.8), 150),
    Change("the same, a guest's: two waits", do.create, [CONTENT], Goal(1.8), 150),
    Change("write 1 MiB + close", do.write_big, [WHOLE], Goal(), 10),
    Change("1000 x write 512 B, close", do.write_sectors, [HALF], Goal(), 5),
)  # fmt: skip


# A row without messages: an operation and the floor's.
READS = (
    ("open + read 1 KiB + close", do.open_read_close, do.open_read_close),
    ("read .version", do.read_version, do.read_unseen("d90")),
)
READS_IN_A_TURN = 500


class Meter:
    """The times of one operation over all turns, and the CPU time of each node's daemon."""

    def __init__(self, batch: Batch, tasks: Sequence[Path]) -> None:
        self._batch = batch
        self._tasks = tasks
        self.times: list[float] = []
        self._spent = [0.0 for _ in tasks]

    def play(self, numbers: range) -> None:
        """Run the operation once per number."""
        before = [cpu_us(tasks) for tasks in self._tasks]
        self.times += self._batch(numbers)
        for node, (tasks, since) in enumerate(zip(self._tasks, before, strict=True)):
            self._spent[node] += cpu_us(tasks) - since

    def cpu_us(self) -> list[float]:
        """Return each daemon's CPU time per operation."""
        return [spent / len(self.times) for spent in self._spent]

    def figures(self) -> Figures:
        """Return the figures in microseconds, with the first node's CPU time."""
        return Figures(statistics.median(self.times), p99(self.times), self.cpu_us()[0])


def bench_three_nodes(
    workdir: Callable[[], Path], session: Session, options: list[str], report: Report
) -> None:
    with Cluster(workdir()) as cluster, floor_server(session, workdir()) as floor:
        start(cluster, options)
        tasks = [daemon_tasks(node) for node in cluster.nodes]
        with contextlib.chdir(cluster[1].path), ExitStack() as stack:
            for node in cluster.nodes:
                stack.enter_context(favored(node.root / "proc" / "1"))
            ours, base = Place("."), FloorPlace(floor.root)
            copy_files(Path(), islice(mounted_files(), GUESTS + BIG_FILES))
            changes = [Meter(row.operation(ours, stack), tasks) for row in CHANGES]
            reads = [
                (Meter(mine(ours, stack), tasks), Meter(other(base, stack), [floor.tasks]))
                for _, mine, other in READS
            ]
            found: list[dict[int, Message]] = []
            for turn in range(TURNS):
                found.append(
                    {
                        n: message(cluster.nodes, size=n, count=count)
                        for n, count in MESSAGES.items()
                    }
                )
                for row, meter in zip(CHANGES, changes, strict=True):
                    meter.play(range(turn * row.batch, (turn + 1) * row.batch))
                for pair in reads:
                    for meter in pair:
                        meter.play(range(turn * READS_IN_A_TURN, (turn + 1) * READS_IN_A_TURN))
        add_lag(cluster, report, base=statistics.median(changes[0].times))
        cluster.finish()
    messages = {size: average([turn[size] for turn in found]) for size in MESSAGES}
    add_changes(changes, messages, report)
    for (name, _, _), (mine, other) in zip(READS, reads, strict=True):
        report.compare(
            "cluster", name, unit="µs", ours=mine.figures(), base=other.figures(), goal=Goal()
        )


def start(cluster: Cluster, options: Sequence[str]) -> None:
    """Start all services, the daemons with *options*, and wait until they are one cluster."""
    cluster.start_corosync()
    for node in cluster.nodes:
        node.daemon.start(*options)
    for node in cluster.nodes:
        node.daemon.wait_until_mounted()
    cluster.wait_for_agreement()


def daemon_tasks(node: Member) -> Path:
    """Return the directory with the threads of a node's daemon."""
    assert node.daemon.process
    return node.root / "proc" / str(node.daemon.process.pid) / "task"


def average(turns: Sequence[Message]) -> Message:
    """Return the medians of several measurements of a message."""
    return Message(*map(statistics.median, zip(*turns, strict=True)))


def add_changes(changes: Sequence[Meter], messages: Mapping[int, Message], report: Report) -> None:
    """Put a row per change into the report, and the CPU times of an overwrite on each node."""
    for row, meter in zip(CHANGES, changes, strict=True):
        needed = [messages[size] for size in row.messages]
        base = Figures(
            sum(one.median for one in needed),
            needed[0].p99 if len(needed) == 1 else None,
            sum(one.origin_cpu for one in needed),
        )
        report.compare(
            "cluster", row.name, unit="µs", ours=meter.figures(), base=base,
            goal=row.goal,
        )  # fmt: skip
    one = messages[CONTENT]
    origin, *peers = changes[0].cpu_us()
    report.add(
        "cluster", "CPU of an overwrite, its origin", unit="µs", ours=origin, base=one.origin_cpu,
        goal=ORIGIN_CPU,
    )  # fmt: skip
    report.add(
        "cluster", "CPU of an overwrite, a peer", unit="µs", ours=statistics.mean(peers),
        base=one.peer_cpu, goal=PEER_CPU,
    )  # fmt: skip


def add_lag(cluster: Cluster, report: Report, *, base: float) -> None:
    """Put the time until a change is seen on another node into the report."""
    found = lags(cluster[1], cluster[2])
    report.add(
        "cluster", "a write's sight elsewhere; base: an overwrite", unit="µs",
        ours=max(1.0, statistics.median(found)), base=base, goal=Goal(),
    )  # fmt: skip  # a reader can be faster than the writer's return


def lags(writer: Member, reader: Member) -> list[float]:
    """Return the microseconds from the end of a write on one node until another node reads it."""
    with (
        closing(reader.start_worker("bench.replicated:watch", LAGS)) as watching,
        closing(writer.start_worker("bench.replicated:publish", LAGS)) as publishing,
    ):
        found = []
        for _ in range(LAGS):
            publishing.connection.send(None)
            written = publishing.receive(CLIENT_TIMEOUT)
            found.append((watching.receive(CLIENT_TIMEOUT) - written) * 1e6)
    return found
