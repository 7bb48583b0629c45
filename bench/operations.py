"""The operations on a mount that are compared with the floor, and their limits.

``prepare`` gets a directory and an ExitStack, does the work that must not be timed, and returns the
operation. It runs on both mounts. Operations are Python's os calls, whose own time of 0.1 to 1
microsecond is part of both figures. ``goals`` explains ``must`` and ``base_then``.
"""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from bench.data import (
    BIG,
    LISTED,
    LISTINGS,
    REWRITTEN,
    SECTOR,
    SECTORS,
    SMALL,
    TARGETS,
    UNSEEN_BIG,
    variant,
)
from bench.goals import KIB, MIB, Goal
from bench.turns import Operation

READ = os.O_RDONLY
REWRITE, CREATE = os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_EXCL
BUFFER = 64 * KIB  # the size of a reader's buffer for a small file

READING, WRITING = 1.5, 2.0  # times the floor, for operations that read and operations that change
Prepare = Callable[[str, ExitStack], Operation]


@dataclass(frozen=True)
class Comparison:
    """One row: the operation on both mounts, its rounds and batch, and its limits.

    *prepare_base* replaces *prepare* on the floor.
    """

    name: str
    prepare: Prepare
    rounds: int
    batch: int
    goal: Goal
    prepare_base: Prepare | None = None
    unit: str = "µs"


def read_file(path: str, size: int = BUFFER) -> None:
    """Open a file, read once, and close it."""
    fd = os.open(path, READ)
    os.read(fd, size)
    os.close(fd)


def write_file(path: str, flags: int, data: bytes, *, times: int = 1) -> None:
    """Open a file, write *data* *times* times, and close it."""
    fd = os.open(path, flags)
    for _ in range(times):
        os.write(fd, data)
    os.close(fd)


def statvfs(root: str, stack: ExitStack) -> Operation:
    return lambda i: os.statvfs(root)


def stat_seen(root: str, stack: ExitStack) -> Operation:
    """Stat paths that were looked up over 1 s ago: an attribute timeout of 1 s would show."""
    for i in range(LISTED):
        os.stat(f"{root}/d0/f{i}")
    time.sleep(1.1)
    return lambda i: os.stat(f"{root}/d0/f{i}")


def stat_unseen(root: str, stack: ExitStack) -> Operation:
    os.stat(f"{root}/d7")
    return lambda i: os.stat(f"{root}/d7/f{i}")


def stat_absent(root: str, stack: ExitStack) -> Operation:
    os.stat(f"{root}/d7")
    return lambda i: os.path.lexists(f"{root}/d7/x{i}")


def open_read_close(root: str, stack: ExitStack) -> Operation:
    return lambda i: read_file(f"{root}/d0/f{i % REWRITTEN}")


def pread(root: str, stack: ExitStack) -> Operation:
    fd = os.open(f"{root}/d0x/F0", READ)
    stack.callback(os.close, fd)
    return lambda i: os.pread(fd, 4 * KIB, 0)


def list_directory(root: str, stack: ExitStack) -> Operation:
    return lambda i: os.listdir(f"{root}/d0")


def stat_entries(directory: str) -> None:
    """Call stat for the LISTED files of a directory, without listing it."""
    for n in range(LISTED):
        os.stat(f"{directory}/f{n}")


def stat_listed(root: str, stack: ExitStack) -> Operation:
    stat_entries(f"{root}/d0")
    return lambda i: stat_entries(f"{root}/d0")


def list_and_stat_unseen(root: str, stack: ExitStack) -> Operation:
    def operation(i: int) -> None:
        os.listdir(f"{root}/d8/d{i}")
        stat_entries(f"{root}/d8/d{i}")

    return operation


def read_big_unseen(root: str, stack: ExitStack) -> Operation:
    return lambda i: read_file(f"{root}/d6/F{i}", MIB)


def read_big(root: str, stack: ExitStack) -> Operation:
    return lambda i: read_file(f"{root}/d0x/F0", MIB)


def overwrite(root: str, stack: ExitStack) -> Operation:
    def operation(i: int) -> None:
        number, turn = i % REWRITTEN, i // REWRITTEN
        write_file(f"{root}/d1/f{number}", REWRITE, variant(SMALL, turn))

    return operation


def create(root: str, stack: ExitStack) -> Operation:
    return lambda i: write_file(f"{root}/d2/x{i}", CREATE, variant(SMALL, i))


