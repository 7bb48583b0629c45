"""The daemon's heartbeat for the service manager, which restarts a daemon that stops sending it.

Before each heartbeat the thread takes the tree's lock, which every request needs. So a deadlock
stops the heartbeats: with a lock that is never released the mount would stay, and every access to
it would block. A device that is slow for seconds does not stop them. The thread never accesses
the mount: a thread that waits for an answer of its own process can't be killed.

Contract: docs/spec/operations.md, "Lifecycle".
"""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from pmxcfs.host.threads import BackgroundThread

BEATS_PER_TIMEOUT = 4  # so that the lock may be busy for three quarters of the timeout
IDLE_INTERVAL = 10.0  # seconds between two reports of an unchanged status if there is no timeout
LOOK_INTERVAL = 1.0  # seconds after which a changed status is reported

_log = logging.getLogger("pmxcfs.main")


class Watchdog(BackgroundThread):
    """Calls *notify* with a heartbeat and the status at intervals, each time after taking *lock*.

    A status that has changed is reported within LOOK_INTERVAL.

    *describe* returns the status as one line, and is called with the lock held. *timeout* is the
    watchdog timeout of the service manager in seconds; None if there is none.
    """

    def __init__(
        self,
        lock: AbstractContextManager[object],
        describe: Callable[[], str],
        *,
        notify: Callable[[str], None],
        timeout: float | None,
    ) -> None:
        super().__init__("watchdog")
        self._lock = lock
        self._describe = describe
        self._notify = notify
        self._beat = "" if timeout is None else "WATCHDOG=1\n"
        self._interval = IDLE_INTERVAL if timeout is None else timeout / BEATS_PER_TIMEOUT

    def run(self) -> None:
        """Send heartbeats until the thread is to stop."""
        told, due = "", 0.0
        while not self.is_stopping:
            status, now = self._status_with_lock(), time.monotonic()
            if status != told or now >= due:
                self._notify(f"{self._beat}STATUS={status}")
                told, due = status, now + self._interval
            self.pause(min(LOOK_INTERVAL, self._interval))

    def _status_with_lock(self) -> str:
        """Return the status; blocks until the lock can be had."""
        with self._lock:
            try:
                return self._describe()
            except Exception:  # noqa: BLE001, as a wrong status is no reason for a restart
                _log.exception("making the status line for systemd failed, which is a bug")
                return "unknown"
