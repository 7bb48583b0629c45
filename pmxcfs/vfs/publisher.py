"""The clock behind close-to-open publishing: what nobody closes in time is published anyway.

One thread, asleep while nothing is unpublished, so that a write costs no wake-up: at most two a
second, however many writes there are. Contract: docs/spec/filesystem.md, "Better than before" 1.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

_log = logging.getLogger("pmxcfs.dcdb")


class Publisher:
    """Calls *publish_due* when something is due, with *lock* held."""

    def __init__(
        self, lock: AbstractContextManager[object], publish_due: Callable[[], int]
    ) -> None:
        self._lock = lock
        self._publish_due = publish_due  # returns the ns until the next is due, 0 if none
        self._is_armed = False  # read and written with the lock held
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def notice(self) -> None:
        """Something waits to be published. Needs the lock."""
        if not self._is_armed:
            self._is_armed = True
            self._wanted.set()

    def close(self, timeout: float) -> None:
        """Stop the thread, which gets *timeout* seconds. Must not hold the lock."""
        self._closing.set()
        self._wanted.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wanted.wait()
            self._wanted.clear()
            delay_ns = 1
            while delay_ns and not self._closing.is_set():
                delay_ns = self._publish()
                self._closing.wait(delay_ns / 1e9)

    def _publish(self) -> int:
        with self._lock:
            try:
                delay_ns = self._publish_due()
            except Exception:  # noqa: BLE001, as the clock must outlive any bug
                _log.exception("publishing by time failed, which is a bug")
                delay_ns = 1_000_000_000
            self._is_armed = delay_ns > 0
            return delay_ns
