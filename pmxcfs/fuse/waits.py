"""Waits of the threads that handle requests: they release the tree's lock, and others go on.

A session has one thread that reads requests, because each request costs more if the next one goes
to another thread, often on another CPU. When that thread begins to wait inside a handler, another
one has to read. It is called at once, or only when a request has come (``RequestWatch``), or when a
write takes long (``StallWatch``). How another thread is called is the session's matter.

Threads: all methods need the tree's lock, and release it while they block.
Contract: docs/spec/fuse.md, "Waiting"; docs/spec/performance.md, "What costs time".
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic

from pmxcfs.errors import Busy
from pmxcfs.fuse.stalls import StallWatch
from pmxcfs.replica.tickets import Signal
from pmxcfs.replica.waiting import NOT_INTERRUPTIBLE, Interruption, RequestWatch

PLACE_TIMEOUT = 0.05  # seconds that a thread waits until it may wait for something
STALLED_AFTER = 0.25  # seconds without a begin or end of a wait: a device or the cluster stalls
MAX_QUEUED = 64  # threads that wait until they may wait


class Waits:
    """The waits, of which at most *limit* may last at one time."""

    def __init__(self, limit: int) -> None:
        self.waiting_count = 0  # threads that wait for a device, another thread or other nodes
        self.limit = limit
        self._descriptor = -1  # of the session; -1 before ``attach``
        self._reader_call = self._call_reader  # kept, as each write needs it
        self._queued: deque[Signal] = deque()  # of threads that want to wait, too
        self._last_turn = 0.0  # monotonic second in which a wait last began or ended
        self.stalls = StallWatch()  # its thread is started and closed by the daemon
        self._writes = self.stalls.writes

    def attach(self, descriptor: int) -> None:
        """Note *descriptor*, the session's, from which requests are read."""
        self._descriptor = descriptor

    # What a session does.

    def close(self) -> None:
        """Let all threads go on that wait for their turn to read: the session ends."""

    def _release(self) -> None:
        """Release the tree's lock until ``_acquire``."""
        raise NotImplementedError

    def _acquire(self) -> None:
        """Take the tree's lock. Blocks."""
        raise NotImplementedError

    def _begin(self) -> bool:
        """Note that the calling thread goes away; return whether no other one reads then."""
        raise NotImplementedError

    def _end(self) -> None:
        """Note that the calling thread is back."""

    def _call_reader(self) -> None:
        """Have another thread read requests. For any thread; does not need the lock."""
        raise NotImplementedError

    # The protocol ``replica.waiting.WatchfulYielding``.

    def interruptible(self, wake: Callable[[], None]) -> Interruption:
        """Return what calls *wake* if the calling thread's request is interrupted.

        This session is not told of signals.
        """
        return NOT_INTERRUPTIBLE

    def begin_write(self) -> RequestWatch:
        """Release the lock for a write; another thread reads only if that takes long."""
        watch = self._new_watch()
        self.expect_write(watch)
        self._release()
        return watch

    def end_write(self, watch: RequestWatch) -> None:
        """Take the lock again after a write; *watch* is what ``begin_write`` returned."""
        self._come_back(watch)

    def expect_write(self, watch: RequestWatch) -> None:
        """Stop *watch*, so that another thread reads, if what comes now takes long.

        It is a write, which lasts until the thread takes the lock again. Needs no lock.
        """
        if watch.is_active and self._writes.begin(watch):
            self.stalls.wake()

    def _new_watch(self) -> RequestWatch:
        """Return the watch of a thread that is about to release the lock until ``_come_back``."""
        return RequestWatch(self._descriptor, self._reader_call, self._begin())

    def _come_back(self, watch: RequestWatch) -> None:
        self._acquire()
        self._writes.end(watch)
        self._end()

    @contextlib.contextmanager
    def waiting(self, *, must: bool = False) -> Iterator[None]:
        """Release the lock to wait for a device, other threads or nodes.

        Raises Busy if too many threads wait already, unless this one *must*.
        """
        watch = self.begin_waiting(must)
        try:
            watch.stop()
            yield
        finally:
            self.end_waiting(watch)

    def begin_waiting(self, must: bool = False) -> RequestWatch:
        """Release the lock to wait until ``end_waiting``, and watch for requests meanwhile.

        The watch must be stopped before the thread waits for anything that does not poll it.
        Raises Busy if too many threads wait already, unless this one *must*.
        """
        if self.waiting_count >= self.limit and not must:
            self._await_place()
        self.waiting_count += 1
        self._last_turn = monotonic()
        watch = self._new_watch()
        self._release()
        return watch

    def end_waiting(self, watch: RequestWatch) -> None:
        """Take the lock again after a wait; *watch* is what ``begin_waiting`` returned."""
        self._come_back(watch)
        self.waiting_count -= 1
        self._last_turn = monotonic()
        if self._queued:
            self._queued.popleft().give()

    def _await_place(self) -> None:
        """Wait until fewer threads wait, for a short time. Raises Busy.

        Waits on a healthy device end within milliseconds. If none has ended for longer, there is no
        use in keeping another thread from reading requests.
        """
        until = monotonic() + PLACE_TIMEOUT
        while self.waiting_count >= self.limit:
            now = monotonic()
            left = until - now
            is_stalled = now - self._last_turn > STALLED_AFTER
            if left <= 0 or is_stalled or len(self._queued) >= MAX_QUEUED:
                raise Busy(f"{self.waiting_count} changes are waiting already")
            signal = Signal()
            self._queued.append(signal)
            watch = self._new_watch()
            self._release()
            try:
                watch.stop()
                is_given = signal.wait(left)
            finally:
                self._come_back(watch)
            if not is_given and signal in self._queued:
                self._queued.remove(signal)
