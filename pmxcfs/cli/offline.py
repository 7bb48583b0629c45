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
import shlex
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pmxcfs import messages
from pmxcfs._core import Entry, Tree
from pmxcfs.errors import (
    Exists,
    NoSpace,
    NotADirectory,
    StoreError,
    TooBig,
    UnreadableDatabase,
    Unsupported,
)
from pmxcfs.host import clock
from pmxcfs.host.directories import (
    make_new_file,
    open_below,
    open_directory,
    open_file,
    opened,
)
from pmxcfs.storage.connect import COMPANIONS
from pmxcfs.storage.create import making
from pmxcfs.storage.damaged import lost_of_log, read_damaged
from pmxcfs.storage.database import Database, whole_batch
from pmxcfs.storage.fold import fold
from pmxcfs.storage.integrity import find_damage, is_in_rows, kind_of
from pmxcfs.storage.recovery import Recovered, inspect, journal_of
from pmxcfs.storage.salvage import inspect_damaged, report, salvage
from pmxcfs.storage.segments import DIRECTORY_NAME
from pmxcfs.storage.sqlite_errors import OTHER_ADVICE
from pmxcfs.text import escape, to_bytes, to_text
from pmxcfs.tree.apply import apply
from pmxcfs.tree.guests import Guests
from pmxcfs.tree.modes import mode_of

# Entries of a mount's root that are not stored. A directory copied from a mount has them, too.
FIXED_LINKS = frozenset(["local", "qemu-server", "openvz", "lxc"])
FIXED_FILES = frozenset([".version", ".members", ".vmlist", ".rrd", ".clusterlog", ".debug"])

_NAME_ERRORS = frozenset([errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL])


def fsck(path: Path, *, repair: bool) -> int:
    """Check a database and its journal, and print their faults; return 0 if they are sound, else 1.

    With *repair*, write the repairs first, and what only the journal has; a copy of the unrepaired
    file stays beside it. Of a file with damaged pages, what can be read is saved into a new file.
    """
    damage = _find_damage(path)
    if damage and not repair:
        return _report_damage(path, damage)
    if damage:
        _salvage(path)
    found = _inspect(path, repair=repair)
    if repair:
        _repair(path, found)
    done = "repaired" if repair else "to repair"
    for line in found.repairs:
        print(f"{path}: {done}: {line}")
    for line in _journal_lines(path, found, done=done):
        print(line)
    if (found.repairs or found.left_over) and not repair:
        return 1
    print(f"{path}: sound, version {found.tree.version}, {found.tree.entry_count} entries")
    return 0


def _find_damage(path: Path) -> list[str]:
    """Return what is damaged in the structure of the file and its log, by lines.

    The log is looked at first, as SQLite drops what is damaged of it. Raises StoreError, also if
    the file is no database of pmxcfs.
    """
    lost = lost_of_log(path)
    try:
        inspect(path)
        damage = [line for line in find_damage(path) if not is_in_rows(line)]
    except UnreadableDatabase as error:
        try:
            read_damaged(path)
        except UnreadableDatabase:
            if kind := kind_of(path):
                raise StoreError(f"{path} is {kind}, no database: {OTHER_ADVICE}") from error
            raise
        damage = [str(error).removeprefix(f"{path} ").partition(": pmxcfs fsck")[0]]
    except StoreError as error:
        if error.errno != errno.EROFS:  # an interrupted transaction
            raise
        damage = []
    return [lost, *damage] if lost else damage


def _report_damage(path: Path, damage: Sequence[str]) -> int:
    for line in damage:
        print(f"{path}: damaged: {escape(line)}")
    for line in report(read_damaged(path), with_names=True):
        print(f"{path}: {line}")
    command = f"pmxcfs fsck --repair {shlex.quote(str(path))}"
    print(f"{path}: to save what can be read into a new file: {command}")
    return 1


def _salvage(path: Path) -> None:
    """Replace a damaged file by one with what can be read of it, and report what is missing."""
    damaged, copy = salvage(path, now=clock.seconds())
    for line in report(damaged, with_names=True):
        print(f"{path}: {line}")
    print(f"{path}: repaired: a new file has what could be read; the damaged one is {copy}")


def _inspect(path: Path, *, repair: bool) -> Recovered:
    """Read the tree. With *repair*, roll back an interrupted transaction first."""
    try:
        return inspect(path)
    except StoreError as error:
        if not repair or error.errno != errno.EROFS:
            raise
    Database.open(path, now=clock.seconds(), alone=True).close()
    print(f"{path}: repaired: rolled back an interrupted transaction")
    return inspect(path)


