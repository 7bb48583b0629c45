"""Copies of this node's database, made before a sync replaces changes that the leader never had.

Versions number the changes of one history, and both trees come from histories that were one up to
some version. Where they parted is known in three ways.

- The *note* of the leader's side (``divergence.Note``): the last version that it surely had in
  common with us, and the version after which it surely got no change of ours. Between the two it
  may have got a change or not, and then the entries tell: if the leader has nothing at the path of
  ours, or something not newer, the change is ours alone.
- Equal entries. Let C be the highest version of an entry that is equal in both trees. An equal
  entry was made by the same change, so the leader's history has ours up to C, whatever a note says.
- Contradictions. An entry of the leader that differs, with C < version <= the version up to which
  both should have one history, belongs to another history, and the two parted at C. A node without
  a note should have all of our history: so this also finds a database from elsewhere, or one of
  another cluster. It can't mistake an ancestor for a fork: a later tree of one history has only
  equal entries up to the ancestor's version. But it finds a fork only until the leader has
  overwritten all that it changed right after the fork; therefore the notes.

If none of these shows a fork, our tree is an ancestor of the leader's and nothing is lost. Then an
entry of which the leader has an older version than ours is drift between trees, or the leader's
database was restored; that is kept, too, but is no fork.

Contract: docs/spec/cluster.md, "Forks".
"""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import StoreError
from pmxcfs.host.files import make_private_directory, sync_directory
from pmxcfs.messages import Record
from pmxcfs.storage.database import Database, inspect
from pmxcfs.storage.divergence import Note, Removal
from pmxcfs.storage.kept_copies import (
    FORK,
    HOME,
    INCOMPLETE,
    OLDER,
    Description,
    describe_copy,
    kept_copies,
    log_paths,
)
from pmxcfs.storage.sqlite_errors import translated
from pmxcfs.text import to_bytes, to_text
from pmxcfs.tree.adoption import Adoption
from pmxcfs.tree.index import ROOT

_log = logging.getLogger("pmxcfs.dcdb")

IMPORTED = 3  # the version of a fresh tree after the import of the host's corosync.conf
_PRIVATE = re.compile(r"(nodes/[^/]+/)?priv(/|$)")


class Lost(NamedTuple):
    """What an adoption would lose of this node's changes."""

    fork: int  # the last version that both trees have in common
    entries: Sequence[Entry]  # deleted or overwritten, and the leader never had our version
    removals: Sequence[Removal]  # of entries that the leader still has, with its paths
    older: Sequence[Entry]  # the leader has an older version, for another reason than a fork

    @property
    def is_fork(self) -> bool:
        """Tell whether the leader's tree does not come from ours."""
        return bool(self.entries or self.removals)


def lost_by(
    adoption: Adoption, tree: Tree, *, note: Note | None, removals: Iterable[Removal] = ()
) -> Lost:
    """Return what *adoption* would lose of the changes in *tree*.

    *note* is the note of the leader's side; *removals* are those since the notes. Needs no lock, as
    long as nothing changes *tree*.
    """
    common, parted = _parting(adoption, tree, note)
    ours = list(chain(adoption.deleted, adoption.overwritten()))
    entries = [entry for entry in ours if entry.version > parted]
    if common < parted:
        versions = {
            adoption.path_of(inode): record.version for inode, record in adoption.written.items()
        }
        doubtful = (entry for entry in ours if common < entry.version <= parted)
        entries += [e for e in doubtful if versions.get(e.path, 0) <= e.version]
    found = set(entries)
    replaced = {entry.path for entry in entries}
    undone = [
        removal
        for removal in _undone(adoption, tree, removals, Note(common, parted))
        if to_text(removal.path) not in replaced
    ]
    older = [
        entry
        for entry in adoption.overwritten()
        if entry not in found and adoption.written[entry.inode].version < entry.version
    ]
    return Lost(common, entries, undone, older)


def _parting(adoption: Adoption, tree: Tree, note: Note | None) -> Note:
    """Return where the histories of the two trees parted."""
    expected = Note(tree.version, tree.version) if note is None else note
    equal = adoption.common_version()
    if tree.version > IMPORTED and any(
        equal < record.version <= expected.common for record in adoption.written.values()
    ):
        return Note(equal, equal)
    return Note(max(expected.common, equal), max(expected.parted, equal))


