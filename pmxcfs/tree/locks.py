"""Cluster-wide locks: directories below ``priv/lock/`` that whoever made them must renew.

Only the time since *this node first saw this version* of a lock counts, by a monotonic clock that
comes in as an argument: the clocks of other nodes and the mtime mean nothing here. A version is
told by the entry's checksum, so a reload does not make a known lock young again.

Contract: docs/spec/filesystem.md, "Locks".
"""

from pmxcfs._core import Entry, Tree

LIFETIME = 120.0  # seconds after which a lock that was not renewed may be removed
LOCK_HOME = "priv/lock/"


def is_below_locks(entry: Entry) -> bool:
    """Tell whether *entry* is a directory at any depth below ``priv/lock/``."""
    return entry.is_directory and entry.path.startswith(LOCK_HOME)


class LockTable:
    """When each lock was first seen as it is now."""

    def __init__(self, *, lifetime: float = LIFETIME) -> None:
        self.lifetime = lifetime  # seconds
        self._seen: dict[str, tuple[bytes, float]] = {}  # path -> entry checksum, monotonic second

    def ages(self, now: float) -> dict[str, float]:
        """Return the seconds since each lock was taken or renewed."""
        return {path: now - since for path, (_, since) in self._seen.items()}

    def note(self, path: str, checksum: bytes, *, now: float) -> None:
        """Remember that the lock at *path* has this checksum; the same one again is no news."""
        known = self._seen.get(path)
        if known is None or known[0] != checksum:
            self._seen[path] = (checksum, now)

    def forget(self, path: str) -> None:
        """The lock at *path* is gone."""
        self._seen.pop(path, None)

    def has_expired(self, path: str, checksum: bytes, *, now: float) -> bool:
        """Tell whether the lock, in just this version, was seen a lifetime ago."""
        known = self._seen.get(path)
        return known is not None and known[0] == checksum and now - known[1] >= self.lifetime

    def may_unlock(self, tree: Tree, path: str, checksum: bytes, *, now: float) -> bool:
        """Tell whether the lock at *path* still is the one with *checksum*, and has expired.

        What the member with the lowest node id asks itself upon an UNLOCK_REQUEST.
        """
        entry = tree.find(path)
        if entry is None or not is_below_locks(entry) or entry.child_count:
            return False
        is_same = tree.entry_checksum(entry) == checksum
        return is_same and self.has_expired(entry.path, checksum, now=now)

    def reload(self, tree: Tree, *, now: float) -> None:
        """Note every lock of *tree* and forget all others."""
        found = _locks_below(tree.find(LOCK_HOME))
        self._seen = {path: seen for path, seen in self._seen.items() if path in found}
        for path, entry in found.items():
            self.note(path, tree.entry_checksum(entry), now=now)


def _locks_below(directory: Entry | None) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    todo = [directory] if directory is not None else []
    while todo:
        for entry in todo.pop().children():
            if entry.is_directory:
                found[entry.path] = entry
                todo.append(entry)
    return found
