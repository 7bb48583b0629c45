"""The thread that keeps a database's log short, off the request path.

It decides nothing: the database says when a checkpoint is due, and does it.
"""

import threading

from pmxcfs.host.process import let_others_go_first
from pmxcfs.storage.database import Database


class Checkpointer:
    """One thread for one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wake = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="checkpointer", daemon=True)

    def start(self) -> None:
        """Checkpoint from now on whenever the database asks for it."""
        self._thread.start()
        self._database.on_growth = self.poke

    def poke(self) -> None:
        """Ask for a checkpoint. Never blocks."""
        self._wake.set()

    def close(self) -> None:
        """End the thread. Blocks until a checkpoint that is under way has ended."""
        self._is_closing = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        let_others_go_first()
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._is_closing:
                return
            self._database.checkpoint()
