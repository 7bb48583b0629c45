"""Programs that get a signal while they wait for a cluster that does not answer."""

import contextlib
import errno
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.agent import MOUNTPOINT
from tests.cluster.lab import Member
from tests.cluster.together import Cluster
from tests.places import ROOT

pytestmark = pytest.mark.needs_corosync

Report = Callable[[object], None]

PROGRAM = ROOT / "tests" / "fakes" / "programs" / "impatient.py"
PROMPT = 1.0  # seconds until a program is gone that waits for nothing that was sent
ANSWER = 11.0  # seconds until what was sent is answered
OVERDUE = 3.0  # seconds after which changes wait unsent behind the one that was sent
SLACK = 1.0  # seconds for a busy machine
AT_ONCE = 6  # programs
LONGEST = 0.1  # seconds from one signal to the next


class Client:
    """A program on *node* that does an operation in the directory *home* of the mount."""

    def __init__(self, node: Member, home: str, operation: str) -> None:
        self.home = home
        ours, theirs = os.pipe()
        self._output = os.fdopen(ours)
        with os.fdopen(theirs, "w") as output:
            argv = [sys.executable, "-S", "-E", str(PROGRAM), f"{MOUNTPOINT}/{home}", operation]
            self._process = node.spawn(argv, output=output.fileno())
        assert self.answer() == "ready\n"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.signal(number)

    def answer(self) -> str:
        """Return the next line that is printed; "" if the program has ended without one."""
        return self._output.readline()

    def end(self, seconds: float = ANSWER + SLACK) -> str:
        """Wait for the end, *seconds* at most; return what was printed besides."""
        self._process.wait(seconds)
        with self._output:
            return self._output.read()


@contextlib.contextmanager
def frozen(node: Member) -> Iterator[None]:
    """Let the node's corosync answer nothing until the block ends."""
    node.corosync.freeze()
    try:
        yield
    finally:
        node.corosync.thaw()


def homes(cluster: Cluster, names: list[str]) -> None:
    """Make directories that all nodes have."""
    (agent,) = cluster.agents(cluster[1])
    for name in names:
        agent("mkdir", name)
    cluster.wait_for_agreement()


def test_what_waits_unsent_is_withdrawn_and_what_was_sent_is_answered_in_time(
    cluster: Cluster, report: Report
) -> None:
    node = cluster[3]
    names = ["sent", "interrupted", "killed"]
    homes(cluster, names)
    with frozen(node):
        begin = time.monotonic()
        sent = Client(node, "sent", "mkdir")
        cluster.wait_until(lambda: node.daemon.info()["waiting"] == 1, ANSWER, "a change in flight")
        sent.signal(signal.SIGKILL)
        time.sleep(OVERDUE)
        interrupted, killed = (Client(node, name, "mkdir") for name in names[1:])
        cluster.wait_until(lambda: node.daemon.info()["waiting"] == 3, ANSWER, "three changes")
        start = time.monotonic()
        interrupted.signal(signal.SIGINT)
        assert interrupted.answer() == f"{errno.EINTR}\n"
        killed.signal(signal.SIGKILL)
        assert killed.end() == ""
        prompt = time.monotonic() - start
        assert sent.end() == ""
        late = time.monotonic() - begin
    report(f"unsent: gone after {1000 * prompt:.0f} ms; sent: after {late:.1f} s")
    assert prompt < PROMPT
    assert OVERDUE < late < ANSWER + SLACK
    interrupted.end()
    cluster.mend()
    (agent,) = cluster.agents(cluster[1])
    assert [agent("list", name) for name in names[1:]] == [[], []]


class Crowd:
    """Programs that change one thing after the other, and signals at random moments."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._node = cluster[3]
        self._chance = random.Random(seed)
        self._count = 0
        self._clients = [self._start() for _ in range(AT_ONCE)]
        self.answers: list[tuple[str, str]] = []  # of those that were not killed
        self.slowest = 0.0  # seconds from a signal to the end

    def _start(self) -> Client:
        home = f"crowd{self._count}"
        self._count += 1
        (self._node.path / home).mkdir()
        return Client(self._node, home, "all")

    def signal_one(self) -> None:
        """At a random moment, mostly while corosync is frozen, signal a program; begin another."""
        number = self._chance.choice([signal.SIGINT, signal.SIGKILL])
        place = self._chance.randrange(AT_ONCE)
        with frozen(self._node):
            time.sleep(self._chance.uniform(0, LONGEST))
            self._clients[place].signal(number)
            begin = time.monotonic()
            time.sleep(self._chance.uniform(0, LONGEST))
        self._note_end(self._clients[place], number)
        self.slowest = max(self.slowest, time.monotonic() - begin)
        self._clients[place] = self._start()

    def _note_end(self, client: Client, number: signal.Signals) -> None:
        found = client.end()
        if number == signal.SIGINT:
            self.answers.append((client.home, found))

    def end(self) -> None:
        """End all programs."""
        for client in self._clients:
            client.signal(signal.SIGINT)
            self._note_end(client, signal.SIGINT)


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.long)])
def test_no_program_hangs_and_no_answer_is_wrong_after_signals_at_random_moments(
    cluster: Cluster, count: int, seed: int, report: Report
) -> None:
    crowd = Crowd(cluster, seed)
    for _ in range(count):
        crowd.signal_one()
    crowd.end()
    report(f"seed {seed}: {count} signals, the slowest end {1000 * crowd.slowest:.0f} ms later")
    cluster.wait_for_agreement()
    (agent,) = cluster.agents(cluster[1])
    told = {home: json.loads(found) for home, found in crowd.answers}
    there = {home: set(agent("list", home)) for home in told}
    wrong = [
        (home, name)
        for home, names in told.items()
        for name, is_there in names.items()
        if (name in there[home]) != is_there
    ]
    assert wrong == []
    assert len(told) > count / 4
    assert cluster[3].daemon.info()["waiting"] == 0
    (cleaner,) = cluster.agents(cluster[3])
    assert cleaner.do(("mkdir", f"after{seed}"))[0].error == 0
