"""Sending invalidations to the kernel, without anyone ever waiting for it.

Inodes have a thread of their own, because an entry's notification blocks for as long as the kernel
holds that directory's lock, which is as long as a mutation in it waits. Entries have several
threads, each busy with one directory at a time, so that a blocked one hides nothing elsewhere.

A look-up's answer can reach the kernel after the notification of a later change. The entry's
notification waits for look-ups in that directory; so after it the inode is notified once more.

Contract: docs/spec/fuse.md, "Invalidation"; filesystem.md, "Better than before" 4.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from pmxcfs.host.threads import STOP_TIMEOUT, BackgroundThread

_log = logging.getLogger("pmxcfs.fuse")

AGAIN_AFTER = 0.1  # seconds until a look-up that was being answered has reached the kernel


# A directory entry as the kernel knows it; *parent* is a node id. A call, because Cython 0.29 can't
# make a class with this base.
Name = NamedTuple("Name", [("parent", int), ("name", bytes)])  # noqa: UP014


class _Queued:
    """What is to be sent for one name."""

    __slots__ = ("inodes", "is_kept", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_kept = True  # still the same object: look it up again, but don't detach it
        self.inodes: dict[int, bool] = {}  # node ids to be notified afterwards -> pages too


class NotificationChannel:
    """How a notification gets to the kernel; both may block, and raise OSError when it is gone."""

    def __init__(
        self, inode: Callable[[int, bool], None], entry: Callable[[int, bytes, bool], None]
    ) -> None:
        self.inode = inode  # (node id, pages too)
        self.entry = entry  # (parent's node id, name, only look it up again)


class Notifier:
    """Unbounded, coalescing queues of notifications and the threads that send them."""

    def __init__(self, channel: NotificationChannel, *, entry_threads: int) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        # One thread is woken for each thing to do: waking all costs more than the notifications.
        self._has_inode = threading.Condition(self._lock)
        self._has_directory = threading.Condition(self._lock)
        self._inodes: OrderedDict[int, tuple[int, bool]] = OrderedDict()  # -> number, pages too
        self._directories: dict[int, OrderedDict[bytes, _Queued]] = {}
        self._ready: OrderedDict[int, None] = OrderedDict()  # of these, not being worked on
        # Notifications are numbered as they are queued; this is the last one's number, which
        # ``handed`` must reach before all that is queued now has been handed over.
        self.sequence = 0
        self._outstanding: OrderedDict[int, None] = OrderedDict()  # not yet handed over; ascending
        self._is_closed = False
        self._again: deque[tuple[float, list[int]]] = deque()  # monotonic second, attributes of
        work = [self._send_inodes] + [self._send_entries] * entry_threads
        self._threads = [BackgroundThread("invalidation", target) for target in work]

    def start(self) -> None:
        """Start sending."""
        for thread in self._threads:
            thread.start()

    @property
    def handed(self) -> int:
        """All notifications up to this number have been handed to the kernel."""
        with self._lock:
            return next(iter(self._outstanding), self.sequence + 1) - 1

    def inode(self, node: int, *, pages: bool) -> None:
        """Queue: forget the attributes of *node*, and with *pages* its content."""
        with self._lock:
            self._queue_inode(node, pages=pages)

    def entry(self, name: Name, *, inode: int = 0, pages: bool = False) -> None:
        """Queue: forget what stands at *name*; if it is still *inode*, look that up anew."""
        with self._lock:
            if name.parent not in self._directories:
                self._directories[name.parent] = OrderedDict()
                self._ready[name.parent] = None
                self._has_directory.notify()
            names = self._directories[name.parent]
            queued = names.get(name.name) or _Queued(self._next_number())
            names[name.name] = queued
            if inode:
                queued.inodes[inode] = queued.inodes.get(inode, False) or pages
            else:
                queued.is_kept = False

    def attributes(self, nodes: list[int]) -> None:
        """Queue: forget the attributes of *nodes* now, and once more when look-ups are through."""
        with self._lock:
            self._queue_attributes(nodes)
            self._again.append((time.monotonic() + AGAIN_AFTER, nodes))

    def _queue_attributes(self, nodes: list[int]) -> None:
        for node in nodes:
            self._queue_inode(node, pages=False)

    def close(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop the threads; those that the kernel blocks get *timeout* seconds in all."""
        with self._lock:
            self._is_closed = True
            self._has_inode.notify_all()
            self._has_directory.notify_all()
        for thread in self._threads:
            thread.close(timeout / len(self._threads))

    def _queue_inode(self, node: int, *, pages: bool) -> None:
        number, known_pages = self._inodes.get(node) or (self._next_number(), False)
        self._inodes[node] = number, known_pages or pages
        self._has_inode.notify()

    def _next_number(self) -> int:
        self.sequence += 1
        self._outstanding[self.sequence] = None
        return self.sequence

    def _send_inodes(self) -> None:
        for node, (number, pages) in iter(self._next_inode, None):
            self._try(self._channel.inode, node, pages)
            with self._lock:
                del self._outstanding[number]

    def _next_inode(self) -> tuple[int, tuple[int, bool]] | None:
        with self._lock:
            while not self._is_closed:
                delay = self._queue_what_is_due()
                if self._inodes:
                    return self._inodes.popitem(last=False)
                self._has_inode.wait(delay)
            return None

    def _queue_what_is_due(self) -> float | None:
        """Queue attributes whose time for once more has come; return the seconds to the next."""
        while self._again:
            due, nodes = self._again[0]
            delay = due - time.monotonic()
            if delay > 0:
                return delay
            self._again.popleft()
            self._queue_attributes(nodes)
        return None

    def _send_entries(self) -> None:
        for parent in iter(self._next_directory, None):
            with self._lock:
                name, queued = self._directories[parent].popitem(last=False)
            self._try(self._channel.entry, parent, name, queued.is_kept)
            with self._lock:
                self._finish_entry(parent, queued)

    def _next_directory(self) -> int | None:
        with self._lock:
            self._has_directory.wait_for(lambda: self._ready or self._is_closed)
            return None if self._is_closed else self._ready.popitem(last=False)[0]

    def _finish_entry(self, parent: int, queued: _Queued) -> None:
        del self._outstanding[queued.number]
        for node, pages in queued.inodes.items():
            self._queue_inode(node, pages=pages)
        if self._directories[parent]:
            self._ready[parent] = None  # for this thread or another that is awake: it looks next
        else:
            del self._directories[parent]

    def _try(self, send: Callable[..., None], *what: object) -> None:
        try:
            send(*what)
        except OSError as error:
            if not self._is_closed:
                _log.warning("the kernel could not be told of a change: %s", error)
