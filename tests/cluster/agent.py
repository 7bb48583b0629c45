"""File operations in a node at the request of a test, one after the other, each with its times.

``serve`` runs in the node, ``Agent`` in the test. All nodes share the machine's monotonic clock, so
times of different nodes can be compared.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from tests.cluster.node import PATIENCE, Node

MOUNTPOINT = "/etc/pve"
TARGET = "tests.cluster.agent:serve"
BREATH = 0.001  # seconds between two attempts to take a lock

Span = tuple[float, float]  # from, to; seconds of time.monotonic()
Operation = tuple[Any, ...]  # name, then what it takes


class Outcome(NamedTuple):
    """The outcome of an operation. Times are those of time.monotonic(), in seconds."""

    value: Any  # None if it failed
    error: int  # errno; 0 if it succeeded
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """The duration in seconds."""
        return self.end - self.start

    def get(self) -> Any:
        """Return the value; raises the OSError if it failed."""
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return self.value


class Files:
    """The operations. Paths are relative to the mountpoint, open files have names."""

    def __init__(self, mountpoint: str = MOUNTPOINT) -> None:
        self._mountpoint = mountpoint
        self._open: dict[str, int] = {}

    def perform(self, operation: Operation) -> Outcome:
        """Do one operation."""
        name, *arguments = operation
        method: Callable[..., Any] = getattr(self, name)
        start = time.monotonic()
        try:
            value, error = method(*arguments), 0
        except OSError as failure:
            value, error = None, failure.errno or errno.EIO
        return Outcome(value, error, start, time.monotonic())

    def open(self, handle: str, path: str, flags: int, mode: int = 0o640) -> None:
        """Open a file and call it *handle*."""
        self._open[handle] = os.open(self._at(path), flags, mode)

    def close(self, handle: str) -> None:
        """Close a file; its name is free even if that fails."""
        os.close(self._open.pop(handle))

    def read(self, handle: str, size: int = 1 << 20, offset: int = 0) -> bytes:
        """Return the bytes of an open file at *offset*."""
        return os.pread(self._open[handle], size, offset)

    def write(self, handle: str, data: bytes, offset: int = 0) -> int:
        """Write into an open file."""
        return os.pwrite(self._open[handle], data, offset)

    def fsync(self, handle: str) -> None:
        """Fsync an open file."""
        os.fsync(self._open[handle])

    def get(self, path: str) -> bytes:
        """Return a file's content."""
        with _opened(self._at(path), os.O_RDONLY) as descriptor:
            return os.read(descriptor, 1 << 20)

    def put(self, path: str, data: bytes) -> None:
        """Make a file of *data*, or overwrite it."""
        with _opened(self._at(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
            os.write(descriptor, data)

    def create(self, path: str, data: bytes = b"") -> None:
        """Create a file exclusively."""
        with _opened(self._at(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
            if data:
                os.write(descriptor, data)

    def stat(self, path: str) -> tuple[int, int, int]:
        """Return mode, size and mtime in whole seconds."""
        found = os.stat(self._at(path))
        return found.st_mode, found.st_size, int(found.st_mtime)

    def list(self, path: str = "") -> list[str]:
        """Return the names in a directory, sorted."""
        return sorted(os.listdir(self._at(path)))

    def mkdir(self, path: str) -> None:
        """Make a directory."""
        os.mkdir(self._at(path))

    def rmdir(self, path: str) -> None:
        """Remove a directory."""
        os.rmdir(self._at(path))

    def unlink(self, path: str) -> None:
        """Remove a file."""
        os.unlink(self._at(path))

    def rename(self, path: str, to: str) -> None:
        """Move a file or a directory."""
        os.rename(self._at(path), self._at(to))

    def truncate(self, path: str, size: int) -> None:
        """Set a file's size."""
        os.truncate(self._at(path), size)

    def utime(self, path: str, mtime: int) -> None:
        """Set the modification time."""
        os.utime(self._at(path), (mtime, mtime))

    def mtime(self, path: str) -> int:
        """Return the modification time in whole seconds."""
        return int(os.stat(self._at(path)).st_mtime)

    def fill(self, prefix: str, count: int) -> None:
        """Make files *prefix* 0, 1, ..., each with one byte."""
        for number in range(count):
            self.create(f"{prefix}{number}", b"x")

    def hold(self, path: str, count: int) -> tuple[Sequence[Span], int]:
        """Take and free a lock *count* times; return the spans of holding, and the attempts."""
        spans: Sequence[Span] = []
        attempts = 0
        while len(spans) < count:
            attempts += 1
            try:
                self.mkdir(path)
            except FileExistsError:
                time.sleep(BREATH)  # else the node of the holder could not free it
                continue
            start = time.monotonic()
            spans = [*spans, (start, time.monotonic())]
            self.rmdir(path)
        return spans, attempts

    def seize(self, paths: Sequence[str], seconds: float) -> Sequence[str]:
        """Take the locks *paths* as soon as they expire; return those taken within *seconds*."""
        deadline = time.monotonic() + seconds
        left, taken = list(paths), []
        while left and time.monotonic() < deadline:
            for path in list(left):
                with contextlib.suppress(PermissionError, FileNotFoundError):
                    self.utime(path, 0)  # it has not expired, or the other node was faster
                with contextlib.suppress(FileExistsError):
                    self.mkdir(path)
                    taken.append(path)
                    left.remove(path)
        return taken

    def _at(self, path: str) -> str:
        return f"{self._mountpoint}/{path}"


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    """Open a file for a block; an error of the close is raised unless the block has failed."""
    descriptor = os.open(path, flags, 0o640)
    try:
        yield descriptor
    except OSError:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    os.close(descriptor)


def serve(connection: Connection) -> None:
    """Perform lists of operations until the other end closes the connection."""
    files = Files()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            connection.send([files.perform(operation) for operation in connection.recv()])


class Agent:
    """A process in a node that performs file operations there."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._worker = node.start_worker(TARGET)

    def begin(self, *operations: Operation) -> None:
        """Start operations without waiting; ``outcomes`` returns their outcomes."""
        self._worker.connection.send(operations)

    def outcomes(self, seconds: float = PATIENCE) -> Sequence[Outcome]:
        """Return the outcomes of the started operations; fail after *seconds*."""
        found: Sequence[Outcome] = self._worker.receive(seconds)
        return found

    def has_answer(self) -> bool:
        """Tell whether the started operations are done."""
        return self._worker.connection.poll()

    def do(self, *operations: Operation, seconds: float = PATIENCE) -> Sequence[Outcome]:
        """Perform operations one after the other, even if some fail; return the outcomes."""
        self.begin(*operations)
        return self.outcomes(seconds)

    def __call__(self, name: str, *arguments: object, seconds: float = PATIENCE) -> Any:
        """Perform one operation and return its value; raise its OSError."""
        return self.do((name, *arguments), seconds=seconds)[0].get()

    def close(self) -> None:
        """End the process."""
        self._worker.close()