def _undone(
    adoption: Adoption, tree: Tree, removals: Iterable[Removal], note: Note
) -> Iterator[Removal]:
    """Yield the removals that the leader never had, with the paths that *adoption* brings back.

    No other entry gets the inode of a removed one in the same history. So if the leader has the
    inode of a common entry, it has that entry, whatever its path is.
    """
    for removal in removals:
        record = adoption.written.get(removal.inode)
        is_gone = record is not None and record.inode != ROOT and tree.get(record.inode) is None
        if record is None or not is_gone or removal.version <= note.common:
            continue
        path = to_bytes(adoption.path_of(record.inode))
        is_newer = removal.version > note.parted or record.version < removal.version
        if removal.inode <= note.common or (path == removal.path and is_newer):
            yield removal._replace(path=path)


def keep_copy(database: Database, lost: Lost, *, now: int) -> None:
    """Copy *database* to ``conflicts/<now>.db``; log a warning with the paths of *lost*. Blocks.

    *database* must hold this node's current tree. *now* is in seconds since 1970. Raises StoreError
    if the copy can't be made.
    """
    home = database.path.parent / HOME
    with translated(home, "written"):
        make_private_directory(home)
        copy = database.copy_to(home / f"{now}.db")
        try:
            describe_copy(copy, _description(lost, now))
        except OSError:
            copy.unlink()  # or each attempt would leave one
            raise
        sync_directory(home)
    if lost.is_fork:
        _log.warning(
            "the cluster's tree replaces entries that only this node has changed (%d); "
            "a copy of this node's database is %s",
            len(lost.entries) + len(lost.removals),
            copy,
        )
        log_paths(_log, "replaced by another node's version", map(_loggable, lost.entries))
        log_paths(
            _log,
            "removed here, and present again in another node's version",
            (_loggable_removal(removal) for removal in lost.removals),
        )
    if lost.older:
        _log.warning(
            "the cluster's tree has older versions of entries than this node (%d), although no "
            "node was separated; a copy of this node's database is %s",
            len(lost.older),
            copy,
        )
        log_paths(_log, "replaced by an older version", map(_loggable, lost.older))


def keep_incomplete(database: Database, *, now: int) -> None:
    """Copy *database*, whose tree may lack rows, to ``conflicts/<now>.db``. Blocks.

    A copy of the same entries is not kept twice. *now* is in seconds since 1970. Logs a warning.
    Raises StoreError.
    """
    home = database.path.parent / HOME
    with translated(home, "written"):
        entries = database.read().records[1:]
        for copy in kept_copies(database.path.parent):
            if copy.description.reason == INCOMPLETE and _entries_of(copy.path) == entries:
                return
        make_private_directory(home)
        kept = database.copy_to(home / f"{now}.db")
        describe_copy(kept, Description(now, INCOMPLETE, (), ()))
        sync_directory(home)
    _log.warning(
        "the database of this node was damaged and may lack entries: the tree of the other nodes "
        "replaces it, whatever its version is; a copy is %s",
        kept,
    )


def _entries_of(copy: Path) -> Sequence[Record] | None:
    with contextlib.suppress(StoreError):
        return inspect(copy).records[1:]
    return None


def _description(lost: Lost, now: int) -> Description:
    replaced = lost.entries if lost.is_fork else lost.older
    return Description(
        now,
        FORK if lost.is_fork else OLDER,
        sorted(entry.path for entry in replaced),
        sorted(to_text(removal.path) for removal in lost.removals),
    )


def can_keep_copy(database: Database) -> bool:
    """Try whether a copy of *database* can be stored; none is left. Blocks."""
    home = database.path.parent / HOME
    try:
        with translated(home, "written"):
            make_private_directory(home)
            database.copy_to(home / "trial").unlink()
    except StoreError:
        return False
    return True


def _loggable(entry: Entry) -> str:
    """Return the path of *entry*, or its inode if the path is private and must not be logged."""
    return f"private entry {entry.inode}" if entry.private else entry.path


def _loggable_removal(removal: Removal) -> str:
    path = to_text(removal.path)
    return f"private entry {removal.inode}" if _PRIVATE.match(path) else path
