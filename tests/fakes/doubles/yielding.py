"""The protocol ``replica.waiting.WatchfulYielding``, without FUSE workers."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from pmxcfs.errors import Busy
from pmxcfs.replica import waiting
from pmxcfs.replica.waiting import NOT_INTERRUPTIBLE, Interruption, RequestWatch

PATIENCE = 10.0  # seconds for another thread to release the lock
NO_WATCH = RequestWatch(-1, lambda: None, is_active=False)


@contextlib.contextmanager
def writing(yielding: waiting.Yielding) -> Iterator[None]:
    """Write, with the lock released, until the block ends."""
    watch = yielding.begin_write()
    try:
        yield
    finally:
        yielding.end_write(watch)


@contextlib.contextmanager
def watching(yielding: waiting.WatchfulYielding) -> Iterator[RequestWatch]:
    """Wait, and watch for requests, until the block ends."""
    watch = yielding.begin_waiting()
    try:
        yield watch
    finally:
        yielding.end_waiting(watch)


class Request:
    """A request whose program can get a signal."""

    def __init__(self) -> None:
        self.is_interrupted = False
        self.on_interrupt: Callable[[], None] | None = None

    def interrupt(self) -> None:
        """Interrupt the request. Needs the lock."""
        self.is_interrupted = True
        if self.on_interrupt is not None:
            self.on_interrupt()


class Yielding:
    """Releases *lock* on request; at most *room* threads may wait at a time, unless they must."""

    def __init__(self, *, room: int) -> None:
        self.lock = threading.Condition(threading.Lock())
        self.away = self.count = 0  # threads without the lock, and those of them that wait
        self.room = room
        self.requests: dict[int, Request] = {}  # by the thread that handles it

    def handling(self) -> Request:
        """Return a request that the calling thread handles from now on."""
        request = self.requests[threading.get_ident()] = Request()
        return request

    def interruptible(self, wake: Callable[[], None]) -> Interruption:
        return Interruption(self.requests.get(threading.get_ident()), wake)

    def begin_write(self) -> RequestWatch:
        self.away += 1
        self.lock.notify_all()
        self.lock.release()
        return NO_WATCH

    def end_write(self, watch: RequestWatch) -> None:
        self.lock.acquire()
        self.away -= 1

    @contextlib.contextmanager
    def waiting(self, *, must: bool = False) -> Iterator[None]:
        watch = self.begin_waiting(must=must)
        try:
            yield
        finally:
            self.end_waiting(watch)

    def begin_waiting(self, *, must: bool = False) -> RequestWatch:
        if self.count >= self.room and not must:
            raise Busy("full")
        self.count += 1
        return self.begin_write()

    def expect_write(self, watch: RequestWatch) -> None:
        pass

    def end_waiting(self, watch: RequestWatch) -> None:
        self.end_write(watch)
        self.count -= 1

    def await_away(self, count: int) -> None:
        """Wait until *count* threads have released the lock."""
        with self.lock:
            assert self.lock.wait_for(lambda: self.away == count, PATIENCE)


class SingleYielding:
    """For one thread without a lock: what other workers do meanwhile is done by this thread."""

    def __init__(self) -> None:
        self.during_waits: list[Callable[[], object]] = []
        self.during_writes: list[Callable[[], object]] = []
        self.waits = self.writes = 0
        self.is_full = False

    def interruptible(self, wake: Callable[[], None]) -> Interruption:
        return NOT_INTERRUPTIBLE

    def begin_write(self) -> RequestWatch:
        self.writes += 1
        if self.during_writes:
            self.during_writes.pop(0)()
        return NO_WATCH

    def end_write(self, watch: RequestWatch) -> None:
        pass

    @contextlib.contextmanager
    def waiting(self, *, must: bool = False) -> Iterator[None]:
        if self.is_full and not must:
            raise Busy("too many wait")
        self.waits += 1
        if self.during_waits:
            self.during_waits.pop(0)()
        yield
