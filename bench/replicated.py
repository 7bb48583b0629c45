"""A client in a node's namespaces, for bench_cluster."""

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
PAUSE = 0.002  # seconds between two operations, for the work that an operation leaves behind


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


# Name -> (operation, number of rounds). Overwrite is first, because it creates the file to read.
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
    """Send the median time of each operation in microseconds."""
    os.chdir(MOUNTPOINT)
    connection.send({name: median(*operation) for name, operation in OPERATIONS.items()})


def median(operation: Callable[[int], None], rounds: int) -> float:
    """Return the median time of *rounds* operations in microseconds."""
    times = []
    for i in range(rounds):
        start = time.perf_counter()
        operation(i)
        times.append((time.perf_counter() - start) * 1e6)
        time.sleep(PAUSE)
    return statistics.median(times)


def watch(connection: Connection, rounds: int) -> None:
    """Send the time at which each of *rounds* contents appears in the file ``lag``."""
    os.chdir(MOUNTPOINT)
    for number in range(rounds):
        wanted = str(number).encode()
        while read_content("lag") != wanted:
            pass
        connection.send(time.monotonic())


def read_content(path: str) -> bytes:
    """Return the content of a file; empty if it does not exist."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return b""
    try:
        return os.read(fd, 64)
    finally:
        os.close(fd)


def publish(connection: Connection, rounds: int) -> None:
    """Write *rounds* contents into ``lag``, one per received message; send the time of each end."""
    os.chdir(MOUNTPOINT)
    for number in range(rounds):
        connection.recv()
        write_file("lag", WRITE, str(number).encode())
        connection.send(time.monotonic())
