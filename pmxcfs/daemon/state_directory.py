"""What the report tells of the state directory: kept copies, the database, and room for it.

A device that stands still must not hold up a request for the report, nor the tree's lock. So a
thread of its own looks at the directory, and the report gets what it saw last.
"""

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

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
        self.free_bytes = math.inf
        self.journal_bytes = 0
        # Why the journal, and the database, can't be written, before a change has tried it.
        self.store_error = self.save_error = ""

    def run(self) -> None:
        """Look again and again until the thread is to stop."""
        self.look()
        while not self.pause(INTERVAL):
            self.look()

    def look(self) -> None:
        """Look once. Blocks."""
        self.copies = names_to_do(self._settings.statedir)
        path = self._settings.database
        self.database_bytes = _size_of(path, path.with_name(f"{path.name}-wal"))
        with contextlib.suppress(OSError):
            self.journal_bytes = _size_of(*self._settings.journal.iterdir())
        self.store_error = _read_only(self._settings.journal)
        self.save_error = _read_only(path)
        self.free_bytes = _free_at(self._settings.statedir)


def _free_at(directory: Path) -> float:
    """Return the free bytes of the file system; infinite if it does not tell."""
    with contextlib.suppress(OSError):
        found = os.statvfs(directory)
        if found.f_blocks:
            return found.f_bfree * found.f_frsize  # root may use the reserved ones, too
    return math.inf


def _read_only(path: Path) -> str:
    """Return why not even root may write *path*: its attributes, or its file system's."""
    if os.access(path, os.W_OK) or not os.access(path, os.F_OK):
        return ""
    return f"{path} is read-only: make it and its directory writable"


def _size_of(*paths: Path) -> int:
    """Return the bytes that the files at *paths* have together; a missing one has none."""
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
