"""The lock: what threads see of it, and what ``threading.Condition`` needs."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pmxcfs.host.locking import Lock

PATIENCE = 10.0  # seconds for another thread
BRIEF = 0.02  # seconds


def test_one_thread_at_a_time_has_the_lock() -> None:
    lock, counts = Lock(), [0]

    def count() -> None:
        for _ in range(2000):
            with lock:
                before = counts[0]
                time.sleep(0)  # let another thread run
                counts[0] = before + 1

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(count) for _ in range(4)]:
            done.result()
    assert counts == [8000]


def test_a_lock_that_is_taken_is_not_had_without_waiting() -> None:
    lock = Lock()
    assert lock.acquire()
    assert lock.locked()
    assert not lock.acquire(False)
    lock.release()
    assert not lock.locked()
    assert lock.acquire(False)


@pytest.mark.parametrize("timeout", [0.0, BRIEF])
def test_a_wait_ends_in_time(timeout: float) -> None:
    lock = Lock()
    with lock:
        start = time.monotonic()
        assert not lock.acquire(True, timeout)
        assert timeout <= time.monotonic() - start < PATIENCE


def test_a_wait_ends_with_the_lock() -> None:
    lock, waits = Lock(), threading.Event()

    def take() -> bool:
        waits.set()
        return lock.acquire(True, float("inf"))

    with ThreadPoolExecutor() as pool:
        with lock:
            taken = pool.submit(take)
            assert waits.wait(PATIENCE)
            assert not taken.done()
        assert taken.result(PATIENCE)
    assert lock.locked()


@pytest.mark.parametrize("timeout", [-0.5, float("nan")])
def test_a_wrong_timeout_is_refused(timeout: float) -> None:
    lock = Lock()
    with lock, pytest.raises(ValueError, match="a timeout of"):
        lock.acquire(True, timeout)


def test_a_free_lock_can_not_be_released() -> None:
    with pytest.raises(RuntimeError, match="was not taken"):
        Lock().release()


def test_the_lock_is_released_behind_an_error() -> None:
    lock = Lock()
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert not lock.locked()


def test_a_condition_works_with_it() -> None:
    lock = Lock()
    condition = threading.Condition(lock)  # type: ignore[arg-type] # it has its methods
    with ThreadPoolExecutor() as pool:
        with condition:
            notified = pool.submit(notify, condition)
            assert condition.wait(PATIENCE)
        notified.result(PATIENCE)
    with condition:
        assert not condition.wait(BRIEF)


def notify(condition: threading.Condition) -> None:
    with condition:
        condition.notify_all()
