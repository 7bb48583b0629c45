"""A probe of the way from this node to corosync and back, so that a hang is seen without a change.

At intervals this node's unchanged address is sent to the status group, which changes nothing. It is
delivered to all members, this node included. While it has not come back, no message of this node
can be expected to.

Threads: the probe has its own; any thread may call ``echoed`` and ``seconds_without_echo``.
Contract: docs/spec/operations.md, "Status".
"""

import time
from collections.abc import Callable

from pmxcfs.host.threads import BackgroundThread

PROBE_INTERVAL = 10.0  # seconds


class Probe(BackgroundThread):
    """Sends a probe every PROBE_INTERVAL seconds, unless the last one has not come back."""

    def __init__(
        self, send: Callable[[], bool], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """*send* queues a message without blocking; False if there is nothing to send yet."""
        super().__init__("probe")
        self._send = send
        self._clock = clock
        self._sent_at = 0.0  # when the probe was queued that has not come back; 0 for none

    def run(self) -> None:
        """Send probes until the thread is to stop."""
        while not self.pause(PROBE_INTERVAL):
            self.probe()

    def probe(self) -> None:
        """Send a probe if none is under way."""
        if not self._sent_at:
            self._sent_at = self._clock()
            if not self._send():
                self._sent_at = 0.0

    def echoed(self) -> None:
        """Note that a message of this node was delivered to it."""
        self._sent_at = 0.0

    @property
    def seconds_without_echo(self) -> float:
        """Seconds since the probe was sent that has not come back; 0 if none is under way."""
        sent_at = self._sent_at
        return self._clock() - sent_at if sent_at else 0.0
