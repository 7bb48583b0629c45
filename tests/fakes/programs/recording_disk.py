"""A file system with one file, ``disk``, for a loop device; it records what the device is asked.

Usage: ``recording_disk.py MOUNTPOINT IMAGE LOG``. Reads and writes go to IMAGE. LOG gets a record
of each write and each flush before it is answered, so that a test can make the images that a power
cut would leave. One record is ``RECORD``: kind, offset and size; then the bytes.
"""

import errno
import os
import stat
import struct
import sys
import threading

import llfuse

from pmxcfs.host.process import SignalWaiter, end_llfuse_main

RECORD = struct.Struct("<cQI")
WRITE, FLUSH = b"W", b"F"
NAME = b"disk"
INODE = llfuse.ROOT_INODE + 1


class Disk(llfuse.Operations):
    """The file system. All methods are called by one thread."""

    def __init__(self, image: str, log: str) -> None:
        super().__init__()
        self._image = os.open(image, os.O_RDWR)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def getattr(self, inode: int, ctx: object = None) -> llfuse.EntryAttributes:
        """Return the attributes of the root or of the file."""
        entry = llfuse.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == llfuse.ROOT_INODE else stat.S_IFREG | 0o600
        entry.st_nlink = 1
        entry.st_size = os.fstat(self._image).st_size if inode == INODE else 0
        return entry

    def lookup(self, parent: int, name: bytes, ctx: object) -> llfuse.EntryAttributes:
        """Find the file."""
        if name != NAME:
            raise llfuse.FUSEError(errno.ENOENT)
        return self.getattr(INODE)

    def setattr(self, inode: int, *args: object) -> llfuse.EntryAttributes:
        """Change nothing: the kernel sets times."""
        return self.getattr(inode)

    def open(self, inode: int, flags: int, ctx: object) -> int:
        """Open the file."""
        return inode

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Read from the image."""
        return os.pread(self._image, size, offset)

    def write(self, handle: int, offset: int, data: bytes) -> int:
        """Record and write."""
        os.write(self._log, RECORD.pack(WRITE, offset, len(data)) + bytes(data))
        return os.pwrite(self._image, data, offset)

    def fsync(self, handle: int, datasync: bool) -> None:
        """Record a flush of the device."""
        os.write(self._log, RECORD.pack(FLUSH, 0, 0))

    def flush(self, handle: int) -> None:
        """Do nothing: a descriptor is closed."""

    def release(self, handle: int) -> None:
        """Do nothing."""


def main(mountpoint: str, image: str, log: str) -> None:
    """Mount, and serve requests until a signal or an unmount."""
    waiter = SignalWaiter()
    llfuse.init(Disk(image, log), mountpoint, {"fsname=recording_disk"})
    finished = threading.Event()
    main_thread = threading.get_ident()
    waiter.start(lambda: end_llfuse_main(main_thread, finished))
    llfuse.main(workers=1, handle_signals=True)
    finished.set()
    waiter.close()
    llfuse.close(unmount=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
