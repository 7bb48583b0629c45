"""Writing metrics to round-robin databases, without anybody waiting for it.

Whoever has a metric leaves it in a queue. One thread hands them to rrdcached over its socket, or
writes to the files itself where no rrdcached listens. One that listens and does not answer gets a
second; what it owes an answer for stays in the queue, whose size is bounded, oldest out first.
Contract: docs/spec/status.md, "RRD".
"""

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import rrdtool

from pmxcfs.errors import Failed, Invalid
from pmxcfs.host.outage import Outage
from pmxcfs.host.process import let_others_go_first
from pmxcfs.host.threads import BackgroundThread
from pmxcfs.rrd.schema import Update, definition, update_of
from pmxcfs.status.metrics import MAX_REFUSED

MAX_QUEUED = 16 << 20  # bytes of metrics that wait; at 10,000 guests some minutes
OVERHEAD = 300  # bytes that a metric takes in the queue beside its text
TIMEOUT = 1.0  # seconds for an answer of rrdcached
RETRY_AFTER = 2.0  # seconds until one that did not answer is asked again
CREATE_AGAIN_AFTER = 5.0  # seconds until a file is made once more when one could not be made
MAX_ANSWER = 4096  # bytes; what rrdcached says is one short line
DIRECTORY_MODE = 0o750
# How both refuse a value that is not newer than the last one: it was sent and not answered for.
SEEN = "illegal attempt to update using time"

_log = logging.getLogger("pmxcfs.status")


class Hung(Failed):
    """rrdcached listens, but does not answer."""


class Absent(Failed):
    """No rrdcached listens."""


