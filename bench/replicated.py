"""One client of a node, for bench_cluster: what runs there, in the node's namespaces."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import MappingProxyType

from bench.data import BIG, SECTOR, SECTORS, SMALL, variant
from bench.operations import REWRITE, read_file, write_file

MOUNTPOINT = "/etc/pve"
WRITE = REWRITE | os.O_CREAT
PAUSE = 0.002  # seconds between two operations: what the one before left to do is not the next's


def read(i: int) -> None:
    read_file("f")


def overwrite(i: int) -> None:
    write_file("f", WRITE, variant(SMALL, i))


def replace(i: int) -> None:
    write_file("f.tmp", WRITE, variant(SMALL, i))
    os.rename("f.tmp", "f")


def make_and_remove(i: int) -> None:
    os.mkdir("d")
    os.rmdir("d")


def write_big(i: int) -> None:
    write_file("F", WRITE, variant(BIG, i))


def write_sectors(i: int) -> None:
    write_file("s", WRITE, variant(SECTOR, i), times=SECTORS)


# Name -> what runs, and how often. What is read must be there: overwrite comes first.
OPERATIONS: Mapping[str, tuple[Callable[[int], None], int]] = MappingProxyType(
    {
        "overwrite 1 KiB": (overwrite, 300),
        "open + read 1 KiB + close": (read, 300),
        "tmp + write 1 KiB + close + rename": (replace, 200),
        "mkdir + rmdir": (make_and_remove, 200),
        "write 1 MiB + close": (write_big, 30),
        "1000 x write 512 B, close": (write_sectors, 20),
    }
)


def measure(connection: Connection) -> None:
    """Tell the median of each operation in microseconds."""
    os.chdir(MOUNTPOINT)
    connection.send({name: median(*operation) for name, operation in OPERATIONS.items()})


def median(operation: Callable[[int], None], rounds: int) -> float:
    """Return the median of *rounds* in microseconds."""
    times = []
    for i in range(rounds):
        start = time.perf_counter()
        operation(i)
        times.append((time.perf_counter() - start) * 1e6)
        time.sleep(PAUSE)
    return statistics.median(times)


def watch(connection: Connection, rounds: int) -> None:
    """Tell when each of *rounds* contents has come to be in the file ``lag``."""
    os.chdir(MOUNTPOINT)
    for number in range(rounds):
        wanted = str(number).encode()
        while read_content("lag") != wanted:
            pass
        connection.send(time.monotonic())


def read_content(path: str) -> bytes:
    """Return what is there, nothing if it is not."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return b""
    try:
        return os.read(fd, 64)
    finally:
        os.close(fd)


def publish(connection: Connection, rounds: int) -> None:
    """Write *rounds* contents into ``lag``, each when told to; tell when each had been written."""
    os.chdir(MOUNTPOINT)
    for number in range(rounds):
        connection.recv()
        write_file("lag", WRITE, str(number).encode())
        connection.send(time.monotonic())
