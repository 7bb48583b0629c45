"""What the report tells of the state directory: kept copies, and the size of the database.

A device that stands still must not hold up a request for the report, nor the tree's lock. So a
thread of its own looks at the directory, and the report gets what it saw last.
"""

import contextlib
from collections.abc import Sequence

from pmxcfs.host.threads import BackgroundThread
from pmxcfs.settings import Settings
from pmxcfs.storage.kept_copies import names_to_do

INTERVAL = 2.0  # seconds between two looks


class StateDirectory(BackgroundThread):
    """A thread that looks at the state directory at intervals."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("statedir")
        self._settings = settings
        self.copies: Sequence[str] = ()  # names of those that nobody has dealt with
        self.database_bytes = 0  # of the database file and its write-ahead log

    def run(self) -> None:
        """Look again and again until the thread is to stop."""
        self.look()
        while not self.pause(INTERVAL):
            self.look()

    def look(self) -> None:
        """Look once. Blocks."""
        self.copies = names_to_do(self._settings.statedir)
        self.database_bytes = self._size()

    def _size(self) -> int:
        path = self._settings.database
        total = 0
        for file in (path, path.with_name(f"{path.name}-wal")):
            with contextlib.suppress(OSError):
                total += file.stat().st_size
        return total
