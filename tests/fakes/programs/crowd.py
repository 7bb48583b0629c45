"""Many processes on a mount at once: ``crowd.py DIRECTORY READERS WRITERS SECONDS PAUSE``.

PAUSE is how many seconds each process waits between two rounds.

A file that is replaced holds one byte as often as that byte says, so a reader can tell that it is
whole; of one that is overwritten, readers may see any beginning, but no zeros. Prints a JSON list
with an object for each process: operations done, errors, and for the first one how long look-ups of
new names took, and a byte to another process and back, both in microseconds.
"""

import functools
import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Sequence

FILES = 12  # of each writer
LOOK_INTERVAL = 0.05  # seconds between two timed look-ups
BLOCK = 16  # bytes for each count of a byte


def path(writer: int, file: int, *, is_overwritten: bool = False) -> str:
    """Return the path of a writer's file."""
    number = 10_000 * (1 + is_overwritten) + 100 * writer + file
    return f"nodes/node{writer}/qemu-server/{number}.conf"


def write(writer: int, number: int) -> None:
    """Replace one of the writer's files, overwrite another, make and remove a directory."""
    chance = random.Random(number)
    value = chance.randrange(1, 256)
    content = bytes([value]) * BLOCK * value
    target = path(writer, chance.randrange(FILES))
    temporary = f"{target}.tmp.{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(content)
    os.rename(temporary, target)
    with open(path(writer, chance.randrange(FILES), is_overwritten=True), "wb") as file:
        file.write(content)
    os.mkdir(f"nodes/node{writer}/lock")
    os.rmdir(f"nodes/node{writer}/lock")


def read(writers: int, reader: int, number: int) -> None:
    """Read a file that is being changed, list its directory, and read a status file."""
    chance = random.Random(1000 * number + reader)
    writer, number_of_file = chance.randrange(writers), chance.randrange(FILES)
    target = path(writer, number_of_file)
    with open(target, "rb") as file:
        content = file.read()
    if not content or content != content[:1] * BLOCK * content[0]:
        raise ValueError(f"{target}: {len(content)} bytes of {set(content)}")
    target = path(writer, number_of_file, is_overwritten=True)
    with open(target, "rb") as file:
        content = file.read()
    if 0 in content:
        raise ValueError(f"{target}: {content.count(0)} zeros in {len(content)} bytes")
    if number % 8 == 0:
        os.listdir(os.path.dirname(target))
        with open(".version", "rb") as file:
            json.load(file)


class Looker:
    """Looks up names that nobody has looked up, and asks another process that only answers."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []
        self._socket, far = socket.socketpair()
        if os.fork() == 0:
            self._socket.close()
            while byte := far.recv(1):
                far.sendall(byte)
            os._exit(0)
        far.close()

    def close(self) -> None:
        """Let the other process end when the last one that can ask it has."""
        self._socket.close()

    def look(self, number: int) -> None:
        """Time one of each."""
        time.sleep(LOOK_INTERVAL)
        begin = time.perf_counter()
        os.path.exists(f"absent{os.getpid()}-{number}")
        between = time.perf_counter()
        time.sleep(LOOK_INTERVAL)
        start = time.perf_counter()
        self._socket.sendall(b"x")
        self._socket.recv(1)
        self.times.append((1e6 * (between - begin), 1e6 * (time.perf_counter() - start)))


def repeat(step: Callable[[int], None], until: float, pause: float) -> tuple[int, list[str]]:
    """Repeat *step* until the monotonic second *until*; return how often, and the errors."""
    number, errors = 0, []
    while time.monotonic() < until:
        number += 1
        if pause:
            time.sleep(random.uniform(0, 2 * pause))
        try:
            step(number)
        except (OSError, ValueError) as error:
            errors.append(repr(error))
    return number, errors[:10]


def start(
    kind: str,
    step: Callable[[int], None],
    until: float,
    *,
    pause: float = 0.0,
    times: Sequence[object] = (),
) -> int:
    """Repeat *step* in a process; return the descriptor from which its report can be read."""
    ours, theirs = os.pipe()
    if os.fork() == 0:
        count, errors = repeat(step, until, pause)
        with open(theirs, "w") as output:
            json.dump({"kind": kind, "count": count, "errors": errors, "times": times}, output)
        os._exit(0)
    os.close(theirs)
    return ours


def main(directory: str, *numbers: str) -> None:
    """Start all processes, and report when they have ended."""
    readers, writers, seconds = map(int, numbers[:3])
    pause = float(numbers[3])
    os.chdir(directory)
    for writer in range(writers):
        os.makedirs(f"nodes/node{writer}/qemu-server")
        for file in range(2 * FILES):
            target = path(writer, file % FILES, is_overwritten=file >= FILES)
            with open(target, "wb") as output:
                output.write(b"\1" * BLOCK)
    print("ready", flush=True)
    until = time.monotonic() + seconds
    looker = Looker()
    pipes = [start("look", looker.look, until, times=looker.times)]
    for writer in range(writers):
        step = functools.partial(write, writer)
        pipes.append(start("write", step, until, pause=pause))
    for reader in range(readers):
        step = functools.partial(read, writers, reader)
        pipes.append(start("read", step, until, pause=pause))
    looker.close()
    reports = []
    for pipe in pipes:
        with open(pipe) as source:
            reports.append(json.load(source))
    print(json.dumps(reports))


main(*sys.argv[1:])
