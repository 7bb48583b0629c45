"""How a database's file is opened: by users of it, by readers beside them, and by which library.

Contract: docs/spec/storage.md.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from pmxcfs.errors import StoreError
from pmxcfs.storage._sqlite import memory_used
from pmxcfs.storage._wal import VFS
from pmxcfs.storage.schema import check_format
from pmxcfs.storage.sqlite_errors import translated

BUSY_TIMEOUT = 5.0  # seconds to wait for another process that writes
WRITING = f"mode=rw&vfs={VFS}"  # for who commits; it needs the library that check_library finds


def real(path: Path) -> Path:
    """Return where a file is that *path* may be a link to: SQLite has its log there."""
    return Path(os.path.realpath(path))


def connect(path: Path, *, timeout: float, options: str = "mode=rw") -> sqlite3.Connection:
    """Open a connection in autocommit mode, whose TEXT is bytes. Raises sqlite3.Error."""
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?{options}",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = bytes
    return connection


def settings(*, log_limit: int) -> tuple[str, ...]:
    """Return what is executed on a connection that writes; the log is kept at *log_limit* bytes."""
    return (
        "PRAGMA synchronous = NORMAL",  # a commit survives a crash of the daemon
        "PRAGMA wal_autocheckpoint = 0",
        f"PRAGMA journal_size_limit = {log_limit}",  # cutting it costs growing it again
        "PRAGMA secure_delete = FAST",  # no page is written only to blank what was deleted
        "PRAGMA ignore_check_constraints = ON",  # they say what all rows from here are
    )


@contextlib.contextmanager
def reader(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file for reading. Beside a log without its -shm, SQLite leaves one."""
    path = real(path)
    # A connection that only reads can't remove the log that it makes, so a file without one is
    # read as if nothing could change it.
    has_log = any(os.path.exists(f"{path}{suffix}") for suffix in ("-wal", "-journal"))
    options = "mode=ro" if has_log else "mode=ro&immutable=1"
    with translated(path, "read"):
        if not path.stat().st_size:
            raise StoreError(f"{path} is empty: restore a backup or remove it")
        connection = connect(path, timeout=BUSY_TIMEOUT, options=options)
        with contextlib.closing(connection):
            check_format(connection.execute, path)
            yield connection


def check_library(path: Path) -> None:
    """Refuse if Python's module has an SQLite of its own: each would drop the other's locks."""
    before = memory_used()
    with contextlib.closing(sqlite3.connect(":memory:")):
        if memory_used() == before:
            raise StoreError(
                f"{path} can't be opened: Python's sqlite3 module does not use the library that "
                "pmxcfs was linked with: use the system's Python"
            )
