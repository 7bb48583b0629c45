"""Looking at a database through an open connection: whether it is one of ours, and as it should be.

Knows statements, but no rules for content (``repair`` has those), and changes nothing.
"""

from collections.abc import Sequence
from pathlib import Path

from pmxcfs.errors import StoreError
from pmxcfs.storage.divergence import Execute
from pmxcfs.storage.repair import Row

_SELECT_ROW = (
    "SELECT inode, parent, version, writer, mtime, type, CAST(name AS BLOB), CAST(data AS BLOB) "
    "FROM tree WHERE inode = ?"
)
_COLUMNS = frozenset(b"inode parent version writer mtime type name data".split())


def is_blank(execute: Execute) -> bool:
    """Tell whether nothing was ever stored; a damaged file may look empty, but is longer."""
    tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return not tables and execute("PRAGMA page_count").fetchone()[0] <= 1


def check_format(execute: Execute, path: Path) -> None:
    """Refuse a file that was not made for a tree; its rows are not looked at."""
    found = execute(
        "SELECT 1 FROM pragma_table_list('tree') "
        "WHERE schema = 'main' AND type = 'table' AND NOT wr"
    ).fetchone()
    columns = execute("PRAGMA table_xinfo(tree)").fetchall()
    keys = [(name, kind.upper()) for _, name, kind, _, _, is_key, _ in columns if is_key]
    encoding = execute("PRAGMA encoding").fetchone()[0]
    if not found:
        reason = "it has no table named tree"
    elif {column[1] for column in columns} != _COLUMNS or keys != [(b"inode", b"INTEGER")]:
        reason = "its table has other columns"
    elif encoding != b"UTF-8":
        reason = "its names are not stored byte by byte"
    else:
        return
    raise StoreError(f"{path} is no database of pmxcfs ({reason}): restore a backup or remove it")


def check_written(execute: Execute, path: Path, *, rows: Sequence[Row], count: int) -> None:
    """Check that *rows* can be read as they were written, and that there are *count* in all."""
    for row in rows:
        if execute(_SELECT_ROW, (row[0],)).fetchone() != row:
            raise StoreError(f"{path}: entry {row[0]} is not what was just written")
    found = execute("SELECT count(*) FROM tree").fetchone()[0]
    if found != count:
        raise StoreError(f"{path} has {found} rows where {count} should be")
