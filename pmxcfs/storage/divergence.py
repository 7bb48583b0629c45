"""The divergence table: the version after which this node's changes reached no other node.

The row is written *before* the first change that no other node receives. It is removed in the
transaction after which other nodes have the whole tree again. So a crash can leave a row without
such a change, which is harmless, but never such a change without a row. Entries whose version is
above the row's were changed by this node alone. The existing implementation ignores the table.

Contract: docs/spec/cluster.md, "Forks"; storage.md, "The database".
"""

from collections.abc import Callable
from typing import Any

Execute = Callable[..., Any]  # sqlite3.Connection.execute: statement, parameters -> cursor

_TABLE = "CREATE TABLE IF NOT EXISTS divergence (version INTEGER NOT NULL)"
_U64 = (1 << 64) - 1  # SQLite's integers are signed, versions are not
_KNOWN = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'divergence'"


def read(execute: Execute) -> int | None:
    """Return the last version that other nodes have, too; None if they have the current one."""
    if not execute(_KNOWN).fetchone():
        return None
    row = execute("SELECT min(version) FROM divergence").fetchone()
    return row[0] & _U64 if isinstance(row[0], int) else None


def begin(execute: Execute, version: int) -> None:
    """Record that no other node receives the versions above *version*."""
    execute(_TABLE)
    execute("INSERT INTO divergence VALUES (?)", (version - (version >> 63 << 64),))


def end(execute: Execute) -> None:
    """Record that other nodes have the whole tree again."""
    if execute(_KNOWN).fetchone():
        execute("DELETE FROM divergence")
