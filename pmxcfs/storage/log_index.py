"""The index of a write-ahead log, which is the -shm file: its room on the device, and its readers.

SQLite maps the index into memory. If the device is full when a page of it is first written, SQLite
gets no error: the kernel ends the process with SIGBUS. SQLite prevents that by writing one byte of
each page of 4 KiB, which is not enough where blocks are smaller (an ext4 of less than 512 MiB). So
there must be room before the index is made, and then all of its blocks are reserved.

Other programs that read the database just now are known from SQLite's locks on the index. A read
transaction keeps SQLite from copying what was committed since into the file. A checkpoint does not
leave the file alone then: it copies those pages that have not changed since that transaction began,
and leaves all others as they were before. So the file without its log would be torn.

Contract: docs/spec/storage.md, "Writing".
"""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from pmxcfs.storage._journal import reserve

# Bytes: 32 KiB for 16 MiB of log each, for a log that has the largest tree and some more.
SIZE = 10 * (32 << 10)
# SQLite's locks for the read marks of a log, as bytes of the -shm file (sqlite.org/walformat.html).
_READ_LOCKS, _READ_LOCK_COUNT = 123, 5
_FLOCK = struct.Struct("@hhqqi0q")  # type, whence, start, length, pid


def check_room(directory: Path) -> None:
    """Raise OSError if *directory* can't be written or has no room for an index. Blocks.

    A file system that can't reserve space, or has no files without a name, passes.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_passing(errno.EOPNOTSUPP, errno.EISDIR))
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, descriptor)
        reserve(descriptor, 0, SIZE)


@contextlib.contextmanager
def _passing(*codes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in codes:
            raise


class LogIndex:
    """The index of the log of a database that this process has open.

    It has a descriptor of the -shm file, whose closing would drop SQLite's locks in this process:
    ``close`` is called when this process has closed the database.
    """

    def __init__(self, path: Path) -> None:
        """Open the index of the database *path*. Raises OSError."""
        self._descriptor = os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC)

    def reserve(self) -> None:
        """Reserve its blocks, if the file system can do that. Blocks. Raises OSError."""
        with _passing(errno.EOPNOTSUPP):
            reserve(self._descriptor, 0, SIZE)

    def find_reader(self) -> int | None:
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
