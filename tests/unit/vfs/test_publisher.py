"""The publisher thread: it runs only while unpublished writes wait."""

import threading
from collections.abc import Iterator

import pytest

from pmxcfs.vfs.publisher import Publisher
from tests.conftest import ExpectLog

PATIENCE = 30.0  # seconds for the thread


class Due:
    """The callable of the publisher: returns the given delays in ns one by one, then 0."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.delays: list[int] = []
        self.calls = 0
        self.failures = 0
        self._changed = threading.Condition()

    def __call__(self) -> int:
        assert self.lock.locked()
        with self._changed:
            self.calls += 1
            self._changed.notify_all()
        if self.failures:
            self.failures -= 1
            raise ValueError("a bug")
        return self.delays.pop(0) if self.delays else 0

    def wait_for(self, calls: int) -> None:
        """Wait until the number of calls is at least *calls*."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.calls >= calls, PATIENCE)


@pytest.fixture
def due() -> Due:
    return Due()


@pytest.fixture
def publisher(due: Due) -> Iterator[Publisher]:
    running = Publisher(due.lock)
    running.start(due)
    yield running
    running.close()


def notice(due: Due, publisher: Publisher) -> None:
    """Tell the publisher that writes wait."""
    with due.lock:
        publisher.notice()


def wait_until_asleep(due: Due) -> None:
    """Wait for the end of a call, which holds the lock throughout."""
    with due.lock:
        pass


def is_running() -> bool:
    """Tell whether the publisher thread runs."""
    return "publisher" in {thread.name for thread in threading.enumerate()}


def test_the_publisher_is_not_called_without_unpublished_writes(
    due: Due, publisher: Publisher
) -> None:
    publisher.close()
    assert due.calls == 0


def test_the_publisher_is_called_until_no_write_is_left(due: Due, publisher: Publisher) -> None:
    due.delays = [1, 1000, 1]
    notice(due, publisher)
    due.wait_for(4)
    wait_until_asleep(due)
    notice(due, publisher)
    due.wait_for(5)
    wait_until_asleep(due)
    assert due.calls == 5


def test_further_writes_do_not_wake_the_publisher(due: Due, publisher: Publisher) -> None:
    due.delays = [3600 * 10**9]
    notice(due, publisher)
    due.wait_for(1)
    for _ in range(100):
        notice(due, publisher)
    publisher.close()
    assert due.calls == 1


def test_a_close_interrupts_a_long_delay(due: Due, publisher: Publisher) -> None:
    due.delays = [3600 * 10**9]
    notice(due, publisher)
    due.wait_for(1)
    publisher.close()
    assert not is_running()


def test_a_bug_in_publishing_does_not_end_the_thread(
    due: Due, publisher: Publisher, expect_log: ExpectLog
) -> None:
    expect_log("the publisher thread failed, which is a bug")
    due.failures = 1
    notice(due, publisher)
    due.wait_for(1)
    wait_until_asleep(due)
    assert is_running()
