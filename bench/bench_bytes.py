"""Bytes written to the block device per operation, and how large journal and log become.

All that an operation costs is counted: journal, saves of the database, segments rewritten as
history, and the orderly stop. The base is bare SQLite with one commit for each transaction that the
operation needs. The content of small files can't be compressed, that of large ones can.
Contract: docs/spec/storage.md, "Bytes".
"""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest

from bench.bare import BareDatabase, bare_database
from bench.data import BIG, FIRST_VMID, GUESTS, NODE, SMALL, guest_files, variant
from bench.device import SECTOR, disk
from bench.files import CREATE, REWRITE, write_file
from bench.goals import KIB, MIB, Goal
from bench.populate import write_database
from bench.report import Report
from bench.servers import REPOSITORY, ipc_name, pmxcfs_server
from pmxcfs.storage.journal import SEGMENT_LIMIT
from pmxcfs.storage.segments import scan

SAVED_SEPARATELY = 12  # large files, each of which is in the database before the next comes
BESIDE_HISTORY_MIB = 24  # of journal and log together
LONG = 60.0  # seconds of replacements without pause
LOOK_INTERVAL = 0.2  # seconds
WITHOUT_PATTERN = random.Random(1).randbytes(4 * MIB)


@dataclass(frozen=True)
class Case:
    """An operation on the mount and its equivalent in bare SQLite, each repeated *count* times."""

    name: str
    guests: int  # files of 1 KiB that exist before
    count: int
    ours: Callable[[str, int], None]
    bare: Callable[[BareDatabase, int], None]
    most_kib: float
    is_saved_each: bool = False


def incompressible(number: int) -> bytes:
    """Return 1 KiB for the *number*-th write."""
    start = number * 997 % (len(WITHOUT_PATTERN) - KIB)
    return WITHOUT_PATTERN[start : start + KIB]


def _replace_only(root: str, number: int) -> None:
    _replace(f"{root}/datacenter.cfg", number)


def _replace_each(root: str, number: int) -> None:
    """Save a guest's configuration, another guest's each time."""
    _replace(f"{root}/nodes/{NODE}/qemu-server/{FIRST_VMID + _scattered(number)}.conf", number)


def _replace(target: str, number: int) -> None:
    write_file(f"{target}.tmp.{number}", CREATE, incompressible(number))
    os.rename(f"{target}.tmp.{number}", target)


def _replace_only_bare(database: BareDatabase, number: int) -> None:
    _replace_bare(database, number, inode=1)


def _replace_each_bare(database: BareDatabase, number: int) -> None:
    _replace_bare(database, number, inode=1 + _scattered(number))


def _replace_bare(database: BareDatabase, number: int, *, inode: int) -> None:
    database.commit(inode, variant(SMALL, number))
    database.commit(inode, variant(SMALL, number + 1))


def _scattered(number: int) -> int:
    """Return the index of the next guest: all of them in rotation, neighbors far apart."""
    return number * 7 % GUESTS