def replace(root: str, stack: ExitStack) -> Operation:
    """Replace files that the kernel has cached, as it has in real use."""
    for i in range(TARGETS):
        os.stat(f"{root}/d3/f{i}")

    def operation(i: int) -> None:
        write_file(f"{root}/d3/x{i}", CREATE, variant(SMALL, i))
        os.rename(f"{root}/d3/x{i}", f"{root}/d3/f{i}")

    return operation


def make_and_remove(root: str, stack: ExitStack) -> Operation:
    def operation(i: int) -> None:
        os.mkdir(f"{root}/d4/x{i}")
        os.rmdir(f"{root}/d4/x{i}")

    return operation


def write_big(root: str, stack: ExitStack) -> Operation:
    return lambda i: write_file(f"{root}/d5/F0", REWRITE, variant(BIG, i))


def write_sectors(root: str, stack: ExitStack) -> Operation:
    def operation(i: int) -> None:
        write_file(f"{root}/d5/F1", REWRITE, variant(SECTOR, i), times=SECTORS)

    return operation


def read_version(root: str, stack: ExitStack) -> Operation:
    return lambda i: read_file(f"{root}/.version")


def read_guest_list(root: str, stack: ExitStack) -> Operation:
    return lambda i: read_file(f"{root}/.vmlist")


def read_unseen(directory: str) -> Prepare:
    """Read files that the kernel has not cached, as the base for status files.

    A status file gets a new inode each time it is opened, so nothing of it can be cached.
    """

    def prepare(root: str, stack: ExitStack) -> Operation:
        os.stat(f"{root}/{directory}")
        return lambda i: read_file(f"{root}/{directory}/f{i}")

    return prepare


COMPARISONS = (
    Comparison("statvfs", statvfs, 20, 100, Goal(READING)),
    Comparison("stat, seen > 1 s ago", stat_seen, 4, 100, Goal(READING, must=4)),
    Comparison("stat, first time", stat_unseen, 30, 100, Goal(READING, base_then=16)),
    Comparison("stat, absent, first time", stat_absent, 20, 100, Goal(READING)),
    Comparison(
        "open + read 1 KiB + close", open_read_close, 40, 100,
        Goal(READING, must=30, base_then=23),
    ),
    Comparison("pread 4 KiB, cached", pread, 20, 250, Goal(READING, must=2)),
    Comparison("listdir of 500", list_directory, 20, 20, Goal(READING, must=400)),
    Comparison("stat of 500, seen before", stat_listed, 20, 5, Goal(READING, must=1400)),
    Comparison(
        "listdir + stat of 500, first time", list_and_stat_unseen, LISTINGS - 1, 1, Goal(READING)
    ),
    Comparison(
        "read 1 MiB, first time", read_big_unseen, UNSEEN_BIG // 5 - 1, 5,
        Goal(READING, base_then=350),
    ),
    Comparison("read 1 MiB, cached", read_big, 20, 10, Goal(READING, must=300)),
    Comparison("read .version", read_version, 20, 50, Goal(READING, must=100), read_unseen("d90")),
    Comparison(
        "read .vmlist, 500 guests", read_guest_list, 20, 50, Goal(READING, must=300),
        read_unseen("d91"),
    ),
    Comparison(
        "overwrite 1 KiB", overwrite, 40, 50, Goal(WRITING, commits=1, must=100, base_then=51)
    ),
    Comparison(
        "create + write 1 KiB + close", create, 40, 50, Goal(WRITING, commits=1, must=140)
    ),
    Comparison(
        "tmp + write 1 KiB + close + rename", replace, TARGETS // 50 - 1, 50,
        Goal(WRITING, commits=2, must=190, base_then=96),
    ),
    Comparison(
        "mkdir + rmdir", make_and_remove, 40, 50,
        Goal(WRITING, commits=2, must=110, base_then=57),
    ),
    Comparison(
        "write 1 MiB + close", write_big, 30, 4,
        Goal(WRITING, commits=1, commit_bytes=MIB, must=7000, base_then=545),
    ),
    Comparison(
        "1000 x write 512 B, close", write_sectors, 20, 1,
        Goal(WRITING, commits=1, commit_bytes=512 * SECTORS, must=25_000, base_then=11_800),
    ),
)  # fmt: skip

STATUS_FILES = {"read .version", "read .vmlist, 500 guests"}  # the floor does not have them
