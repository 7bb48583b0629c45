"""Creation of files and directories that only root can access.

This module never opens an existing file: closing a descriptor of a file that SQLite has open would
drop SQLite's POSIX locks on that file.
"""

import contextlib
import os
from pathlib import Path

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
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=DIRECTORY_MODE)
    path.chmod(DIRECTORY_MODE)


def sync_directory(path: Path) -> None:
    """Flush the entries of a directory to its device (fsync). Blocks. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
