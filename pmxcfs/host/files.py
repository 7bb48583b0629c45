"""Creation and replacement of files, and directories that only root can access.

This module never opens an existing file: closing a descriptor of a file that SQLite has open would
drop SQLite's POSIX locks on that file.
"""

import contextlib
import os
from pathlib import Path

from pmxcfs.host.directories import make_new_file, open_directory, opened

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


def make_file(path: Path) -> None:
    """Make an empty file. Raises FileExistsError, and OSError."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE))


def make_numbered_file(path: Path) -> Path:
    """Make an empty file and return its path: *path*, with a number if that is taken."""
    candidate, number = path, 0
    while True:
        try:
            make_file(candidate)
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}.{number}")
        else:
            return candidate


def make_private(path: Path) -> None:
    """Set the mode of a file to 0600. A missing file is no error. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_mode & 0o777 != FILE_MODE:
            path.chmod(FILE_MODE)


def make_private_directory(path: Path) -> None:
    """Create a directory of mode 0700, or set the mode of an existing one. Raises OSError."""
    with opened(open_directory(path.parent)) as parent, contextlib.suppress(FileExistsError):
        os.mkdir(path.name, DIRECTORY_MODE, dir_fd=parent)
    with opened(open_directory(path)) as directory:
        os.fchmod(directory, DIRECTORY_MODE)


def replace_file(path: Path, content: bytes, *, mode: int) -> None:
    """Replace a file atomically, also across a crash. Blocks for two fsyncs; raises OSError.

    A symbolic link at *path* is replaced, not followed.
    """
    fresh = f".{path.name}.new"
    with opened(open_directory(path.parent)) as directory:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=directory)  # left behind by a crash
        with open(make_new_file(fresh, FILE_MODE, directory=directory), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(fresh, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)


def sync_directory(path: Path) -> None:
    """Flush the entries of a directory to its device (fsync). Blocks. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
