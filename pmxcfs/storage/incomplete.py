"""The mark of a tree that may lack rows, as pages of its database were damaged.

Its version says nothing of what it has. So in a cluster it must not lead: an intact member's tree
replaces it, whatever the versions are. The table ``pmxcfs_incomplete`` has one row then, until
another node's tree was adopted, or all nodes of the cluster have taken this one. The original
ignores the table.

Contract: docs/spec/storage.md, "Loading"; cluster.md, "STATE".
"""

from pmxcfs.storage.divergence import Execute

_TABLE = "CREATE TABLE IF NOT EXISTS pmxcfs_incomplete (id INTEGER PRIMARY KEY)"
_KNOWN = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'pmxcfs_incomplete'"


class Incomplete:
    """Whether a tree may lack rows, as far as is known now, and the mark in its database."""

    def __init__(self) -> None:
        self.is_set = False
        self._may_be_stored = False

    def read(self, execute: Execute) -> None:
        """Take over what the file says."""
        self.is_set = self._may_be_stored = read_incomplete(execute)

    def write(self, execute: Execute) -> None:
        """Set or remove the mark, in the open transaction."""
        if self.is_set or self._may_be_stored:
            write_incomplete(execute, is_set=self.is_set)
            self._may_be_stored = True  # also if it was removed: the transaction may fail

    def clear(self, execute: Execute) -> None:
        """Remove the mark, in the open transaction."""
        self.is_set = False
        self.write(execute)


def read_incomplete(execute: Execute) -> bool:
    """Tell whether the file has the mark."""
    return execute(_KNOWN).fetchone() is not None


def write_incomplete(execute: Execute, *, is_set: bool) -> None:
    """Set or remove the mark, in the open transaction."""
    if is_set:
        execute(_TABLE)
    else:
        execute("DROP TABLE IF EXISTS pmxcfs_incomplete")
