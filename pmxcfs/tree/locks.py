"""Cluster-wide locks: directories below ``priv/lock/``, which their owner renews.

A lock that is 120 s old has expired. It may be removed, but only if a node asks for that (a utime
of 0). The age of a lock is the time since this node first saw this version of it, by a monotonic
clock that the caller passes in. The mtime and the clocks of other nodes don't count. The entry
checksum identifies a version, so a reload does not reset the age of a lock that did not change.

Threads: the caller holds the tree's lock.
Contract: docs/spec/filesystem.md, "Locks".
"""

from pmxcfs._core import Entry, Tree

LIFETIME = 120.0  # seconds after which a lock has expired that was not renewed
PRESENT = 10  # seconds between a clock and a time that a program has just read from it
LOCK_DIRECTORY = "priv/lock/"


def is_below_locks(entry: Entry) -> bool:
    """Tell whether *entry* is a directory at any depth below ``priv/lock/``."""
    return entry.is_directory and entry.path.startswith(LOCK_DIRECTORY)


def renewal_time(entry: Entry, wanted: int, *, now: int) -> int:
    """Return the mtime by which *entry* is renewed if a user asks for the time *wanted*.

    A lock can't be renewed backwards. If its mtime is later than *now*, and *wanted* is the present
    (within PRESENT seconds), its owner's clock was set back since it was taken or renewed: it keeps
    that mtime, or its owner would lose it. All times are in seconds since 1970.
    """
    holder = entry.parent
    is_lock = entry.is_directory and holder is not None and f"{holder.path}/" == LOCK_DIRECTORY
    is_set_back = is_lock and abs(wanted - now) <= PRESENT and entry.mtime > now
    return max(wanted, entry.mtime) if is_set_back else wanted


class LockTable:
    """The time when this node first saw the current version of each lock."""

    def __init__(self, *, lifetime: float = LIFETIME) -> None:
        self.lifetime = lifetime  # seconds
        self._seen: dict[str, tuple[bytes, float]] = {}  # path -> entry checksum, monotonic second

    def ages(self, now: float) -> dict[str, float]:
        """Return {path: seconds since this node saw the lock taken or renewed}."""
        return {path: now - since for path, (_, since) in self._seen.items()}

    def note(self, path: str, checksum: bytes, *, now: float) -> None:
        """Record that the lock at *path* has *checksum*; an unchanged checksum keeps its age."""
        known = self._seen.get(path)
        if known is None or known[0] != checksum:
            self._seen[path] = (checksum, now)

    def forget(self, path: str) -> None:
        """Remove the lock at *path* from the table; an unknown path is allowed."""
        self._seen.pop(path, None)

    def has_expired(self, path: str, checksum: bytes, *, now: float) -> bool:
        """Tell whether the lock at *path* has had *checksum* for at least ``lifetime`` seconds."""
        known = self._seen.get(path)
        return known is not None and known[0] == checksum and now - known[1] >= self.lifetime

    def may_unlock(self, tree: Tree, path: str, checksum: bytes, *, now: float) -> bool:
        """Tell whether the lock at *path* is empty, still has *checksum*, and has expired.

        In local mode the result decides about a removal. In a cluster the result of the lowest
        member decides: it answers an UNLOCK_REQUEST with an UNLOCK. The other nodes' results are
        ignored.
        """
        entry = tree.find(path)
        if entry is None or not is_below_locks(entry) or entry.child_count:
            return False
        is_same = tree.entry_checksum(entry) == checksum
        return is_same and self.has_expired(entry.path, checksum, now=now)

    def reload(self, tree: Tree, *, now: float) -> None:
        """Replace the table by the locks of *tree*; unchanged locks keep their age."""
        found = _locks_below(tree.find(LOCK_DIRECTORY))
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
