"""What a change pays for the journal: encoding its record, and appending it.

The base of an append is one ``pwrite`` of as many bytes to a file beside it, whose space is
reserved in the same way. Both write to the disk for temporary files, into the page cache.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.data import BIG, NODE, SMALL, variant
from bench.goals import Figures, Goal
from bench.report import Report
from bench.turns import Benchmark, Turns, by_turns, played, timed
from pmxcfs._cpg import encode
from pmxcfs.host.callers import UNSET
from pmxcfs.messages import Group, Normal, Write
from pmxcfs.storage._journal import crc32c, crc32c_by_table, reserve
from pmxcfs.storage.journal import SEGMENT_LIMIT, Journal, size_of
from pmxcfs.storage.records import encode_change

APPEND = Goal(2.5)  # times the system call: a copy, a checksum, and a lock come on top
ENCODE = Goal(absolute=1.5)  # microseconds, the limit that the journal was designed for
CRC = Goal(1 / 2)  # or the instruction would not be worth its code
REPEATS = 200  # encodings that are timed together

NOW = 1_795_367_932
PATH = f"nodes/{NODE}/qemu-server/100.conf"


def message_of(content: bytes) -> bytes:
    """Return a save of a file as on the wire."""
    return encode(Normal(NOW, 1, Write(PATH, 0, content, truncate=True)), group=Group.TREE)


def record_of(message: bytes) -> bytes:
    """Return the record of a change by a local process."""
    return encode_change(123, 1, NOW, NOW * 10**9, 77, 4711, 33, UNSET, b"pvedaemon", message)


@pytest.mark.parametrize(
    ("name", "content", "rounds", "batch"),
    [("1 KiB", SMALL, 40, 100), ("1 MiB", BIG, 30, 10)],
    ids=["1 KiB", "1 MiB"],
)
def bench_append(
    name: str,
    content: list[bytes],
    rounds: int,
    batch: int,
    workdir: Callable[[], Path],
    benchmark: Benchmark,
    report: Report,
) -> None:
    """Our side makes room and begins segments as the daemon does; the base empties its file."""
    home = workdir()
    home.mkdir()
    bodies = [[record_of(message_of(data))] for data in content]
    size = size_of(bodies[0])
    raw = [bytes([number]) * size for number in range(len(bodies))]
    with (
        contextlib.closing(
            Journal.start(home / "journal", lineage=bytes(16), sequence=1, version=1)
        ) as journal,
        (home / "bare").open("wb", buffering=0) as bare,
    ):
        limit = max(SEGMENT_LIMIT // size, 1)  # writes before the file begins anew

        def ours(number: int) -> None:
            if journal.is_full():
                journal.begin_segment(version=1, sync=False)
            if not journal.has_room(size):
                journal.make_room(size, version=1)
            journal.append(variant_of(bodies, number))

        def base(number: int) -> None:
            if number % limit == 0:
                os.ftruncate(bare.fileno(), 0)
                reserve(bare.fileno(), 0, limit * size)
            os.pwrite(bare.fileno(), raw[number % len(raw)], number % limit * size)

        turns = played(benchmark, timed(ours), timed(base), rounds=rounds, batch=batch)
    add(report, f"append {name}", turns, APPEND)


def add(report: Report, name: str, turns: Turns, goal: Goal, *, repeats: int = 1) -> None:
    """Put a row into the report; a timed operation is *repeats* of it."""
    ours, base = (Figures(median / repeats, tail / repeats) for median, tail in turns.figures())
    report.compare("journal", name, unit="µs", ours=ours, base=base, goal=goal)


def variant_of(bodies: list[list[bytes]], number: int) -> list[bytes]:
    """Return the records for the *number*-th append."""
    return bodies[number % len(bodies)]


def bench_encode_change(benchmark: Benchmark, report: Report) -> None:
    content = variant(SMALL, 0)
    message = message_of(content)

    def ours(_: int) -> None:
        for _ in range(REPEATS):
            record_of(message)

    def base(_: int) -> None:
        for _ in range(REPEATS):
            message_of(content)

    turns = played(benchmark, timed(ours), timed(base), rounds=50, batch=20)
    add(report, "encode a change of 1 KiB", turns, ENCODE, repeats=REPEATS)


def bench_checksum(benchmark: Benchmark, report: Report) -> None:
    data = variant(BIG, 0)
    pair = by_turns(
        benchmark, lambda _: crc32c(data), lambda _: crc32c_by_table(data), rounds=20, batch=10
    )
    report.add("journal", "CRC-32C of 1 MiB", unit="µs", ours=pair.ours, base=pair.base, goal=CRC)
