"""Log handlers: log records go to the system log, or to stderr if run in the foreground.

A record is one line, ``pmxcfs[pid]: [domain] level: text``, printable ASCII. The domain is the
second part of the logger's name (``pmxcfs.fuse``); records of other loggers have the domain main.

Logging never blocks a request. If a send to the system log would block or fails, or the queue for
a blocked terminal is full, the line is dropped and counted. The next line that can be written is
preceded by a line with the count. The system log may be missing.

Threads: any thread may log. In the foreground ``start`` starts a thread that writes to stderr, so
call ``start`` after the last fork and after the signals are blocked.
"""

import contextlib
import logging
import os
import queue
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from pmxcfs.host.threads import BackgroundThread
from pmxcfs.text import escape

DOMAINS = frozenset(["main", "dcdb", "status", "database", "quorum", "confdb", "ipcs", "fuse"])
SYSTEM_LOG = "/dev/log"
MAX_LINE = 4096  # bytes; what is longer is cut, as a datagram must not be refused for its size
MAX_QUEUED = 10_000  # lines that wait for a stuck terminal
CLOSE_TIMEOUT = 0.5  # seconds that a blocked terminal may delay the exit of the process

_FACILITY_DAEMON = 3 << 3
_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}  # of syslog(3)
_LOST = "{} log messages were lost"


class Sink(Protocol):
    """A destination of lines that never blocks its caller."""

    def send(self, level: str, line: str) -> bool:
        """Take one line; return False if it had to be dropped."""

    def close(self) -> None:
        """Give up what the sink holds."""


class SystemLog:
    """Datagrams to syslogd or the journal."""

    def __init__(self, path: str = SYSTEM_LOG) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, level: str, line: str) -> bool:
        """Send one datagram, addressed anew, so that a restarted syslogd is found again."""
        priority = _FACILITY_DAEMON | _PRIORITIES.get(level, 6)
        try:
            self._socket.sendto(f"<{priority}>{line}".encode("ascii"), self._path)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class Terminal:
    """Lines with a time stamp to a file descriptor, written by a thread of its own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[tuple[float, str] | None] = queue.Queue(MAX_QUEUED)
        self._writer = BackgroundThread("log", self._write_all)
        self._writer.start()

    def send(self, level: str, line: str) -> bool:
        """Queue one line."""
        try:
            self._lines.put_nowait((time.time(), line))
        except queue.Full:
            return False
        return True

    def close(self) -> None:
        """Wait until the queue is written, for at most 2 x CLOSE_TIMEOUT seconds."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=CLOSE_TIMEOUT)
            self._writer.close(CLOSE_TIMEOUT)

    def _write_all(self) -> None:
        # A terminal that is gone (EIO, EPIPE) ends this; the queue fills up, the rest is dropped.
        with contextlib.suppress(OSError):
            while (entry := self._lines.get()) is not None:
                write_fully(self._descriptor, f"{stamp(entry[0])} {entry[1]}\n".encode("ascii"))


class LineHandler(logging.Handler):
    """Turns records into lines for one sink, and accounts for what the sink drops."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send the lines of one record; ``logging`` calls this with the handler's lock held."""
        for text in texts_of(record):
            self._send(domain_of(record.name), record.levelname.lower(), text)

    def _send(self, domain: str, level: str, text: str) -> None:
        if self._lost:
            report = line_of("main", "warning", _LOST.format(self._lost))
            if self._sink.send("warning", report):
                self._lost = 0
        if not self._sink.send(level, line_of(domain, level, text)):
            self._lost += 1

    def close(self) -> None:
        """Close the sink; waits up to a second for a stuck terminal."""
        self._sink.close()
        super().close()


def write_fully(descriptor: int, data: bytes) -> None:
    """Write all of *data*; waits as long as the other side does not read."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # a terminal that another process made non-blocking
            select.select([], [descriptor], [])


def stamp(now: float) -> str:
    """Return local time with milliseconds."""
    return f"{time.strftime('%F %T', time.localtime(now))}.{int(now * 1000) % 1000:03d}"


def domain_of(logger: str) -> str:
    """Return the domain that administrators know a logger by."""
    package, _, domain = logger.partition(".")
    return domain if package == "pmxcfs" and domain in DOMAINS else "main"


def line_of(domain: str, level: str, text: str) -> str:
    """Return one line of the log."""
    return f"pmxcfs[{os.getpid()}]: [{domain}] {level}: {escape(text)}"[:MAX_LINE]


def texts_of(record: logging.LogRecord) -> Iterator[str]:
    """Yield the text of a record, then each line of its traceback."""
    try:
        yield record.getMessage()
    except Exception as error:  # noqa: BLE001 - a bad log message must not fail the request
        yield f"log message of {record.filename}:{record.lineno} can't be formatted: {error}"
    if record.exc_info:
        yield from logging.Formatter().formatException(record.exc_info).splitlines()


def set_verbose(verbose: bool) -> None:
    """Log every request from now on, or no longer, in the whole process."""
    logging.getLogger().setLevel(logging.DEBUG if verbose else logging.INFO)


def log_uncaught(args: threading.ExceptHookArgs) -> None:
    """Log an exception that ended a thread: in the background stderr is /dev/null."""
    if args.exc_value is None or isinstance(args.exc_value, SystemExit):
        return
    name = args.thread.name if args.thread else "unknown"
    logging.getLogger("pmxcfs.main").critical(
        "thread %s ended by an exception, which is a bug", name, exc_info=args.exc_value
    )


def is_journal(descriptor: int) -> bool:
    """Tell whether what is written to *descriptor* ends in systemd's journal."""
    status = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def start(*, foreground: bool, debug: bool) -> Callable[[], None]:
    """Log to stderr in the foreground, else to the system log; return a function that undoes this.

    If stderr is systemd's journal, the system log is used in the foreground, too: there a line has
    a priority and no second time stamp.
    """
    to_stderr = foreground and not is_journal(sys.stderr.fileno())
    handler = LineHandler(Terminal(sys.stderr.fileno()) if to_stderr else SystemLog())
    root = logging.getLogger()
    previous_level, previous_hook = root.level, threading.excepthook

    def stop() -> None:
        threading.excepthook = previous_hook
        root.setLevel(previous_level)
        root.removeHandler(handler)
        handler.close()

    root.addHandler(handler)
    set_verbose(debug)
    threading.excepthook = log_uncaught
    return stop
