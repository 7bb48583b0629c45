"""The daemon's claim on its mountpoint: one live pmxcfs is mounted there at a time.

The lock on the state directory is not enough: its file may have been removed, or the other daemon
may have another state directory. A daemon that mounts over a live mount takes its files away from
everybody, even if it gives up at once. So a daemon first takes a lock on the directory itself,
which its mount then covers: who opens the path afterwards sees the mount, who opened it before
finds the lock taken. Contract: docs/spec/operations.md, "Start".
"""

import contextlib
import errno
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from pmxcfs.errors import StartError
from pmxcfs.host.mounts import Mounted, await_unmount, resolved, topmost_on
from pmxcfs.host.os_errors import reason_of
from pmxcfs.host.process import (
    LOCK_INTERVAL,
    LOCK_TIMEOUT,
    STOP_SIGNALS,
    detach,
    is_dying,
    lock_file,
    program_name,
    stat_error,
)
from pmxcfs.settings import Settings

# What a mount of a dead daemon answers. The last two, which are of requests that were on their way
# when it died, are the first answers afterwards if it was served by io_uring.
DEAD = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED})
_MAX_STALE_MOUNTS = 16  # stacked on one mountpoint
_PROCESSES = Path("/proc")

_log = logging.getLogger("pmxcfs.main")


def check_places(settings: Settings) -> None:
    """Raise StartError if the mount would cover what the daemon itself uses, or everything."""
    mountpoint = resolved(settings.mountpoint)
    for what, path in (
        ("the root directory", Path("/")),
        (f"the state directory {settings.statedir}", settings.statedir),
        (f"the run directory {settings.rundir}", settings.rundir),
        (f"the pid file {settings.pidfile}", settings.pidfile),
    ):
        if Path(os.path.realpath(path)).is_relative_to(mountpoint):
            raise StartError(
                f"can't mount on {settings.mountpoint}: it would cover {what}: "
                "name another directory with --mountpoint"
            )


@contextlib.contextmanager
def claimed(path: Path, *, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Make *path* ready to be mounted on, and keep other daemons off until the end of the block.

    Waits up to *timeout* seconds for another daemon to end. Raises StartError, which names it.
    The stop signals must be blocked.
    """
    deadline = time.monotonic() + timeout
    directory = -1
    try:
        while directory < 0 or _live_mount(path) is not None:
            if directory >= 0:  # another daemon has mounted since the path was opened
                os.close(directory)
                directory = -1
            _await_end(path, deadline)
            clear_mountpoint(path)
            directory = _locked(path, deadline)
        yield
    finally:
        if directory >= 0:
            os.close(directory)


def _live_mount(path: Path) -> Mounted | None:
    """Return the topmost mount on *path* if it is that of a pmxcfs that is not dead."""
    top = topmost_on(path)
    if top is None or not top.is_pmxcfs:
        return None
    owner = owner_of(top, path)
    if owner is None:  # dead, or hidden from this process; the second of these answers
        return None if is_dead(_list_error(path), stat_error(path)) else top
    if is_dying(str(owner)):
        # Its last threads may wait for the kernel, and the kernel for them, until this.
        _log.warning("removing the mount of a daemon that is ending from %s", path)
        with contextlib.suppress(StartError):
            detach(path)
        return None
    return top


def is_dead(*errors: int | None) -> bool:
    """Tell whether *errors* of a mount show that its daemon is dead."""
    return not DEAD.isdisjoint(errors)


def _await_end(path: Path, deadline: float) -> None:
    while (top := _live_mount(path)) is not None:
        if time.monotonic() >= deadline:
            raise StartError(_refusal(path, owner_of(top, path)))
        await_unmount(top, LOCK_INTERVAL)
        if signal.sigtimedwait(STOP_SIGNALS, 0):
            raise StartError("stopped by a signal while waiting for another daemon to end")


def _refusal(path: Path, owner: int | None) -> str:
    who = f"the pid {owner} ({program_name(owner)})" if owner else "another process"
    return f"a pmxcfs is mounted on {path} by {who}: stop it first, or name another --mountpoint"


def _locked(path: Path, deadline: float) -> int:
    """Open and lock the directory *path*; return its descriptor."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StartError(f"can't mount on {path}: {error.strerror}") from None
    try:
        if not lock_file(descriptor, max(0.0, deadline - time.monotonic())):
            raise StartError(
                f"another pmxcfs is about to be mounted on {path}: stop it, or name another "
                "--mountpoint"
            )
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            raise StartError(f"can't lock the mountpoint {path}: {error.strerror}") from None
        raise
    return descriptor


def owner_of(mount: Mounted, path: Path) -> int | None:
    """Return the pid of the process that serves a FUSE mount on *path*, if this one may see it.

    New kernels tell the connection of an open /dev/fuse in fdinfo. With others it is the process
    that has the directory below the mount open, as ``claimed`` keeps it. No request is sent.
    """
    connection = mount.device.partition(":")[2]
    for process in _PROCESSES.iterdir():
        if process.name.isdecimal() and _serves(process, connection, os.fspath(resolved(path))):
            return int(process.name)
    return None


def _serves(process: Path, connection: str, path: str) -> bool:
    # The first thread of a process that is ending has no descriptors any more.
    places = [process]
    if is_dying(process.name):
        with contextlib.suppress(OSError):  # it has ended
            places = list((process / "task").iterdir())
    for place in places:
        found, has_directory = False, False
        with contextlib.suppress(OSError):  # the process or a descriptor is gone
            for link in (place / "fd").iterdir():
                with contextlib.suppress(OSError):
                    target = os.readlink(link)
                    has_directory = has_directory or target == path
                    if target == "/dev/fuse":
                        told = _connection_of(place / "fdinfo" / link.name)
                        if told == connection:
                            return True
                        found = found or not told
        if found and has_directory:
            return True
    return False


def _connection_of(information: Path) -> str:
    """Return the number of the FUSE connection that a descriptor is of; empty if it is not told."""
    for line in information.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "fuse_connection":
            return value.strip()
    return ""


def clear_mountpoint(path: Path) -> None:
    """Unmount stale mounts of dead daemons, create the directory, warn if it is not empty.

    Raises StartError.
    """
    for _ in range(_MAX_STALE_MOUNTS):
        try:
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            names = os.listdir(path)
        except OSError as error:
            # The kernel may answer stat from its cache although the daemon is dead, so the errnos
            # of both calls count.
            if not is_dead(error.errno, stat_error(path)):
                is_other = isinstance(error, FileExistsError)
                reason = "it is not a directory" if is_other else reason_of(error)
                raise StartError(f"can't mount on {path}: {reason}") from None
            _log.warning("removing the stale mount of a dead daemon from %s", path)
            detach(path)
        else:
            if names:
                _log.warning("%s is not empty: mounting over %d entries", path, len(names))
            return
    raise StartError(f"can't remove the stale mounts on {path}: unmount them with umount")


def _list_error(path: Path) -> int:
    try:
        os.listdir(path)
    except OSError as error:
        return error.errno or errno.EIO
    return 0
