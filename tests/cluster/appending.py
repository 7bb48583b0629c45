"""Writers that append numbered lines to a file of their own, one in each node of a cluster.

So it is known for each node since when it can write, for how long it could not, and which lines
must be in its file. The pause between two lines is short beside what a change of the membership
takes, and long enough that sixteen writers leave the machine to what is measured.
"""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import NamedTuple

from tests.cluster.agent import MOUNTPOINT
from tests.cluster.node import PATIENCE, Node, Worker

FOLDER = "lines"  # below the mountpoint
TARGET = "tests.cluster.appending:append"
PAUSE = 0.25  # seconds between two lines


class Line(NamedTuple):
    """An attempt to append a line; times are monotonic seconds."""

    number: int
    start: float
    end: float
    errno: int  # 0: it was acknowledged


def append(connection: Connection, path: str, number: int) -> None:
    """Append lines from *number* on and report each, until the lab sends an object."""
    with suppress(ConnectionError):  # the lab is gone
        while not connection.poll(PAUSE):
            start, errno = time.monotonic(), 0
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
                try:
                    os.write(descriptor, b"%d\n" % number)
                finally:
                    os.close(descriptor)
            except OSError as error:
                errno = error.errno or -1
            connection.send(Line(number, start, time.monotonic(), errno))
            number += 1
        connection.send(None)


class Appender:
    """The writer of a node, which can be started and stopped many times; it makes its file once."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.lines: list[Line] = []  # of the present start
        self._acknowledged: set[int] = set()
        self._worker: Worker | None = None
        self._next = 1

    def start(self) -> None:
        """Start to append."""
        self.lines = []
        path = f"{MOUNTPOINT}/{FOLDER}/{self.node.name}"
        self._worker = self.node.start_worker(TARGET, path, self._next)

    def look(self) -> None:
        """Take the reports that have come."""
        assert self._worker
        while self._worker.connection.poll():
            self.lines.append(self._worker.receive())

    def stop(self, *, doubtful_since: float = float("inf")) -> None:
        """Stop. A line that ended after *doubtful_since* is no promise: the node was cut off.

        Corosync delivers a message to its own node even if no other one can get it any more.
        """
        if self._worker is None:
            return
        self._worker.connection.send("stop")
        while (line := self._worker.receive(PATIENCE)) is not None:
            self.lines.append(line)
        self._worker.close()
        self._worker = None
        self._next += len(self.lines)
        self._acknowledged |= {
            line.number for line in self.lines if line.errno == 0 and line.end < doubtful_since
        }

    def close(self) -> None:
        """End the process, if there is one."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def has_written_since(self, moment: float) -> bool:
        """Tell whether a line was acknowledged that was begun after *moment*."""
        if self._worker is not None:
            self.look()
        return any(line.errno == 0 and line.start > moment for line in self.lines)

    def longest_silence(self, start: float) -> float:
        """Return the longest time after *start* without an acknowledged line, to the last one."""
        return longest_silence(self.lines, start)

    @property
    def promised(self) -> int:
        """How many lines were acknowledged."""
        return len(self._acknowledged)

    def lost(self, text: str) -> Sequence[int]:
        """Return the acknowledged lines that *text*, the content of the file, has not."""
        return missing(self._acknowledged, text)


def longest_silence(lines: Iterable[Line], start: float) -> float:
    """Return the longest time after *start* without an acknowledged line, to the last one."""
    ends = [line.end for line in lines if line.errno == 0 and line.end > start]
    return max((after - before for before, after in pairwise([start, *ends])), default=0.0)


def missing(numbers: Iterable[int], text: str) -> Sequence[int]:
    """Return those of the *numbers* that are on no line of *text*.

    NUL bytes are in the place of a line in doubt that was lost, with the next one behind it.
    """
    return sorted(set(numbers) - {int(line) for line in text.replace("\0", " ").split()})
