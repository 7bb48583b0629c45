"""Writing metrics to RRD files on a background thread, so that no request waits for rrdcached.

``record`` puts a metric into a queue. The thread sends each metric to rrdcached over its socket, or
writes the file itself if no rrdcached listens. If rrdcached does not answer within a second, the
metric stays in the queue and is sent again later. The size of the queue is limited: the oldest
metrics are dropped first. Contract: docs/spec/status.md, "RRD".
"""

import contextlib
import logging
import os
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pmxcfs.errors import Failed, Invalid
from pmxcfs.host.directories import make_new_file, open_directory, open_file, opened
from pmxcfs.host.log_limit import LogLimit
from pmxcfs.host.outage import Outage
from pmxcfs.host.process import lower_priority
from pmxcfs.host.threads import BackgroundThread
from pmxcfs.rrd import _librrd
from pmxcfs.rrd.schema import STEP, Update, definitions, update_of
from pmxcfs.status.metrics import MAX_REFUSED

MAX_QUEUED = 16 << 20  # bytes of queued metrics; a few minutes with 10,000 guests
OVERHEAD = 300  # bytes of memory per queued metric beside its text
TIMEOUT = 1.0  # seconds to wait for rrdcached
RETRY_AFTER = 2.0  # seconds until rrdcached is tried again after a timeout
CREATE_AGAIN_AFTER = 5.0  # seconds without another attempt after a file could not be created
MAX_ANSWER = 4096  # bytes; an answer of rrdcached is one short line
DIRECTORY_MODE = 0o750
FILE_MODE = 0o644
# The error of librrd and rrdcached for a value that is not newer than the last one: the value was
# written before, but its answer was lost.
SEEN = "illegal attempt to update using time"

_log = logging.getLogger("pmxcfs.status")


class Hung(Failed):
    """rrdcached listens, but does not answer."""


class Absent(Failed):
    """No rrdcached listens."""


class Cached:
    """A connection to rrdcached that is opened again when needed. Its methods block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def update(self, file: Path, values: str) -> None:
        """Send one line of values for *file*. Raises Absent, Hung, or Failed with the answer."""
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
            return self._exchange(line)  # rrdcached was restarted: connect again

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
        """Close the connection, if it is open. Never blocks."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _CreationPaused(Failed):
    """No file is created now, because creating one failed a moment ago."""


