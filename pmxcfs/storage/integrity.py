"""SQLite's own check of a database file, and what a file is that is no database of pmxcfs.

Contract: docs/spec/operations.md, "Command line"; storage.md, "Loading".
"""

import contextlib
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pmxcfs.storage.connect import reader

# Faults that are in the values of a row, which a repair of the rows mends.
_IN_ROWS = re.compile(r"(CHECK constraint failed|\w+ value( missing)?|NULL value) (in|from) ")
_SAMPLE = 4096  # bytes of a file that are looked at
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f\x1b\b"))
_KINDS: Mapping[bytes, str] = MappingProxyType(
    {
        b"pmxcfs\0J": "a segment of pmxcfs's journal",
        b"\x37\x7f\x06\x82": "a write-ahead log of SQLite",
        b"\x37\x7f\x06\x83": "a write-ahead log of SQLite",
        b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7": "a rollback journal of SQLite",
        b"\x18\xe2\x2d\x00": "the shared memory of a write-ahead log of SQLite",
        b"\x1f\x8b": "a file compressed by gzip",
        b"\x28\xb5\x2f\xfd": "a file compressed by zstd",
        b"\xfd7zXZ\0": "a file compressed by xz",
        b"BZh": "a file compressed by bzip2",
        b"PK\x03\x04": "a zip archive",
        b"\x7fELF": "a program",
        b"!<arch>\n": "a package or an archive of ar",
        b"#!": "a script",
        b"-----BEGIN ": "a key or a certificate",
    }
)
_TAR = slice(257, 262)


def find_damage(path: Path) -> list[str]:
    """Return the result of SQLite's integrity check: one line per error. Blocks.

    Raises StoreError.
    """
    with reader(path) as connection:
        rows = connection.execute("PRAGMA integrity_check").fetchall()
    lines = [line for (text,) in rows for line in text.decode("utf-8", "replace").splitlines()]
    return [line for line in lines if line != "ok" and not line.startswith("***")]


def is_in_rows(line: str) -> bool:
    """Tell whether a line of the integrity check is about the values of a row only."""
    return _IN_ROWS.match(line) is not None


def kind_of(path: Path) -> str:
    """Return what a file is that is no database of SQLite; empty if that is not known. Blocks.

    No connection of this process may have the file open.
    """
    with contextlib.suppress(OSError):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return ""
        with path.open("rb") as file:
            return _kind(file.read(_SAMPLE), status.st_size)
    return ""


def _kind(start: bytes, size: int) -> str:
    for magic, kind in _KINDS.items():
        if start.startswith(magic):
            return kind
    if start[_TAR] == b"ustar":
        return "an archive of tar"
    if not start.strip(b"\0"):
        return f"{size} bytes of which the first are all 0"
    if start.translate(None, _CONTROL) == start:
        with contextlib.suppress(UnicodeDecodeError):
            start[: -4 if len(start) == _SAMPLE else None].decode("utf-8")
            return "a text"
    return ""
