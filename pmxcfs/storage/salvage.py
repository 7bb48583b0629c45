"""Saving what can be read of a damaged database into a new one.

The new file is built under a temporary name and renamed at the end. The old one stays beside it as
``config.db.bak-TIME``, with its log as ``config.db.bak-TIME-wal``, where SQLite looks for it. The
rows are saved as they are: ``repair`` mends what they say, as it does in any other database, and
the journal still goes on from them. The new file says that rows may be missing (``incomplete``):
not all damage of a page shows. The tree's mtime becomes 0, as after a repair.

Contract: docs/spec/storage.md, "Loading".
"""

import contextlib
import errno
import fcntl
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pmxcfs.errors import StoreError
from pmxcfs.host.files import FILE_MODE, make_file, make_numbered_file, sync_directory
from pmxcfs.storage import divergence
from pmxcfs.storage.connect import connect, real
from pmxcfs.storage.damaged import Damaged, Gap, describe_log, read_damaged
from pmxcfs.storage.database import PAGE_SIZE
from pmxcfs.storage.incomplete import write_incomplete
from pmxcfs.storage.mark import write_mark
from pmxcfs.storage.pages import LAST
from pmxcfs.storage.recovery import Found, Recovered, journal_of, recover
from pmxcfs.storage.repair import Row, repair
from pmxcfs.storage.schema import TABLE, WRITE
from pmxcfs.storage.sqlite_errors import translated
from pmxcfs.text import escape, to_text
from pmxcfs.tree.guests import vmid_of

MAX_LINES = 100  # of a report, for each kind of loss
_LOCKS = 0x40000000, 512  # the bytes of a database that SQLite locks: the first, how many
_FLOCK = struct.Struct("@hhqqi0q")  # type, whence, start, length, pid
_LOGS = ("-wal", "-journal")
_MAX_DEPTH = 100  # of a path that is shown


class Salvaged(NamedTuple):
    """A database that was saved into a new file."""

    damaged: Damaged
    copy: Path  # the damaged file, as it was


