"""The daemon's heartbeat for the service manager, which restarts a daemon that stops sending it.

A beat says more than that the process exists: for each one a thread takes the tree's lock, which
every request needs. A lock that nobody gives back is the one fault that leaves the mount standing
and every access to it hanging; a device that is slow for seconds is none. It never touches the
mount itself: a thread that waits for an answer of its own process can't be killed.

Contract: docs/spec/operations.md, "Lifecycle".
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

from pmxcfs.host.threads import BackgroundThread

BEATS_PER_TIMEOUT = 4  # so that the lock may be busy for three quarters of the timeout
IDLE_INTERVAL = 10.0  # seconds between two reports of the status if there is no timeout

_log = logging.getLogger("pmxcfs.main")


class Watchdog(BackgroundThread):
    """Calls *notify* with a beat and the status, again and again, each time with *lock* taken.

    *describe* returns the status as one line; it is called with the lock held. *timeout*, in
    seconds, is after how long without a beat the service manager gives up; None if it never does.
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
        while not self.is_stopping:
            status = self._take_pulse()
            self._notify(f"{self._beat}STATUS={status}")
            self.pause(self._interval)

    def _take_pulse(self) -> str:
        """Return the status; blocks until the lock can be had."""
        with self._lock:
            try:
                return self._describe()
            except Exception:  # noqa: BLE001, as a wrong status is no reason for a restart
                _log.exception("making the status line for systemd failed, which is a bug")
                return "unknown"
