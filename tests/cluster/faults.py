"""Faults of a storm: sequences of faults in a cluster, several at the same time.

A *lane* is a generator of faults that yields the conditions it waits for. The lane of corosync and
the network has one fault at a time, so there is always a majority. The lane of the daemons has
another fault, and sometimes frames are lost. A fault ends when its node has acknowledged a change
again.

A node that is cut off may have delivered some last changes that no other node has (see
``history``), so its tree has a higher version. The protocol elects the highest version. So the
majority first makes more changes than that; else the node would become leader when it returns.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from itertools import cycle
from typing import NamedTuple, Protocol

from tests.cluster.history import Doubts
from tests.cluster.lab import Member
from tests.cluster.together import Cluster

MARGIN = 0.1  # seconds before a fault in which the last frames may still be in flight
SETTLE = 0.5  # seconds after a fault after which the majority's changes are those of a new ring
AHEAD = 30  # changes by which the majority must be ahead; a writer has one in flight
RECOVERY = 60.0  # seconds for a node to acknowledge a change after the fault is over
CACHES_FILL = 1.0  # seconds after a start until the files of readers are cached
NOTICE = 6.0  # seconds that corosync takes at most to notice that it is alone
LOSS = (5, 15)  # percent


class Until(NamedTuple):
    """A condition that a lane waits for; it must hold within *seconds*."""

    condition: Callable[[], bool]
    seconds: float
    wanted: str


class Span(NamedTuple):
    """The time of a fault, from its begin until the node was back."""

    fault: str
    node: str
    start: float
    end: float


Lane = Generator[Until | float, None, None]  # seconds to wait, or a condition


class Progress(Protocol):
    """The progress of the writers."""

    def acknowledged(self, node: int) -> int:
        """Return the number of acknowledged changes of a node."""

    def last_start(self, node: int) -> float:
        """Return the time at which the last acknowledged change was begun."""


class Faults:
    """Makes lanes for *lab*; *doubts* and *silent* get the violations that a fault excuses."""

    def __init__(self, lab: Cluster, progress: Progress, doubts: Doubts, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}  # seconds until a node was back, by fault
        self.spans: list[Span] = []
        self.silent = Doubts()  # when a node's daemon could not answer, or had nothing cached
        self.is_over = False
        self._lab = lab
        self._progress = progress
        self._doubts = doubts
        self._random = random.Random(seed)
        self._hit: set[int] = set()  # nodes that a lane works on
        self._losses: list[tuple[float, float]] = []

    def lanes(self) -> list[Lane]:
        """Return all lanes; after ``is_over`` is set each ends with its present fault."""
        usual = ((self._partition, self._unplug), (self._restart_corosync,))
        rare = (self._kill_corosync, self._freeze_corosync, self._crash)
        cluster = self._take_turns(*usual, *usual, rare)
        daemons = self._take_turns((self._kill_daemon,), (self._freeze_daemon,))
        return [cluster, daemons, self._lose_frames()]

    def excuse_losses(self) -> None:
        """Doubt the answers that nodes got shortly before lost frames ended their quorum."""
        for node in self._lab.nodes:
            for moment in node.corosync.quorum_losses():
                if any(start < moment < end + NOTICE for start, end in self._losses):
                    self._doubts.add(node.number, moment - NOTICE, moment + NOTICE)

    def _take_turns(self, *kinds: tuple[Callable[[Member], Lane], ...]) -> Lane:
        """Yield faults of each kind in turn, each on a node that no other lane works on."""
        choices = cycle(kinds)
        while not self.is_over:
            node = self._random.choice([n for n in self._lab.nodes if n.number not in self._hit])
            self._hit.add(node.number)
            fault, start = self._random.choice(next(choices)), time.monotonic()
            yield from fault(node)
            name = fault.__name__.strip("_").replace("_", " ")
            self._note(name, node.name, start)
            self._hit.remove(node.number)
            yield self._random.uniform(0, 1)

    # The lane of corosync and the network.

    def _partition(self, node: Member) -> Lane:
        start = time.monotonic()
        self._lab.cut_off(node)
        yield self._until_others_are_ahead(node, start)
        self._lab.network.join()
        yield from self._recover("partition", node, start)

    def _unplug(self, node: Member) -> Lane:
        start = time.monotonic()
        self._lab.network.unplug(node.name)
        yield self._until_others_are_ahead(node, start)
        self._lab.network.plug(node.name)
        yield from self._recover("unplug", node, start)

    def _restart_corosync(self, node: Member) -> Lane:
        start = time.monotonic()
        node.corosync.terminate()
        yield Until(lambda: not node.corosync.is_running, RECOVERY, f"{node.corosync} to end")
        node.corosync.start()
        yield from self._recover("corosync restart", node, start)

    def _kill_corosync(self, node: Member) -> Lane:
        start = time.monotonic()
        node.corosync.kill()
        yield self._until_others_are_ahead(node, start)
        node.corosync.start()
        yield from self._recover("corosync kill", node, start)

    def _freeze_corosync(self, node: Member) -> Lane:
        start = time.monotonic()
        node.corosync.freeze()
        yield self._until_others_are_ahead(node, start)
        node.corosync.thaw()
        yield from self._recover("corosync freeze", node, start)

    def _crash(self, node: Member) -> Lane:
        """Kill the services of a node at once, as in a power cut that keeps unwritten pages."""
        start = time.monotonic()
        node.corosync.kill()
        node.daemon.kill()
        yield self._until_others_are_ahead(node, start)
        node.corosync.start()
        yield from self._start_daemon(node, start)
        yield from self._recover("crash", node, start)

    def _recover(self, fault: str, node: Member, start: float) -> Lane:
        """Wait until *node* is back; doubt all answers that it got since *start*."""
        yield from self._until_back(fault, node)
        self._doubts.add(node.number, start - MARGIN, time.monotonic())

    # The lane of the daemons.

    def _kill_daemon(self, node: Member) -> Lane:
        start = time.monotonic()
        node.daemon.kill()
        yield self._random.uniform(0, 1)
        yield from self._start_daemon(node, start)
        yield from self._until_back("kill", node)

    def _freeze_daemon(self, node: Member) -> Lane:
        start = time.monotonic()
        node.daemon.freeze()
        yield self._random.uniform(0.5, 3)
        node.daemon.thaw()
        self.silent.add(node.number, start, time.monotonic() + MARGIN)
        yield from self._until_back("freeze", node)

    def _start_daemon(self, node: Member, start: float) -> Lane:
        node.daemon.start()
        yield Until(node.daemon.is_mounted, RECOVERY, f"{node.daemon} to mount")
        self.silent.add(node.number, start, time.monotonic() + CACHES_FILL)

    # All others.

    def _lose_frames(self) -> Lane:
        while not self.is_over:
            yield self._random.uniform(5, 15)
            start = time.monotonic()
            self._lab.network.lose(self._random.randint(*LOSS))
            yield self._random.uniform(1, 4)
            self._lab.network.lose(0)
            self._losses.append((start, time.monotonic()))
            self._note("packet loss", "all", start)

    def _note(self, fault: str, node: str, start: float) -> None:
        self.counts[fault] += 1
        self.spans.append(Span(fault, node, start, time.monotonic()))

    def _until_others_are_ahead(self, node: Member, start: float) -> Until:
        others = [other.number for other in self._lab.nodes if other is not node]
        before: list[int] = []

        def are_ahead() -> bool:
            changes = sum(self._progress.acknowledged(other) for other in others)
            if max(self._progress.last_start(other) for other in others) < start + SETTLE:
                return False
            before.append(changes)
            return changes - before[0] >= AHEAD

        return Until(are_ahead, RECOVERY, f"the others to go on without {node.name}")

    def _until_back(self, fault: str, node: Member) -> Iterator[Until]:
        since = time.monotonic()
        wanted = f"{node.name} to be back after: {fault}"
        yield Until(lambda: self._progress.last_start(node.number) > since, RECOVERY, wanted)
        self.slowest[fault] = max(self.slowest.get(fault, 0), time.monotonic() - since)
