"""Directories that are opened step by step, for paths that other users can change at any time.

Who owns a directory can replace what is in it by a symbolic link, between any two system calls of
root. So a path below it must be walked only once, without following such a link; afterwards files
are named relative to the descriptor (the ``dir_fd`` of os). Followed are only the links of root and
of the user of this process.

Contract: docs/spec/operations.md, "Directories of other users".
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

MAX_LINKS = 40  # on one path, as in the kernel
_SEARCH = os.O_PATH | os.O_NOFOLLOW
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def open_directory(path: Path, *, make: int | None = None) -> int:
    """Return a new descriptor of the directory *path*. Raises OSError with that path.

    With *make*, missing directories on the way are made with this mode.
    """
    try:
        return _walk(os.fsencode(path), start=None, make=make, follow=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def opened(descriptor: int) -> Iterator[int]:
    """Yield a descriptor, and close it after the block."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_below(top: int, path: bytes) -> int:
    """Return a new descriptor of the directory *path* below the directory with descriptor *top*.

    No symbolic link is followed. Raises OSError.
    """
    return _walk(path, start=top, make=None, follow=False)


def open_file(name: bytes | str, flags: int, *, directory: int) -> int:
    """Open the regular file *name* in a directory, given by a descriptor. Raises OSError.

    Neither a symbolic link is followed, nor does a named pipe in place of the file block.
    """
    descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", name)
    return descriptor


def make_new_file(name: bytes | str, mode: int, *, directory: int) -> int:
    """Make the file *name* with permission bits *mode*; return a descriptor for writing.

    Raises FileExistsError, also for a symbolic link, and OSError.
    """
    return os.open(name, _NEW, mode, dir_fd=directory)


def _walk(path: bytes, *, start: int | None, make: int | None, follow: bool) -> int:
    """Open one component of *path* after the other; with *follow*, follow trusted links."""
    here = os.open("/", os.O_PATH) if start is None else os.dup(start)
    waiting, links = path.split(b"/")[::-1], 0
    try:
        while waiting:
            name = waiting.pop()
            if name in (b"", b"."):
                continue
            found = _step(here, name, make)
            try:
                target = _target_of(found, name) if follow else None
            except BaseException:
                os.close(found)
                raise
            if target is None:
                os.close(here)
                here = found
                continue
            os.close(found)
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
            if target.startswith(b"/"):
                os.close(here)
                here = os.open("/", os.O_PATH)
            waiting += target.split(b"/")[::-1]
        return os.open(".", _READ, dir_fd=here)
    finally:
        os.close(here)


def _step(here: int, name: bytes, make: int | None) -> int:
    """Open *name* in the directory *here* without following it; make it if it is missing."""
    try:
        return os.open(name, _SEARCH, dir_fd=here)
    except FileNotFoundError:
        if make is None:
            raise
    with contextlib.suppress(FileExistsError):  # another process was faster
        os.mkdir(name, make, dir_fd=here)
    return os.open(name, _SEARCH, dir_fd=here)


def _target_of(found: int, name: bytes) -> bytes | None:
    """Return the target of a symbolic link, None for anything else.

    Raises PermissionError if the link belongs to another user than root and that of this process.
    """
    status = os.fstat(found)
    if not stat.S_ISLNK(status.st_mode):
        return None
    if status.st_uid not in (0, os.geteuid()):
        raise PermissionError(
            errno.EPERM, f"a symbolic link of the user {status.st_uid} is not followed", name
        )
    return os.readlink(b"", dir_fd=found)
