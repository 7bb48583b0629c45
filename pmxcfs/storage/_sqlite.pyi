from typing import final

from typing_extensions import disjoint_base

from pmxcfs._core import Tree

class SqliteError(Exception):
    """What SQLite could not do."""

    sqlite_errorcode: int  # extended, as in sqlite3
    def __init__(self, message: str, code: int) -> None: ...

def memory_used() -> int: ...  # bytes that this copy of the library has allocated

@final
class Statement:
    """A prepared statement of a Writer."""

    @property
    def sql(self) -> str: ...

@disjoint_base
class Writer:
    """A connection that saves trees. Not for an *alone* database. All methods raise SqliteError."""

    def __init__(
        self,
        path: bytes,
        *,
        write: str,
        delete: str,
        settings: tuple[str, ...],
        version_name: bytes,
        timeout_ms: int,
    ) -> None: ...
    @property
    def is_stuck(self) -> bool: ...  # a transaction could be neither finished nor taken back
    # Returns rows written or deleted, and bytes in them.
    def save(self, tree: Tree, *, patient: bool = True) -> tuple[int, int]: ...
    def others_commits(self) -> int: ...  # changes whenever another connection commits
    def let_go(self) -> None: ...  # before and after a checkpoint
    def run(self, statement: Statement) -> int: ...  # tests override it
    def close(self) -> None: ...  # can be repeated