def _repair(path: Path, found: Recovered) -> None:
    """Write what *found* differs in from the file."""
    now = clock.seconds()
    journal = journal_of(path)
    if journal is not None and journal.is_dir():
        fold(path, now=now, alone=True, mend=True)
    elif found.repairs:
        with contextlib.closing(Database.open(path, now=now, alone=True)) as opened:
            _, copy = opened.mend(now=now)
        print(f"{path}: a copy of the unrepaired file is {copy}")


def _journal_lines(path: Path, found: Recovered, *, done: str) -> Iterator[str]:
    """Yield what the journal of the database *path* has; *done* tells what becomes of faults."""
    journal = path.with_name(DIRECTORY_NAME)
    if found.replayed and done == "repaired":
        yield f"{path}: {found.replayed} changes of the journal were written to it"
    elif found.replayed:
        yield f"{journal}: {found.replayed} changes since the last save of {path.name}"
    if found.left_over is not None:
        count = len(found.left_over.changes)
        reason = "it is damaged" if found.left_over.is_damage else "they follow another database"
        yield f"{journal}: {done}: {count} changes can't be applied, as {reason}: kept in conflicts"


def dump(path: Path) -> int:
    """Print a line for each entry, in the order of paths, without content.

    Return 1 if these may not be all, as the file is damaged, else 0.
    """
    tree, status = _load(path)
    root = tree.root
    print(f"version {root.version}, writer {root.writer}, mtime {root.mtime}")
    print(f"{tree.entry_count} entries, {tree.content_bytes} bytes of content")
    print(f"checksum {tree.checksum().hex()}")
    print("     inode    version     writer      mtime    size  path")
    for entry in walk(tree.root):
        mark = "/" if entry.is_directory else ""
        print(
            f"{entry.inode:10d} {entry.version:10d} {entry.writer:10d} {entry.mtime:10d} "
            f"{entry.size:7d}  {escape(entry.path)}{mark}"
        )
    return status


def export(path: Path, directory: Path) -> int:
    """Write the files of a database into a new or empty directory, as ``export_tree`` does.

    Return 1 also if these may not be all, as the file is damaged.
    """
    tree, status = _load(path)
    return max(export_tree(tree, directory), status)


def export_tree(tree: Tree, directory: Path) -> int:
    """Write the tree's files into a new or empty directory, with their modes and times.

    Entries with names that are not valid in a directory are skipped and reported; return 1 if
    there are any, else 0.
    """
    with _new_directory(directory) as top:
        return 1 if _Export(directory, top).run(tree.root) else 0


@contextlib.contextmanager
def _new_directory(path: Path) -> Iterator[int]:
    """Make a directory, or open an empty one; yield its descriptor. Raises Exists, OSError."""
    with opened(open_directory(path.parent)) as parent:
        try:
            os.mkdir(path.name or ".", 0o755, dir_fd=parent)
        except FileExistsError:
            pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
    with opened(open_directory(path)) as descriptor:
        if os.listdir(descriptor):
            raise Exists(f"{path} is not empty: name a new directory")
        yield descriptor


class _Export:
    """Writes entries below a directory, which users can rename or replace meanwhile."""

    def __init__(self, path: Path, top: int) -> None:
        self._path = os.fsencode(path)  # for messages
        self._top = top
        self._skipped: set[Entry] = set()

    def run(self, root: Entry) -> set[Entry]:
        """Write all entries below *root*; return those that were skipped and reported."""
        directories = []
        for entry in walk(root):
            problem = "" if entry.parent in self._skipped else self._export(entry)
            if problem:
                print(f"not exported: {escape(entry.path)}: {problem}", file=sys.stderr)
            if problem or entry.parent in self._skipped:
                self._skipped.add(entry)
            elif entry.is_directory:
                directories.append(entry)
        for entry in reversed(directories):  # after its entries, which change its time
            with opened(open_below(self._top, to_bytes(entry.path))) as directory:
                os.utime(directory, (entry.mtime, entry.mtime))
        return self._skipped

    def _export(self, entry: Entry) -> str:
        """Make one file or directory; return the reason if the name is not valid."""
        if entry.name in (".", "..") or "\0" in entry.name or "/" in entry.name:
            return "not a valid file name"
        path = to_bytes(entry.path)
        try:
            with opened(open_below(self._top, os.path.dirname(path))) as directory:
                _make(entry, directory)
        except OSError as error:
            if error.errno in _NAME_ERRORS:
                return os.strerror(error.errno)
            # The error of a write has no path, and that of a name not all of it.
            error.filename = os.fsdecode(os.path.join(self._path, path))
            raise
        return ""


