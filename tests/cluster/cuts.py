"""Cuts: a cluster is divided again and again while its nodes change files, and no change gets lost.

In each cut every node makes, replaces, moves and removes files of its own all the time, also while
the sides lose and find one another. Meanwhile the nodes of each quorate side change the files that
both sides have, and make files that the other side makes, too. One side rewrites a status file; in
half of the cuts until the versions of its tree have overtaken those of the other side, before it
changes anything else. So nothing in its tree tells when the two parted.
"""

import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from pmxcfs._core import Entry, Tree
from pmxcfs.storage.database import inspect
from tests.cluster.agent import MOUNTPOINT, Agent
from tests.cluster.kept import copies
from tests.cluster.lab import Member
from tests.cluster.promises import DIRECTORY, Copy, Promises, Step, Value
from tests.cluster.together import Cluster

SLOTS = 6  # names of files, and half as many of directories, that a writer uses in one phase
SHARED = 8  # files that both sides change
BOTH = 3  # files that both sides make
REWRITES = (0, 5, 40)  # of a status file, by one writer
MARGIN = 5  # versions by which a side is overtaken
PAUSE = 0.03  # seconds between the steps of a writer, at most
MOMENT = 0.3  # seconds of writing before a cut and around its end, at most
LOSS = 20.0  # seconds until a separated node knows that it has no quorum
MEETING = 60.0  # seconds until a side is synced
CALL = 60.0  # seconds for an operation, during restarts
LOGGING = 30.0  # seconds until a copy is logged


class Plan(NamedTuple):
    """What happens in a cut; sides are told by their place in *sides*."""

    sides: Sequence[Sequence[Member]]
    forced: Sequence[int]  # sides that an administrator makes quorate
    rewriter: int  # the side that rewrites the status file, if it is quorate
    rewrites: int
    overtakes: bool  # the rewriter goes on until its versions are higher than the other side's
    restarted: int | None  # a side whose daemons are restarted
    killed: bool  # by SIGKILL


@dataclass
class Tally:
    """The results of some cuts."""

    seed: str
    nodes: int
    cuts: int = 0
    forks: int = 0  # cuts in which both sides were quorate
    restarts: int = 0
    seconds: float = 0
    acknowledged: int = 0
    promises: int = 0
    in_copies: int = 0
    copies: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    needless: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unlogged: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        return "\n".join(
            [
                f"cuts: seed {self.seed}, {self.nodes} nodes, {self.cuts} cuts ({kinds}), "
                f"{self.forks} with two quorate sides, {self.restarts} with restarts, "
                f"{self.seconds:.0f} s",
                f"{self.acknowledged} changes acknowledged, {self.promises} values promised, "
                f"{self.in_copies} of them only in copies; {self.copies} copies kept, "
                f"{len(self.needless)} needless, {len(self.unlogged)} paths not logged; "
                f"{len(self.lost)} lost, {len(self.unequal)} trees unequal",
                *self.lost,
                *self.needless,
                *self.unlogged,
                *self.unequal,
            ]
        )


