"""The FUSE session through llfuse: mount, main loop, descriptor and lock.

llfuse supports one mount per process. Its global lock serves as the tree's lock.
Contract: docs/spec/fuse.md, "Stopping" and "Waiting".
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
from pmxcfs.host.mounts import (
    Mounted,
    abort_fuse_connection,
    await_unmount,
    is_listed,
    mounts_on,
    topmost_on,
)
from pmxcfs.host.process import detach

_log = logging.getLogger("pmxcfs.main")

LOCK = llfuse.lock
LOCK_RELEASED = llfuse.lock_released

BACKGROUND = 12  # background requests (RELEASE, read-ahead) that the kernel sends at once
UNMOUNT_TIMEOUT = 1.0  # seconds from the end of the connection to the end of an unmount
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
        before, mounts_before = _fuse_descriptors(), mounts_on(mountpoint)
        logging.getLogger("llfuse").addFilter(_is_worth_logging)
        try:
            llfuse.init(operations, str(mountpoint), [*OPTIONS, *_room_for(workers.count)])
        except RuntimeError as error:
            raise StartError(f"can't mount on {mountpoint}: {error}") from None
        (self._descriptor,) = _fuse_descriptors() - before
        self._mountpoint = mountpoint
        self._mount = _new_mount(mountpoint, mounts_before)
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

    def was_aborted(self) -> bool:
        """Tell whether the kernel has ended the session without an unmount, once ``serve`` is over.

        ``umount --force`` ends the connection first. If a process uses the mount, it stays there,
        dead. Blocks for up to UNMOUNT_TIMEOUT.
        """
        return self._mount is not None and not await_unmount(self._mount.id, UNMOUNT_TIMEOUT)

    def close(self) -> None:
        """Detach the mount, if it is there, and end the session.

        Requests without a reply fail with an error. Otherwise such a request could hold a
        directory's lock in the kernel, for which a thread that sends a notification waits; that
        thread keeps the session open. libfuse's own unmount goes by the path: it would detach what
        another process has mounted there since.
        """
        if self._mount is not None:
            self._detach(self._mount)
        llfuse.close(unmount=False)

    def _detach(self, mount: Mounted) -> None:
        top = topmost_on(self._mountpoint)
        if top is not None and top.id == mount.id:
            with contextlib.suppress(StartError):  # another process was faster
                detach(self._mountpoint)
            return
        if is_listed(mount.id):
            _log.warning(
                "another file system is mounted over %s: the dead mount stays below it",
                self._mountpoint,
            )
        if self._is_connected():  # files on the mount are still open
            abort_fuse_connection(mount)

    def _is_connected(self) -> bool:
        """Tell whether the kernel still sends requests; after that, the device can be another's."""
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return not poll.poll(0)


def _new_mount(mountpoint: Path, before: Sequence[Mounted]) -> Mounted | None:
    """Return the FUSE mount that was not there *before*; None if it is gone already."""
    new = (mount for mount in mounts_on(mountpoint) if mount not in before)
    return next((mount for mount in new if mount.is_fuse), None)


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