class Cached:
    """A connection to rrdcached, made anew when it is needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def update(self, file: Path, values: str) -> None:
        """Hand over one line of values. Raises Absent, Hung, and Failed with what it says."""
        path = str(file).replace("\\", "\\\\").replace(" ", "\\ ")
        answer = self._ask(f"UPDATE {path} {values}\n".encode("utf-8", "surrogateescape"))
        if answer.startswith("-") and SEEN not in answer:
            raise Failed(f"rrdcached: {answer}")

    def _ask(self, line: bytes) -> str:
        is_new = self._socket is None
        try:
            return self._exchange(line)
        except Absent:
            if is_new:
                raise
            return self._exchange(line)  # it was restarted since the last time

    def _exchange(self, line: bytes) -> str:
        try:
            connection = self._connect()
            connection.sendall(line)
            answer = b""
            while not answer.endswith(b"\n"):
                part = connection.recv(MAX_ANSWER)
                if not part or len(answer) > MAX_ANSWER:
                    raise ConnectionResetError
                answer += part
        except (TimeoutError, BlockingIOError):
            self.close()
            raise Hung("rrdcached does not answer") from None
        except OSError as error:
            self.close()
            raise Absent(f"rrdcached: {error}") from None
        return answer.decode("utf-8", "replace").strip()

    def _connect(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(TIMEOUT)
            self._socket.connect(str(self._path))
        return self._socket

    def close(self) -> None:
        """Forget the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Recorder(BackgroundThread):
    """The queue of metrics and the thread that empties it."""

    def __init__(self, directory: Path, cached: Path) -> None:
        super().__init__("rrd")
        self._directory = directory
        self._cached = Cached(cached)
        self._queue: deque[tuple[str, bytes]] = deque()
        self._size = 0  # bytes in the queue
        self._lock = threading.Lock()  # of queue and size; held for moments
        self._lost = 0
        self._create_after = 0.0  # monotonic seconds
        self._refused: set[str] = set()  # names that were logged
        self._wanted = threading.Event()
        self._writing = _outage_of("writing metrics")
        self._caching = _outage_of("handing metrics to rrdcached")

    def wake(self) -> None:
        """Have the thread look whether it is to stop, once the queued metrics are written."""
        self._wanted.set()

    @property
    def waiting(self) -> int:
        """How many metrics wait to be written."""
        return len(self._queue)

    @property
    def trouble(self) -> str:
        """What keeps metrics from being written; empty if nothing does."""
        return self._caching.cause or self._writing.cause or ""

    def record(self, name: str, data: bytes) -> None:
        """Queue a metric; never blocks. For ``metrics``, which has checked the name."""
        with self._lock:
            self._queue.append((name, data))
            self._size += _cost(name, data)
            while self._size > MAX_QUEUED:
                self._size -= _cost(*self._queue.popleft())
                self._lost += 1
        if not self._wanted.is_set():
            self._wanted.set()

    def run(self) -> None:
        """Write the metrics as they come."""
        let_others_go_first()
        while not self.is_stopping:
            self._wanted.wait()
            self._wanted.clear()
            while self._queue and self._write_first():
                pass
        self._cached.close()

    def _write_first(self) -> bool:
        """Write the oldest metric; return False when it is time to end."""
        try:
            first = self._queue[0]
        except IndexError:  # dropped meanwhile
            return True
        try:
            self._write(*first)
        except Hung as error:
            self._caching.fails(str(error))
            return not self.pause(RETRY_AFTER)
        except Invalid as error:
            self._refuse(first[0], error)
        except Exception as error:  # noqa: BLE001, as one bad metric must not end the thread
            self._writing.fails(f"{first[0]}: {error}")
        else:
            self._writing.works()
        self._take(first)
        return True

    def _refuse(self, name: str, error: Invalid) -> None:
        """Log it once: a daemon whose text we don't understand sends it every ten seconds."""
        if name not in self._refused and len(self._refused) < MAX_REFUSED:
            self._refused.add(name)
            _log.warning("%s", error)

    def _take(self, first: tuple[str, bytes]) -> None:
        with self._lock:
            if self._queue and self._queue[0] is first:  # else it was dropped for newer ones
                self._queue.popleft()
                self._size -= _cost(*first)
            lost, self._lost = self._lost, 0
        if lost:
            _log.warning("dropped %d metrics: rrdcached or the disk is too slow", lost)

    def _write(self, name: str, data: bytes) -> None:
        update = update_of(name, data)
        file = self._directory / update.file
        if not file.exists():
            self._make(file, update)
        try:
            self._cached.update(file, update.values)
        except Absent:
            _update(file, update.values)
        self._caching.works()

    def _make(self, file: Path, update: Update) -> None:
        """Make a file, unless that failed a moment ago: a full disk fails for each metric anew."""
        if time.monotonic() < self._create_after:
            raise Failed(f"{file} is not made after an earlier failure")
        try:
            make_file(file, update, now=time.time)
        except Exception:
            self._create_after = time.monotonic() + CREATE_AGAIN_AFTER
            raise


def _outage_of(what: str) -> Outage[str]:
    """Return the outage of *what*, whose causes are texts."""
    return Outage(
        _log,
        describe=lambda reason: f"{what}: {reason}",
        over=f"{what} works again",
        level=logging.WARNING,
    )


def _update(file: Path, values: str) -> None:
    try:
        rrdtool.update(os.fspath(file), values)
    except rrdtool.OperationalError as error:
        if SEEN not in str(error):
            raise


def _cost(name: str, data: bytes) -> int:
    return len(name) + len(data) + OVERHEAD


def make_file(file: Path, update: Update, *, now: Callable[[], float]) -> None:
    """Make a database that takes values from the last midnight on. Raises OSError, rrdtool.error.

    It appears complete or not at all.
    """
    for directory in (file.parent.parent, file.parent):
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    today = time.localtime(now())
    midnight = int(time.mktime((*today[:3], 0, 0, 0, 0, 0, -1)))
    partial = file.with_name(f"{file.name}~")  # no metric has such a name
    try:
        rrdtool.create(os.fspath(partial), *definition(update.format, start=midnight))
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)
