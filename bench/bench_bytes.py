"""Bytes written to the block device per operation, including the last checkpoint and the close.

The base is bare SQLite with one commit for each transaction that the operation needs. The number of
pages that a transaction changes depends on the other rows: in an empty database all rows share one.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest

from bench.bare import BareDatabase, bare_database
from bench.data import BIG, FIRST_VMID, GUESTS, NODE, SECTOR, SMALL, guest_files, variant
from bench.device import disk
from bench.goals import KIB, MIB, Goal
from bench.operations import CREATE, REWRITE, write_file
from bench.populate import write_database
from bench.report import Report
from bench.servers import pmxcfs_server

SECTORS_PER_MIB = MIB // 512


@dataclass(frozen=True)
class Case:
    """An operation on the mount and its equivalent in bare SQLite, each repeated *count* times."""

    name: str
    guests: int  # files of 1 KiB that exist before
    count: int
    ours: Callable[[str, int], None]
    bare: Callable[[BareDatabase, int], None]
    most_kib: float


def _replace_only(root: str, number: int) -> None:
    _replace(f"{root}/datacenter.cfg", number)


def _replace_each(root: str, number: int) -> None:
    """Save a guest's configuration, another guest's each time."""
    _replace(f"{root}/nodes/{NODE}/qemu-server/{FIRST_VMID + _scattered(number)}.conf", number)


def _replace(target: str, number: int) -> None:
    write_file(f"{target}.tmp.{number}", CREATE, variant(SMALL, number))
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


def _save_sectors(root: str, number: int) -> None:
    flags = REWRITE | os.O_CREAT
    write_file(f"{root}/F", flags, variant(SECTOR, number), times=SECTORS_PER_MIB)


def _save(root: str, number: int) -> None:
    write_file(f"{root}/F", REWRITE | os.O_CREAT, variant(BIG, number))


def _save_bare(database: BareDatabase, number: int) -> None:
    database.commit(1 + GUESTS, variant(BIG, number))


# The counts are large enough for several checkpoints: one is due per 4 MiB of log.
CASES = (
    Case("tmp + rename of 1 KiB, the only file", 0, 1500, _replace_only, _replace_only_bare, 28),
    Case("tmp + rename of 1 KiB, 500 in turn", GUESTS, 1500, _replace_each, _replace_each_bare, 28),
    Case("1 MiB in 512-byte writes", GUESTS, 20, _save_sectors, _save_bare, 2.2 * KIB),
    Case("1 MiB in one write", GUESTS, 20, _save, _save_bare, 2.2 * KIB),
)


def our_bytes(case: Case, workdir: Path) -> float:
    """Return the bytes that one operation on our mount writes."""
    with disk(workdir) as device:
        state = device.mountpoint / "state"
        write_database(state / "config.db", islice(guest_files(), case.guests))
        with pmxcfs_server(workdir, statedir=state) as server:
            before = device.written()
            for number in range(case.count):
                case.ours(server.root, number)
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
