"""Modes of entries: a function of path, type and quorum.

Contract: docs/spec/filesystem.md, "Names, owners, modes".
"""

import re
import stat

from pmxcfs._core import Entry

PRIVATE = "(private)"  # stands in the log for a path that must not be logged
_SCRIPT = re.compile(r"(?:vps|[1-9][0-9]*)\.(?:mount|umount|start|stop|premount|postumount)")
_SCRIPT_ENDS = ("mount", "start", "stop")  # the ends of all script names: a quick first test
_WRITE_BITS = 0o222
_FILE, _DIRECTORY = stat.S_IFREG, stat.S_IFDIR


def is_script(name: str) -> bool:
    """Tell whether *name* is that of a container's hook script, which root may execute."""
    return name.endswith(_SCRIPT_ENDS) and _SCRIPT.fullmatch(name) is not None


def loggable_path(path: str) -> str:
    """Return *path*, or PRIVATE for one that must not be logged."""
    return PRIVATE if is_private_path(path) else path


def is_private_path(path: str) -> bool:
    """Tell whether only root may access *path*; the same rule as ``Entry.private``."""
    if "priv" not in path:  # a quick first test, as this runs for every rename
        return False
    parts = path.split("/", 3)
    return parts[0] == "priv" or (len(parts) > 2 and parts[0] == "nodes" and parts[2] == "priv")


def without_quorum(mode: int) -> int:
    """Return *mode* without write permissions, as a node without quorum shows it."""
    return mode & ~_WRITE_BITS


def _file_mode(name: str, private: bool) -> int:
    mode = _FILE | (0o600 if private else 0o640)
    return mode | stat.S_IXUSR if is_script(name) else mode


def mode_of(entry: Entry, quorate: bool) -> int:
    """Return the ``st_mode`` of *entry*: file type and permission bits."""
    if not entry.is_directory:
        mode = _file_mode(entry.name, entry.private)
    elif entry.inode == 0:
        return _DIRECTORY | 0o755
    else:
        mode = _DIRECTORY | (0o700 if entry.private else 0o755)
    return mode if quorate else without_quorum(mode)


def changes_mode(source: str, target: str) -> bool:
    """Tell whether a file gets another mode when it moves from *source* to *target*."""
    return is_private_path(source) != is_private_path(target) or is_script(
        source.rpartition("/")[2]
    ) != is_script(target.rpartition("/")[2])
