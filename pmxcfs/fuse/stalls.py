"""Noticing that a write takes long, so that another worker answers requests meanwhile.

A worker writes the records of a change while no other worker reads requests: that is over before
another one could begin. If the device stalls, this thread wakes another worker soon.
Contract: docs/spec/fuse.md, "Waiting".
"""

import contextlib
import threading
import time
from collections.abc import Iterator

from pmxcfs.host.threads import BackgroundThread
from pmxcfs.replica.waiting import RequestWatch

CHECK_INTERVAL = 0.01  # seconds; a write that lasts longer is a stall
IDLE_AFTER = 1.0  # seconds without a write after which the thread sleeps


class StallWatch(BackgroundThread):
    """The thread that looks after writes."""

    def __init__(self) -> None:
        super().__init__("stalls")
        self._is_needed = threading.Event()
        self._running: dict[RequestWatch, float] = {}  # watch -> monotonic begin of the write
        self._last = 0.0  # monotonic begin of the last write

    @contextlib.contextmanager
    def watching(self, watch: RequestWatch) -> Iterator[None]:
        """Stop *watch* if the block takes long. For any thread."""
        self.begin(watch)
        try:
            yield
        finally:
            self.end(watch)

    @property
    def is_watching(self) -> bool:
        """Whether a write runs."""
        return bool(self._running)

    def begin(self, watch: RequestWatch) -> None:
        """Stop *watch* unless ``end`` is called soon. For any thread."""
        self._running[watch] = self._last = time.monotonic()
        if not self._is_needed.is_set():
            self._is_needed.set()

    def end(self, watch: RequestWatch) -> None:
        """Forget *watch*, if ``begin`` was called with it."""
        self._running.pop(watch, None)

    def wake(self) -> None:
        """Let the thread end."""
        self._is_needed.set()

    def run(self) -> None:
        """Look at the writes that run, as long as there are any now and then."""
        while not self.is_stopping:
            self._is_needed.wait()
            self.pause(CHECK_INTERVAL)
            now = time.monotonic()
            for watch, since in self._running.copy().items():
                if now - since >= CHECK_INTERVAL:
                    watch.stop()
            if now - self._last > IDLE_AFTER and not self._running:
                self._is_needed.clear()
                if self._running or self.is_stopping:  # since the look at them before
                    self._is_needed.set()
