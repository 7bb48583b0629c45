"""What a session is for the daemon, and the mount that every kind of session has to watch.

A session mounts the file system, reads the kernel's requests and hands them to the handlers.
Contract: docs/spec/session.md; docs/spec/fuse.md, "Stopping".
"""

import contextlib
import logging
import select
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pmxcfs.errors import StartError
from pmxcfs.fuse._notify import (
    EPOCH_SINCE,
    expire_all_entries,
    invalidate_entry,
    invalidate_inode,
)
from pmxcfs.fuse.handlers import Handlers
from pmxcfs.fuse.notifier import NotificationChannel
from pmxcfs.fuse.waits import Waits
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

BACKGROUND = 12  # background requests (RELEASE, read-ahead) that the kernel sends at once
CONGESTED = 9  # background requests above which the kernel does no read-ahead
UNMOUNT_TIMEOUT = 1.0  # seconds from the end of the connection to the end of an unmount


class Session(Protocol):
    """One mount and the threads that serve it, from ``mount`` to ``close``."""

    @property
    def name(self) -> str:
        """The name of this kind of session."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """The tree's lock, which is held while a handler runs."""

    @property
    def waits(self) -> Waits:
        """The waits of this session's threads."""

    def mount(self, handlers: Handlers, mountpoint: Path) -> None:
        """Mount on *mountpoint*. Raises StartError."""

    def notification_channel(self) -> NotificationChannel:
        """Return the functions that write notifications to the session's descriptor."""

    def serve(self) -> None:
        """Serve requests until ``end`` or an unmount. Blocks; call it without the tree's lock."""

    def end(self) -> None:
        """Make ``serve`` return. Called in the thread that takes the signals, after a signal."""

    def was_aborted(self) -> bool:
        """Tell whether the kernel has ended the session without an unmount, once it was served.

        ``umount --force`` ends the connection first. If a process uses the mount, it stays there,
        dead. Blocks for up to UNMOUNT_TIMEOUT.
        """

    def close(self) -> None:
        """Detach the mount, if it is there, and end the session."""


class OwnMount:
    """The mount of this session: another one can be on its mountpoint since.

    Made before *mountpoint* is mounted; ``note`` is called afterwards.
    """

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self._before = mounts_on(mountpoint)
        self._mount: Mounted | None = None  # also if it is gone already

    def note(self) -> None:
        """Find the mount, which is there now."""
        self._mount = _new_mount(self._mountpoint, self._before)

    def was_aborted(self) -> bool:
        """Tell whether the mount stays, although its connection has ended."""
        return self._mount is not None and not await_unmount(self._mount, UNMOUNT_TIMEOUT)

    def detach(self, descriptor: int) -> None:
        """Detach the mount, if it is there, so that requests without a reply fail.

        Otherwise such a request could hold a directory's lock in the kernel, for which a thread
        that sends a notification waits; that thread keeps the session open. *descriptor* is the
        session's.
        """
        if self._mount is None:
            return
        top = topmost_on(self._mountpoint)
        if top is not None and top.identity == self._mount.identity:
            with contextlib.suppress(StartError):  # another process was faster
                detach(self._mountpoint)
            return
        if is_listed(self._mount):
            _log.warning(
                "another file system is mounted over %s: the dead mount stays below it",
                self._mountpoint,
            )
        if _is_connected(descriptor):  # files on the mount are still open
            abort_fuse_connection(self._mount)


def channel_of(descriptor: int, *, minor: int = 0) -> NotificationChannel:
    """Return the functions that write notifications to a session's *descriptor*.

    *minor* is the version of the protocol that the kernel has, 0 if that is not known.
    """
    has_epochs = minor >= EPOCH_SINCE
    return NotificationChannel(
        inode=lambda node, pages: invalidate_inode(descriptor, node, pages=pages),
        entry=lambda parent, name, kept: invalidate_entry(descriptor, parent, name, expire=kept),
        all_entries=(lambda: expire_all_entries(descriptor)) if has_epochs else None,
    )


def _is_connected(descriptor: int) -> bool:
    """Tell whether the kernel still sends requests; after that, the device can be another's."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return not poll.poll(0)


def _new_mount(mountpoint: Path, before: Sequence[Mounted]) -> Mounted | None:
    """Return the FUSE mount that was not there *before*; None if it is gone already."""
    new = (mount for mount in mounts_on(mountpoint) if mount not in before)
    return next((mount for mount in new if mount.is_fuse), None)
