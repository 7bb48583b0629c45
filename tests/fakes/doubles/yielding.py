"""The protocol ``replica.waiting.Yielding`` on a lock of its own, without FUSE workers."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from pmxcfs.errors import Busy
from pmxcfs.replica.waiting import RequestWatch

PATIENCE = 10.0  # seconds for another thread to release the lock
NO_WATCH = RequestWatch(-1, lambda: None, is_active=False)


class Yielding:
    """Releases *lock* on request; at most *room* threads may wait for nodes at a time."""

    def __init__(self, *, room: int) -> None:
        self.lock = threading.Condition(threading.Lock())
        self.away = self.count = (
            0  # threads without the lock, and those of them that wait for nodes
        )
        self.room = room

    def give_way(self) -> None: ...

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        self.away += 1
        self.lock.notify_all()
        self.lock.release()
        try:
            yield
        finally:
            self.lock.acquire()
            self.away -= 1

    def aside(self, work: Callable[[], object]) -> object:
        with self.released():
            return work()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        with self.waiting_with_watch():
            yield

    @contextlib.contextmanager
    def waiting_with_watch(self) -> Iterator[RequestWatch]:
        if self.count >= self.room:
            raise Busy("full")
        self.count += 1
        try:
            with self.released():
                yield NO_WATCH
        finally:
            self.count -= 1

    def await_away(self, count: int) -> None:
        """Wait until *count* threads have released the lock."""
        with self.lock:
            assert self.lock.wait_for(lambda: self.away == count, PATIENCE)