def _overwriter(block: int) -> Callable[[str, int], None]:
    """Return an operation that overwrites one large file in writes of *block* bytes."""

    def overwrite(root: str, number: int) -> None:
        flags, data = REWRITE | os.O_CREAT, variant(BIG, number)[:block]
        write_file(f"{root}/F", flags, data, times=MIB // block)

    return overwrite


def _creator(block: int) -> Callable[[str, int], None]:
    def create(root: str, number: int) -> None:
        write_file(f"{root}/F{number}", CREATE, variant(BIG, number)[:block], times=MIB // block)

    return create


def _save_bare(database: BareDatabase, number: int) -> None:
    database.commit(1 + GUESTS, variant(BIG, number))


def _create_bare(database: BareDatabase, number: int) -> None:
    database.commit(1 + GUESTS + number, variant(BIG, number))


# 25,000 replacements of 1 KiB fill ten segments; nine are rewritten as history.
CASES = (
    Case("tmp + rename of 1 KiB, the only file", 0, 25_000, _replace_only, _replace_only_bare, 3),
    Case(
        "tmp + rename of 1 KiB, 500 in turn", GUESTS, 25_000, _replace_each, _replace_each_bare, 3
    ),
    *(
        Case(
            f"1 MiB, new, in writes of {block} bytes", GUESTS, SAVED_SEPARATELY,
            _creator(block), _create_bare, 3.3 * KIB, is_saved_each=True,
        )
        for block in (512, 64 * KIB, MIB)
    ),
    *(
        Case(
            f"1 MiB, overwritten, in writes of {block} bytes", GUESTS, SAVED_SEPARATELY,
            _overwriter(block), _save_bare, 4.4 * KIB, is_saved_each=True,
        )
        for block in (512, 64 * KIB, MIB)
    ),
)  # fmt: skip


def checkpoint(workdir: Path, state: Path) -> None:
    """Have the daemon save into its database. Blocks."""
    command = [sys.executable, "-m", "pmxcfs", "checkpoint"]
    command += ["--statedir", os.fspath(state), "--ipc-name", ipc_name(workdir)]
    subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)


def our_bytes(case: Case, workdir: Path) -> float:
    """Return the bytes that one operation on our mount writes."""
    with disk(workdir) as device:
        state = device.mountpoint / "state"
        write_database(state / "config.db", islice(guest_files(), case.guests))
        with pmxcfs_server(workdir, statedir=state) as server:
            before = device.written()
            for number in range(case.count):
                case.ours(server.root, number)
                if case.is_saved_each:
                    checkpoint(workdir, state)
        return (device.written() - before) / case.count


def bare_bytes(case: Case, workdir: Path) -> float:
    """Return the bytes that the same changes cost in bare SQLite."""
    with disk(workdir) as device:
        with bare_database(device.mountpoint / "bare") as database:
            for inode in range(1, 1 + case.guests):
                database.commit(inode, SMALL[0])
            before = device.written()
            for number in range(case.count):
                case.bare(database, number)
        return (device.written() - before) / case.count


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def bench_bytes(case: Case, workdir: Callable[[], Path], report: Report) -> None:
    report.add(
        "bytes",
        case.name,
        unit="KiB",
        ours=our_bytes(case, workdir()) / KIB,
        base=bare_bytes(case, workdir()) / KIB,
        goal=Goal(absolute=case.most_kib),
    )


def bench_size_under_load(workdir: Callable[[], Path], report: Report) -> None:
    """The most that journal and log take beside the history, during replacements without pause."""
    home = workdir()
    with disk(home) as device:
        state = device.mountpoint / "state"
        with pmxcfs_server(home, statedir=state) as server:
            most = most_bytes(server.root, state)
    report.add(
        "bytes", "journal + log beside history, 60 s of tmp + rename", unit="MiB",
        ours=most / MIB, base=SEGMENT_LIMIT / MIB, goal=Goal(absolute=BESIDE_HISTORY_MIB),
    )  # fmt: skip


def most_bytes(root: str, state: Path) -> int:
    """Return the most bytes that are on the disk at a time, while a file is replaced."""
    most, number = 0, 0
    now = next_look = time.monotonic()
    end = now + LONG
    while now < end:
        _replace_only(root, number)
        number, now = number + 1, time.monotonic()
        if now >= next_look:
            most, next_look = max(most, bytes_beside_history(state)), now + LOOK_INTERVAL
    return most


def bytes_beside_history(state: Path) -> int:
    """Return the bytes that journal and log take on the disk, reserved ones included."""
    places = [
        place
        for place in scan(state / "journal").segments
        if place.header is None or not place.header.is_history
    ]
    size = 0
    for path in [state / "config.db-wal", *(place.path for place in places)]:
        with contextlib.suppress(FileNotFoundError):  # rewritten or dropped meanwhile
            size += path.stat().st_blocks * SECTOR
    return size
