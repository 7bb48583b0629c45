"""The offline commands for a database: fsck, dump, export, import.

A command prints its result and returns the exit status. It raises PmxcfsError or OSError on
failure. Commands that read don't change the file, and work while a daemon has it open. ``fsck
--repair`` refuses a file that another process has open; ``import`` refuses a file that exists. No
command needs the group www-data, a host name, or a mount.
Contract: docs/spec/operations.md, "Command line".
"""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pmxcfs import messages
from pmxcfs._core import Entry, Tree
from pmxcfs.errors import Exists, NoSpace, StoreError, TooBig, Unsupported
from pmxcfs.host import clock
from pmxcfs.storage import database
from pmxcfs.storage.create import making
from pmxcfs.storage.database import Database, Loaded
from pmxcfs.text import escape, to_bytes, to_text
from pmxcfs.tree.apply import apply
from pmxcfs.tree.guests import Guests
from pmxcfs.tree.modes import mode_of

# Entries of a mount's root that are not stored. A directory copied from a mount has them, too.
FIXED_LINKS = frozenset(["local", "qemu-server", "openvz", "lxc"])
FIXED_FILES = frozenset([".version", ".members", ".vmlist", ".rrd", ".clusterlog", ".debug"])

_NAME_ERRORS = frozenset([errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL])
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def fsck(path: Path, *, repair: bool) -> int:
    """Check a database and print its faults; return 0 if it is sound, else 1.

    With *repair*, write the repairs first; a copy of the unrepaired file stays beside it.
    """
    loaded = _inspect(path, repair=repair)
    damage = database.find_damage(path)
    if repair and loaded.repairs:
        _repair(path)
        damage = database.find_damage(path)
    done = "repaired" if repair else "to repair"
    for line in loaded.repairs:
        print(f"{path}: {done}: {line}")
    for line in damage:
        print(f"{path}: damaged: {escape(line)}")
    if damage and (repair or not loaded.repairs):
        print(f"{path}: the sqlite3 command .recover can save the readable rows into a new file")
    if damage or (loaded.repairs and not repair):
        return 1
    root, *entries = loaded.records
    print(f"{path}: sound, version {root.version}, {len(entries)} entries")
    return 0


def _inspect(path: Path, *, repair: bool) -> Loaded:
    """Read the tree. With *repair*, roll back an interrupted transaction first."""
    try:
        return database.inspect(path)
    except StoreError as error:
        if not repair or error.errno != errno.EROFS:
            raise
    Database.open(path, now=clock.seconds(), alone=True).close()
    print(f"{path}: repaired: rolled back an interrupted transaction")
    return database.inspect(path)


def _repair(path: Path) -> None:
    opened = Database.open(path, now=clock.seconds(), alone=True)
    with contextlib.closing(opened):
        _, copy = opened.mend(now=clock.seconds())
        if opened.degraded:
            raise opened.degraded
    print(f"{path}: a copy of the unrepaired file is {copy}")


def dump(path: Path) -> int:
    """Print a line for each entry, in the order of paths, without content; return 0."""
    tree = _load(path)
    root = tree.root
    print(f"version {root.version}, writer {root.writer}, mtime {root.mtime}")
    print(f"{tree.entry_count} entries, {tree.content_bytes} bytes of content")
    print(f"checksum {tree.checksum().hex()}")
    print("     inode    version     writer      mtime    size  path")
    for entry in _walk(tree.root):
        mark = "/" if entry.is_directory else ""
        print(
            f"{entry.inode:10d} {entry.version:10d} {entry.writer:10d} {entry.mtime:10d} "
            f"{entry.size:7d}  {escape(entry.path)}{mark}"
        )
    return 0


def export(path: Path, directory: Path) -> int:
    """Write the tree's files into a new or empty directory, with their modes and times.

    Entries with names that are not valid in a directory are skipped and reported; return 1 if
    there are any, else 0.
    """
    tree = _load(path)
    directory.mkdir(mode=0o755, exist_ok=True)
    if any(directory.iterdir()):
        raise Exists(f"{directory} is not empty: name a new directory")
    skipped: set[Entry] = set()
    written: list[tuple[bytes, int]] = []
    for entry in _walk(tree.root):
        if entry.parent in skipped:
            skipped.add(entry)
            continue
        target = os.path.join(os.fsencode(directory), to_bytes(entry.path))
        problem = _export_entry(entry, target)
        if problem:
            print(f"not exported: {escape(entry.path)}: {problem}", file=sys.stderr)
            skipped.add(entry)
        else:
            written.append((target, entry.mtime))
    for target, mtime in reversed(written):  # a directory after its entries, which change its time
        os.utime(target, (mtime, mtime), follow_symlinks=False)
    return 1 if skipped else 0