class Writer:
    """Changes files of its own on one node, one after the other, in a thread."""

    def __init__(self, agent: Agent, home: str, promises: Promises, seed: int) -> None:
        self.phase = "a"  # files of an earlier phase are left as they are
        self.is_paused = threading.Event()
        self.node = agent.node
        self._agent = agent
        self._home = home
        self._promises = promises
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._existing: set[str] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(self._random.uniform(0, PAUSE)):
            if not self.is_paused.is_set():
                perform(self._agent, self._steps(), self._promises)

    def _steps(self) -> Iterator[Step]:
        """Yield one step, or two that belong together."""
        number = self._random.randrange(SLOTS + SLOTS // 2)
        path = f"{self._home}/{self.phase}{self.node.number}.{number}"
        data = f"{path} {next(self._numbers)}".encode()
        if number >= SLOTS:
            is_removal = path in self._existing
            operation, value = ("rmdir", None) if is_removal else ("mkdir", DIRECTORY)
            yield Step((operation, path), {path: value})
            self._existing ^= {path}
        elif path not in self._existing:
            yield Step((self._random.choice(("create", "put")), path, data), {path: data})
            self._existing.add(path)
        else:
            way = self._random.choice((put, replace, remove))
            yield from way(path, f"{path}.new", data)
            if way is remove:
                self._existing.remove(path)


# Ways to change a file: its path, an unused path, and the new content.


def put(path: str, spare: str, data: bytes) -> Iterator[Step]:
    """Overwrite a file, or make it."""
    yield Step(("put", path, data), {path: data})


def replace(path: str, spare: str, data: bytes) -> Iterator[Step]:
    """Replace a file by a new one."""
    yield Step(("put", spare, data), {spare: data})
    yield Step(("rename", spare, path), {path: data, spare: None})


def remove(path: str, spare: str, data: bytes) -> Iterator[Step]:
    """Remove a file."""
    yield Step(("unlink", path), {path: None})


def move(path: str, spare: str, data: bytes) -> Iterator[Step]:
    """Overwrite a file, and give it another name."""
    yield Step(("put", path, data), {path: data})
    yield Step(("rename", path, spare), {path: None, spare: data})


def move_and_remove(path: str, spare: str, data: bytes) -> Iterator[Step]:
    """Overwrite a file, give it another name, and remove it."""
    yield from move(path, spare, data)
    yield Step(("unlink", spare), {path: None, spare: None})


WAYS = (put, replace, remove, move, move_and_remove)


def perform(agent: Agent, steps: Iterator[Step], promises: Promises) -> None:
    """Do *steps* one by one, and note their outcomes."""
    for step in steps:
        (outcome,) = agent.do(step.operation, seconds=CALL)
        promises.add(agent.node.number, step, outcome)


class Cuts:
    """Cuts of one cluster, which is in sync before and after each of them."""

    def __init__(self, cluster: Cluster, seed: str, *, restarts: float) -> None:
        self.tally = Tally(seed, len(cluster.nodes))
        self._cluster = cluster
        self._restarts = restarts  # the probability of a restart in a cut
        self._random = random.Random(seed)
        self._writers = cluster.agents()  # of files of their own
        self._agents = cluster.agents()

    def run(self) -> None:
        """Divide the cluster once, heal it, and check what the nodes were promised."""
        start = time.monotonic()
        plan = self._plan()
        home = f"cut{self.tally.cuts}"
        self._prepare(home)
        before = set(copies(self._cluster.nodes))
        promises = Promises([node.number for node in side] for side in plan.sides)
        with self._writing(home, promises) as writers:
            self._divide(plan, home, promises, writers)
            for writer in writers:
                writer.phase = "c"
            self._heal()
            time.sleep(self._random.uniform(0, MOMENT))
        self._cluster.wait_for_agreement()
        self._check(
            home, promises, [file for file in copies(self._cluster.nodes) if file not in before]
        )
        self._count(plan, time.monotonic() - start)

    def _plan(self) -> Plan:
        choose = self._random
        nodes = choose.sample(self._cluster.nodes, len(self._cluster.nodes))
        sides = nodes[: len(nodes) // 2], nodes[len(nodes) // 2 :]
        is_even = len(sides[0]) == len(sides[1])
        forced = choose.choice([(0, 1), (0, 1), (0,)] if is_even else [(0,), (0,), ()])
        overtakes = choose.random() < 0.5
        rewriter = choose.randrange(2)
        restarted = 1 - rewriter if overtakes else choose.randrange(2)
        return Plan(
            sides,
            forced,
            rewriter,
            choose.choice(REWRITES),
            overtakes,
            restarted if choose.random() < self._restarts else None,
            choose.random() < 0.5,
        )

    def _prepare(self, home: str) -> None:
        agent = self._agents[0]
        agent("mkdir", home)
        for path in ["status", *(f"shared{number}" for number in range(SHARED))]:
            agent("put", f"{home}/{path}", b"common")
        self._cluster.wait_for_agreement()

    @contextmanager
    def _writing(self, home: str, promises: Promises) -> Iterator[list[Writer]]:
        writers = [
            Writer(agent, home, promises, self._random.randrange(1 << 32))
            for agent in self._writers
        ]
        try:
            yield writers
        finally:
            for writer in writers:
                writer.stop()

    # The cut.

    def _divide(self, plan: Plan, home: str, promises: Promises, writers: Sequence[Writer]) -> None:
        """Divide the cluster as planned. At the end the sides are still separated."""
        ahead = plan.sides[plan.rewriter]
        quiet = [writer for writer in writers if writer.node in ahead]
        time.sleep(self._random.uniform(0, MOMENT))
        if plan.overtakes:
            for writer in quiet:
                writer.is_paused.set()
        self._cluster.part(*plan.sides)
        for writer in writers:
            writer.phase = "b"
        quorate = [number for number in (0, 1) if self._make_quorate(plan, number)]
        behind = [number for number in quorate if number != plan.rewriter]
        for number in behind:
            self._change(plan.sides[number], home, promises)
        if plan.rewriter in quorate:
            goal = self._silence(plan, behind, writers) if plan.overtakes else 0
            self._rewrite(plan, home, promises, goal=goal)
            for writer in quiet:
                writer.is_paused.clear()
            self._change(ahead, home, promises)
        if plan.restarted in quorate:
            self._restart(plan)
        self.tally.forks += len(quorate) == 2

    def _make_quorate(self, plan: Plan, number: int) -> bool:
        """Wait until a side is a cluster of its own; return whether it is quorate."""
        side = plan.sides[number]
        if 2 * len(side) <= len(self._cluster.nodes):
            if number not in plan.forced:
                self._cluster.wait_until(lambda: not is_quorate(side[0]), LOSS, "loss of quorum")
                return False
            self._cluster.wait_until(lambda: not is_quorate(side[0]), LOSS, "loss of quorum")
            side[0].run("corosync-quorumtool", "-e", str(len(side)))
        self._meet(side)
        return True

    def _meet(self, nodes: Sequence[Member]) -> None:
        """Wait until exactly *nodes* are in sync; they may go on changing their tree."""
        numbers = sorted(node.number for node in nodes)

        def are_together() -> bool:
            infos = [node.daemon.info() for node in nodes]
            return all(
                info["mode"] == "synced" and info["members"] == numbers and info["quorate"]
                for info in infos
            )

        self._cluster.wait_until(are_together, MEETING, f"{numbers} in sync", interval=0.05)

    def _change(self, side: Sequence[Member], home: str, promises: Promises) -> None:
        """Let each node of a side change some of the shared files, and make some."""
        for number in range(SHARED):
            node = side[number % len(side)]
            path = f"{home}/shared{number}"
            way = self._random.choice((*WAYS, None))
            if way:
                data = f"{path} {node.name}".encode()
                perform(
                    self._agents[node.number - 1], way(path, f"{path}.{node.name}", data), promises
                )
        for number in range(BOTH):
            path = f"{home}/both{number}"
            data = f"{path} {side[0].name}".encode()
            perform(self._agents[side[0].number - 1], put(path, "", data), promises)

    def _silence(self, plan: Plan, behind: Sequence[int], writers: Sequence[Writer]) -> int:
        """Stop the writers of the other side; return the version of its tree, or 0."""
        for writer in writers:
            writer.is_paused.set()
        nodes = [node for number in behind for node in plan.sides[number]]
        return max((node.daemon.info()["version"] for node in nodes), default=0)

    def _rewrite(self, plan: Plan, home: str, promises: Promises, *, goal: int) -> None:
        """Rewrite the status file as often as planned, and until the version is above *goal*."""
        node = plan.sides[plan.rewriter][0]
        agent = self._agents[node.number - 1]
        for number in itertools.count():
            is_enough = number >= plan.rewrites
            if is_enough and (not goal or node.daemon.info()["version"] > goal + MARGIN):
                return
            perform(agent, put(f"{home}/status", "", b"status %d" % number), promises)

    def _restart(self, plan: Plan) -> None:
        assert plan.restarted is not None
        side = plan.sides[plan.restarted]
        for node in side:
            if plan.killed:
                node.daemon.kill()
            else:
                assert node.daemon.stop() == 0, node.daemon.log_tail()
        self._cluster.launch(*side)
        self._meet(side)
        self.tally.restarts += 1

    def _heal(self) -> None:
        time.sleep(self._random.uniform(0, MOMENT))
        self._cluster.heal()
        self._cluster.wait_for_members(*self._cluster.nodes)
        count = len(self._cluster.nodes)
        self._cluster[1].run("corosync-quorumtool", "-e", str(count))
        self._meet(self._cluster.nodes)

    # The check.

    def _check(self, home: str, promises: Promises, files: Sequence[Path]) -> None:
        tally = self.tally
        nodes = {node.database.parent: node.number for node in self._cluster.nodes}
        kept = [Copy(nodes[file.parent.parent], file, content_of(file, home)) for file in files]
        trees = [self._look(node, home) for node in self._cluster.nodes]
        if any(tree != trees[0] for tree in trees):
            tally.unequal.append(f"{home}: the nodes show several trees")
        verdict = promises.judge(trees[0], kept)
        tally.acknowledged += promises.acknowledged
        tally.promises += verdict.in_tree + verdict.in_copies + len(verdict.lost)
        tally.in_copies += verdict.in_copies
        tally.copies += len(kept)
        tally.lost += verdict.lost
        tally.needless += [f"needless: {copy.file}" for copy in verdict.needless]
        for copy in kept:
            self._check_log(copy, verdict.names.get(copy.file, []))

    def _look(self, node: Member, home: str) -> Mapping[str, Value]:
        worker = node.start_worker("tests.cluster.cuts:look", home)
        found: Mapping[str, Value] = worker.receive()
        worker.close()
        return found

    def _check_log(self, copy: Copy, names: Sequence[set[str]]) -> None:
        """Check that a copy is logged, with one of each set of names."""
        daemon = self._cluster[copy.node].daemon
        file = copy.file.name
        self._cluster.wait_until(
            lambda: bool(daemon.log_lines(f"conflicts/{file}")), LOGGING, f"the log of {file}"
        )

        def missing() -> list[str]:
            logged = {line.rpartition(": ")[2] for line in daemon.log_lines("another node's")}
            return [min(some) for some in names if not some & logged]

        def is_complete() -> bool:
            return bool(daemon.log_lines(" more paths")) or not missing()

        deadline = time.monotonic() + 2
        while not is_complete() and time.monotonic() < deadline:
            time.sleep(0.05)
        if not is_complete():
            self.tally.unlogged += [f"{copy.file}: {path} is not logged" for path in missing()]

    def _count(self, plan: Plan, seconds: float) -> None:
        tally = self.tally
        tally.cuts += 1
        tally.seconds += seconds
        sizes = "|".join(str(len(side)) for side in plan.sides)
        tally.kinds[f"{sizes} with {len(plan.forced)} forced"] += 1


def is_quorate(node: Member) -> bool:
    """Tell whether the daemon of a node is quorate."""
    return bool(node.daemon.info()["quorate"])


def content_of(file: Path, home: str) -> Mapping[str, Value]:
    """Return what a copy of a database has below the directory *home*, by path."""
    tree = Tree()
    tree.load(inspect(file).records)
    top = tree.find(home)
    return {} if top is None else {entry.path: value_of(entry) for entry in _below(top)}


def value_of(entry: Entry) -> Value:
    """Return the content of a file, or DIRECTORY."""
    return DIRECTORY if entry.is_directory else entry.content


def _below(directory: Entry) -> Iterator[Entry]:
    for entry in directory.children():
        yield entry
        if entry.is_directory:
            yield from _below(entry)


def look(connection: Connection, home: str) -> None:
    """Report what the mount has below the directory *home*, by path."""
    found: dict[str, Value] = {}
    for entry in os.scandir(f"{MOUNTPOINT}/{home}"):
        path = f"{home}/{entry.name}"
        found[path] = DIRECTORY if entry.is_dir() else Path(entry.path).read_bytes()
    connection.send(found)
