"""A background thread that runs the checkpoints of a database, so that no request waits for them.

``Database`` decides when a checkpoint is due and does the work; this module has only the thread.
Contract: docs/spec/storage.md, "Writing".
"""

import threading

from pmxcfs.host.process import lower_priority
from pmxcfs.host.threads import BackgroundThread
from pmxcfs.storage.database import Database


class Checkpointer:
    """The checkpoint thread of one database."""

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._thread: BackgroundThread | None = None

    def request(self) -> None:
        """Request a checkpoint. Never blocks; for any thread, also before ``start``."""
        self._wanted.set()

    def start(self, database: Database) -> None:
        """Start the thread, which runs a checkpoint of *database* for each request."""
        self._thread = thread = BackgroundThread(
            "checkpointer", lambda: self._run(thread, database)
        )
        thread.start()

    def close(self) -> None:
        """End the thread. Blocks until a checkpoint that runs has ended."""
        if self._thread is not None:
            self._thread.stop()
            self._wanted.set()
            self._thread.close(timeout=None)

    def _run(self, thread: BackgroundThread, database: Database) -> None:
        lower_priority()
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if thread.is_stopping:
                return
            database.checkpoint()