class Recorder(BackgroundThread):
    """The queue of metrics and the thread that empties it."""

    def __init__(self, directory: Path, cached: Path, *, scratch: Path) -> None:
        super().__init__("rrd")
        self._directory = directory
        self._scratch = scratch  # a directory that only root can write to
        self._cached = Cached(cached)
        self._queue: deque[tuple[str, bytes]] = deque()
        self._size = 0  # bytes in the queue
        self._lock = threading.Lock()  # guards _queue, _size and _lost; held briefly
        self._lost = 0
        self._log_limit = LogLimit(_log)
        self._create_after = 0.0  # monotonic seconds
        self._refused: set[str] = set()  # names of invalid metrics that were logged
        self._wanted = threading.Event()
        self._writing = _outage_of("writing metrics")
        self._caching = _outage_of("sending metrics to rrdcached")

    def wake(self) -> None:
        """Let the thread notice that it has to stop; it writes the queued metrics first."""
        self._wanted.set()

    @property
    def waiting(self) -> int:
        """The number of queued metrics."""
        return len(self._queue)

    @property
    def trouble(self) -> str:
        """The reason why metrics can't be written; empty if they can."""
        return self._caching.cause or self._writing.cause or ""

    def record(self, name: str, data: bytes) -> None:
        """Queue a metric. Never blocks. ``status.metrics`` has checked the name."""
        with self._lock:
            self._queue.append((name, data))
            self._size += _cost(name, data)
            while self._size > MAX_QUEUED:
                self._size -= _cost(*self._queue.popleft())
                self._lost += 1
        if not self._wanted.is_set():
            self._wanted.set()

    def run(self) -> None:
        """Write queued metrics until the thread has to stop."""
        lower_priority()
        while not self.is_stopping:
            self._wanted.wait()
            self._wanted.clear()
            while self._queue and self._write_first():
                pass
        self._cached.close()

    def _write_first(self) -> bool:
        """Write the oldest metric; return False if the thread has to stop. Blocks."""
        try:
            first = self._queue[0]
        except IndexError:  # it was dropped meanwhile
            return True
        try:
            self._write(*first)
        except Hung as error:
            self._caching.fails(str(error))
            return not self.pause(RETRY_AFTER)
        except Invalid as error:
            self._refuse(first[0], error)
        except _CreationPaused:
            pass  # the failure that caused it is reported
        except Exception as error:  # noqa: BLE001, one bad metric must not end the thread
            self._writing.fails(f"{first[0]}: {error}")
        else:
            self._writing.works()
        self._take(first)
        return True

    def _refuse(self, name: str, error: Invalid) -> None:
        """Log *error* only once per name: clients send each metric every ten seconds."""
        if name not in self._refused and len(self._refused) < MAX_REFUSED:
            self._refused.add(name)
            _log.warning("%s", error)

    def _take(self, first: tuple[str, bytes]) -> None:
        with self._lock:
            if self._queue and self._queue[0] is first:  # else it was dropped to make room
                self._queue.popleft()
                self._size -= _cost(*first)
            lost, self._lost = self._lost, 0
        for _ in range(lost):
            self._log_limit.warn("lost", "dropped a metric: rrdcached or the disk is too slow")

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
        """Create a file, unless creating one failed less than CREATE_AGAIN_AFTER ago.

        On a full disk, an attempt for each metric would fail and take time.
        """
        if time.monotonic() < self._create_after:
            raise _CreationPaused(f"{file} is not created: creating a file failed a moment ago")
        try:
            make_file(file, update, now=time.time, scratch=self._scratch)
        except Exception:
            self._create_after = time.monotonic() + CREATE_AGAIN_AFTER
            raise


def _outage_of(what: str) -> Outage[str]:
    """Return an outage of *what*, whose causes are texts."""
    return Outage(
        _log,
        describe=lambda reason: f"{what}: {reason}",
        over=f"{what} works again",
        level=logging.WARNING,
    )


def _update(file: Path, values: str) -> None:
    """Add a line of values to *file*, which librrd gets as an open file, by a path of procfs."""
    with opened(open_directory(file.parent, make=DIRECTORY_MODE)) as directory:
        descriptor = open_file(file.name, os.O_RDWR, directory=directory)
    try:
        _librrd.update(f"/proc/self/fd/{descriptor}", values)
    except Failed as error:
        if SEEN not in str(error):
            raise
    finally:
        os.close(descriptor)


def _cost(name: str, data: bytes) -> int:
    return len(name) + len(data) + OVERHEAD


def make_file(file: Path, update: Update, *, now: Callable[[], float], scratch: Path) -> None:
    """Create an RRD file atomically, for values since the last local midnight. Blocks.

    *now* returns the seconds since 1970. librrd, which knows only paths, writes the file in the
    directory *scratch*, where nobody else can replace it. Raises OSError, and
    Failed or Invalid from librrd.
    """
    today = time.localtime(now())
    midnight = int(time.mktime((*today[:3], 0, 0, 0, 0, 0, -1)))
    with tempfile.TemporaryDirectory(prefix="rrd-", dir=scratch) as private:
        empty = Path(private, "empty.rrd")
        _librrd.create(os.fspath(empty), definitions(update.format), start=midnight, step=STEP)
        content = empty.read_bytes()
    with opened(open_directory(file.parent, make=DIRECTORY_MODE)) as directory:
        _place(file.name, content, directory=directory)


def _place(name: str, content: bytes, *, directory: int) -> None:
    """Write a file under a temporary name, and rename it."""
    partial = f"{name}~"  # no metric can have this name
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial, dir_fd=directory)  # of a daemon that was killed
    try:
        with open(make_new_file(partial, FILE_MODE, directory=directory), "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), FILE_MODE)  # whatever the umask is
        os.rename(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial, dir_fd=directory)
        raise
