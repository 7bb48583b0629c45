"""A bare member of a process group on each node of a lab: what replication costs by itself.

``floor/member.c`` commits each delivered message as one SQLite transaction and does nothing else.
"""

import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.servers import FLOORS
from tests.cluster.lab import Member
from tests.cluster.node import Process

PROGRAM = FLOORS / "member"
WARM_UP = 50  # messages, by the end of which all members have joined
OUTPUT = re.compile(r"median (\d+) p99 (\d+) us, CPU per message (\d+) us")
PATIENCE = 60.0  # seconds


class Message(NamedTuple):
    """What a message costs, in microseconds."""

    median: float  # from sending until it is committed on the sender
    p99: float
    origin_cpu: float
    peer_cpu: float


def message(nodes: Sequence[Member], *, size: int, count: int) -> Message:
    """Send *count* messages of *size* bytes, each after the one before has come back. Blocks."""
    origin, *peers = nodes
    listening = [_listen(peer) for peer in peers]
    origin.run(PROGRAM, _database(origin), str(WARM_UP), str(size))
    sent = _figures(origin.run(PROGRAM, _database(origin), str(count), str(size), seconds=PATIENCE))
    delivered = [_end(process, output) for process, output in listening]
    cpu = sum(figures[2] for figures in delivered) / len(delivered)
    return Message(sent[0], sent[1], sent[2], cpu)


def _database(node: Member) -> str:
    """Return a path in the node, on the disk of its state."""
    return "/var/lib/pve-cluster/bare.db"


def _listen(node: Member) -> tuple[Process, Path]:
    output = node.log.with_name("member.out")
    with output.open("wb") as file:
        return node.spawn([PROGRAM, _database(node)], output=file.fileno()), output


def _end(process: Process, output: Path) -> list[float]:
    process.signal(signal.SIGTERM)
    assert process.wait() == 0, output.read_text()
    return _figures(output.read_text())


def _figures(text: str) -> list[float]:
    found = OUTPUT.search(text)
    assert found, text
    return [float(figure) for figure in found.groups()]
