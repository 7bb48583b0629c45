"""Other programs that read a database in WAL mode just now.

A read transaction keeps SQLite from copying what was committed since into the file. A checkpoint
does not leave the file alone then: it copies those pages that have not changed since that
transaction began, and leaves all others as they were before. So the file without its log would be
torn.

Contract: docs/spec/storage.md, "Writing".
"""

import fcntl
import os
import struct
from pathlib import Path

# SQLite's locks for the read marks of a log, as bytes of the -shm file (sqlite.org/walformat.html).
_READ_LOCKS, _READ_LOCK_COUNT = 123, 5
_FLOCK = struct.Struct("@hhqqi0q")  # type, whence, start, length, pid


class Readers:
    """The readers of a database in other processes.

    It has a descriptor of the -shm file, whose closing would drop SQLite's locks in this process:
    ``close`` is called when this process has closed the database.
    """

    def __init__(self, path: Path) -> None:
        """Look at the database *path*, which this process has open. Raises OSError."""
        self._descriptor = os.open(f"{path}-shm", os.O_RDONLY | os.O_CLOEXEC)

    def find_any(self) -> int | None:
        """Return the pid of a process that has a read transaction open; None if none has.

        0 stands for a process that has no pid here, as it is outside of this pid namespace.
        """
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _READ_LOCKS, _READ_LOCK_COUNT, 0)
        found = fcntl.fcntl(self._descriptor, fcntl.F_GETLK, wanted)
        kind, _, _, _, pid = _FLOCK.unpack(found)
        return None if kind == fcntl.F_UNLCK else max(int(pid), 0)

    def close(self) -> None:
        """Close the descriptor. Can be repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