def _export_entry(entry: Entry, target: bytes) -> str | None:
    """Make one file or directory at *target*; return the reason if the name is not valid."""
    if entry.name in (".", "..") or "\0" in entry.name or "/" in entry.name:
        return "not a valid file name"
    try:
        _make(entry, target)
    except OSError as error:
        if error.errno in _NAME_ERRORS:
            return error.strerror
        error.filename = os.fsdecode(target)  # the error of a write has no path
        raise
    return None


def _make(entry: Entry, target: bytes) -> None:
    mode = stat.S_IMODE(mode_of(entry, quorate=True))
    if entry.is_directory:
        os.mkdir(target, 0o700)
        os.chmod(target, mode)
        return
    with open(os.open(target, _NEW_FILE, 0o600), "wb") as file:
        file.write(entry.content)
        os.fchmod(file.fileno(), mode)


def import_(directory: Path, path: Path) -> int:
    """Make the new database *path* of the files and directories below *directory*; return 0."""
    for suffix in database.COMPANIONS:
        if os.path.lexists(f"{path}{suffix}"):
            raise Exists(f"{path}{suffix} already exists: move it away or name another file")
    tree = _read_directory(directory)
    with making(path, now=clock.seconds()) as new:
        new.save(tree)
    print(f"{path}: version {tree.version}, {tree.entry_count} entries")
    return 0


class _Found(NamedTuple):
    """A file or directory to import."""

    path: str  # below the directory that is imported
    mtime: int  # seconds
    content: bytes | None  # None for a directory


def _read_directory(directory: Path) -> Tree:
    tree, guests = Tree(keep_undo=False), Guests()
    for path, mtime, content in _find(to_bytes(str(directory))):
        mutations: list[messages.Mutation] = (
            [messages.Mkdir(path)] if content is None else [messages.Create(path)]
        )
        if content:
            mutations.append(messages.Write(path, 0, content, truncate=True))
        for mutation in mutations:
            apply(tree, guests, mutation, writer=0, mtime=mtime)
        if tree.entry_count > messages.MAX_ENTRIES:
            raise NoSpace(f"{directory} has more than {messages.MAX_ENTRIES} files and directories")
        if tree.content_bytes > messages.MAX_TOTAL_SIZE:
            raise NoSpace(f"{directory} has more than {messages.MAX_TOTAL_SIZE} bytes of content")
    return tree


def _find(top: bytes) -> Iterator[_Found]:
    """Yield the files and directories below *top*, in the order of names, parents first."""
    waiting = [b""]
    while waiting:
        below = waiting.pop()
        with os.scandir(os.path.join(top, below)) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            path = os.path.join(below, entry.name)
            status = entry.stat(follow_symlinks=False)
            mtime = max(0, min(int(status.st_mtime), messages.MAX_TIME))
            if _is_fixed(path, status.st_mode):
                print(
                    f"not imported, as every mount has it: {escape(to_text(path))}", file=sys.stderr
                )
            elif stat.S_ISDIR(status.st_mode):
                yield _Found(to_text(path), mtime, None)
            elif stat.S_ISREG(status.st_mode):
                yield _Found(to_text(path), mtime, _read_file(entry.path))
            else:
                raise Unsupported(
                    f"{escape(to_text(entry.path))} is neither a file nor a directory"
                )
        waiting += [
            os.path.join(below, entry.name)
            for entry in reversed(found)
            if entry.is_dir(follow_symlinks=False)
        ]


def _is_fixed(path: bytes, mode: int) -> bool:
    """Tell whether this is a fixed entry of a mount, which is not stored."""
    name = to_text(path)
    if stat.S_ISLNK(mode):
        return name in FIXED_LINKS
    return stat.S_ISREG(mode) and name in FIXED_FILES


def _read_file(path: bytes) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        content = file.read(messages.MAX_FILE_SIZE + 1)
    if len(content) > messages.MAX_FILE_SIZE:
        raise TooBig(f"{escape(to_text(path))} has more than {messages.MAX_FILE_SIZE} bytes")
    return content


def _load(path: Path) -> Tree:
    """Return the tree of a database, with the repairs that a daemon would make."""
    loaded = database.inspect(path)
    if loaded.repairs:
        count = len(loaded.repairs)
        print(f"{path} needs {count} repairs: see pmxcfs fsck {path}", file=sys.stderr)
    tree = Tree(keep_undo=False)
    tree.load(loaded.records)
    return tree


def _walk(top: Entry) -> Iterator[Entry]:
    """Yield the entries below *top*, in the order of names, parents first."""
    waiting = [top]
    while waiting:
        entry = waiting.pop()
        if entry is not top:
            yield entry
        waiting += sorted(entry.children(), key=_stored_name, reverse=True)


def _stored_name(entry: Entry) -> bytes:
    return to_bytes(entry.name)
