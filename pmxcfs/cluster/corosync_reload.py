"""A reload of corosync's configuration that is due, from the change of the file to the success.

The library's call has no time limit: it blocks for as long as corosync is stopped. So it runs on a
thread of its own, which is left alone after TIMEOUT; the next attempt takes what becomes of it. A
file in the run directory keeps what is due over a restart of the daemon, but not over one of the
machine, which restarts corosync, too.

Threads: one calls the methods; each call of the library has its own.
Contract: docs/spec/operations.md, "corosync.conf".
"""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pmxcfs.cluster._corosync import reload_configuration
from pmxcfs.errors import ClusterError, Failed, PmxcfsError
from pmxcfs.host.files import make_file
from pmxcfs.host.threads import BackgroundThread

TIMEOUT = 10.0  # seconds for an answer of corosync; less than 0.1 on an idle machine
NAME = "corosync-reload-due"  # of the file in the run directory


class _Attempt(BackgroundThread):
    """One call of the library."""

    def __init__(self, call: Callable[[], None], *, number: int) -> None:
        super().__init__("reload")
        self.number = number  # of the requirement that it meets, and all before
        self.began = time.monotonic()
        self.ended = threading.Event()
        self.error: PmxcfsError | None = None  # set before *ended*
        self._call = call

    def run(self) -> None:
        """Ask corosync."""
        try:
            self._call()
        except ClusterError as error:
            self.error = error
        except Exception:
            self.error = Failed("the call has failed, which is a bug")
            raise
        finally:
            self.ended.set()


class Reload:
    """Whether corosync has to reload its configuration, and the attempts to have it do so."""

    def __init__(
        self,
        directory: Path,
        *,
        call: Callable[[], None] = reload_configuration,
        timeout: float = TIMEOUT,
    ) -> None:
        """*directory* is the run directory."""
        self._marker = directory / NAME
        self._call = call
        self._timeout = timeout
        self._required = 0  # how often a reload was required
        self._attempt: _Attempt | None = None  # one that has not ended in time
        self.is_due = self._marker.exists()

    def announce(self) -> None:
        """Remember a reload, before the change that makes it due. A crash then forgets nothing."""
        with contextlib.suppress(OSError):  # it exists, or this run alone knows
            make_file(self._marker)

    def require(self) -> None:
        """Note that the file has changed."""
        self._required += 1
        self.is_due = True
        self.announce()

    def carry_out(self) -> None:
        """Have corosync reload if that is due. Blocks for the time limit at most.

        Raises PmxcfsError if corosync refuses, has ended, or does not answer.
        """
        while self.is_due:
            attempt = self._attempt or self._begin()
            left = attempt.began + self._timeout - time.monotonic()
            if not attempt.ended.wait(max(0.0, left)):
                self._attempt = attempt
                raise Failed("corosync does not answer")
            self._attempt = None
            if attempt.error is not None:
                raise attempt.error
            if attempt.number == self._required:  # else the file has changed meanwhile
                self._end()

    def _begin(self) -> _Attempt:
        attempt = _Attempt(self._call, number=self._required)
        attempt.start()
        return attempt

    def _end(self) -> None:
        self.is_due = False
        with contextlib.suppress(OSError):  # a reload too many does no harm
            self._marker.unlink()
