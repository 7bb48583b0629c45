"""Copies of an open database as new files.

Contract: docs/spec/storage.md, "The database".
"""

import contextlib
import os
import sqlite3
from pathlib import Path

from pmxcfs.host.files import make_numbered_file, sync_directory
from pmxcfs.storage.connect import connect
from pmxcfs.storage.mark import drop_mark


def copy_to(connection: sqlite3.Connection, path: Path, *, is_complete: bool) -> Path:
    """Copy a database to *path*, or to a numbered name if *path* exists. Blocks.

    The copy has no mark unless *is_complete*. Return its path. Raises sqlite3.Error and OSError.
    """
    copy = make_numbered_file(path)
    try:
        with contextlib.closing(connect(copy, timeout=0)) as target:
            connection.backup(target)
            if not is_complete:
                drop_mark(target.execute)
    except BaseException:
        copy.unlink()
        raise
    return copy


def put_in_place(connection: sqlite3.Connection, path: Path) -> None:
    """Make a copy the file *path*, with all of it at once; a file with content stays. Blocks.

    Raises sqlite3.Error and OSError.
    """
    if path.exists() and path.stat().st_size:
        return
    made = copy_to(connection, path.with_name(f".{path.name}.new"), is_complete=True)
    try:
        os.rename(made, path)
    except BaseException:
        made.unlink()
        raise
    sync_directory(path.parent)
