"""The mounts that this process sees, by their ids, as /proc/self/mountinfo lists them.

A path says nothing about a mount: another one can be there since. Nothing here sends a request to
a mounted file system, so a mount whose daemon is dead or hangs is no obstacle.
Contract: docs/spec/fuse.md, "Stopping".
"""

import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

MAX_LINKS = 40  # on one path, as in the kernel
_LIST = Path("/proc/self/mountinfo")


class Mounted(NamedTuple):
    """One mount."""

    id: int  # another mount gets it as soon as this one was detached
    parent: int  # id of the mount that it is on
    device: str  # major:minor
    path: bytes  # the mountpoint
    kind: bytes  # the type of the file system
    source: bytes

    @property
    def identity(self) -> tuple[int, str, bytes]:
        """What tells it from all others: one that is made later can have its id and its device."""
        return self.id, self.device, self.path

    @property
    def is_pmxcfs(self) -> bool:
        """Tell whether type and source are those of pmxcfs, which other programs could use."""
        return (self.kind, self.source) == (b"fuse", b"/dev/fuse")

    @property
    def is_fuse(self) -> bool:
        """Tell whether a FUSE daemon serves it."""
        return self.kind.startswith(b"fuse")


def listed() -> list[Mounted]:
    """Return all mounts."""
    return list(map(_parsed, _LIST.read_bytes().splitlines()))


def _parsed(line: bytes) -> Mounted:
    fields = line.split(b" ")
    path = fields[4].decode("unicode_escape").encode("latin-1")  # octal escapes, as of a blank
    kind, source = fields[fields.index(b"-") + 1 :][:2]
    return Mounted(int(fields[0]), int(fields[1]), fields[2].decode(), path, kind, source)


def mounts_on(path: Path) -> list[Mounted]:
    """Return the mounts whose mountpoint is *path*."""
    wanted = os.fsencode(resolved(path))
    return [mount for mount in listed() if mount.path == wanted]


def resolved(path: Path) -> Path:
    """Return *path* without symbolic links, by calls that send no request to what is mounted there.

    ``os.path.realpath`` would ask for the attributes of the mountpoint.
    """
    for _ in range(MAX_LINKS):
        path = Path(os.path.realpath(path.parent), path.name)
        try:
            target = os.readlink(path)
        except OSError:  # it is no link
            break
        path = path.parent / target
    return path


def topmost_on(path: Path) -> Mounted | None:
    """Return the mount that an unmount of *path* would detach, or None."""
    found = mounts_on(path)
    covered = {mount.parent for mount in found}
    return next((mount for mount in found if mount.id not in covered), None)


def is_listed(wanted: Mounted) -> bool:
    """Tell whether a mount is there."""
    return any(mount.identity == wanted.identity for mount in listed())


def await_unmount(mount: Mounted, timeout: float) -> bool:
    """Wait, *timeout* seconds at most, until *mount* is gone; tell whether it is. Blocks."""
    deadline = time.monotonic() + timeout
    with _changes() as poll:
        while is_listed(mount):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll.poll(left * 1000)
    return True


@contextmanager
def _changes() -> Iterator[select.poll]:
    """Yield a poll object that returns as soon as the list has changed since its last return."""
    with _LIST.open("rb", buffering=0) as file:
        poll = select.poll()
        poll.register(file, select.POLLPRI | select.POLLERR)
        yield poll


def abort_fuse_connection(mount: Mounted) -> None:
    """End the requests to a FUSE mount that no path leads to, if fusectl is mounted.

    The mount must have a user, as the number of its device is reused afterwards.
    """
    minor = mount.device.partition(":")[2]
    with suppress(OSError):
        Path(f"/sys/fs/fuse/connections/{minor}/abort").write_bytes(b"1")
