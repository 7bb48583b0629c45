"""Since when this node has changed its tree alone: one row in a table of its own, in the database.

The row is written *before* the first change that no other node gets, and removed in the transaction
that makes the tree a common one again. So a crash can leave a row without such a change, which is
harmless, but never a change without its row. Entries of a version above the row's were changed by
this node alone. The existing implementation ignores the table.

Contract: docs/spec/cluster.md, "Forks"; storage.md, "The database".
"""

from collections.abc import Callable
from typing import Any

Execute = Callable[..., Any]  # a connection's: statement, parameters -> cursor

_TABLE = "CREATE TABLE IF NOT EXISTS divergence (version INTEGER NOT NULL)"
_U64 = (1 << 64) - 1  # SQLite's integers are signed, versions are not
_KNOWN = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'divergence'"


def read(execute: Execute) -> int | None:
    """Return the last version that other nodes had, too; None if that is the present one."""
    if not execute(_KNOWN).fetchone():
        return None
    row = execute("SELECT min(version) FROM divergence").fetchone()
    return row[0] & _U64 if isinstance(row[0], int) else None


def begin(execute: Execute, version: int) -> None:
    """Note that versions above *version* will be this node's alone."""
    execute(_TABLE)
    execute("INSERT INTO divergence VALUES (?)", (version - (version >> 63 << 64),))


def end(execute: Execute) -> None:
    """Note that all is common again."""
    if execute(_KNOWN).fetchone():
        execute("DELETE FROM divergence")
