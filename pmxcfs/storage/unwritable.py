"""Reading a database whose directory can't be written: read-only, or full.

SQLite needs the log's -shm file beside the database, and can't make it there. So the file and its
log are copied to another directory, opened there, and read into RAM. What the log has counts, and a
transaction that was interrupted is rolled back, as with the file itself.

Contract: docs/spec/storage.md, "Start".
"""

import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pmxcfs.errors import StoreError
from pmxcfs.storage.connect import connect
from pmxcfs.storage.log_index import check_room
from pmxcfs.storage.schema import check_format, is_blank
from pmxcfs.storage.sqlite_errors import translated

_LOGS = ("-wal", "-journal")
_ADVICE: Mapping[int, str] = MappingProxyType(
    {
        errno.EROFS: "make it and its directory writable",
        errno.ENOSPC: "free some space",
    }
)


def why_unwritable(path: Path, error: StoreError) -> StoreError | None:
    """Return why the database *path* can be read only, if that is the cause of *error*. Blocks.

    SQLite does not always tell: if it can't make a file, it says no more than that.
    """
    code = error.errno if error.errno in _ADVICE else _probe(path.parent)
    if code is None:
        return None
    return StoreError(f"{path} can't be written: {os.strerror(code)}: {_ADVICE[code]}", code)


def _probe(directory: Path) -> int | None:
    """Return EROFS or ENOSPC if a file can't be made in *directory* for that reason, else None."""
    try:
        check_room(directory)
    except OSError as error:
        code = errno.ENOSPC if error.errno == errno.EDQUOT else error.errno
        return code if code in _ADVICE else None
    return None


def has_log(path: Path) -> bool:
    """Tell whether the file *path* alone may be older than the database. Blocks."""
    for suffix in _LOGS:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(f"{path}{suffix}").st_size:
                return True
    return False


def read_into_memory(path: Path, *, scratch: Path) -> sqlite3.Connection | None:
    """Return a database in RAM with what the database *path* holds. Blocks. Raises StoreError.

    None if the file is missing, or nothing was ever written to it. *scratch* is a directory for
    copies, which only root can read and which are gone afterwards. No connection of this process
    may have the file open.
    """
    with translated(path, "read"), tempfile.TemporaryDirectory(dir=scratch) as directory:
        copy = Path(directory, "copy")
        try:
            shutil.copyfile(path, copy)
        except FileNotFoundError:
            return None
        for suffix in _LOGS:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        with contextlib.ExitStack() as undo, contextlib.closing(connect(copy, timeout=0)) as source:
            if is_blank(source.execute):
                return None
            check_format(source.execute, path)
            # A database in RAM has no log.
            source.execute("PRAGMA journal_mode = DELETE").fetchall()
            memory = undo.enter_context(contextlib.closing(in_memory()))
            source.backup(memory)
            undo.pop_all()
            return memory


def in_memory() -> sqlite3.Connection:
    """Return an empty database in RAM."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.text_factory = bytes
    return connection
