"""One segment of the journal that is being written: its space, its end, its syncs.

Its last records may be staged: in memory only, until they are written together (``staging``).

Threads: one that writes at a time; ``sync`` may run beside it in another thread. Every method
blocks and raises OSError. Nothing here decides when.
Contract: docs/spec/storage.md, "Journal".
"""

import contextlib
import errno
import os
from pathlib import Path

from pmxcfs.host.directories import make_new_file
from pmxcfs.host.files import FILE_MODE
from pmxcfs.storage._journal import reserve
from pmxcfs.storage.segments import HEADER_SIZE, Header, encode_header
from pmxcfs.storage.staging import LIMIT, StagingFile

STEP = 1 << 20  # bytes that are reserved at once, where there are as many
_BLOCK = 4096  # bytes; the unit of reservations
_NO_LIMIT = 1 << 62  # where the file system can't reserve space
_UNSUPPORTED = frozenset([errno.EOPNOTSUPP, errno.ENOSYS])


class SegmentFile:
    """An open segment, which ends behind its last record."""

    def __init__(
        self, path: Path, descriptor: int, header: Header, staging: StagingFile | None = None
    ) -> None:
        self.path = path
        self.first = header.first
        self.end = HEADER_SIZE  # offset behind the last record, staged ones included
        self.synced = 0  # bytes that are on the device
        self._lineage = header.lineage
        self._written = HEADER_SIZE  # offset behind the last record in the file
        self._staged = b""  # the records behind that
        self._staging = staging  # None: nothing is staged
        self._descriptor = descriptor  # owned; -1 once closed
        self._reserved = HEADER_SIZE  # offset behind the reserved space

    @classmethod
    def make(
        cls, path: Path, header: Header, *, directory: int, staging: StagingFile | None = None
    ) -> "SegmentFile":
        """Make a segment without records in a directory, given also by a descriptor.

        Raises FileExistsError if there is a file. After another failure there is none.
        """
        descriptor = make_new_file(path.name, FILE_MODE, directory=directory)
        segment = cls(path, descriptor, header, staging)
        try:
            segment._reserve_to(STEP)
            segment._write(encode_header(header), 0)
        except BaseException:
            segment.close()
            with contextlib.suppress(OSError):
                os.unlink(path.name, dir_fd=directory)
            raise
        return segment

    @property
    def is_empty(self) -> bool:
        """Whether the segment has no records."""
        return self.end == HEADER_SIZE

    @property
    def has_staged(self) -> bool:
        """Whether the last records are in memory only."""
        return bool(self._staged)

    @property
    def room(self) -> int:
        """The bytes that are reserved behind the end."""
        return self._reserved - self.end

    def reserve(self, size: int) -> None:
        """Have room for *size* bytes behind the end, and for more where there is space."""
        wanted = self.end + size
        if wanted > self._reserved:
            try:
                self._reserve_to(-(-wanted // STEP) * STEP)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                self._reserve_to(-(-wanted // _BLOCK) * _BLOCK)

    def stage(self, data: bytes) -> bool:
        """Put *data* behind the end, in memory only; return False if that is not possible."""
        if self._staging is None or len(self._staged) + len(data) > LIMIT:
            return False
        if self._staged:
            is_staged = self._staging.extend(data)
        else:
            is_staged = self._staging.begin(
                data, lineage=self._lineage, first=self.first, offset=self._written
            )
        if is_staged:
            self._staged += data
            self.end += len(data)
        return is_staged

    def append(self, data: bytes) -> None:
        """Write *data* behind the end, and what is staged ahead of it.

        If that fails, what was written is cut off again, and what is staged stays so.
        """
        if self._staged:
            data = self._staged + data
        try:
            self._write(data, self._written)
        except BaseException:
            self.cut()
            raise
        self._written += len(data)
        self._staged, self.end = b"", self._written

    def cut(self) -> None:
        """Cut off what is behind the written records, reserved space included. Raises nothing."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, self._written)
            self._reserved = self._written

    def sync(self) -> None:
        """Have all written records on the device when this returns (fdatasync)."""
        end = self._written
        if self.synced < end:
            os.fdatasync(self._descriptor)
            self.synced = end

    def close(self) -> None:
        """Close the file; can be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):  # what is not on the device is for sync to tell
                os.close(descriptor)

    def _reserve_to(self, end: int) -> None:
        try:
            reserve(self._descriptor, self._reserved, end - self._reserved)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            end = _NO_LIMIT
        self._reserved = end

    def _write(self, data: bytes, offset: int) -> None:
        """Write *data* at *offset*, with one system call unless that ends early."""
        written = os.pwrite(self._descriptor, data, offset)
        while written < len(data):
            rest = os.pwrite(self._descriptor, memoryview(data)[written:], offset + written)
            if not rest:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            written += rest
