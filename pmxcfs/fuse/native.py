"""The native session: the kernel's protocol without a library.

Contract: docs/spec/session.md; docs/spec/fuse.md, "Stopping".
"""

import os
from pathlib import Path

from pmxcfs.errors import StartError
from pmxcfs.fuse._device import Device
from pmxcfs.fuse._reader import Reader
from pmxcfs.fuse.handlers import Handlers
from pmxcfs.fuse.notifier import NotificationChannel
from pmxcfs.fuse.session import OwnMount, channel_of
from pmxcfs.fuse.turns import Turns
from pmxcfs.host.locking import Lock
from pmxcfs.host.process import detach

FIRST_REQUEST_TIMEOUT = 10.0  # seconds until the kernel has begun its protocol


class NativeSession:
    """A session that speaks the kernel's protocol itself."""

    name = "native"

    def __init__(self) -> None:
        self.lock = Lock()
        self.waits = self._turns = Turns(self.lock)

    def mount(self, handlers: Handlers, mountpoint: Path) -> None:
        """Mount on *mountpoint*. Raises StartError."""
        self._mount = OwnMount(mountpoint)
        try:
            self._device = Device()
            self._device.mount(os.fsencode(mountpoint))
        except OSError as error:
            raise StartError(f"can't mount on {mountpoint}: {error.strerror}") from None
        try:
            self._minor = self._agree(handlers)
        except BaseException:  # a dead mount is worse than none
            detach(mountpoint)
            raise
        self._mount.note()
        device, lock, interrupts = self._device, self.lock, self._turns.interrupts
        self._turns.begin(device, lambda number: Reader(number, device, handlers, lock, interrupts))

    def _agree(self, handlers: Handlers) -> int:
        """Agree with the kernel on the protocol; return its minor version. Raises StartError."""
        return self._device.agree(FIRST_REQUEST_TIMEOUT)

    def notification_channel(self) -> NotificationChannel:
        """Return the functions that write notifications to the session's descriptor."""
        return channel_of(self._device.descriptor, minor=self._minor)

    def serve(self) -> None:
        """Wait until ``end``, or until the kernel has ended the session. Blocks."""
        self._turns.is_over.wait()

    def end(self) -> None:
        """Make ``serve`` return."""
        self._device.stop()
        self._turns.close()

    def was_aborted(self) -> bool:
        """Tell whether the kernel has ended the session without an unmount, once it was served."""
        return self._mount.was_aborted()

    def close(self) -> None:
        """Detach the mount, if it is there, and end the session."""
        self.end()
        self._mount.detach(self._device.descriptor)
        self._device.close()
