from typing import final

from typing_extensions import disjoint_base

from pmxcfs._core import Tree

class SqliteError(Exception):
    """An error of SQLite."""

    sqlite_errorcode: int  # extended, as in sqlite3
    def __init__(self, message: str, code: int) -> None: ...

def memory_used() -> int: ...  # bytes that this copy of the SQLite library has allocated

@final
class Statement:
    """A prepared statement of a Writer."""

    @property
    def sql(self) -> str: ...

@disjoint_base
class Writer:
    """A connection that saves trees. All methods raise SqliteError.

    Can't be used beside a connection in exclusive locking mode (``Database.open(alone=True)``).
    """

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
    def is_stuck(self) -> bool: ...  # a transaction could be neither committed nor rolled back
    # Returns the rows written or deleted, and the bytes of file content in them.
    def save(self, tree: Tree, *, patient: bool = True) -> tuple[int, int]: ...
    def others_commits(self) -> int: ...  # changes with each commit of another connection
    def release_snapshot(self) -> None: ...  # ends the snapshot kept between saves
    def run(self, statement: Statement) -> int: ...  # tests override it to inject failures
    def close(self) -> None: ...  # can be repeated
