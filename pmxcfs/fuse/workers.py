"""The threads that answer the kernel: how one lets others have the lock, and which of them read.

Each that reads requests makes every request dearer, because the next one goes to another thread,
on another processor as like as not. With only one, everybody waits while that one waits for a
device or another node. So all but one are parked, and the moment the last that reads begins to
wait, it calls one back, or keeps the watch and calls when a request has come. A worker parks inside
its RELEASE handler, whose answer nobody waits for.

Threads: everything here needs the tree's lock, and gives it back while it waits.
Contract: docs/spec/fuse.md, "Waiting"; performance.md.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

from pmxcfs.errors import Busy
from pmxcfs.host.process import let_others_go_first
from pmxcfs.replica.waiting import RequestWatch

RESERVED_WORKERS = 4  # that never wait for other nodes, so that reads go on
LOOK_AFTER = 1.0  # seconds until a parked worker looks whether the mount is still there

T = TypeVar("T")


class Workers:
    """All *count* of them. *lock_released* gives the tree's lock back until its block ends."""

    def __init__(self, count: int, *, lock_released: AbstractContextManager[None]) -> None:
        self.is_over: Callable[[], bool] = lambda: False  # tells whether the mount is gone
        self.descriptor = -1  # where the requests come from
        self.waiting_count = 0  # those that wait for other nodes
        self.count = count
        self._most_waiting = max(0, count - RESERVED_WORKERS)
        self._lock_released = lock_released
        self._away = 0  # those without the lock; other threads count, too, which calls one too many
        self._parked: list[threading.Event] = []
        self._is_closed = False
        self._aside = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="saver", initializer=let_others_go_first
        )

    @property
    def _readers(self) -> int:
        return self.count - self._away - len(self._parked)

    def give_way(self) -> None:
        """Let handlers that wait for the lock run up to their own mutation."""
        if self._readers > 1:
            with self._lock_released:
                os.sched_yield()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Give the lock back until the block ends, to wait for a device or for another worker."""
        with self._released_with_watch() as watch:
            watch.stop()
            yield

    @contextlib.contextmanager
    def _released_with_watch(self) -> Iterator[RequestWatch]:
        self._away += 1
        watch = RequestWatch(self.descriptor, self._call, is_active=self._readers < 1)
        try:
            with self._lock_released:
                yield watch
        finally:
            self._away -= 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Do the same to wait for other nodes; raise Busy if too many do that already."""
        with self.waiting_with_watch() as watch:
            watch.stop()
            yield

    @contextlib.contextmanager
    def waiting_with_watch(self) -> Iterator[RequestWatch]:
        """Do the same, but call nobody: the block leaves the watch before it waits elsewhere."""
        if self.waiting_count >= self._most_waiting:
            raise Busy(f"{self.waiting_count} changes are waiting already")
        self.waiting_count += 1
        try:
            with self._released_with_watch() as watch:
                yield watch
        finally:
            self.waiting_count -= 1

    def aside(self, work: Callable[[], T]) -> T:
        """Have a nice thread do something that takes long, with the lock given back."""
        with self.released():
            return self._aside.submit(work).result()

    def park(self) -> None:
        """Wait until this worker is needed, unless it is the only one that reads."""
        if self._is_closed or self._readers < 2:
            return
        called = threading.Event()
        # One that looks is enough. It is the first, as the last is called first.
        pause = None if self._parked else LOOK_AFTER
        self._parked.append(called)
        with self._lock_released:
            while not called.wait(pause) and not self.is_over():
                pass
        if not called.is_set():
            self.close()

    def close(self) -> None:
        """Call all back, for good: the daemon stops."""
        self._is_closed = True
        while self._parked:
            self._call()

    def _call(self) -> None:
        """Have a parked worker read, if there is one. For any thread, and without the lock."""
        with contextlib.suppress(IndexError):
            self._parked.pop().set()
