"""Records of heartbeats that wait in memory until they are written to the journal's segment.

Each write to a file on a disk sets the file's time, for which ext4 commits some blocks every five
seconds. So records that nobody needs on the device soon are *staged*: first written to a file in
memory (tmpfs), which a killed daemon leaves behind as it does the page cache, and later to the
segment, many with one write. A power cut loses either.

The file holds a place in a segment and the very bytes that belong there. So they can be put there
any number of times, and the file need not change when they are there. It is not trusted: it counts
only as far as it goes on from the sound records of the segment that it names.

Threads: one at a time uses a ``StagingFile``. Reading is for any, also in other processes.
Contract: docs/spec/storage.md, "Staging". Layout: docs/formats.md, "The journal".
"""

import contextlib
import errno
import logging
import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

from pmxcfs.host.directories import make_new_file, open_directory, open_file, opened
from pmxcfs.host.files import FILE_MODE, make_private_directory
from pmxcfs.storage._journal import crc32c, is_in_memory, split

_log = logging.getLogger("pmxcfs.database")

HOMES = (Path("/run/pmxcfs"), Path("/dev/shm/pmxcfs"))  # the first one that is in memory is used
OWNER = 0  # uid; nobody else's directories are used
LIMIT = 128 << 10  # bytes of records that are staged at most
RETRY_AFTER = 60.0  # seconds until it is tried again to use the memory, after a failure
_MAX_SIZE = 1 << 20  # bytes of a file that are read at most
_MAGIC = b"pmxcfs\0S"
_FORMAT = 1
_HEADER = struct.Struct("<8sII16sQQ12sI")
_RESERVED = bytes(12)


class Staged(NamedTuple):
    """What a file in memory says."""

    lineage: bytes  # of the segment
    first: int  # the segment's first sequence number
    offset: int  # in the segment, of the first frame
    frames: bytes  # as they are in the file: there may be anything behind the last sound one

    def merged(self, content: bytes, *, start: int, lineage: bytes, first: int) -> bytes:
        """Return the *content* of a segment with the records that it lacks, if they are its next.

        *start* is the offset of its first record.
        """
        if (lineage, first) != (self.lineage, self.first):
            return content
        bounds, end = split(content, start, first)
        before = [stop for _, stop in bounds if stop <= self.offset]
        if self.offset != (before[-1] if before else start):
            return content  # not behind a sound record
        _, stop = split(self.frames, 0, first + len(before))
        frames, known = self.frames[:stop], content[self.offset : end]
        if len(frames) <= len(known) or not frames.startswith(known):
            return content
        return content[: self.offset] + frames + content[self.offset + len(frames) :]


class StagingFile:
    """The file in memory for the journal in one directory. Nothing here fails: it may refuse."""

    def __init__(self, directory: int) -> None:
        """*directory* is a descriptor of the journal's directory, which is not kept."""
        self._name = name_of(os.fstat(directory))
        self._descriptor = -1  # owned; -1 while the file is not used
        self._end = 0  # bytes that count
        self._retry_at = 0.0  # monotonic seconds

    def move(self, directory: int) -> None:
        """Go on with the directory of this descriptor, which may be another one than before."""
        name = name_of(os.fstat(directory))
        if name != self._name:
            self.close()
            self._name = name

    def begin(self, frames: bytes, *, lineage: bytes, first: int, offset: int) -> bool:
        """Replace what is staged by *frames*, which belong at *offset* of the segment *first*.

        Return False if that is not possible.
        """
        self._open()
        self._end = 0
        return self.extend(_encode_header(lineage, first, offset) + frames)

    def extend(self, frames: bytes) -> bool:
        """Write *frames* behind what is staged; return False if that is not possible."""
        if self._descriptor < 0:
            return False
        try:
            size = os.pwrite(self._descriptor, frames, self._end)
            if size < len(frames):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):  # what was not answered must not be found
                os.ftruncate(self._descriptor, self._end)
            self._give_up(error)
            return False
        self._end += size
        return True

    def close(self) -> None:
        """Stop to use the file, which stays. Can be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _open(self) -> None:
        if self._descriptor >= 0 or time.monotonic() < self._retry_at:
            return
        try:
            self._descriptor = _make(self._name)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        _log.debug("records of heartbeats are not kept in memory first: %s", error)
        self._retry_at = time.monotonic() + RETRY_AFTER
        self.close()


def read_staged(directory: Path) -> list[Staged]:
    """Return what is staged for the journal in *directory*, as far as it can be read. Blocks.

    Call it before the segment is read: what is not staged any more is there then.
    """
    found = []
    for home in HOMES:
        with contextlib.suppress(OSError), opened(_open_home(home)) as descriptor:
            name = name_of(os.stat(directory))
            with open(open_file(name, os.O_RDONLY, directory=descriptor), "rb") as file:
                staged = _decode(file.read(_MAX_SIZE))
            if staged is not None:
                found.append(staged)
    return found


def forget_staged(directory: Path) -> None:
    """Remove what is staged for the journal in *directory*. Blocks."""
    for home in HOMES:
        with contextlib.suppress(OSError), opened(_open_home(home)) as descriptor:
            os.unlink(name_of(os.stat(directory)), dir_fd=descriptor)
            home.rmdir()  # fails if another daemon has a file there


def name_of(directory: os.stat_result) -> str:
    """Return the name of the file for the journal in a directory: by its device and inode."""
    return f"{directory.st_dev:x}-{directory.st_ino:x}"


def _open_home(home: Path) -> int:
    """Return a new descriptor of a directory in memory that nobody else can write to.

    Raises OSError.
    """
    descriptor = open_directory(home)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != OWNER or status.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "others can write to it", str(home))
        if not is_in_memory(descriptor):
            raise OSError(errno.ENOTSUP, "it is not in memory", str(home))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _make(name: str) -> int:
    """Make an empty file; return a descriptor of it. Raises OSError."""
    failure = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    for home in HOMES:
        try:
            if os.geteuid() != OWNER:
                raise PermissionError(errno.EPERM, "only root keeps records there", str(home))
            make_private_directory(home)
            with opened(_open_home(home)) as directory:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
                return make_new_file(name, FILE_MODE, directory=directory)
        except OSError as error:
            failure = error
    raise failure


def _encode_header(lineage: bytes, first: int, offset: int) -> bytes:
    data = _HEADER.pack(_MAGIC, _FORMAT, 0, lineage, first, offset, _RESERVED, 0)[:-4]
    return data + crc32c(data).to_bytes(4, "little")


def _decode(content: bytes) -> Staged | None:
    """Return what a file says; None if its header is not sound, or of a later version."""
    if len(content) < _HEADER.size or not content.startswith(_MAGIC):
        return None
    _, version, flags, lineage, first, offset, reserved, crc = _HEADER.unpack_from(content)
    if crc != crc32c(content[: _HEADER.size - 4]):
        return None
    if (version, flags, reserved) != (_FORMAT, 0, _RESERVED):
        return None
    return Staged(lineage, first, offset, content[_HEADER.size :])
