"""What a sync would lose of what this node changed apart from others: kept in a database.

Two ways lead to that knowledge. While this node is alone, the database remembers the last version
that another one had; whatever is newer exists nowhere else. And where this node was in a group, but
not in the one that went on, the two trees tell: versions number the changes of one history, so an
entry that both have alike, of some version, says that all was common up to it, and an entry of the
leader's that is newer than that, but not newer than our tree, says that the leader's history is
another one. Without either our tree is an ancestor of the leader's, and nothing is lost.

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

SHOWN = 100  # paths that a log is told of
IMPORTED = 3  # the version of a tree that holds the host's corosync.conf and nothing else


def lost_by(adoption: Adoption, tree: Tree, *, alone_since: int | None) -> list[Entry]:
    """Return the entries that *adoption* deletes or overwrites, and the leader never had.

    *alone_since* is the last version that another node had, None if others have all of *tree*.
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


def keep_side(database: Database, lost: Iterable[Entry], *, now: int) -> None:
    """Copy our side to ``conflicts/<now>.db`` and log what it keeps. Blocks. Raises StoreError.

    *database* must hold our tree.
    """
    home = database.path.parent / "conflicts"
    with translated(home, "written"):
        make_private_directory(home)
        copy = database.copy_to(home / f"{now}.db")
        sync_directory(home)
    paths = sorted(_shown(entry) for entry in lost)
    _log.warning(
        "what this node changed apart from others is replaced by theirs, entries: %d; "
        "its side is kept as %s",
        len(paths),
        copy,
    )
    for path in paths[:SHOWN]:
        _log.warning("replaced by another node's: %s", path)
    if len(paths) > SHOWN:
        _log.warning("and %d more", len(paths) - SHOWN)


def _shown(entry: Entry) -> str:
    """Return the path as it may appear in a log."""
    return f"entry {entry.inode}, a private one" if entry.private else entry.path
