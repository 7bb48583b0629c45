"""Player of the operations in tests/vectors/fs_*.jsonl, with results in their notation."""

import contextlib
import errno
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NODE = "<node>"  # the node's name in the recordings


class Recorded:
    """One line of a recording."""

    def __init__(self, line: str) -> None:
        fields = json.loads(line)
        self.name, *self.arguments = fields["op"]
        self.errno: str | None = fields["errno"]
        self.result = fields["result"]

    def __repr__(self) -> str:
        return f"{self.name} {' '.join(map(repr, self.arguments))}"


def load(path: Path) -> list[Recorded]:
    """Return a recording's lines in order."""
    return [Recorded(line) for line in path.read_text().splitlines()]


class Player:
    """Carries out recorded operations on the mount at *root*."""

    def __init__(self, root: Path, node: str) -> None:
        self._root = root
        self._node = node

    def play(self, recorded: Recorded) -> tuple[str | None, object]:
        """Return (name of the errno or None, result) of one operation."""
        path, *rest = [self._named(argument) for argument in recorded.arguments]
        operation: Callable[..., object] = getattr(self, f"_{recorded.name}")
        try:
            return None, operation(path, *rest)
        except OSError as error:
            name = errno.errorcode[error.errno or 0]
            return ("ENOTSUP" if name == "EOPNOTSUPP" else name), None

    def _named(self, argument: object) -> object:
        return argument.replace(NODE, self._node) if isinstance(argument, str) else argument

    def _at(self, path: str) -> Path:
        return self._root / path

    @contextlib.contextmanager
    def _opened(self, path: str, flags: int) -> Iterator[int]:
        descriptor = os.open(self._at(path), flags, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _mkdir(self, path: str) -> None:
        self._at(path).mkdir()

    def _rmdir(self, path: str) -> None:
        self._at(path).rmdir()

    def _unlink(self, path: str) -> None:
        self._at(path).unlink()

    def _rename(self, path: str, to: str) -> None:
        self._at(path).rename(self._at(to))

    def _stat(self, path: str) -> str:
        found = os.lstat(self._at(path))
        return (
            f"{stat.filemode(found.st_mode)} nlink={found.st_nlink} uid={found.st_uid} "
            f"gid={found.st_gid} size={found.st_size}"
        )

    def _create(self, path: str, content: str | None = None) -> int | None:
        with self._opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
            return None if content is None else os.write(descriptor, content.encode())

    def _excl(self, path: str) -> None:
        with self._opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL):
            pass

    def _write(self, path: str, content: str) -> int:
        with self._opened(path, os.O_WRONLY) as descriptor:
            return os.write(descriptor, content.encode())

    def _pwrite(self, path: str, content: str, offset: int) -> int:
        with self._opened(path, os.O_WRONLY) as descriptor:
            return os.pwrite(descriptor, content.encode(), offset)

    def _append(self, path: str, content: str) -> int:
        with self._opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
            return os.write(descriptor, content.encode())

    def _bigwrite(self, path: str, size: int) -> int:
        with self._opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
            return os.write(descriptor, b"x" * size)

    def _read(self, path: str) -> str:
        return self._at(path).read_bytes().decode()

    def _truncate(self, path: str, size: int) -> None:
        os.truncate(self._at(path), size)

    def _symlink(self, target: str, path: str) -> None:
        self._at(path).symlink_to(target)

    def _link(self, path: str, to: str) -> None:
        os.link(self._at(path), self._at(to))

    def _readlink(self, path: str) -> str:
        return os.readlink(self._at(path)).replace(self._node, NODE)

    def _mkfifo(self, path: str) -> None:
        os.mkfifo(self._at(path))

    def _mknod(self, path: str) -> None:
        os.mknod(self._at(path), stat.S_IFREG | 0o644)

    def _getxattr(self, path: str) -> None:
        os.getxattr(self._at(path), "user.x")

    def _setxattr(self, path: str) -> None:
        os.setxattr(self._at(path), "user.x", b"1")

    def _chmod(self, path: str, mode: int) -> None:
        self._at(path).chmod(mode)

    def _chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(self._at(path), uid, gid)

    def _utime(self, path: str, when: float | str) -> None:
        seconds = time.time() + 5 if isinstance(when, str) else when
        os.utime(self._at(path), (seconds, seconds))

    def _mtime(self, path: str) -> list[int]:
        found = os.stat(self._at(path))
        return [found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns]

    def _statfs(self, path: str) -> str:
        found = os.statvfs(self._at(path))
        return (
            f"bsize={found.f_bsize} blocks={found.f_blocks} files={found.f_files} "
            f"namemax={found.f_namemax}"
        )

    def _vmlist(self, path: str) -> list[str]:
        guests = json.loads(self._at(".vmlist").read_text()).get("ids", {})
        return sorted(
            f"{vmid}={guest['type']}@{guest['node'].replace(self._node, NODE)}"
            for vmid, guest in guests.items()
        )

    def _longname(self, size: int) -> None:
        self._excl(f"d/{'n' * size}")

    def _listdir(self, path: str) -> list[str]:
        names = os.listdir(self._at(path))
        return sorted(f"<{len(name)}>" if len(name) > 100 else name for name in names)
