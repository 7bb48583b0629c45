"""Copies of this node's database, made before a sync replaces changes that no other node has.

Divergence is detected in two ways. (1) While this node is alone, the database records the last
version that another node had; newer entries exist nowhere else. (2) Versions number the changes of
one history. Let C be the highest version of an entry that is equal in both trees. An entry of the
leader with C < version <= our tree's version belongs to another history, so the two histories
parted at C. If neither applies, our tree is an ancestor of the leader's, and nothing is lost.

Contract: docs/spec/cluster.md, "Forks".
"""

import logging
from collections.abc import Iterable
from itertools import chain

from pmxcfs._core import Entry, Tree
from pmxcfs.host.files import make_private_directory, sync_directory
from pmxcfs.storage.database import Database
from pmxcfs.storage.sqlite_errors import translated
from pmxcfs.tree.adoption import Adoption

_log = logging.getLogger("pmxcfs.dcdb")

MAX_LOGGED_PATHS = 100  # paths that are logged for one copy
IMPORTED = 3  # the version of a fresh tree after the import of the host's corosync.conf


def lost_by(adoption: Adoption, tree: Tree, *, alone_since: int | None) -> list[Entry]:
    """Return the entries that *adoption* deletes or overwrites and that the leader never had.

    *alone_since* is the last version that another node had, None if others have all of *tree*.
    Needs no lock, as long as nothing changes *tree*.
    """
    since = [] if alone_since is None else [alone_since]
    common = adoption.common_version()
    if tree.version > IMPORTED and any(
        common < record.version <= tree.version for record in adoption.written.values()
    ):
        since.append(common)
    if not since:
        return []
    ours = chain(adoption.deleted, adoption.overwritten())
    return [entry for entry in ours if entry.version > min(since)]


def keep_copy(database: Database, lost: Iterable[Entry], *, now: int) -> None:
    """Copy *database* to ``conflicts/<now>.db``; log a warning with the paths of *lost*. Blocks.

    *database* must hold this node's current tree. *now* is in seconds since 1970. Raises StoreError
    if the copy can't be made.
    """
    home = database.path.parent / "conflicts"
    with translated(home, "written"):
        make_private_directory(home)
        copy = database.copy_to(home / f"{now}.db")
        sync_directory(home)
    paths = sorted(_loggable(entry) for entry in lost)
    _log.warning(
        "the cluster's tree replaces entries that only this node has changed (%d); "
        "a copy of this node's database is %s",
        len(paths),
        copy,
    )
    for path in paths[:MAX_LOGGED_PATHS]:
        _log.warning("replaced by another node's version: %s", path)
    if len(paths) > MAX_LOGGED_PATHS:
        _log.warning(
            "%d more paths were replaced by another node's version", len(paths) - MAX_LOGGED_PATHS
        )


def _loggable(entry: Entry) -> str:
    """Return the path of *entry*, or its inode if the path is private and must not be logged."""
    return f"private entry {entry.inode}" if entry.private else entry.path
