"""UDP frames to a node and back, to measure the loss. Both ends are workers in nodes."""

import socket
from multiprocessing.connection import Connection

BATCHES, BATCH = 20, 100  # frames; few enough at once for a socket's buffer


def serve(connection: Connection, address: str) -> None:
    """Send each frame back. Reports the port first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 0))
        connection.send(server.getsockname()[1])
        while True:
            data, sender = server.recvfrom(100)
            server.sendto(data, sender)


def count(connection: Connection, address: str, port: int, silence: float) -> None:
    """Report the percentage of frames that return; a batch ends after *silence* seconds."""
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
