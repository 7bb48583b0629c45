"""The FUSE session through llfuse: mount, main loop, descriptor and lock.

llfuse supports one mount per process. Its global lock serves as the tree's lock.
Contract: docs/spec/fuse.md, "Stopping" and "Waiting".
"""

import contextlib
import errno
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import llfuse

from pmxcfs.errors import StartError
from pmxcfs.fuse._notify import invalidate_entry, invalidate_inode
from pmxcfs.fuse.handlers import Operations
from pmxcfs.fuse.notifier import NotificationChannel
from pmxcfs.fuse.workers import Workers

LOCK = llfuse.lock
LOCK_RELEASED = llfuse.lock_released

BACKGROUND = 12  # background requests (RELEASE, read-ahead) that the kernel sends at once
CONGESTED = 9  # background requests above which the kernel does no read-ahead
OPTIONS = (
    "default_permissions",
    "allow_other",
    "nosuid",
    "nodev",
    "fsname=/dev/fuse",
    "nonempty",  # files below the mountpoint give a warning, not an error
    "big_writes",
    "atomic_o_trunc",  # the open has O_TRUNC, so that a rewrite of a file is one change
)


class Mount:
    """A mounted FUSE session, from construction to ``close``. Raises StartError."""

    def __init__(self, operations: Operations, mountpoint: Path, *, workers: Workers) -> None:
        before = _fuse_descriptors()
        logging.getLogger("llfuse").addFilter(_is_worth_logging)
        try:
            llfuse.init(operations, str(mountpoint), [*OPTIONS, *_room_for(workers.count)])
        except RuntimeError as error:
            raise StartError(f"can't mount on {mountpoint}: {error}") from None
        (self._descriptor,) = _fuse_descriptors() - before
        self._workers = workers
        workers.attach(self._descriptor)

    def notification_channel(self) -> NotificationChannel:
        """Return the functions that write notifications to the session's descriptor."""
        descriptor = self._descriptor
        return NotificationChannel(
            inode=lambda node, pages: invalidate_inode(descriptor, node, pages=pages),
            entry=lambda parent, name, kept: invalidate_entry(
                descriptor, parent, name, expire=kept
            ),
        )

    def serve(self) -> None:
        """Serve requests until a signal or an unmount. Blocks; call it without the tree's lock."""
        llfuse.main(workers=self._workers.count, handle_signals=True)

    def close(self) -> None:
        """Unmount; requests without a reply fail with an error."""
        llfuse.close(unmount=True)


def _room_for(parked: int) -> Sequence[str]:
    """Return mount options for *parked* unanswered RELEASEs beside other background requests."""
    return f"max_background={BACKGROUND + parked}", f"congestion_threshold={CONGESTED + parked}"


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Return False for llfuse's error about a reply to an aborted request, as at an unmount."""
    return not record.getMessage().endswith(f"failed with {os.strerror(errno.ENOENT)}")


def _fuse_descriptors() -> set[int]:
    """Return this process's descriptors of /dev/fuse, as llfuse does not expose its own."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(link) == "/dev/fuse":
                found.add(int(link.name))
    return found
