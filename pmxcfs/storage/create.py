"""Creating a database atomically: it is built under a temporary name, then renamed.

A crash leaves either no file under the final name or a complete one. ``traces_of_use`` tells
whether a database is missing that was there before.
Contract: docs/spec/operations.md, "Command line".
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.host.files import sync_directory
from pmxcfs.messages import Create, Write
from pmxcfs.settings import LOCKFILE_NAME
from pmxcfs.storage.connect import COMPANIONS
from pmxcfs.storage.database import Database
from pmxcfs.storage.segments import DIRECTORY_NAME
from pmxcfs.storage.sqlite_errors import translated
from pmxcfs.tree.apply import apply
from pmxcfs.tree.guests import Guests


@contextlib.contextmanager
def making(path: Path, *, now: int) -> Iterator[Database]:
    """Create an empty database that the block fills; rename it to *path* after the block. Blocks.

    *now* is the mtime of its root, in seconds since 1970. Raises StoreError, also if the final
    checkpoint can't copy all of the log into the file; *path* is unchanged then.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    _remove(unfinished, COMPANIONS)  # left by a killed process with the same process id
    try:
        with contextlib.closing(_open(unfinished, path, now=now)) as database:
            yield database
            if not database.checkpoint():  # or the rest would be in the log, which is not renamed
                raise StoreError(f"{path} can't be written: another program reads {unfinished}")
        with translated(path, "written"):
            _remove(path, COMPANIONS[1:])  # SQLite would take an old log for this file's
            os.rename(unfinished, path)
            sync_directory(path.parent)
    finally:
        _remove(unfinished, COMPANIONS)


def traces_of_use(path: Path) -> list[str]:
    """Return the names of files beside the database *path* that only a used one leaves. Blocks.

    A start on a full device can leave an empty directory for the journal.

    An empty list also if the database is there. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size:
            return []
    try:
        names = os.listdir(path.parent)
    except FileNotFoundError:
        return []
    return sorted(
        name
        for name in names
        if name in ("conflicts", LOCKFILE_NAME)
        or name.startswith(f"{path.name}.bak")
        or (name == DIRECTORY_NAME and any(path.with_name(name).iterdir()))
    )


def tree_with(path: str, content: bytes, *, now: int) -> Tree:
    """Return a fresh tree with one file in its root, made by a create and a write of no node.

    *now* is the time of both, in seconds. Raises TooBig.
    """
    tree, guests = Tree(), Guests()
    apply(tree, guests, Create(path), writer=0, mtime=now)
    apply(tree, guests, Write(path, 0, content, truncate=True), writer=0, mtime=now)
    return tree


def _open(unfinished: Path, path: Path, *, now: int) -> Database:
    """Make the unfinished database. Raises StoreError, which has the final *path*."""
    try:
        return Database.open(unfinished, now=now)
    except StoreError as error:
        raise StoreError(str(error).replace(str(unfinished), str(path)), error.errno) from error


def _remove(path: Path, suffixes: Iterable[str]) -> None:
    for suffix in suffixes:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")
