"""A background thread that runs the checkpoints of a database, so that no request waits for them.

``Database`` decides when a checkpoint is due and does the work; this module has only the thread.
Contract: docs/spec/storage.md, "Writing".
"""

import threading

from pmxcfs.host.process import let_others_go_first
from pmxcfs.host.threads import BackgroundThread
from pmxcfs.storage.database import Database


class Checkpointer(BackgroundThread):
    """The checkpoint thread of one database."""

    def __init__(self, database: Database) -> None:
        super().__init__("checkpointer")
        self._database = database
        self._wake = threading.Event()

    def start(self) -> None:
        """Start the thread, and run a checkpoint whenever the database asks for one."""
        super().start()
        self._database.on_growth = self.poke

    def poke(self) -> None:
        """Request a checkpoint. Never blocks."""
        self._wake.set()

    def wake(self) -> None:
        """Let the thread notice that it has to stop. Never blocks."""
        self._wake.set()

    def run(self) -> None:
        """Run a checkpoint for each request until the thread has to stop."""
        let_others_go_first()
        while True:
            self._wake.wait()
            self._wake.clear()
            if self.is_stopping:
                return
            self._database.checkpoint()
