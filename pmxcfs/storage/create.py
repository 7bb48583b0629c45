"""Making a database that is there with all that belongs into it, or not at all.

For what must not be found half-way by the next start. Contract: docs/spec/operations.md, "Command line";
cluster.md.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pmxcfs.host.files import sync_directory
from pmxcfs.storage.database import COMPANIONS, Database
from pmxcfs.storage.sqlite_errors import translated


@contextlib.contextmanager
def making(path: Path, *, now: int) -> Iterator[Database]:
    """Let the block fill a new database; *path* is there only once all of it is. Blocks.

    Raises StoreError, also for what can't be copied from the log at the end.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    _remove(unfinished, COMPANIONS)  # of a process that was killed
    try:
        with contextlib.closing(Database.open(unfinished, now=now)) as database:
            yield database
        if database.incomplete:  # the rest is in the log, which would not move along
            raise database.incomplete
        with translated(path, "written"):
            _remove(path, COMPANIONS[1:])  # a log whose file is gone would be taken for this one's
            os.rename(unfinished, path)
            sync_directory(path.parent)
    finally:
        _remove(unfinished, COMPANIONS)


def _remove(path: Path, suffixes: Iterable[str]) -> None:
    for suffix in suffixes:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")
