"""A run of writers, readers and faults on a cluster, and the check of its results."""

import errno
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import wait

from tests.cluster.agent import Agent, Outcome
from tests.cluster.faults import Faults, Until
from tests.cluster.history import History
from tests.cluster.kept import copies
from tests.cluster.node import Worker
from tests.cluster.together import Cluster
from tests.cluster.workload import DIRECTORIES, STATIC, STATIC_FILES, Report, Slow

WRITERS = 3  # on each node
TICK = 0.01  # seconds between checks of the conditions of lanes
AGREEMENT = 60.0  # seconds
# A read's seconds without waits for a processor: thrice the contract's, as tests have it. Once in
# so many seconds a chain of threads may take longer that wait for one another on a busy machine;
# but nothing that waits for the cluster is as fast as the last.
MAX_READ, SECONDS_PER_SLOW_READ, LONGEST_READ = 0.3, 120, 1.0
MAX_CALL = 20.0  # seconds
MAX_LINES = 20  # of violations that are shown
READS = frozenset({"stat", "read", "get", "list"})
ALARMS = ("Traceback", "critical:")  # what no log may have


@dataclass
class Summary:
    """The results of a storm."""

    seed: int
    seconds: float = 0
    calls: int = 0
    operations: int = 0  # acknowledged
    refusals: int = 0
    errors: Counter[int] = field(default_factory=Counter)
    counts: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    recovery: dict[str, float] = field(default_factory=dict)  # the slowest, in seconds
    longest_read: float = 0
    starved_reads: int = 0  # slow ones that only waited for a processor
    longest_call: float = 0
    doubtful_victories: int = 0
    forks: int = 0  # trees that nodes have saved before they adopted another
    violations: list[str] = field(default_factory=list)
    timeline: list[str] = field(default_factory=list)  # of the faults

    def __str__(self) -> str:
        lines = [
            f"storm: seed {self.seed}, {self.seconds:.0f} s, {self.operations} operations "
            f"acknowledged, {self.refusals} refused, {self.calls} calls",
            f"answers: {_listed(self.counts)}; {self.doubtful_victories} contests with a second "
            f"winner in doubt; {self.forks} trees saved under conflicts",
            "failed calls: "
            + ", ".join(f"{n} {errno.errorcode[code]}" for code, n in self.errors.most_common()),
            f"faults: {_listed(self.faults)}",
            "slowest recovery: "
            + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.recovery.items()),
            f"longest read {1000 * self.longest_read:.0f} ms, besides waits for a processor, "
            f"which made {self.starved_reads} slow; "
            f"longest call {self.longest_call:.1f} s; {len(self.violations)} violations",
            *self.violations[:MAX_LINES],
        ]
        if self.violations:
            lines += ["what happened meanwhile:", *self.timeline]
        return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


