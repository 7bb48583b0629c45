"""What a sync would lose of what this node changed alone, kept as a database of its own.

While other nodes get every change, there is nothing to lose: our tree is, or was, theirs. From the
first change on that no other node gets, the database remembers the last common version, and what
has a higher one is ours alone, until a sync makes the tree a common one again. A node that was
merely away has changed nothing, nor has a new one.

Contract: spec cluster.md, "Forks".
"""

import logging
from collections.abc import Iterable
from itertools import chain

from pmxcfs._core import Entry
from pmxcfs.adoption import Adoption
from pmxcfs.database import Database
from pmxcfs.failures import translated
from pmxcfs.privatefiles import make_private_directory, sync_directory

_log = logging.getLogger("pmxcfs.dcdb")

SHOWN = 100  # paths that a log is told of


def lost_by(adoption: Adoption, *, diverged_at: int | None) -> list[Entry]:
    """Return the entries that this node changed alone and that *adoption* deletes or overwrites.

    *diverged_at* is the last version that others had, None if they had all.
    """
    if diverged_at is None:
        return []
    ours = chain(adoption.deleted, adoption.overwritten())
    return [entry for entry in ours if entry.version > diverged_at]


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
        "%d entries that were changed here while other nodes were away are replaced by theirs; "
        "this node's side is kept as %s",
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
