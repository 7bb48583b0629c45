"""Queues and threads that send invalidation notifications to the kernel.

Queuing a notification never blocks; sending one can, unless it is of attributes alone. An entry's
notification blocks for as long as the kernel holds the lock of its directory, which is as long as a
mutation in that directory waits. So inode notifications have a thread of their own. Entry
notifications have as many threads as are needed, each busy with one directory at a time, so a
blocked directory does not delay the others.

A lookup's reply can reach the kernel after the notification of a later change, and leave a stale
inode. An entry notification waits until lookups in its directory are over; so the inode is notified
once more after its entry.

Threads: any thread may queue notifications.
Contract: docs/spec/fuse.md, "Invalidation".
"""

import functools
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from pmxcfs.host.threads import STOP_TIMEOUT, BackgroundThread

_log = logging.getLogger("pmxcfs.fuse")

KEPT_THREADS = 1  # for entries; others end when they are idle
IDLE_TIMEOUT = 5.0  # seconds without a notification after which a thread that is not kept ends
AGAIN_AFTER = 0.1  # seconds after which the reply of a concurrent lookup has reached the kernel


# A directory entry: the directory's node id, and the name. A call, as Cython 0.29 can't compile a
# class statement with this base.
Name = NamedTuple("Name", [("parent", int), ("name", bytes)])  # noqa: UP014