def _make(entry: Entry, directory: int) -> None:
    """Make a file or a directory in the directory with this descriptor."""
    mode, name = stat.S_IMODE(mode_of(entry, quorate=True)), to_bytes(entry.name)
    if entry.is_directory:
        os.mkdir(name, 0o700, dir_fd=directory)
        with opened(open_below(directory, name)) as made:
            os.fchmod(made, mode)
        return
    with open(make_new_file(name, 0o600, directory=directory), "wb") as file:
        file.write(entry.content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.utime(file.fileno(), (entry.mtime, entry.mtime))


def import_(directory: Path, path: Path) -> int:
    """Make the new database *path* of the files and directories below *directory*; return 0."""
    for suffix in COMPANIONS:
        if os.path.lexists(f"{path}{suffix}"):
            raise Exists(f"{path}{suffix} already exists: move it away or name another file")
    if not path.parent.is_dir():
        raise NotADirectory(
            f"{path} can't be made: {path.parent} is not a directory: make it first"
        )
    tree = _read_directory(directory)
    with making(path, now=clock.seconds()) as new:
        new.save(whole_batch(tree), None)
    print(f"{path}: version {tree.version}, {tree.entry_count} entries")
    return 0


class _Found(NamedTuple):
    """A file or directory to import."""

    path: str  # below the directory that is imported
    mtime: int  # seconds
    content: bytes | None  # None for a directory


def _read_directory(directory: Path) -> Tree:
    tree, guests = Tree(keep_undo=False), Guests()
    for path, mtime, content in _find(directory):
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


def _find(top: Path) -> Iterator[_Found]:
    """Yield the files and directories below *top*, in the order of names, parents first.

    Below *top* no symbolic link is followed, also none that appears meanwhile.
    """
    waiting = [b""]
    with opened(open_directory(top)) as descriptor:
        while waiting:
            below = waiting.pop()
            with opened(open_below(descriptor, below)) as directory:
                directories = []
                for found in _find_in(directory, below, top=os.fsencode(top)):
                    yield found
                    if found.content is None:
                        directories.append(to_bytes(found.path))
            waiting += reversed(directories)


def _find_in(directory: int, below: bytes, *, top: bytes) -> Iterator[_Found]:
    """Yield what is in the directory with this descriptor, which is *below* the directory *top*."""
    for name in sorted(map(os.fsencode, os.listdir(directory))):
        path = os.path.join(below, name)
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        mtime = max(0, min(int(status.st_mtime), messages.MAX_TIME))
        shown = escape(to_text(os.path.join(top, path)))
        if _is_fixed(path, status.st_mode):
            print(f"not imported, as every mount has it: {escape(to_text(path))}", file=sys.stderr)
        elif stat.S_ISDIR(status.st_mode):
            yield _Found(to_text(path), mtime, None)
        elif stat.S_ISREG(status.st_mode):
            yield _Found(to_text(path), mtime, _read_file(name, directory, shown=shown))
        else:
            raise Unsupported(f"{shown} is neither a file nor a directory: move it away")


def _is_fixed(path: bytes, mode: int) -> bool:
    """Tell whether this is a fixed entry of a mount, which is not stored."""
    name = to_text(path)
    if stat.S_ISLNK(mode):
        return name in FIXED_LINKS
    return stat.S_ISREG(mode) and name in FIXED_FILES


def _read_file(name: bytes, directory: int, *, shown: str) -> bytes:
    """Return the content of a file in the directory with this descriptor; *shown* is its path.

    Raises TooBig, and OSError with that path.
    """
    try:
        with open(open_file(name, os.O_RDONLY, directory=directory), "rb") as file:
            content = file.read(messages.MAX_FILE_SIZE + 1)
    except OSError as error:
        raise OSError(error.errno, error.strerror, shown) from None
    if len(content) > messages.MAX_FILE_SIZE:
        raise TooBig(f"{shown} has more than {messages.MAX_FILE_SIZE} bytes")
    return content


def load(path: Path) -> Tree:
    """Return the tree of a database and its journal, with the repairs that a daemon would make."""
    return _load(path)[0]


def _load(path: Path) -> tuple[Tree, int]:
    """Return the tree, and 1 if that is only what can be read of a damaged file, else 0."""
    status = 0
    try:
        found = inspect(path)
    except UnreadableDatabase as error:
        try:
            found = inspect_damaged(path)
        except UnreadableDatabase:
            raise error from None
        status = 1
        print(f"{path} is damaged: this is what can be read of it", file=sys.stderr)
    if found.repairs or found.left_over:
        faults = len(found.repairs) + (found.left_over is not None)
        print(f"{path} needs {faults} repairs: see pmxcfs fsck {path}", file=sys.stderr)
    return found.tree, status


def walk(top: Entry) -> Iterator[Entry]:
    """Yield the entries below *top*, in the order of names, parents first."""
    waiting = [top]
    while waiting:
        entry = waiting.pop()
        if entry is not top:
            yield entry
        waiting += sorted(entry.children(), key=_stored_name, reverse=True)


def _stored_name(entry: Entry) -> bytes:
    return to_bytes(entry.name)
