"""Opening SQLite connections to a database file: to write, or to read only.

Contract: docs/spec/storage.md, "The database".
"""

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from pmxcfs.errors import StoreError
from pmxcfs.settings import DATABASE_NAME
from pmxcfs.storage.schema import check_format
from pmxcfs.storage.sqlite_errors import OTHER_ADVICE, translated

_KINDS: Mapping[int, str] = MappingProxyType(
    {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
)
COMPANIONS = ("", "-wal", "-shm", "-journal")  # suffixes of a database's files
BUSY_TIMEOUT = 5.0  # seconds to wait for another process that writes
# To execute on a new connection that writes.
SETTINGS = (
    "PRAGMA synchronous = FULL",  # a commit is on the device before it returns
    "PRAGMA wal_autocheckpoint = 0",  # Database.checkpoint does it
    "PRAGMA secure_delete = FAST",  # zero deleted content only in pages that are written anyway
    "PRAGMA ignore_check_constraints = ON",  # rows that this program writes satisfy them
    # KiB: the pages of a save of 8 MiB of journal fit, so that each goes to the log once.
    "PRAGMA cache_size = -12288",
)


def real(path: Path) -> Path:
    """Return *path* with symbolic links resolved: SQLite keeps the log beside the real file."""
    return Path(os.path.realpath(path))


def connect(path: Path, *, timeout: float, options: str = "mode=rw") -> sqlite3.Connection:
    """Open a connection in autocommit mode that returns TEXT as bytes.

    *timeout* is the busy timeout in seconds, *options* are URI parameters. Raises sqlite3.Error,
    and StoreError if something else is where SQLite would make a file.
    """
    for suffix in COMPANIONS[1:]:
        with contextlib.suppress(OSError):
            if kind := _KINDS.get(stat.S_IFMT(os.stat(f"{path}{suffix}").st_mode)):
                raise StoreError(f"{path}{suffix} is {kind}, so {path} can't be used: move it away")
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?{options}",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = bytes
    return connection


@contextlib.contextmanager
def reader(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database file to read it, and close it after the block. Blocks. Raises StoreError.

    If the file has a log but no -shm file, SQLite creates one and leaves it there.
    """
    path = real(path)
    # A read-only connection would create a log and could not remove it. So a file without a log is
    # opened as immutable.
    has_log = any(os.path.exists(f"{path}{suffix}") for suffix in ("-wal", "-journal"))
    options = "mode=ro" if has_log else "mode=ro&immutable=1"
    with translated(path, "read"):
        _check_readable(path)
        connection = connect(path, timeout=BUSY_TIMEOUT, options=options)
        with contextlib.closing(connection):
            check_format(connection.execute, path)
            yield connection


def _check_readable(path: Path) -> None:
    """Raise StoreError or OSError if *path* can't be a database that this process may read.

    The file is not opened: closing it would release the locks of this process's connections.
    """
    status = path.stat()
    if kind := _KINDS.get(stat.S_IFMT(status.st_mode)):
        raise StoreError(f"{path} is {kind}, not a database: name a file, such as {DATABASE_NAME}")
    if not status.st_size:
        raise StoreError(f"{path} is empty: {OTHER_ADVICE}")
    if not os.access(path, os.R_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