class Storm:
    """One run on *lab*, whose nodes are synced."""

    def __init__(self, lab: Cluster, seed: int, *, patience: float = AGREEMENT) -> None:
        self.summary = Summary(seed)
        self._patience = patience  # seconds for the nodes to agree in the end
        self.history = History()
        self._lab = lab
        self._faults = Faults(lab, self, self.history.doubts, seed)
        self._workers: dict[int, Worker] = {}  # by descriptor
        self._acknowledged: Counter[int] = Counter()
        self._last_start: dict[int, float] = {}
        self._reads: list[tuple[int, Slow]] = []  # by node

    def run(self, seconds: float) -> Summary:
        """Run faults for *seconds*, wait until the cluster is synced, and check the results."""
        start = time.monotonic()
        self._prepare()
        self._start_workers(self.summary.seed)
        self._rage(seconds)
        self._end_workers()
        self.summary.seconds = time.monotonic() - start
        self._faults.excuse_losses()
        self._judge()
        return self.summary

    # The writers' progress.

    def acknowledged(self, node: int) -> int:
        """Return the number of acknowledged changes of a node."""
        return self._acknowledged[node]

    def last_start(self, node: int) -> float:
        """Return the time at which the last acknowledged change was begun."""
        return self._last_start.get(node, 0)

    # The run.

    def _prepare(self) -> None:
        agent = Agent(self._lab[1])
        for directory in DIRECTORIES:
            agent("mkdir", directory)
        for number in range(STATIC_FILES):
            agent("put", f"{STATIC}/{number}", b"static\n")
        agent.close()
        self._lab.wait_for_agreement()

    def _start_workers(self, seed: int) -> None:
        source = random.Random(seed)
        for node in self._lab.nodes:
            workers = [node.start_worker("tests.cluster.workload:read", node.number)]
            for letter in "abcdefgh"[:WRITERS]:
                arguments = (node.number, f"{node.name}{letter}", source.randrange(1 << 32))
                workers.append(node.start_worker("tests.cluster.workload:write", *arguments))
            self._workers.update({worker.connection.fileno(): worker for worker in workers})

    def _rage(self, seconds: float) -> None:
        """Run the lanes until *seconds* are over and each has ended its last fault."""
        end = time.monotonic() + seconds
        waiting = {lane: _deadline_of(next(lane)) for lane in self._faults.lanes()}
        while waiting:
            self._faults.is_over = time.monotonic() > end
            self._collect(TICK)
            for lane in [lane for lane, until in waiting.items() if self._is_met(*until)]:
                try:
                    waiting[lane] = _deadline_of(next(lane))
                except StopIteration:
                    del waiting[lane]

    def _is_met(self, until: Until, since: float) -> bool:
        if until.condition():
            return True
        if time.monotonic() > since + until.seconds:
            lab = self._lab.describe()
            raise AssertionError(
                f"waited {until.seconds} s for {until.wanted}\n{self.summary}\n{lab}"
            )
        return False

    def _collect(self, seconds: float) -> None:
        """Collect the reports that workers send within *seconds*."""
        deadline = time.monotonic() + seconds
        while ready := wait(
            [worker.connection for worker in self._workers.values()],
            max(0, deadline - time.monotonic()),
        ):
            for connection in ready:
                number = connection.fileno()  # type: ignore[union-attr]
                report = self._workers[number].receive()
                if report is None:
                    self._workers.pop(number).close()
                else:
                    self._take(report)

    def _take(self, report: Report) -> None:
        for event in report.events:
            self.history.add(event)
        self._acknowledged[report.node] += report.operations
        if report.last_start:
            self._last_start[report.node] = max(report.last_start, self.last_start(report.node))
        self.summary.errors.update(report.errors)
        self.summary.calls += report.calls
        self.summary.operations += report.operations
        self.summary.refusals += report.refusals
        for slow in report.slow:
            name, outcome, _ = slow
            if name not in READS:
                self._note_call(report.node, name, outcome)
            elif not outcome.error:
                self._reads.append((report.node, slow))

    def _note_call(self, node: int, name: str, outcome: Outcome) -> None:
        self.summary.longest_call = max(self.summary.longest_call, outcome.seconds)
        if outcome.seconds > MAX_CALL:
            self.summary.violations.append(
                f"{name} on node {node} took {outcome.seconds:.1f} s until {at(outcome.end)}"
            )

    def _end_workers(self) -> None:
        for worker in self._workers.values():
            worker.connection.send("stop")
        deadline = time.monotonic() + MAX_CALL + AGREEMENT
        while self._workers:
            assert time.monotonic() < deadline, f"a worker does not end\n{self.summary}"
            self._collect(TICK)

    # The check.

    def _judge(self) -> None:
        summary = self.summary
        summary.counts = self.history.counts()
        summary.faults, summary.recovery = dict(self._faults.counts), self._faults.slowest
        summary.timeline = [
            f"{at(span.start)} to {at(span.end)} {span.fault}, {span.node}"
            for span in sorted(self._faults.spans, key=lambda span: span.start)
        ]
        summary.doubtful_victories = len(self.history.doubtful_victories())
        summary.violations += [*self._compare(), *self._alarms(), *self._slow_reads()]
        summary.forks = len(copies(self._lab.nodes))

    def _slow_reads(self) -> list[str]:
        slow = []
        for node, (name, outcome, starved) in self._reads:
            if self._faults.silent.overlaps(node, outcome.start, outcome.end):
                continue
            worked = outcome.seconds - starved
            self.summary.longest_read = max(self.summary.longest_read, worked)
            self.summary.starved_reads += worked <= MAX_READ < outcome.seconds
            if worked > MAX_READ:
                took = f"took {outcome.seconds:.3f} s until {at(outcome.end)}"
                slow.append(f"{name} on node {node} {took}, {starved:.3f} s without a processor")
        few = len(slow) <= self.summary.seconds / SECONDS_PER_SLOW_READ
        return [] if few and self.summary.longest_read < LONGEST_READ else slow

    def _compare(self) -> list[str]:
        """Compare the nodes with one another, with their databases and with the history."""
        trees, violations = [], []
        try:
            self._lab.wait_for_agreement(seconds=self._patience)
        except AssertionError as error:
            violations.append(str(error).splitlines()[0])
        for node in self._lab.nodes:
            worker = node.start_worker("tests.cluster.workload:look")
            trees.append(worker.receive())
            worker.close()
        checksums = {node.daemon.info()["checksum"] for node in self._lab.nodes}
        for node, tree in zip(self._lab.nodes, trees, strict=True):
            status = node.daemon.stop()
            if status:
                violations.append(f"{node.daemon} ended with status {status}")
            checksums.add(node.stored_checksum())
            if tree != trees[0]:
                violations.append(f"{node.name} shows other files than node1")
        if len(checksums) > 1:
            violations.append(f"the nodes and their databases have several trees: {checksums}")
        return [*violations, *self.history.violations(trees[0])]

    def _alarms(self) -> Iterable[str]:
        for node in self._lab.nodes:
            for log in node.log.parent.glob("pmxcfs*.log"):
                for line in log.read_text(errors="replace").splitlines():
                    if any(alarm in line for alarm in ALARMS):
                        yield f"{node.name} has logged: {line}"


def at(moment: float) -> str:
    """Return a moment of the monotonic clock as logs write it."""
    wall = datetime.fromtimestamp(time.time() - time.monotonic() + moment, UTC)
    return wall.strftime("%H:%M:%S.%f")[:-3]


def _deadline_of(waiting: Until | float) -> tuple[Until, float]:
    """Return the condition that a lane waits for, and the time at which the wait begins."""
    now = time.monotonic()
    if isinstance(waiting, Until):
        return waiting, now
    return Until(lambda: time.monotonic() >= now + waiting, waiting + AGREEMENT, "time"), now