class _Queued:
    """The queued notification of one entry, and those of its inodes, to be sent after it."""

    __slots__ = ("inodes", "is_kept", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_kept = True  # the name is still the same object: expire the entry, don't drop it
        self.inodes: dict[int, bool] = {}  # node id -> whether to invalidate the pages, too


class NotificationChannel:
    """The functions that send a notification; they raise OSError.

    Those of an entry and of an inode's pages may block.
    """

    def __init__(
        self,
        inode: Callable[[int, bool], None],
        entry: Callable[[int, bytes, bool], None],
        *,
        all_entries: Callable[[], None] | None = None,
    ) -> None:
        self.all_entries = all_entries  # lets the kernel look up every name again, if it can
        self.inode = inode  # (node id, whether to invalidate pages)
        self.entry = entry  # (directory's node id, name, whether only to expire the entry)


class Notifier:
    """Unbounded, coalescing queues of notifications, and the threads that send them.

    At most *entry_threads* threads send notifications of entries.
    """

    def __init__(self, *, entry_threads: int) -> None:
        self._lock = threading.Lock()
        # Each queued notification wakes one thread: waking all of them costs more than sending it.
        self._has_inode = threading.Condition(self._lock)
        self._has_directory = threading.Condition(self._lock)
        self._inodes: OrderedDict[int, tuple[int, bool]] = OrderedDict()  # id -> (number, pages)
        self._directories: dict[int, OrderedDict[bytes, _Queued]] = {}
        self._ready: OrderedDict[int, None] = OrderedDict()  # directories without a thread
        # The number of the last queued notification. As soon as ``handed`` reaches that number, all
        # of these notifications have been sent.
        self.sequence = 0
        self._outstanding: OrderedDict[int, None] = OrderedDict()  # unsent numbers, ascending
        self._is_closed = False
        self._again: deque[tuple[float, list[int]]] = deque()  # (monotonic second, node ids)
        self._max_entry_threads = entry_threads
        self._entry_threads = self._idle_threads = 0  # for entries
        self._channel: NotificationChannel | None = None
        self._threads: list[BackgroundThread] = []

    def start(self, channel: NotificationChannel) -> None:
        """Send what is queued, and all that will be, through *channel*."""
        with self._lock:
            self._channel = channel
            self._start_thread(functools.partial(self._send_inodes, channel))
            for _ in range(max(1, len(self._ready))):
                self._start_entry_thread()

    def _start_thread(self, target: Callable[[], None]) -> None:
        thread = BackgroundThread("invalidation", target)
        self._threads = [known for known in self._threads if known.is_alive]
        self._threads.append(thread)
        thread.start()

    def _start_entry_thread(self) -> None:
        """Start another thread for entries, if there may be one."""
        if self._channel is not None and self._entry_threads < self._max_entry_threads:
            self._entry_threads += 1
            self._start_thread(functools.partial(self._send_entries, self._channel))

    @property
    def handed(self) -> int:
        """The number up to which all notifications have been sent to the kernel."""
        with self._lock:
            return next(iter(self._outstanding), self.sequence + 1) - 1

    def inode(self, node: int, *, pages: bool) -> None:
        """Invalidate the attributes of *node*; with *pages*, queue that and its pages'.

        The kernel takes no lock for attributes alone, so that never blocks, and no thread is woken.
        """
        channel = self._channel
        if pages or channel is None:
            with self._lock:
                self._queue_inode(node, pages=pages)
        else:
            self._try(channel.inode, node, False)

    def entry(self, name: Name, *, inode: int = 0, pages: bool = False) -> None:
        """Queue the invalidation of the entry *name*, then of its inode.

        With *inode*, the name still is that node: the entry only expires, and the inode is
        invalidated after it, with its pages if *pages*.
        """
        with self._lock:
            if name.parent not in self._directories:
                self._directories[name.parent] = OrderedDict()
                self._ready[name.parent] = None
                if len(self._ready) > self._idle_threads:
                    self._start_entry_thread()
                self._has_directory.notify()
            names = self._directories[name.parent]
            queued = names.get(name.name) or _Queued(self._next_number())
            names[name.name] = queued
            if inode:
                queued.inodes[inode] = queued.inodes.get(inode, False) or pages
            else:
                queued.is_kept = False

    def expire_all_entries(self) -> bool:
        """Have the kernel look up every name again; return whether it can. Never blocks.

        Then only inodes that are used without a look-up of their name can have outdated attributes.
        """
        channel = self._channel
        if channel is None or channel.all_entries is None:
            return False
        self._try(channel.all_entries)
        return True

    def attributes(self, nodes: list[int]) -> None:
        """Queue the invalidation of the attributes of *nodes*, now and again after AGAIN_AFTER."""
        with self._lock:
            self._queue_attributes(nodes)
            self._again.append((time.monotonic() + AGAIN_AFTER, nodes))

    def _queue_attributes(self, nodes: list[int]) -> None:
        for node in nodes:
            self._queue_inode(node, pages=False)

    def close(self, timeout: float = STOP_TIMEOUT) -> None:
        """End the threads; wait *timeout* seconds in all, as the kernel may block a thread."""
        with self._lock:
            self._is_closed = True
            self._channel = None
            self._has_inode.notify_all()
            self._has_directory.notify_all()
            threads = self._threads
        for thread in threads:
            thread.close(timeout / len(threads))

    def _queue_inode(self, node: int, *, pages: bool) -> None:
        number, known_pages = self._inodes.get(node) or (self._next_number(), False)
        self._inodes[node] = number, known_pages or pages
        self._has_inode.notify()

    def _next_number(self) -> int:
        self.sequence += 1
        self._outstanding[self.sequence] = None
        return self.sequence

    def _send_inodes(self, channel: NotificationChannel) -> None:
        for node, (number, pages) in iter(self._next_inode, None):
            self._try(channel.inode, node, pages)
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
        """Queue the repeated invalidations that are due; return the seconds to the next one."""
        while self._again:
            due, nodes = self._again[0]
            delay = due - time.monotonic()
            if delay > 0:
                return delay
            self._again.popleft()
            self._queue_attributes(nodes)
        return None

    def _send_entries(self, channel: NotificationChannel) -> None:
        for parent in iter(self._next_directory, None):
            with self._lock:
                name, queued = self._directories[parent].popitem(last=False)
            self._try(channel.entry, parent, name, queued.is_kept)
            with self._lock:
                self._finish_entry(parent, queued)

    def _next_directory(self) -> int | None:
        """Return the next directory; None if the thread is to end. Blocks."""
        with self._lock:
            while not self._ready and not self._is_closed:
                self._idle_threads += 1
                is_notified = self._has_directory.wait(IDLE_TIMEOUT)
                self._idle_threads -= 1
                if not (is_notified or self._ready) and self._entry_threads > KEPT_THREADS:
                    break
            if self._ready and not self._is_closed:
                return self._ready.popitem(last=False)[0]
            self._entry_threads -= 1
            return None

    def _finish_entry(self, parent: int, queued: _Queued) -> None:
        del self._outstanding[queued.number]
        for node, pages in queued.inodes.items():
            self._queue_inode(node, pages=pages)
        if self._directories[parent]:
            self._ready[parent] = None  # a running thread takes it next, so none is woken
        else:
            del self._directories[parent]

    def _try(self, send: Callable[..., None], *what: object) -> None:
        try:
            send(*what)
        except OSError as error:
            if not self._is_closed:
                _log.warning("can't invalidate the kernel's cache: %s", error)
