"""Writers and readers in the nodes of a cluster with faults.

``write`` and ``read`` are workers. A writer changes files that other writers change too, appends to
a log of its own, and takes part in contests for names. It reports the possible effects of each
operation, by the rules of ``history``. An error that says that nothing was changed is only counted.
A reader measures the duration of reads that must never wait for the cluster, and the part of it
that was spent waiting for a processor.

A token has the writer of a file, a number, and the number of bytes that ``content`` makes of it.
All writes to one shared file have one size, so two writers on one node leave no mixture.
"""

import contextlib
import errno
import hashlib
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from tests.cluster.agent import MOUNTPOINT, Files, Operation, Outcome
from tests.cluster.history import (
    DIRECTORY,
    EMPTY,
    LOST,
    UNKNOWN,
    WON,
    Contest,
    Effect,
    Event,
    Line,
    Refusal,
    Value,
)

SHARED = tuple(f"shared/{name}" for name in "abcdefgh")
BIG, BIG_SIZE = "shared/h", 300_000
SMALL_SIZES = (64, 700, 5000)  # bytes
STATIC = "static"  # a directory that no writer changes
STATIC_FILES = 20
LOCKS = "priv/lock"
CONTESTS = "contests"
DIRECTORIES = ("shared", "own", STATIC, CONTESTS, "priv", LOCKS)
ROUND = 0.5  # seconds in which all contend for the same two names
PAUSE = 0.02  # seconds between the operations of a writer, at most
NOTABLE = 0.02  # seconds that a call must take to be told of
READ_PAUSE = 0.01  # seconds between reads
DEAD_PAUSE = 0.05  # seconds after an answer that no daemon gave
REPORT_INTERVAL = 0.1  # seconds
PID_FILE = Path("/run/pve-cluster.pid")
OWN_WAITS = Path("/proc/self/schedstat")
TOKEN = re.compile(r"[a-z0-9]+-\d+-\d+")

# Errors that say that nothing was changed and nothing sent: no quorum, no daemon, no entry, ...
REFUSALS = frozenset(
    {errno.EACCES, errno.EBUSY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EROFS}
)
DEAD = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.EROFS})


class Slow(NamedTuple):
    """A call that took long."""

    name: str
    outcome: Outcome
    starved: float  # seconds that it could not go on because no processor was free; about


class Report(NamedTuple):
    """What a worker has done since its last report."""

    node: int
    events: list[Event]
    slow: list["Slow"]
    errors: Counter[int]  # how many calls failed with each errno
    calls: int
    operations: int  # that were acknowledged
    last_start: float  # when the last of them was begun; 0 if none was
    refusals: int


def size_of(path: str) -> int:
    """Return how many bytes are written to a file."""
    return BIG_SIZE if path == BIG else SMALL_SIZES[sum(path.encode()) % len(SMALL_SIZES)]


