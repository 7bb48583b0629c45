"""What users see when the device under the database fails: reads go on, changes get the errno."""

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import TimeoutExpired

import pytest

from pmxcfs._core import Tree
from pmxcfs.database import find_damage, inspect
from tests.harness import Daemon, detach, is_loud, launch, mounted, wait_for
from tests.mount.devices import Ext4, ext4, filled, needs_loop, tmpfs

SMALL_DISK = 6 << 20  # bytes; more than the log grows to
LONGEST_STOP = 3.0  # seconds
DEVICE_ERRORS = frozenset({errno.EIO, errno.EROFS})
REFUSED = r"config\.db can't be written: .*; reads go on, changes are refused"
NOT_CHECKPOINTED = r"config\.db can't be checkpointed: .*; its log grows meanwhile"
CREATION_LOST = r"new files could not be saved and are gone"

pytestmark = pytest.mark.needs_fuse


def errno_of(operation: Callable[[], object]) -> int:
    """Return the errno that *operation* fails with, 0 if it succeeds."""
    try:
        operation()
    except OSError as error:
        return error.errno or 0
    return 0


def fill_tree(root: Path) -> None:
    """Make something of each kind to be changed or read."""
    (root / "directory").mkdir()
    (root / "empty").mkdir()
    (root / "file").write_text("as it was\n")
    (root / "directory" / "other").write_text("other\n")


def overwrite(path: Path, content: bytes = b"new\n") -> None:
    """Open with O_TRUNC, write and close, without Python's buffer in between."""
    with path.open("wb", buffering=0) as file:
        file.write(content)


def synced(path: Path, content: bytes) -> None:
    """Overwrite with an fsync before the close."""
    with path.open("wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())


# Each is one operation on what ``fill_tree`` made.
CHANGES: dict[str, Callable[[Path], object]] = {
    "overwrite": lambda root: overwrite(root / "file"),
    "append": lambda root: (root / "file").open("ab", buffering=0).write(b"more") and None,
    "fsync": lambda root: synced(root / "file", b"new\n"),
    "truncate": lambda root: os.truncate(root / "file", 2),
    "utime": lambda root: os.utime(root / "file", (1, 1)),
    "unlink": lambda root: (root / "file").unlink(),
    "rename": lambda root: (root / "file").rename(root / "renamed"),
    "replace": lambda root: (root / "file").rename(root / "directory" / "other"),
    "mkdir": lambda root: (root / "new").mkdir(),
    "rmdir": lambda root: (root / "empty").rmdir(),
    "create": lambda root: overwrite(root / "new-file"),
}
