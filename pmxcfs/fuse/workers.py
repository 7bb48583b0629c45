"""The worker threads that serve kernel requests: releasing the tree's lock, and parking.

With several workers that read requests, each request costs more, because the next one goes to
another thread, often on another CPU. With only one, all requests wait while that worker waits for a
device or for another node. So all workers but one are parked. When the last worker that reads
begins to wait, it unparks another one, or it watches for requests (``RequestWatch``) and unparks
one when a request has come. A worker parks in its RELEASE handler, as no process waits for that
reply.

Threads: all methods need the tree's lock, and release it while they block.
Contract: docs/spec/fuse.md, "Waiting"; docs/spec/performance.md, "What costs time".
"""

import contextlib
import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager

from pmxcfs.errors import Busy
from pmxcfs.fuse.stalls import StallWatch
from pmxcfs.replica.tickets import Signal
from pmxcfs.replica.waiting import RequestWatch

RESERVED_WORKERS = 4  # workers that never wait for other nodes, so that reads go on
PLACE_TIMEOUT = 0.05  # seconds that a worker waits until it may wait for something
STALLED_AFTER = 0.25  # seconds without a begin or end of a wait: a device or the cluster stalls
SESSION_CHECK_INTERVAL = 1.0  # seconds between checks of a parked worker for the session's end


class Workers:
    """The *count* workers. *lock_released* releases the tree's lock until its block ends."""

    def __init__(self, count: int, *, lock_released: AbstractContextManager[None]) -> None:
        self._descriptor = -1  # of the session; -1 before ``attach``
        self.waiting_count = 0  # workers that wait for other nodes
        self.count = count
        self._max_waiting = max(0, count - RESERVED_WORKERS)
        self._lock_released = lock_released
        # Threads without the lock. Other threads count, too, which may unpark one worker too many.
        self._released_count = 0
        self._parked: list[threading.Event] = []
        self._queued: deque[Signal] = deque()  # of workers that want to wait, too
        self._last_turn = 0.0  # monotonic second in which a wait last began or ended
        self._is_closed = False
        self.stalls = StallWatch()  # its thread is started and closed by the daemon

    def attach(self, descriptor: int) -> None:
        """Note *descriptor*, the session's, from which the workers read requests."""
        self._descriptor = descriptor

    def _is_over(self) -> bool:
        """Return whether the kernel has ended the session, by the state of the descriptor."""
        if self._descriptor < 0:
            return False
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return bool(poll.poll(0))

    @property
    def _readers(self) -> int:
        return self.count - self._released_count - len(self._parked)

    def writing(self) -> AbstractContextManager[None]:
        """Release the lock for a write; another worker is unparked only if that takes long."""
        return _Writing(self)

    def during_write(self, watch: RequestWatch) -> AbstractContextManager[None]:
        """Stop *watch*, so that another worker is unparked, if the block takes long."""
        return self.stalls.watching(watch) if watch.is_active else contextlib.nullcontext()

    def begin_write(self) -> RequestWatch:
        """Release the lock; the watch is for ``end_write``."""
        self._released_count += 1
        watch = RequestWatch(self._descriptor, self._unpark_one, is_active=self._readers < 1)
        if watch.is_active:
            self.stalls.begin(watch)
        self._lock_released.__enter__()
        return watch

    def end_write(self, watch: RequestWatch) -> None:
        """Take the lock again."""
        self._lock_released.__exit__(None, None, None)
        self.stalls.end(watch)
        self._released_count -= 1

    @contextlib.contextmanager
    def _released_with_watch(self) -> Iterator[RequestWatch]:
        self._released_count += 1
        watch = RequestWatch(self._descriptor, self._unpark_one, is_active=self._readers < 1)
        try:
            with self._lock_released:
                yield watch
        finally:
            self._released_count -= 1

    @contextlib.contextmanager
    def waiting(self, *, must: bool = False) -> Iterator[None]:
        """Release the lock to wait for a device, other workers or nodes.

        Raises Busy if too many workers wait already, unless this one *must*.
        """
        with self.waiting_with_watch(must=must) as watch:
            watch.stop()
            yield

    @contextlib.contextmanager
    def waiting_with_watch(self, *, must: bool = False) -> Iterator[RequestWatch]:
        """Release the lock to wait, and watch for requests meanwhile.

        The block must stop the watch before it waits for anything that does not poll the watch.
        Raises Busy if too many workers wait already, unless this one *must*.
        """
        if self.waiting_count >= self._max_waiting and not must:
            self._await_place()
        self.waiting_count += 1
        self._last_turn = time.monotonic()
        try:
            with self._released_with_watch() as watch:
                yield watch
        finally:
            self.waiting_count -= 1
            self._last_turn = time.monotonic()
            if self._queued:
                self._queued.popleft().give()

    def _await_place(self) -> None:
        """Wait until fewer workers wait, for a short time. Raises Busy.

        Waits on a healthy device end within milliseconds. If none has ended for longer, there is no
        use in keeping another worker from reading requests.
        """
        until = time.monotonic() + PLACE_TIMEOUT
        while self.waiting_count >= self._max_waiting:
            left = until - time.monotonic()
            if left <= 0 or time.monotonic() - self._last_turn > STALLED_AFTER:
                raise Busy(f"{self.waiting_count} changes are waiting already")
            signal = Signal()
            self._queued.append(signal)
            with self._released_with_watch() as watch:
                watch.stop()
                is_given = signal.wait(left)
            if not is_given and signal in self._queued:
                self._queued.remove(signal)

    def park(self) -> None:
        """Block until this worker is unparked, unless it is the only one that reads requests."""
        if self._is_closed or self._readers < 2:
            return
        unparked = threading.Event()
        # One worker that checks is enough. It is the first one, as it is unparked last.
        pause = None if self._parked else SESSION_CHECK_INTERVAL
        self._parked.append(unparked)
        with self._lock_released:
            while not unparked.wait(pause) and not self._is_over():
                pass
        if not unparked.is_set():
            self.close()

    def close(self) -> None:
        """Unpark all workers, and let none park any more."""
        self._is_closed = True
        while self._parked:
            self._unpark_one()

    def _unpark_one(self) -> None:
        """Unpark one worker, if any is parked. For any thread; does not need the lock."""
        with contextlib.suppress(IndexError):
            self._parked.pop().set()


class _Writing(AbstractContextManager[None]):
    """The block of ``Workers.writing``: a class, as a generator costs each change some us more."""

    __slots__ = ("_watch", "_workers")

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def __enter__(self) -> None:
        self._watch = self._workers.begin_write()

    def __exit__(self, *_: object) -> None:
        self._workers.end_write(self._watch)
