"""A thread that writes records which no request waits for, and tries again after failures.

It looks for a failure once a second, because not only a record that waits can meet one: a sync of
the saver can, too, or a change that is refused for lack of room.

In a cluster these are the records of other nodes' changes: a request writes those of its own change
itself, with all that wait. A killed daemon that had not written another node's change gets it from
the cluster again.

It also brings to the device what the journal has staged in memory for long.
Contract: docs/spec/storage.md, "Writing"; cluster.md, "Speed".
"""

import threading
from typing import Protocol

from pmxcfs.host.threads import BackgroundThread

WRITE_AFTER = 0.02  # seconds from a record to its writing
RETRY_INTERVAL = 1.0  # seconds between attempts after a failure


class Records(Protocol):
    """What the thread needs of the replica. No method needs the tree's lock."""

    @property
    def is_degraded(self) -> bool:
        """Whether changes can't be stored now."""

    def write_out(self) -> object:
        """Write the records that wait; a failure makes ``is_degraded`` true. Blocks."""

    def sync_if_due(self) -> None:
        """Bring to the device what has been staged for long; the rest as ``write_out``. Blocks."""

    def try_again(self) -> bool:
        """Try to write what is owed; tell whether that succeeded. Blocks."""


class RecordWriter:
    """The thread, from ``start`` to ``close``."""

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._thread: BackgroundThread | None = None

    def notice(self) -> None:
        """Have the waiting records written soon. Never blocks; for any thread."""
        if not self._wanted.is_set():
            self._wanted.set()

    def start(self, records: Records) -> None:
        """Start the thread."""
        self._thread = thread = BackgroundThread("records", lambda: self._run(thread, records))
        thread.start()

    def close(self) -> None:
        """Write what waits and end the thread. Blocks, for a short time if the device stalls."""
        if self._thread is not None:
            self._thread.stop()
            self._wanted.set()
            self._thread.close()

    def _run(self, thread: BackgroundThread, records: Records) -> None:
        while not thread.is_stopping:
            if self._wanted.wait(RETRY_INTERVAL):
                thread.pause(WRITE_AFTER)
                self._wanted.clear()
                records.write_out()
            records.sync_if_due()
            while records.is_degraded and not thread.pause(RETRY_INTERVAL):
                records.try_again()
