"""The vocabulary of the tree: the mutations that nodes exchange, and the record of an entry.

Every change of the tree is one of these messages, whether it was asked for on this node or came
from a peer. A path has no leading slash; it is text by ``surrogateescape``, because names are
bytes for everybody else. Times are whole seconds since 1970. Contract: spec cluster.md, "Messages".
"""

from enum import IntEnum
from typing import NamedTuple

MAX_FILE_SIZE = 1 << 20  # bytes in one file; checked where a write is issued and where it arrives
MAX_TOTAL_SIZE = 128 << 20  # bytes of content in the tree; checked only where a change is issued
MAX_ENTRIES = 262144  # files and directories in the tree; likewise
MAX_NEW_NAME = 255  # bytes in a name that is issued here; peers may bring longer ones
MAX_TIME = (1 << 32) - 1  # the last second that an mtime can hold


def to_text(raw: bytes) -> str:
    """Decode a name or path; bytes that are not UTF-8 become lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """Encode a name or path, the inverse of ``to_text``."""
    return text.encode("utf-8", "surrogateescape")


class EntryType(IntEnum):
    """What an entry is, in the numbers of the database (those of dirent's d_type)."""

    DIRECTORY = 4
    FILE = 8


class Kind(IntEnum):
    """The subtype of a NORMAL message in the tree's group."""

    WRITE = 1
    MKDIR = 2
    DELETE = 3
    RENAME = 4
    CREATE = 5
    MTIME = 6
    UNLOCK_REQUEST = 7
    UNLOCK = 8


class Write(NamedTuple):
    """Put *data* at *offset*; with *truncate* the file ends behind it afterwards."""

    path: str
    offset: int
    data: bytes
    truncate: bool


class Mkdir(NamedTuple):
    """Make a directory."""

    path: str


class Delete(NamedTuple):
    """Remove a file or an empty directory."""

    path: str


class Rename(NamedTuple):
    """Move *path* to *to*, replacing what stands there."""

    path: str
    to: str


class Create(NamedTuple):
    """Make an empty file."""

    path: str


class Mtime(NamedTuple):
    """Set the modification time, in seconds."""

    path: str
    mtime: int


class Unlock(NamedTuple):
    """Remove the lock at *path* if it still has this entry checksum (32 bytes)."""

    path: str
    checksum: bytes


Mutation = Write | Mkdir | Delete | Rename | Create | Mtime | Unlock


class Record(NamedTuple):
    """One entry as the database and UPDATE messages carry it. The root is inode 0, name empty."""

    inode: int
    parent: int
    version: int
    writer: int
    mtime: int
    type: int
    name: bytes
    data: bytes | None  # None for directories; a file's may be None when it is empty
