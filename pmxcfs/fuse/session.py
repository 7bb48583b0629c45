"""The session with the kernel by llfuse: mounting, the main loop, the descriptor, the lock.

llfuse knows one mount a process. Its lock is the tree's lock. Contract: docs/spec/fuse.md.
"""

import contextlib
import errno
import logging
import os
import select
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

BACKGROUND = 12  # requests that nobody waits for, and reads ahead, that the kernel has under way
CONGESTED = 9  # of these, from which on it does not read ahead
OPTIONS = (
    "default_permissions",
    "allow_other",
    "nosuid",
    "nodev",
    "fsname=/dev/fuse",
    "nonempty",  # files below the mountpoint are warned of, not a reason to fail
    "big_writes",
    "atomic_o_trunc",  # O_TRUNC comes with the open, so a rewritten file is one change
)


class Mount:
    """The session with the kernel: mounted when made, until ``close``."""

    def __init__(self, operations: Operations, mountpoint: Path, *, workers: Workers) -> None:
        before = _fuse_descriptors()
        logging.getLogger("llfuse").addFilter(_is_worth_logging)
        try:
            llfuse.init(operations, str(mountpoint), [*OPTIONS, *_room_for(workers.count)])
        except RuntimeError as error:
            raise StartError(f"can't mount on {mountpoint}: {error}") from None
        (self._descriptor,) = _fuse_descriptors() - before
        self._workers = workers
        workers.is_over = self._is_over
        workers.descriptor = self._descriptor

    def notification_channel(self) -> NotificationChannel:
        """Return the way to send notifications to the kernel."""
        descriptor = self._descriptor
        return NotificationChannel(
            inode=lambda node, pages: invalidate_inode(descriptor, node, pages=pages),
            entry=lambda parent, name, kept: invalidate_entry(
                descriptor, parent, name, expire=kept
            ),
        )

    def serve(self) -> None:
        """Answer requests until a signal or an unmount ends it. Must not hold the lock."""
        llfuse.main(workers=self._workers.count, handle_signals=True)

    def _is_over(self) -> bool:
        """Tell whether the kernel has ended the session: its descriptor has an error then."""
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Unmount; requests that are under way end with an error."""
        llfuse.close(unmount=True)


def _room_for(parked: int) -> Sequence[str]:
    """Return options that let so many RELEASEs be outstanding beside the kernel's own requests."""
    return f"max_background={BACKGROUND + parked}", f"congestion_threshold={CONGESTED + parked}"


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Drop llfuse's complaint about a reply that nobody waits for any more, as on an unmount."""
    return not record.getMessage().endswith(f"failed with {os.strerror(errno.ENOENT)}")


def _fuse_descriptors() -> set[int]:
    """Return this process's descriptors of /dev/fuse; llfuse does not tell its own."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(link) == "/dev/fuse":
                found.add(int(link.name))
    return found
