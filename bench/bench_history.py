"""Finding what a history of 64 MiB tells of one path.

500 files are replaced in turn, as Proxmox VE does it, with content that can be compressed to a
half. So each of them is in every segment, and what was changed once is in one. The base reads all
records.
Contract: docs/spec/storage.md, "Journal".
"""

import random
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from bench.data import FIRST_VMID, GUESTS, NODE
from bench.goals import KIB, MIB, Goal
from bench.report import Report
from pmxcfs._cpg import encode as encode_message
from pmxcfs.messages import Create, Group, Mutation, Normal, Rename, Write
from pmxcfs.storage._journal import frame
from pmxcfs.storage.history import History
from pmxcfs.storage.journal import SEGMENT_LIMIT, size_of
from pmxcfs.storage.path_search import search_path
from pmxcfs.storage.records import encode_change
from pmxcfs.storage.segments import Header, encode_header, name_of, scan

HISTORY = 64 * MIB  # compressed
NOW = 1_795_367_932
ONCE = "datacenter.cfg"
MOST_MS = 1000
TIMES = 5


def mutations() -> Iterator[Mutation]:
    """Yield changes without end; the 1000th is one of ONCE, which has no other."""
    generator = random.Random(1)
    for number in count():
        path = f"nodes/{NODE}/qemu-server/{FIRST_VMID + number * 7 % GUESTS}.conf"
        content = generator.randbytes(KIB // 2).hex().encode()
        yield Create(f"{path}.tmp.{number}")
        yield Write(f"{path}.tmp.{number}", 0, content, truncate=True)
        yield Rename(f"{path}.tmp.{number}", path)
        if number == 1000:
            yield Write(ONCE, 0, b"keyboard: de\n", truncate=True)


def fill(directory: Path) -> History:
    """Make the segments of a history; return it."""
    history = History(directory, private_now=lambda inodes: ())
    bodies: list[bytes] = []
    first = 1
    for version, mutation in enumerate(mutations()):
        message = encode_message(Normal(NOW, 0, mutation), group=Group.TREE)
        bodies.append(
            encode_change(version, 1, NOW, NOW * 10**9, version, 4711, 0, 0, b"pvedaemon", message)
        )
        if version % KIB == 0 and size_of(bodies) >= SEGMENT_LIMIT:
            header = encode_header(Header(bytes(16), first, version))
            (directory / name_of(first)).write_bytes(header + frame(bodies, first))
            history.take(first, before=first + len(bodies))
            first, bodies = first + len(bodies), []
            if history.size >= HISTORY:
                return history
    raise AssertionError("there are changes without end")


def ms_of(action: Callable[[], int], *, expected: int) -> float:
    """Return the least milliseconds that *action* takes, of some times."""
    times = []
    for _ in range(TIMES):
        begin = time.perf_counter()
        assert action() == expected
        times.append(time.perf_counter() - begin)
    return min(times) * 1000


def bench_search(workdir: Callable[[], Path], report: Report) -> None:
    home = workdir()
    home.mkdir(parents=True)
    size = fill(home).size
    often = f"nodes/{NODE}/qemu-server/{FIRST_VMID}.conf".encode()
    records = [located.record for place in scan(home).segments for located in place.read().records]
    base = ms_of(
        lambda: sum(len(place.read().records) for place in scan(home).segments),
        expected=len(records),
    )
    found = len([*search_path(home, often)])
    assert found > len(records) // GUESTS // 2
    for name, path, expected in (("once", ONCE.encode(), 1), ("in each segment", often, found)):
        report.add(
            "history", f"{size / MIB:.0f} MiB for a path that is changed {name}", unit="ms",
            ours=ms_of(lambda path=path: len([*search_path(home, path)]), expected=expected),  # type: ignore[misc]
            base=base, goal=Goal(absolute=MOST_MS),
        )  # fmt: skip
