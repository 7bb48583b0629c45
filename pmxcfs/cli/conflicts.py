"""``pmxcfs conflicts``: the copies kept of changes that the tree does not have.

The commands read the state directory and need no daemon. They print paths below ``priv``, too, as
only root can read the copies.
Contract: docs/spec/operations.md, "Conflicts".
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from pmxcfs._core import Entry, Tree
from pmxcfs.cli import offline
from pmxcfs.errors import StoreError
from pmxcfs.settings import DATABASE_NAME
from pmxcfs.storage.kept_copies import (
    DAMAGE,
    FORK,
    INCOMPLETE,
    OLDER,
    OTHER_DATABASE,
    Copy,
    find_copy,
    kept_copies,
    mark_done,
)
from pmxcfs.storage.kept_journals import KeptTree, read_kept_tree
from pmxcfs.storage.recovery import inspect
from pmxcfs.text import escape

REASONS = {
    FORK: "only this node had these changes when another node's tree replaced them",
    OLDER: "another node's tree, although older, replaced these changes",
    INCOMPLETE: "the database of this node was damaged, so the other nodes' tree was to replace it",
    OTHER_DATABASE: "the journal had these changes, but the database was another one",
    DAMAGE: "the journal had these changes behind a damaged place, or they did not fit the tree",
    "": "not described",
}
_LACKING = "its content, which was private, is in no copy"


def list_copies(arguments: argparse.Namespace) -> int:
    """Print a line for each copy that is to do, with ``--all`` also for those done; return 0."""
    copies = [copy for copy in kept_copies(arguments.statedir) if arguments.all or not copy.is_done]
    if arguments.json:
        print(json.dumps([_as_data(copy) for copy in copies], indent=2))
        return 0
    for copy in copies:
        _, _, replaced, removed = copy.description
        paths = f"{len(replaced) + len(removed)} paths" if replaced or removed else "all paths"
        done = ", done" if copy.is_done else ""
        print(f"{copy.name}  {_when(copy.description.time)}  {paths}{done}")
    if not copies:
        print("no copies" if arguments.all else "no copies to deal with")
    return 0


def show_copy(arguments: argparse.Namespace) -> int:
    """Print when and why a copy was kept, and how each path differs from now; return 0."""
    copy = find_copy(arguments.statedir, arguments.name)
    kept, lacking = _tree_of(copy)
    now = _tree_of_now(arguments.statedir / DATABASE_NAME)
    rows = list(_rows(copy, kept, now, lacking))
    if arguments.json:
        print(json.dumps({**_as_data(copy), "entries": rows}, indent=2))
        return 0
    print(f"{copy.path}, of {_when(copy.description.time)}{', done' if copy.is_done else ''}")
    print(f"{REASONS.get(copy.description.reason, REASONS[''])}:")
    if not rows:
        print("  nothing differs from now")
    for row in rows:
        print(f"  {escape(row['path'])}: kept: {row['kept']}; now: {row['now']}")
    print(f"for the content: pmxcfs conflicts export {copy.name} DIR")
    return 0


def export_copy(arguments: argparse.Namespace) -> int:
    """Write all files of a copy into a new or empty directory; return the exit status."""
    copy = find_copy(arguments.statedir, arguments.name)
    kept = _tree_of(copy)
    kept.drop_lacking()
    status = offline.export_tree(kept.tree, arguments.directory)
    for path in sorted(kept.lacking):
        print(f"pmxcfs: {escape(path)} is not written: {_LACKING}", file=sys.stderr)
    return 1 if kept.lacking else status


def finish_copy(arguments: argparse.Namespace) -> int:
    """Mark a copy as done, so that ``pmxcfs status`` no longer shows it; return 0."""
    copy = find_copy(arguments.statedir, arguments.name)
    mark_done(copy)
    return 0


ACTIONS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "list": list_copies,
    "show": show_copy,
    "export": export_copy,
    "done": finish_copy,
}


def _rows(copy: Copy, kept: Tree, now: Tree, lacking: Collection[str]) -> Iterator[dict[str, str]]:
    """Yield a row for each path of the description, else for each that differs."""
    paths = sorted({*copy.description.replaced, *copy.description.removed})
    if not paths:
        both = {entry.path for tree in (kept, now) for entry in offline.walk(tree.root)}
        paths = sorted(p for p in both if not _is_same(kept.find(p), now.find(p)))
    for path in paths:
        before, after = kept.find(path), now.find(path)
        is_same = _is_same(before, after)
        if path in lacking:
            yield {"path": path, "kept": _LACKING, "now": _text(after)}
        else:
            now_text = "the same" if is_same else _text(after)
            yield {"path": path, "kept": _text(before), "now": now_text}


def _is_same(one: Entry | None, other: Entry | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.is_directory == other.is_directory and one.content == other.content


def _text(entry: Entry | None) -> str:
    if entry is None:
        return "not there"
    if entry.is_directory:
        return f"a directory of {_when(entry.mtime)}"
    return f"{entry.size} bytes of {_when(entry.mtime)}"


def _tree_of(copy: Copy) -> KeptTree:
    """Return the tree of a copy; that of a journal has only what the changes were about."""
    if copy.is_journal:
        return read_kept_tree(copy.path)
    return KeptTree(offline.load(copy.path), frozenset())


def _tree_of_now(path: Path) -> Tree:
    """Return the tree of a database and its journal. Raises StoreError, which names the file."""
    if not path.exists():
        raise StoreError(f"{path} is not there: name the state directory with --statedir")
    return inspect(path).tree


def _when(seconds: int) -> str:
    return time.strftime("%F %T", time.localtime(seconds))


def _as_data(copy: Copy) -> Mapping[str, object]:
    described = copy.description
    return {
        "name": copy.name,
        "path": str(copy.path),
        "time": described.time,
        "reason": described.reason,
        "replaced": list(described.replaced),
        "removed": list(described.removed),
        "done": copy.is_done,
    }
