"""Encoding and decoding of messages, against the tests' plain-Python codec.

The cases are the two most frequent messages (a save of a small file, and the status that each node
sends every few seconds) and the largest one: a file whose content is nearly the whole message.
"""

import pytest

from bench.data import NODE
from bench.goals import Goal
from bench.report import Report
from bench.turns import Benchmark, by_turns
from pmxcfs._cpg import decode, encode
from pmxcfs.messages import Group, Message, Normal, SetKey, Write
from tests.fakes.models import codec as oracle

GOAL = Goal(1 / 2)  # twice as fast; the base uses struct, which is C, too
ROUNDS, BATCH, REPEATS = 20, 4, 200

NOW = 1_795_367_932
SAVE = Normal(NOW, 1, Write(f"nodes/{NODE}/qemu-server/100.conf", 0, bytes(400), truncate=True))
STATUS = Normal(NOW, 1, SetKey(f"rrd/pve-node-9.0/{NODE}", bytes(200)))
LARGE = Normal(NOW, 1, Write("storage.cfg", 0, bytes(1_000_000), truncate=True))
CASES = [
    pytest.param("save 400 bytes", Group.TREE, SAVE, REPEATS, id="save"),
    pytest.param("status of a node", Group.STATUS, STATUS, REPEATS, id="status"),
    pytest.param("save 1 MB", Group.TREE, LARGE, 2, id="large"),
]


@pytest.mark.parametrize(("name", "group", "message", "repeats"), CASES)
def bench_encode(
    name: str,
    group: Group,
    message: Message,
    repeats: int,
    benchmark: Benchmark,
    report: Report,
) -> None:
    def ours(_: int) -> None:
        for _ in range(repeats):
            encode(message, group=group)

    def base(_: int) -> None:
        for _ in range(repeats):
            oracle.encode(message, group=group)

    pair = by_turns(benchmark, ours, base, rounds=ROUNDS, batch=BATCH)
    add(report, f"encode: {name}", pair.ours / repeats, pair.base / repeats)


@pytest.mark.parametrize(("name", "group", "message", "repeats"), CASES)
def bench_decode(
    name: str,
    group: Group,
    message: Message,
    repeats: int,
    benchmark: Benchmark,
    report: Report,
) -> None:
    raw = encode(message, group=group)
    assert decode(raw, group=group) == oracle.decode(raw, group=group) == message

    def ours(_: int) -> None:
        for _ in range(repeats):
            decode(raw, group=group)

    def base(_: int) -> None:
        for _ in range(repeats):
            oracle.decode(raw, group=group)

    pair = by_turns(benchmark, ours, base, rounds=ROUNDS, batch=BATCH)
    add(report, f"decode: {name}", pair.ours / repeats, pair.base / repeats)


def add(report: Report, name: str, ours: float, base: float) -> None:
    """Put a row into the report."""
    report.add("codec", name, unit="ns", ours=ours * 1000, base=base * 1000, goal=GOAL)
