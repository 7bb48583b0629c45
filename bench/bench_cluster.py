"""The cost of a client's operations in a cluster of three nodes on this machine.

The base is the same operation on the same node in local mode. The limits are the figures of the
original in such a cluster (docs/spec/performance.md), scaled to this machine. Client and daemon run
on any CPU, and each change wakes processes on other CPUs. So the scale is the quotient of the times
of a FUSE message between two CPUs, here and on the machine where the original was measured. Two
machines that are equally fast on one CPU differ by a factor of two and more in that time. Both CPUs
are kept awake for the measurement, as three corosyncs keep them awake; a sleeping CPU doubles the
time.
Skipped without corosync, which `make test-deps` installs.
"""

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from bench.goals import Goal
from bench.report import Report
from bench.servers import floor_server, pin
from tests.cluster.lab import Member
from tests.cluster.together import Cluster

# The original's microseconds: the upper end of the measured range.
BETWEEN_CPUS = {
    "open + read 1 KiB + close": 55,
    "overwrite 1 KiB": 1500,
    "tmp + write 1 KiB + close + rename": 2600,
    "mkdir + rmdir": 1500,
}
ABSOLUTE = {
    "write 1 MiB + close": 35_000,
    "1000 x write 512 B, close": 60_000,
}  # microseconds, on any machine
BETWEEN_CPUS_THEN = 16.0  # microseconds of such a message where the original was measured
MESSAGES = 3000
CLIENT_TIMEOUT = 120.0  # seconds for all operations of a client
LAGS = 200  # changes whose arrival on another node is timed

pytestmark = pytest.mark.skipif(not shutil.which("corosync"), reason="needs corosync")


def goal_of(name: str, *, pace: float) -> Goal:
    """Return the limits of an operation where messages between CPUs take *pace* times as long."""
    if name in ABSOLUTE:
        return Goal(absolute=ABSOLUTE[name])
    return Goal(must=BETWEEN_CPUS[name], pace=pace)


@contextmanager
def all_cpus() -> Iterator[None]:
    """Let this process and its children use all CPUs."""
    pinned = os.sched_getaffinity(0)
    pin(set(range(os.cpu_count() or 1)))
    try:
        yield
    finally:
        pin(pinned)


@contextmanager
def awake(cpus: Iterable[int]) -> Iterator[None]:
    """Keep each of these CPUs busy with a process of idle priority."""
    idle = ["chrt", "--idle", "0", "sh", "-c", "while :; do :; done"]
    with ExitStack() as stack:
        for cpu in cpus:
            busy = subprocess.Popen(["taskset", "--cpu-list", str(cpu), *idle])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        yield


def message_us(floor: Path, workdir: Path, *, cpus: tuple[int, int]) -> float:
    """Return the microseconds of a message from a client on one CPU to the floor on the other."""
    with floor_server(floor, workdir) as server, awake(set(cpus)):
        pin({cpus[1]}, pids=[server.pid])
        pin({cpus[0]})
        times = []
        for _ in range(MESSAGES):
            start = time.perf_counter()
            os.statvfs(server.root)
            times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


def measure(node: Member) -> dict[str, float]:
    """Return the median of each operation on *node* in microseconds."""
    with closing(node.start_worker("bench.replicated:measure")) as worker:
        medians: dict[str, float] = worker.receive(CLIENT_TIMEOUT)
    return medians


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


def bench_three_nodes(workdir: Callable[[], Path], report: Report, floor: Path) -> None:
    first, last = 0, (os.cpu_count() or 1) - 1
    with all_cpus():
        on_one = message_us(floor, workdir(), cpus=(last, last))
        between = message_us(floor, workdir(), cpus=(first, last))
    report.add(
        "cluster", "floor: a message between two CPUs; on one", unit="µs", ours=between,
        base=on_one, goal=Goal(),
    )  # fmt: skip
    with all_cpus(), Cluster(workdir()) as cluster:
        node = cluster[1]
        node.daemon.start("--local")
        node.daemon.wait_until_mounted()
        alone = measure(node)
        assert node.daemon.stop() == 0
        node.database.unlink()  # the daemon makes a new one, with the host's corosync.conf
        cluster.start()
        together = measure(node)
        for name, base in alone.items():
            report.add(
                "cluster", name, unit="µs", ours=together[name], base=base,
                goal=goal_of(name, pace=between / BETWEEN_CPUS_THEN),
            )  # fmt: skip
        found = lags(cluster[1], cluster[2])
        lag = statistics.median(
            max(1.0, one) for one in found
        )  # negative if the reader is faster than the writer's return
        report.add(
            "cluster", "from a write's end to its sight elsewhere", unit="µs", ours=lag,
            base=together["overwrite 1 KiB"], goal=Goal(),
        )  # fmt: skip
        cluster.finish()
