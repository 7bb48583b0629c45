"""Log lines that others can cause at will: each kind at once, then at most one line a minute.

Peers, local clients and users can send as much as they like that has to be refused or dropped. One
line for each would fill the log and the disk. So the first of a kind is logged at once, and what
follows is counted. A minute later one line has the latest text and the count, if there is any. The
counts in the lines add up to the number of events. Exact counters are kept by the callers.

``Reporter`` writes the lines that are due without a further event, also when the daemon stops.

Threads: any thread may log. No method blocks.
Contract: docs/spec/operations.md, "Logging".
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from pmxcfs.host.threads import BackgroundThread

INTERVAL = 60.0  # seconds between two lines of one kind
MOST_KINDS = 64  # kinds that one limit tells apart; all further ones count as one
CHECK_INTERVAL = 1.0  # seconds between two looks of the reporter for lines that are due

_OTHERS = object()  # the kind that stands for all kinds beyond MOST_KINDS


@dataclass
class _Silence:
    """The time after a line of one kind, in which events of that kind are counted."""

    until: float  # monotonic second
    level: int
    count: int = 0
    latest: str = ""


class LogLimit:
    """The lines of one part of the daemon. Events of one *kind* share the limit of a line."""

    def __init__(
        self, logger: logging.Logger, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """*clock* returns seconds that never go back."""
        self._logger = logger
        self._clock = clock
        self._lock = threading.Lock()  # guards the silences
        self._silences: dict[Hashable, _Silence] = {}
        with _limits_lock:
            _limits.add(self)

    def warn(self, kind: Hashable, text: str) -> None:
        """Log the event *text* as a warning, or count it."""
        self.log(logging.WARNING, kind, text)

    def log(self, level: int, kind: Hashable, text: str) -> None:
        """Log the event *text* at *level*, or count it if its kind was logged a moment ago."""
        now = self._clock()
        with self._lock:
            lines = self._end(now, everything=False)
            silence = self._silence_of(kind)
            if silence is None:
                self._silences[self._slot(kind)] = _Silence(now + INTERVAL, level)
                lines.append((level, text))
            else:
                silence.count += 1
                silence.latest = text
        self._write(lines)
        if silence is not None and not _is_counting.is_set():
            _is_counting.set()

    def flush(self, *, everything: bool = False) -> bool:
        """Log the counts that are due, or *everything*; return whether any event is unlogged."""
        with self._lock:
            lines = self._end(self._clock(), everything=everything)
            is_counting = any(silence.count for silence in self._silences.values())
        self._write(lines)
        return is_counting

    def _slot(self, kind: Hashable) -> Hashable:
        return kind if len(self._silences) < MOST_KINDS else _OTHERS

    def _silence_of(self, kind: Hashable) -> _Silence | None:
        return self._silences.get(kind) or self._silences.get(self._slot(kind))

    def _end(self, now: float, *, everything: bool) -> list[tuple[int, str]]:
        """End the silences that are over; return the lines of what they have counted.

        A silence in which something was counted is followed by another one.
        """
        lines = []
        for kind, silence in list(self._silences.items()):
            if now < silence.until and not everything:
                continue
            if silence.count:
                text = f"{silence.latest} ({silence.count} times since the last such line)"
                lines.append((silence.level, text))
                self._silences[kind] = _Silence(now + INTERVAL, silence.level)
            else:
                del self._silences[kind]
        return lines

    def _write(self, lines: Iterable[tuple[int, str]]) -> None:
        for level, text in lines:
            self._logger.log(level, "%s", text)


_limits: weakref.WeakSet[LogLimit] = weakref.WeakSet()  # of the whole process
_limits_lock = threading.Lock()
_is_counting = threading.Event()  # set while an event may be counted and not logged


class Reporter(BackgroundThread):
    """A thread that writes the counts of all limits of the process when they are due.

    When it is closed, it writes all counts.
    """

    def __init__(self) -> None:
        super().__init__("log-limit")

    def wake(self) -> None:
        """Wake the thread to check ``is_stopping``."""
        _is_counting.set()

    def run(self) -> None:
        """Look once a second while an event is counted, and sleep otherwise."""
        while not self.is_stopping:
            _is_counting.wait()
            _is_counting.clear()
            if _flush_all(everything=False):
                _is_counting.set()
            self.pause(CHECK_INTERVAL)
        _flush_all(everything=True)


def _flush_all(*, everything: bool) -> bool:
    """Log the counts of all limits that are due; return whether any event is counted."""
    with _limits_lock:
        limits = list(_limits)
    return any([limit.flush(everything=everything) for limit in limits])
