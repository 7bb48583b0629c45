"""What lets others have the tree's lock, with a lock of its own: ``replica.Yielding``."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from pmxcfs.errors import Busy
from pmxcfs.replica.waiting import RequestWatch

PATIENCE = 10.0  # seconds
NO_WATCH = RequestWatch(-1, lambda: None, is_active=False)


class Yielding:
    """Gives *lock* back, counts those without it, and has room for some that wait for nodes."""

    def __init__(self, *, room: int) -> None:
        self.lock = threading.Condition(threading.Lock())
        self.away = self.count = 0  # without the lock; of these, that wait for nodes
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
        """Wait until so many are without the lock."""
        with self.lock:
            assert self.lock.wait_for(lambda: self.away == count, PATIENCE)
