"""A timer thread that publishes dirty files that stay open, and saves new files, after a second.

The thread sleeps while no file is dirty. Writes to dirty files do not wake it: it wakes up at most
twice a second, regardless of the number of writes.
Contract: docs/spec/filesystem.md, "Better than before" 1.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from pmxcfs.host.threads import BackgroundThread

_log = logging.getLogger("pmxcfs.dcdb")


class Publisher:
    """A timer for publishing: calls a function, with *lock* held, when something is due."""

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self._is_armed = False  # read and written with the lock held
        self._wanted = threading.Event()
        self._thread: BackgroundThread | None = None

    def start(self, publish_due: Callable[[], int]) -> None:
        """Start the thread.

        *publish_due* publishes what is due and returns the ns until the next is due, 0 if none.
        """
        self._thread = thread = BackgroundThread(
            "publisher", lambda: self._run(thread, publish_due)
        )
        thread.start()

    def notice(self) -> None:
        """Start the timer, if it is not running, because a file is dirty. Needs the lock."""
        if not self._is_armed:
            self._is_armed = True
            self._wanted.set()

    def close(self) -> None:
        """Stop the thread. Must not be called with the lock held."""
        if self._thread is not None:
            self._thread.stop()
            self._wanted.set()
            self._thread.close()

    def _run(self, thread: BackgroundThread, publish_due: Callable[[], int]) -> None:
        while not thread.is_stopping:
            self._wanted.wait()
            self._wanted.clear()
            delay_ns = 1
            while delay_ns and not thread.is_stopping:
                delay_ns = self._publish(publish_due)
                thread.pause(delay_ns / 1e9)

    def _publish(self, publish_due: Callable[[], int]) -> int:
        with self._lock:
            try:
                delay_ns = publish_due()
            except Exception:  # noqa: BLE001, as the clock must outlive any bug
                _log.exception("the publisher thread failed, which is a bug")
                delay_ns = 1_000_000_000
            self._is_armed = delay_ns > 0
            return delay_ns
