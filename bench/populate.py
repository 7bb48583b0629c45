"""Making a database with given files, through pmxcfs's own tree and database.

A benchmark makes its files before the daemon starts, so the kernel has not cached any of them.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from bench.data import File
from pmxcfs._core import Entry, Tree
from pmxcfs.messages import EntryType
from pmxcfs.storage.database import Database, whole_batch


@contextlib.contextmanager
def saved_tree(path: Path, files: Iterator[File]) -> Iterator[tuple[Database, Tree]]:
    """Create the database file *path* with these files; yield it with its saved tree."""
    now = int(time.time())
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    database = Database.open(path, now=now)
    try:
        tree = Tree(keep_undo=False)
        tree.load(database.load(now=now).records)
        for name, content in files:
            add_file(tree, name, content, now=now)
        database.save(whole_batch(tree), None)
        yield database, tree
    finally:
        database.close()


def write_database(path: Path, files: Iterator[File]) -> None:
    """Create the database file *path* with these files and the directories above them."""
    with saved_tree(path, files):
        pass


def copy_files(directory: Path, files: Iterator[File]) -> None:
    """Write these files below a directory of any file system."""
    for name, content in files:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def add_file(tree: Tree, path: str, content: bytes, *, now: int) -> Entry:
    """Add a file and its missing directories to a tree; return its entry."""
    directory, _, name = path.rpartition("/")
    parent = add_directory(tree, directory, now=now)
    entry = tree.create(parent, name, EntryType.FILE, writer=0, mtime=now)
    tree.write(entry, 0, content, truncate=True, writer=0, mtime=now)
    return entry


def add_directory(tree: Tree, path: str, *, now: int) -> Entry:
    """Return the directory at *path*; make it if it is missing."""
    if not path:
        return tree.root
    if found := tree.find(path):
        return found
    above, _, name = path.rpartition("/")
    parent = add_directory(tree, above, now=now)
    return tree.create(parent, name, EntryType.DIRECTORY, writer=0, mtime=now)
