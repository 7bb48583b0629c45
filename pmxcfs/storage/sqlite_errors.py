"""Translation of SQLite's errors: the errno for a caller and the advice for the administrator.

The only module that interprets SQLite's error codes. Contract: docs/spec/storage.md, "Writing".
"""

import contextlib
import errno
import shlex
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pmxcfs.errors import StoreError, UnreadableDatabase
from pmxcfs.host.os_errors import reason_of

# The path takes the place of FILE.
CORRUPT_ADVICE = (
    "restore a backup, or save what can be read into a new file: pmxcfs fsck --repair FILE"
)
# For a file that may be somebody's data.
OTHER_ADVICE = (
    "name another file; if the daemon's database belongs here, move this file away and restore a "
    "backup"
)


class _Meaning(NamedTuple):
    """The errno for a caller of the file system, and the advice for the administrator."""

    errno: int
    advice: str


# Keys are extended or primary codes. Any other code means EIO.
_MEANINGS: Mapping[int, _Meaning] = MappingProxyType(
    {
        sqlite3.SQLITE_FULL: _Meaning(errno.ENOSPC, "free some space"),
        sqlite3.SQLITE_IOERR_SHMSIZE: _Meaning(errno.ENOSPC, "free some space"),
        # The file ends within a page: SQLite of Debian 13 reads long content without its cache.
        sqlite3.SQLITE_IOERR_SHORT_READ: _Meaning(errno.EIO, CORRUPT_ADVICE),
        sqlite3.SQLITE_IOERR: _Meaning(errno.EIO, "look for the device's errors with dmesg"),
        sqlite3.SQLITE_READONLY_ROLLBACK: _Meaning(
            errno.EROFS,
            "its last transaction was interrupted: roll it back with pmxcfs fsck --repair",
        ),
        sqlite3.SQLITE_READONLY: _Meaning(errno.EROFS, "make it and its directory writable"),
        sqlite3.SQLITE_BUSY: _Meaning(
            errno.EBUSY, "another process has it open: stop that process"
        ),
        sqlite3.SQLITE_CANTOPEN: _Meaning(
            errno.EIO, "check that it is a file in a directory that exists"
        ),
        sqlite3.SQLITE_CORRUPT: _Meaning(errno.EIO, CORRUPT_ADVICE),
        sqlite3.SQLITE_NOTADB: _Meaning(errno.EIO, OTHER_ADVICE),
    }
)
# All exceptions that reading or writing a database file can raise.
FAILURES = (sqlite3.Error, UnicodeDecodeError, OSError, StoreError)
_UNKNOWN = _Meaning(errno.EIO, "restore a backup if this persists")
# A limit on our own files: EFBIG would tell users of the mount that *their* file is too large.
_LIMITS = frozenset([errno.EFBIG, errno.EDQUOT])
_UNREADABLE = frozenset(
    [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_SHORT_READ]
)
_HARMLESS = frozenset([sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY])


def _code(exc: Exception) -> int:
    """Return SQLite's extended code; SQLITE_ERROR if Python's module raised *exc* by itself."""
    code: Any = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return int(code)


def is_harmless(exc: Exception) -> bool:
    """Tell whether *exc* left the file unchanged and the connection usable."""
    return isinstance(exc, sqlite3.Error) and _code(exc) & 0xFF in _HARMLESS


def translate(path: Path, attempt: str, exc: Exception) -> StoreError:
    """Return the StoreError to raise for *exc*, with the errno for the caller.

    Its text names the file, the failed action (*attempt*, a past participle like "written"), the
    reason and the advice.
    """
    if isinstance(exc, StoreError):
        return exc
    if isinstance(exc, OSError):
        number = errno.ENOSPC if exc.errno in _LIMITS else exc.errno or errno.EIO
        return StoreError(f"{path} can't be {attempt}: {reason_of(exc)}", number)
    if isinstance(exc, UnicodeDecodeError):  # a damaged name in SQLite's error message
        exc = sqlite3.DatabaseError("database disk image is malformed")
        exc.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    meaning = _MEANINGS.get(_code(exc)) or _MEANINGS.get(_code(exc) & 0xFF, _UNKNOWN)
    advice = meaning.advice.replace("FILE", shlex.quote(str(path)))
    is_unreadable = not _UNREADABLE.isdisjoint([_code(exc), _code(exc) & 0xFF])
    kind = UnreadableDatabase if is_unreadable else StoreError
    return kind(f"{path} can't be {attempt}: {exc}: {advice}", meaning.errno)


def out_of_order(path: Path) -> UnreadableDatabase:
    """Return the error for a file whose rows are not in the order of their keys."""
    advice = CORRUPT_ADVICE.replace("FILE", shlex.quote(str(path)))
    return UnreadableDatabase(f"{path} can't be read: its rows are out of order: {advice}")


@contextlib.contextmanager
def translated(path: Path, attempt: str) -> Iterator[None]:
    """Raise every failure of the block as a StoreError that names *path* and *attempt*."""
    try:
        yield
    except StoreError:
        raise
    except FAILURES as exc:
        raise translate(path, attempt, exc) from exc
