"""The workers: which of them read requests, which are parked, and what unparks them."""

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pmxcfs.errors import Busy
from pmxcfs.fuse import workers as module
from pmxcfs.fuse.workers import RESERVED_WORKERS, Workers
from tests.fakes.doubles.yielding import watching, writing

TIMEOUT = 10.0  # seconds until a wait fails the test


class World:
    """Workers, and threads that take their part."""

    def __init__(self, count: int) -> None:
        self.lock = threading.Lock()
        self.workers = Workers(count, lock_released=_Released(self.lock))
        self.session, self._kernel_end = os.pipe()
        self.workers.attach(self.session)
        self.pool = ThreadPoolExecutor(8)

    def park(self) -> Future[None]:
        """Have a worker end a RELEASE; it is parked, or has returned, after this call."""
        begun = threading.Event()

        def end_release() -> None:
            with self.lock:
                begun.set()
                self.workers.park()

        parking = self.pool.submit(end_release)
        assert begun.wait(TIMEOUT)
        with self.lock:
            return parking

    def end_session(self) -> None:
        """Make the session's descriptor report an error, as after an unmount."""
        os.close(self._kernel_end)
        self._kernel_end = -1

    def close(self) -> None:
        with self.lock:
            self.workers.close()
        self.pool.shutdown()
        os.close(self.session)
        if self._kernel_end >= 0:
            os.close(self._kernel_end)

    def away(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which a worker waits for a device; the lock must be held."""
        return self.workers.waiting(must=True)


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
        world.close()


def is_parked(parking: Future[None]) -> bool:
    """Return whether a worker is parked; one that is not returns as soon as it gets the lock."""
    with contextlib.suppress(TimeoutError):
        parking.result(0.05)
    return not parking.done()


def test_the_only_worker_never_parks() -> None:
    with made(1) as world:
        world.park().result(TIMEOUT)


def test_one_worker_goes_on_reading() -> None:
    with made(2) as world:
        first = world.park()
        world.park().result(TIMEOUT)
        assert is_parked(first)


def test_all_other_workers_park() -> None:
    with made(6) as world:
        parked = [world.park() for _ in range(5)]
        world.park().result(TIMEOUT)
        assert all(map(is_parked, parked))


def test_one_worker_is_unparked_when_the_last_reading_one_waits() -> None:
    with made(3) as world:
        parked = [world.park(), world.park()]
        with world.lock, world.away():
            done = [parking for parking in parked if not is_parked(parking)]
            assert len(done) == 1
            with world.lock, world.away():
                for parking in parked:
                    parking.result(TIMEOUT)


def test_stopping_an_active_watch_unparks_one_worker_once() -> None:
    with made(RESERVED_WORKERS + 1) as world:
        parked = [world.park() for _ in range(RESERVED_WORKERS)]
        with world.lock, watching(world.workers) as watch:
            assert watch.is_active
            assert all(map(is_parked, parked))
            watch.stop()
            assert not watch.is_active
            assert not is_parked(parked[-1])
            watch.stop()
            assert all(map(is_parked, parked[:-1]))


def test_the_watch_is_inactive_while_another_worker_reads() -> None:
    with made(RESERVED_WORKERS + 2) as world:
        parked = [world.park() for _ in range(RESERVED_WORKERS)]
        with world.lock, watching(world.workers) as watch:
            assert not watch.is_active
            watch.stop()
            assert all(map(is_parked, parked))
            with world.lock, world.workers.waiting():
                assert not is_parked(parked[-1])


def test_all_workers_are_unparked_when_the_session_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SESSION_CHECK_INTERVAL", 0.01)
    with made(3) as world:
        parked = [world.park(), world.park()]
        world.end_session()
        for parking in parked:
            parking.result(TIMEOUT)


def test_no_worker_is_unparked_while_another_reads() -> None:
    with made(3) as world:
        parked = world.park()
        with world.lock, world.away():
            assert is_parked(parked)


def test_an_unparked_worker_can_park_again() -> None:
    with made(2) as world:
        parked = world.park()
        with world.lock, world.away():
            parked.result(TIMEOUT)
        assert is_parked(world.park())


def test_no_worker_parks_while_all_others_wait() -> None:
    with made(2) as world, world.lock, world.away():
        world.park().result(TIMEOUT)


def test_close_unparks_all_workers_and_none_parks_again() -> None:
    with made(3) as world:
        parked = [world.park(), world.park()]
        with world.lock:
            world.workers.close()
        for parking in parked:
            parking.result(TIMEOUT)
        world.park().result(TIMEOUT)


def test_a_parked_worker_notices_that_the_session_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SESSION_CHECK_INTERVAL", 0.01)
    with made(2) as world:
        parked = world.park()
        assert is_parked(parked)
        world.end_session()
        parked.result(TIMEOUT)


def test_reserved_workers_do_not_wait_for_other_nodes() -> None:
    with made(RESERVED_WORKERS + 1) as world, world.lock, world.workers.waiting():
        assert world.workers.waiting_count == 1
        with pytest.raises(Busy), world.lock, world.workers.waiting():
            pass
        assert world.workers.waiting_count == 1


def test_a_short_write_unparks_no_worker() -> None:
    with made(2) as world:
        parked = world.park()
        with world.lock:
            with writing(world.workers):
                assert not world.lock.locked()
            assert world.lock.locked()
        assert is_parked(parked)


def test_a_write_that_lasts_unparks_one_worker() -> None:
    with made(3) as world:
        first, last = world.park(), world.park()
        world.workers.stalls.start()
        try:
            with world.lock, writing(world.workers):
                last.result(TIMEOUT)
                assert is_parked(first)
        finally:
            world.workers.stalls.close(TIMEOUT)


def test_a_write_that_fails_takes_the_lock_again() -> None:
    with made(2) as world, world.lock:
        with pytest.raises(KeyError), writing(world.workers):
            raise KeyError
        assert world.lock.locked()
        assert not world.workers.stalls.writes.running


def test_workers_that_must_wait_are_not_refused() -> None:
    with made(RESERVED_WORKERS) as world, world.lock:
        with world.workers.waiting(must=True):
            assert world.workers.waiting_count == 1
        with pytest.raises(Busy), world.workers.waiting():
            pass
