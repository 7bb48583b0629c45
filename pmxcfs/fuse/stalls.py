"""Noticing that a write takes long, so that another worker answers requests meanwhile.

A worker writes the records of a change while no other worker reads requests: that is over before
another one could begin. If the device stalls, this thread wakes another worker soon.
Contract: docs/spec/fuse.md, "Waiting".
"""

import threading
from time import monotonic

from pmxcfs.host.threads import BackgroundThread
from pmxcfs.replica.waiting import RequestWatch

CHECK_INTERVAL = 0.01  # seconds; a write that lasts longer is a stall
IDLE_AFTER = 1.0  # seconds without a write after which the thread sleeps


class Writes:
    """The writes that run. Each method is atomic under the GIL."""

    def __init__(self) -> None:
        self.running: dict[RequestWatch, float] = {}  # watch -> monotonic begin of the write
        self.last = 0.0  # monotonic begin of the last write
        self.are_watched = False  # whether the thread looks at them

    def begin(self, watch: RequestWatch) -> bool:
        """Note a write; return whether the thread has to be woken to look after it."""
        self.last = monotonic()
        self.running[watch] = self.last
        is_first = not self.are_watched
        self.are_watched = True
        return is_first

    def end(self, watch: RequestWatch) -> None:
        """Forget the write of *watch*, if it is known."""
        self.running.pop(watch, None)


class StallWatch(BackgroundThread):
    """The thread that looks after writes."""

    def __init__(self) -> None:
        super().__init__("stalls")
        self._is_needed = threading.Event()
        self.writes = Writes()

    def wake(self) -> None:
        """Let the thread look at the writes that run, or end."""
        self._is_needed.set()

    def run(self) -> None:
        """Look at the writes that run, as long as there are any now and then."""
        writes = self.writes
        while not self.is_stopping:
            self._is_needed.wait()
            self.pause(CHECK_INTERVAL)
            now = monotonic()
            for watch, since in writes.running.copy().items():
                if now - since >= CHECK_INTERVAL:
                    watch.stop()
            if now - writes.last > IDLE_AFTER and not writes.running:
                self._is_needed.clear()
                writes.are_watched = False
                if writes.running or self.is_stopping:  # since the look at them before
                    writes.are_watched = True
                    self._is_needed.set()