def salvage(path: Path, *, now: int, extra: Sequence[Row] = ()) -> Salvaged:
    """Replace the damaged database *path* by a new one with what can be read of it. Blocks.

    *now* is in seconds since 1970; *extra* are rows to add, with free inodes. Raises
    UnreadableDatabase if nothing can be read, and StoreError if another process has the file open,
    or the new one can't be written; *path* is unchanged then. No connection of this process may
    have it open.
    """
    path = real(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with _alone(path):
        damaged = read_damaged(path)
        with translated(path, "repaired"):
            try:
                unfinished.unlink(missing_ok=True)
                journal = journal_of(path)
                has_journal = journal is not None and journal.is_dir()
                _write(unfinished, damaged, extra, has_journal=has_journal)
                return Salvaged(damaged, _put_in_place(unfinished, path, now=now))
            finally:
                unfinished.unlink(missing_ok=True)


def inspect_damaged(path: Path) -> Recovered:
    """Return the tree of what can be read of a damaged database, and of its journal. Blocks.

    Writes nothing. Raises UnreadableDatabase if nothing can be read, and StoreError.
    """
    damaged = read_damaged(path)
    rows = [*map(_storable, damaged.rows)]
    repaired = repair(rows, vmid_of=vmid_of)
    root = next((row for row in rows if row[0] == 0), None)
    found = Found(root, damaged.mark, *repaired, notes=damaged.notes, is_incomplete=True)
    return recover(found, journal_of(path))


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep all other processes from opening the database during the block. Raises StoreError."""
    # Not a lock of the process, which ends as soon as any descriptor of the file is closed.
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, *_LOCKS, 0)
    with translated(path, "repaired"), path.open("r+b", buffering=0) as file:
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, wanted)
        except (BlockingIOError, PermissionError):
            raise StoreError(
                f"{path} can't be repaired: another process has it open: stop that process",
                errno.EBUSY,
            ) from None
        yield


def _write(path: Path, damaged: Damaged, extra: Iterable[Row], *, has_journal: bool) -> None:
    mark = damaged.mark if has_journal else None
    rows = [*damaged.rows, *extra]
    if mark is None:  # else the journal knows the version row as it is
        rows = [(*row[:4], 0, *row[5:]) if row[0] == 0 else row for row in rows]
    make_file(path)
    with contextlib.closing(connect(path, timeout=0)) as connection:
        execute = connection.execute
        execute(f"PRAGMA page_size = {PAGE_SIZE}")
        execute("PRAGMA journal_mode = OFF").fetchall()  # an unfinished file counts for nothing
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA ignore_check_constraints = ON")
        execute("BEGIN")
        execute(TABLE)
        connection.executemany(WRITE, map(_storable, rows))
        divergence.write_notes(execute, damaged.notes, damaged.removals)
        write_mark(execute, mark)
        write_incomplete(execute, is_set=True)
        execute("COMMIT")


def _storable(row: Row) -> Row:
    """Return *row* with a value in each column that needs one, and bytes for name and data."""
    inode, *numbers, name, data = row
    if isinstance(name, int | float):
        name = str(name).encode("ascii")
    if isinstance(data, int | float):
        data = str(data).encode("ascii")
    return (inode, *[b"" if n is None else n for n in numbers], name or b"", data)


def _put_in_place(made: Path, path: Path, *, now: int) -> Path:
    """Keep the file *path* and its log as copies, and rename *made* to it. Raises OSError.

    The log goes first: SQLite would apply it to the new file.
    """
    copy = _keep(path, now=now, link=_link)
    for suffix in (*_LOGS, "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")
    os.rename(made, path)
    sync_directory(path.parent)
    return copy


def keep_copy(path: Path, *, now: int) -> Path:
    """Copy the database *path* with its log to ``<path>.bak-<now>``; return that path. Blocks.

    No connection of this process may have it open. Raises StoreError.
    """
    path = real(path)
    with translated(path, "copied"):
        return _keep(path, now=now, link=_copy)


def _keep(path: Path, *, now: int, link: Callable[[Path, Path], None]) -> Path:
    copy = make_numbered_file(path.with_name(f"{path.name}.bak-{now}"))
    link(path, copy)
    for suffix in _LOGS:
        if (log := Path(f"{path}{suffix}")).is_file():
            link(log, Path(f"{copy}{suffix}"))
    sync_directory(path.parent)
    return copy


def _copy(path: Path, copy: Path) -> None:
    with contextlib.suppress(FileExistsError):
        make_file(copy)
    shutil.copyfile(path, copy)


def _link(path: Path, copy: Path) -> None:
    """Make *copy* another name of the file *path*, or a copy of it; replace what it was."""
    fresh = copy.with_name(f".{copy.name}")
    fresh.unlink(missing_ok=True)
    try:
        os.link(path, fresh)
    except OSError:  # the file system has no links
        make_file(fresh)
        shutil.copyfile(path, fresh)
    fresh.chmod(FILE_MODE)
    os.rename(fresh, copy)


def report(damaged: Damaged, *, with_names: bool) -> Iterator[str]:
    """Yield lines that tell what could be read and what is missing.

    Private names are among those that *with_names* shows.
    """
    for name in damaged.foreign:
        yield f"the table {escape(name)} is not kept"
    kept = sum(row[0] != 0 for row in damaged.rows)
    yield f"{damaged.lost_pages} of {damaged.page_count} pages can't be read"
    if line := describe_log(damaged.log):
        yield line
    yield f"{kept} entries can be read"
    if damaged.rows[:1] and all(row[0] != 0 for row in damaged.rows):
        yield "the version of the tree can't be read"
    names = {row[0]: (row[1], row[6]) for row in damaged.rows}
    lost = [
        f"entry {inode}: its content can't be read"
        + (f": {escape(_path(parent, name, names))}" if with_names else "")
        for inode, parent, name in damaged.partial
    ]
    yield from _first(lost, "entries without content")
    yield from _first([_describe(gap) for gap in damaged.gaps], "ranges of entries")
    parents = {row[1] for row in damaged.rows if isinstance(row[1], int)}
    for parent in sorted(parents - names.keys() - {0}):
        if any(first <= parent <= last for first, last in damaged.gaps):
            yield f"entry {parent}: a directory that can't be read, but entries of it can"


def _describe(gap: Gap) -> str:
    first, last = max(gap[0], 1), gap[1]
    if last == LAST:
        return f"entries from {first} on may be missing"
    if first == last:
        return f"entry {first} may be missing"
    return f"entries {first} to {last} may be missing"


def _first(lines: Sequence[str], what: str) -> Iterator[str]:
    yield from lines[:MAX_LINES]
    if len(lines) > MAX_LINES:
        yield f"{len(lines) - MAX_LINES} more {what}"


def _path(parent: object, name: bytes, names: dict[int, tuple[object, object]]) -> str:
    """Return the path of an entry as far as its parents are known."""
    parts = [name]
    while isinstance(parent, int) and parent in names and len(parts) < _MAX_DEPTH:
        above, name_above = names[parent]
        if parent == 0 or not isinstance(name_above, bytes):
            break
        parts.append(name_above)
        parent = above
    return ("" if parent == 0 else ".../") + to_text(b"/".join(reversed(parts)))
