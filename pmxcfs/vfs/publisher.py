"""The clock behind close-to-open publishing: what nobody closes in time is published anyway.

One thread, asleep while nothing is unpublished, so that a write costs no wake-up: at most two a
second, however many writes there are. Contract: docs/spec/filesystem.md, "Better than before" 1.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from pmxcfs.host.threads import BackgroundThread

_log = logging.getLogger("pmxcfs.dcdb")


class Publisher(BackgroundThread):
    """Calls *publish_due* when something is due, with *lock* held."""

    def __init__(
        self, lock: AbstractContextManager[object], publish_due: Callable[[], int]
    ) -> None:
        super().__init__("publisher")
        self._lock = lock
        self._publish_due = publish_due  # returns the ns until the next is due, 0 if none
        self._is_armed = False  # read and written with the lock held
        self._wanted = threading.Event()

    def notice(self) -> None:
        """Something waits to be published. Needs the lock."""
        if not self._is_armed:
            self._is_armed = True
            self._wanted.set()

    def wake(self) -> None:
        """Have the thread look whether it is to stop."""
        self._wanted.set()

    def run(self) -> None:
        """Publish what is due, whenever something is."""
        while not self.is_stopping:
            self._wanted.wait()
            self._wanted.clear()
            delay_ns = 1
            while delay_ns and not self.is_stopping:
                delay_ns = self._publish()
                self.pause(delay_ns / 1e9)

    def _publish(self) -> int:
        with self._lock:
            try:
                delay_ns = self._publish_due()
            except Exception:  # noqa: BLE001, as the clock must outlive any bug
                _log.exception("publishing by time failed, which is a bug")
                delay_ns = 1_000_000_000
            self._is_armed = delay_ns > 0
            return delay_ns
