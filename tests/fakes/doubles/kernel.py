"""Doubles for invalidation tests: a kernel that takes notifications, and a recording notifier."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pmxcfs.fuse.notifier import Name, NotificationChannel, Notifier

TIMEOUT = 30.0  # seconds until a wait fails the test
# ("inode", node, pages), ("entry", parent, name, kept) or ("all entries",)
Sent = tuple[object, ...]


class Kernel:
    """Takes notifications; those of a locked directory block until it is unlocked."""

    def __init__(self, *, has_epochs: bool = False) -> None:
        self.sent: list[Sent] = []
        self._times: list[float] = []  # monotonic second of each
        self.blocked: list[Sent] = []
        self._locked: set[int] = set()
        self._changed = threading.Condition()
        self.failure: OSError | None = None
        self.channel = NotificationChannel(
            self.inode,
            self.entry,
            all_entries=(lambda: self._take("all entries")) if has_epochs else None,
        )

    def inode(self, node: int, pages: bool) -> None:
        self._take("inode", node, pages)

    def entry(self, parent: int, name: bytes, kept: bool) -> None:
        with self._changed:
            self.blocked.append(("entry", parent, name, kept))
            self._changed.notify_all()
            self._changed.wait_for(lambda: parent not in self._locked, TIMEOUT)
            self.blocked.remove(("entry", parent, name, kept))
        self._take("entry", parent, name, kept)

    def _take(self, *what: object) -> None:
        with self._changed:
            self.sent.append(what)
            self._times.append(time.monotonic())
            self._changed.notify_all()
        if self.failure is not None:
            raise self.failure

    def sent_since(self, moment: float) -> list[Sent]:
        """Return the notifications sent at or after the monotonic second *moment*."""
        return [
            what for what, sent_at in zip(self.sent, self._times, strict=True) if sent_at >= moment
        ]

    @contextmanager
    def locked(self, *directories: int) -> Iterator[None]:
        """Hold the locks of *directories*, by node id, until the block ends."""
        self._locked.update(directories)
        try:
            yield
        finally:
            with self._changed:
                self._locked.clear()
                self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Block until *condition* is true, at the latest for TIMEOUT seconds."""
        with self._changed:
            assert self._changed.wait_for(condition, TIMEOUT), self.sent


class Recorder(Notifier):
    """A Notifier that only records what is queued."""

    def __init__(self) -> None:
        self.queued: list[Sent] = []
        self.has_epochs = False

    def expire_all_entries(self) -> bool:
        if self.has_epochs:
            self.queued.append(("all entries",))
        return self.has_epochs

    def inode(self, node: int, *, pages: bool) -> None:
        self.queued.append(("inode", node, pages))

    def entry(self, name: Name, *, inode: int = 0, pages: bool = False) -> None:
        self.queued.append(("entry", name.parent, name.name, inode, pages))

    def attributes(self, nodes: list[int]) -> None:
        self.queued.append(("attributes", nodes))
