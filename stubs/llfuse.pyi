"""The part of llfuse's interface that pmxcfs uses; llfuse brings no types of its own."""

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any

ROOT_INODE: int
lock: AbstractContextManager[None]
lock_released: AbstractContextManager[None]
default_options: frozenset[str]

class FUSEError(Exception):
    errno: int
    def __init__(self, errno: int) -> None: ...

class EntryAttributes:
    st_ino: int
    generation: int
    entry_timeout: float
    attr_timeout: float
    st_mode: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_rdev: int
    st_size: int
    st_blksize: int
    st_blocks: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int

class SetattrFields:
    update_atime: bool
    update_mtime: bool
    update_mode: bool
    update_uid: bool
    update_gid: bool
    update_size: bool

class StatvfsData:
    f_bsize: int
    f_frsize: int
    f_blocks: int
    f_bfree: int
    f_bavail: int
    f_files: int
    f_ffree: int
    f_favail: int
    f_namemax: int

class RequestContext:
    pid: int
    uid: int
    gid: int
    umask: int

class Operations:
    # Overridden with narrower types than llfuse documents.
    def __getattr__(self, name: str) -> Any: ...

def init(ops: Operations, mountpoint: str, options: Collection[str] = ...) -> None: ...
def main(workers: int | None = None, handle_signals: bool = True) -> int | None: ...
def close(unmount: bool = True) -> None: ...
