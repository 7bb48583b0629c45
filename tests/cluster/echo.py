"""Frames that go to a node and back, for counting those that are lost. Both ends are workers."""

import socket
from multiprocessing.connection import Connection

BATCHES, BATCH = 20, 100  # frames; few enough at once for a socket's buffer


def serve(connection: Connection, address: str) -> None:
    """Send each frame back. Tells the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 0))
        connection.send(server.getsockname()[1])
        while True:
            data, sender = server.recvfrom(100)
            server.sendto(data, sender)


def count(connection: Connection, address: str, port: int, silence: float) -> None:
    """Tell how many percent of the frames come back; after *silence* no more of a batch do."""
    returned = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(silence)
        for _ in range(BATCHES):
            for _ in range(BATCH):
                client.sendto(b"frame", (address, port))
            try:
                for _ in range(BATCH):
                    client.recv(100)
                    returned += 1
            except TimeoutError:
                continue
    connection.send(100 * returned / (BATCHES * BATCH))
