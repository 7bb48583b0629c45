"""Clients in nodes' namespaces, for bench_cluster: when a change is seen on another node."""

import os
import time
from multiprocessing.connection import Connection

from bench.files import REWRITE, write_file

MOUNTPOINT = "/etc/pve"


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
        write_file("lag", REWRITE | os.O_CREAT, str(number).encode())
        connection.send(time.monotonic())
