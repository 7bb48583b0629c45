"""Which of the threads that answer the kernel read its requests, and which are parked."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pmxcfs.errors import Busy, StoreError
from pmxcfs.fuse import workers as module
from pmxcfs.fuse.workers import RESERVED_WORKERS, Workers
from pmxcfs.host.process import NICE

PATIENCE = 10.0  # seconds


class World:
    """Some workers, and threads that play them."""

    def __init__(self, count: int) -> None:
        self.lock = threading.Lock()
        self.workers = Workers(count, lock_released=_Released(self.lock))
        self.pool = ThreadPoolExecutor(8)

    def park(self) -> Future[None]:
        """Have one of them end a RELEASE; it is parked, or not, when this returns."""
        begun = threading.Event()

        def end_release() -> None:
            with self.lock:
                begun.set()
                self.workers.park()

        parking = self.pool.submit(end_release)
        assert begun.wait(PATIENCE)
        with self.lock:
            return parking

    def away(self) -> contextlib.AbstractContextManager[None]:
        """Return what one of them does while it waits for a device; the lock must be held."""
        return self.workers.released()


class _Released(contextlib.AbstractContextManager[None]):
    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.release()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.acquire()


@contextlib.contextmanager
def made(count: int) -> Iterator[World]:
    world = World(count)
    try:
        yield world
    finally:
        with world.lock:
            world.workers.close()
        world.pool.shutdown()


def is_parked(parking: Future[None]) -> bool:
    """Tell whether a worker is; one that is not returns as soon as the lock allows."""
    with contextlib.suppress(TimeoutError):
        parking.result(0.05)
    return not parking.done()


def test_the_only_one_never_parks() -> None:
    with made(1) as world:
        world.park().result(PATIENCE)


def test_one_goes_on_reading() -> None:
    with made(2) as world:
        first = world.park()
        world.park().result(PATIENCE)
        assert is_parked(first)


def test_all_others_park() -> None:
    with made(6) as world:
        parked = [world.park() for _ in range(5)]
        world.park().result(PATIENCE)
        assert all(map(is_parked, parked))


def test_one_is_called_when_the_last_that_reads_waits() -> None:
    with made(3) as world:
        parked = [world.park(), world.park()]
        with world.lock, world.away():
            done = [parking for parking in parked if not is_parked(parking)]
            assert len(done) == 1
            with world.lock, world.away():
                for parking in parked:
                    parking.result(PATIENCE)


def test_a_watching_thread_calls_another_when_it_stops() -> None:
    with made(RESERVED_WORKERS + 1) as world:
        parked = [world.park() for _ in range(RESERVED_WORKERS)]
        with world.lock, world.workers.waiting_with_watch() as watch:
            assert watch.is_active
            assert all(map(is_parked, parked))
            watch.stop()
            assert not watch.is_active
            assert not is_parked(parked[-1])
            watch.stop()
            assert all(map(is_parked, parked[:-1]))


def test_nobody_watches_for_requests_while_another_reads() -> None:
    with made(RESERVED_WORKERS + 2) as world:
        parked = [world.park() for _ in range(RESERVED_WORKERS)]
        with world.lock, world.workers.waiting_with_watch() as watch:
            assert not watch.is_active
            watch.stop()
            assert all(map(is_parked, parked))
            with world.lock, world.workers.released():
                assert not is_parked(parked[-1])


def test_all_are_called_when_the_mount_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AFTER", 0.01)
    with made(3) as world:
        parked = [world.park(), world.park()]
        world.workers.is_over = lambda: True
        for parking in parked:
            parking.result(PATIENCE)


def test_nobody_is_called_while_another_reads() -> None:
    with made(3) as world:
        parked = world.park()
        with world.lock, world.away():
            assert is_parked(parked)


def test_who_was_called_parks_again() -> None:
    with made(2) as world:
        parked = world.park()
        with world.lock, world.away():
            parked.result(PATIENCE)
        assert is_parked(world.park())


def test_none_parks_while_all_others_are_away() -> None:
    with made(2) as world, world.lock, world.away():
        world.park().result(PATIENCE)


def test_what_takes_long_is_done_without_the_lock_by_a_thread_that_others_precede() -> None:
    with made(2) as world:

        def work() -> int:
            with world.lock:
                return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

        def fail() -> None:
            raise StoreError("full")

        with world.lock:
            assert world.workers.aside(work) == NICE
            with pytest.raises(StoreError, match="full"):
                world.workers.aside(fail)
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < NICE


def test_all_are_called_at_the_end_for_good() -> None:
    with made(3) as world:
        parked = [world.park(), world.park()]
        with world.lock:
            world.workers.close()
        for parking in parked:
            parking.result(PATIENCE)
        world.park().result(PATIENCE)


def test_a_parked_one_sees_that_the_mount_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AFTER", 0.01)
    with made(2) as world:
        parked = world.park()
        assert is_parked(parked)
        world.workers.is_over = lambda: True
        parked.result(PATIENCE)


def test_few_wait_for_other_nodes() -> None:
    with made(RESERVED_WORKERS + 1) as world, world.lock, world.workers.waiting():
        assert world.workers.waiting_count == 1
        with pytest.raises(Busy), world.lock, world.workers.waiting():
            pass
        assert world.workers.waiting_count == 1


def test_giving_way_lets_others_have_the_lock() -> None:
    with made(2) as world:
        taken = threading.Event()
        with world.lock:
            other = world.pool.submit(lambda: _take(world.lock, taken))
            deadline = time.monotonic() + PATIENCE
            while not taken.is_set() and time.monotonic() < deadline:
                world.workers.give_way()
        other.result(PATIENCE)
        assert taken.is_set()


def _take(lock: threading.Lock, taken: threading.Event) -> None:
    with lock:
        taken.set()