def content(token: str) -> bytes:
    """Return the bytes that stand for *token*."""
    head = token.encode() + b"\n"
    filler = hashlib.sha256(head).hexdigest().encode()
    size = int(token.rpartition("-")[2])
    return (head + filler * (size // len(filler) + 1))[:size]


def token_of(data: bytes) -> str:
    """Return the token of a file; for torn content a description that is no token."""
    head = data.partition(b"\n")[0].decode(errors="replace")
    if not data or (TOKEN.fullmatch(head) and data == content(head)):
        return head
    return f"torn: {len(data)} bytes of {head[:100]!r}"


def longest_wait(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """Return the seconds that the caller and one thread of the daemon have waited meanwhile.

    Other threads may have waited meanwhile, or for each other; those waits are not counted.
    """
    spent = {name: now - before.get(name, now) for name, now in after.items()}
    own = spent.pop(str(OWN_WAITS), 0)
    return (own + max(spent.values(), default=0)) / 1e9


class Worker:
    """Base of writers and readers: calls, pauses and reports."""

    def __init__(self, connection: Connection, node: int) -> None:
        self.node = node
        self.events: list[Event] = []
        self._connection = connection
        self._files = Files()
        self._reported = time.monotonic()
        self._clear()

    def _clear(self) -> None:
        self.events = []
        self._slow: list[Slow] = []
        self._errors: Counter[int] = Counter()
        self._calls, self.operations, self.refusals, self.last_start = 0, 0, 0, 0.0

    def waits(self) -> dict[str, int]:
        """Return the waits for a processor of the relevant threads."""
        return {}

    def call(self, *operation: object) -> Outcome:
        """Perform one file operation, and record its duration."""
        before = self.waits()
        outcome = self._files.perform(operation)
        self._calls += 1
        if outcome.error:
            self._errors[outcome.error] += 1
        if outcome.seconds > NOTABLE:
            starved = longest_wait(before, self.waits())
            self._slow.append(Slow(str(operation[0]), outcome._replace(value=None), starved))
        if outcome.error in DEAD:
            time.sleep(DEAD_PAUSE)
        return outcome

    def report(self) -> None:
        """Send the lab a report of the work since the last one."""
        counts = self._calls, self.operations, self.last_start, self.refusals
        self._connection.send(Report(self.node, self.events, self._slow, self._errors, *counts))
        self._clear()
        self._reported = time.monotonic()

    def run(self, step: Callable[[], None], pause: Callable[[], float]) -> None:
        """Repeat *step* until the lab sends an object; the last report is None."""
        while not self._connection.poll(pause()):
            step()
            if time.monotonic() - self._reported > REPORT_INTERVAL:
                self.report()
        self.report()
        self._connection.send(None)


class Writer(Worker):
    """Changes random files."""

    def __init__(self, connection: Connection, node: int, name: str, seed: int) -> None:
        super().__init__(connection, node)
        self._name = name
        self._random = random.Random(seed)
        self._files_written, self._temporaries, self._lines = 0, 0, 0
        self._rounds: dict[str, int] = {}  # the last one that it took part in, by directory
        self._steps: Sequence[Callable[[], None]] = (
            *(self._overwrite, self._replace, self._delete, self._sync),
            *(self._append, self._create, self._lock),
            *(self._make, self._make, self._make),  # so that a third of the opens makes files
        )

    def step(self) -> None:
        """Do one operation."""
        self._random.choice(self._steps)()

    def pause(self) -> float:
        """Return how long to wait before the next one."""
        return self._random.uniform(0, PAUSE)

    def _overwrite(self) -> None:
        """Open with O_TRUNC, write, close: what most programs do."""
        path = self._random.choice(SHARED)
        self._put(path, size=size_of(path))

    def _sync(self) -> None:
        """Open with O_TRUNC, write, fsync, close."""
        path = self._random.choice(SHARED)
        self._put(path, size=size_of(path), sync=True)

    def _replace(self) -> None:
        """Write a temporary file, rename it over another: what careful programs do.

        Each temporary file has a new name, so a lost one can't be taken for another.
        """
        self._temporaries += 1
        path, temporary = self._random.choice(SHARED), f"own/{self._name}-{self._temporaries}.tmp"
        if token := self._put(temporary, size=size_of(path)):
            self._note(self.call("rename", temporary, path), {temporary: None, path: token})

    def _delete(self) -> None:
        path = self._random.choice(SHARED)
        self._note(self.call("unlink", path), {path: None})

    def _make(self) -> None:
        """Make a new file with content, where other writers do so too."""
        path = self._random.choice(SHARED)
        self._note(self.call("unlink", path), {path: None})
        flags = self._random.choice((0, os.O_TRUNC, os.O_EXCL))
        self._put(path, size=size_of(path), flags=flags)

    def _append(self) -> None:
        """Append a line to the log of this writer."""
        self._lines += 1
        path, text = f"own/{self._name}.log", f"{self._name} line {self._lines}"
        outcomes = [self.call("open", "log", path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)]
        if outcomes[0].error in REFUSALS:
            self._refuse(path, outcomes[0])
            return
        if not outcomes[0].error:
            outcomes.append(self.call("write", "log", f"{text}\n".encode()))
            outcomes.append(self.call("close", "log"))
        failed = any(outcome.error for outcome in outcomes)
        end = math.inf if failed else outcomes[-1].end
        self.events.append(Line(path, text, self.node, end, not failed))
        self._count_answer(outcomes[0].start, failed=failed)

    def _create(self) -> None:
        """Try to create this round's file exclusively."""
        if path := self._contest(CONTESTS):
            self._put(path, size=SMALL_SIZES[0], flags=os.O_EXCL, is_contest=True)

    def _lock(self) -> None:
        """Try to create this round's directory."""
        if path := self._contest(LOCKS):
            outcome = self.call("mkdir", path)
            self._note_contest(path, outcome)
            self._note(outcome, {path: DIRECTORY})

    def _contest(self, directory: str) -> str:
        """Return the name of this round; empty if this writer has tried it."""
        number = int(time.monotonic() / ROUND)
        if self._rounds.get(directory) == number:
            return ""
        self._rounds[directory] = number
        return f"{directory}/{number}"

    def _note_contest(self, path: str, outcome: Outcome) -> None:
        result = {0: WON, errno.EEXIST: LOST}.get(outcome.error, UNKNOWN)
        self.events.append(Contest(path, self.node, outcome.start, outcome.end, result))

    def _put(
        self,
        path: str,
        *,
        size: int,
        flags: int = os.O_TRUNC,
        sync: bool = False,
        is_contest: bool = False,
    ) -> str:
        """Write a whole file; return the token if that was acknowledged, else nothing."""
        self._files_written += 1
        token = f"{self._name}-{self._files_written}-{size}"
        opened = self.call("open", "file", path, os.O_WRONLY | os.O_CREAT | flags)
        if is_contest:
            self._note_contest(path, opened)
        if opened.error in REFUSALS:
            self._refuse(path, opened)
            return ""
        outcomes = [opened]
        if not opened.error:
            outcomes.append(self.call("write", "file", content(token)))
            if sync:
                outcomes.append(self.call("fsync", "file"))
            outcomes.append(self.call("close", "file"))
        failed = any(outcome.error for outcome in outcomes)
        self._tell_written(path, token, outcomes, failed=failed)
        self._count_answer(opened.start, failed=failed)
        return "" if failed else token

    def _tell_written(
        self, path: str, token: str, outcomes: Sequence[Outcome], *, failed: bool
    ) -> None:
        """Record a file that was opened, then written: it may be empty meanwhile, or at the end."""
        opened, last = outcomes[0], outcomes[-1]
        self._may_be(path, EMPTY, opened.start, math.inf if failed else opened.end)
        if failed:
            self._may_be(path, token, opened.start, math.inf)
        else:
            self.events.append(Effect(path, token, self.node, outcomes[1].start, last.end))

    def _note(self, outcome: Outcome, values: dict[str, Value]) -> None:
        """Record an operation of one call."""
        if outcome.error in REFUSALS:
            for path in values:
                self._refuse(path, outcome)
            return
        failed = outcome.error != 0
        for path, value in values.items():
            if failed:
                self._may_be(path, value, outcome.start, math.inf)
            else:
                self.events.append(Effect(path, value, self.node, outcome.start, outcome.end))
        self._count_answer(outcome.start, failed=failed)

    def _refuse(self, path: str, outcome: Outcome) -> None:
        self.refusals += 1
        name = errno.errorcode[outcome.error]
        self.events.append(Refusal(path, name, self.node, outcome.start, outcome.end))

    def _may_be(self, path: str, value: Value, start: float, end: float) -> None:
        self.events.append(Effect(path, value, self.node, start, end, is_known=False))

    def _count_answer(self, start: float, *, failed: bool) -> None:
        if not failed:
            self.operations += 1
            self.last_start = start


class Reader(Worker):
    """Reads cached files, open files, and a directory that never changes."""

    def __init__(self, connection: Connection, node: int) -> None:
        super().__init__(connection, node)
        self._operations = self._endless()
        self._is_open = False
        self._daemon = Path("/proc/nobody")

    def step(self) -> None:
        """Do one read. After the end of a daemon, open its file again."""
        if not self._is_open:
            with contextlib.suppress(OSError):
                self._daemon = Path("/proc") / PID_FILE.read_text().strip()
            self._is_open = not self.call("open", "open", f"{STATIC}/0", os.O_RDONLY).error
            return
        name, *_ = operation = next(self._operations)
        outcome = self.call(*operation)
        if name == "read" and outcome.error:
            self.call("close", "open")
            self._is_open = False

    def pause(self) -> float:
        """Return how long to wait before the next one."""
        return READ_PAUSE

    def waits(self) -> dict[str, int]:
        """Return how long each thread of the daemon, and this process, has waited for a processor.

        That is the second number of schedstat, in nanoseconds since the thread began.
        """
        found = {}
        files = [OWN_WAITS]
        with contextlib.suppress(OSError):  # the daemon has ended
            files += self._daemon.glob("task/*/schedstat")
        for file in files:
            with contextlib.suppress(OSError):  # a thread has ended
                found[str(file)] = int(file.read_bytes().split()[1])
        return found

    def _endless(self) -> Iterator[Operation]:
        while True:
            for number in range(STATIC_FILES):
                yield "stat", f"{STATIC}/{number}"
                yield "read", "open", 100
                yield "get", f"{STATIC}/{number}"
                yield "list", STATIC


def write(connection: Connection, node: int, name: str, seed: int) -> None:
    """Run a writer until the lab sends an object."""
    writer = Writer(connection, node, name, seed)
    writer.run(writer.step, writer.pause)


def read(connection: Connection, node: int) -> None:
    """Run a reader until the lab sends an object."""
    reader = Reader(connection, node)
    reader.run(reader.step, reader.pause)


def look(connection: Connection) -> None:
    """Report the final state: every path, with the token of a file or the text of a log."""
    found: dict[str, str] = {}
    for directory in ("shared", "own", CONTESTS, LOCKS):
        for entry in os.scandir(f"{MOUNTPOINT}/{directory}"):
            path = f"{directory}/{entry.name}"
            if entry.is_dir():
                found[path] = DIRECTORY
            else:
                data = Path(entry.path).read_bytes()
                found[path] = data.decode() if path.endswith(".log") else token_of(data)
    connection.send(found)
