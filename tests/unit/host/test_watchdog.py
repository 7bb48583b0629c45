"""The watchdog's heartbeats: sent only while the tree's lock can be acquired."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pmxcfs.host.watchdog import Watchdog

DEADLINE = 30.0  # seconds for the thread
TIMEOUT = 0.02  # seconds; heartbeats come several times in this time


class Listener:
    """A lock, and the service manager's side of the heartbeat."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.was_locked = True

    def describe(self) -> str:
        self.was_locked = self.was_locked and self.lock.locked()
        return "fine"

    def hear(self) -> str:
        return self.heard.get(timeout=DEADLINE)

    def forget(self) -> None:
        while not self.heard.empty():
            self.heard.get()


@pytest.fixture
def listener() -> Listener:
    return Listener()


@contextmanager
def running(listener: Listener, timeout: float | None = TIMEOUT) -> Iterator[Watchdog]:
    watchdog = Watchdog(
        listener.lock, listener.describe, notify=listener.heard.put, timeout=timeout
    )
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.close(DEADLINE)


def test_each_heartbeat_is_sent_after_the_lock_was_acquired(listener: Listener) -> None:
    with running(listener):
        beats = [listener.hear() for _ in range(5)]
    assert beats == ["WATCHDOG=1\nSTATUS=fine"] * 5
    assert listener.was_locked
    assert not listener.lock.locked()


def test_no_heartbeat_is_sent_while_the_lock_is_held(listener: Listener) -> None:
    with running(listener):
        listener.hear()
        with listener.lock:
            listener.forget()
            with pytest.raises(queue.Empty):
                # One heartbeat may have been in flight when the lock was taken.
                [listener.heard.get(timeout=20 * TIMEOUT) for _ in range(2)]
        assert listener.hear() == "WATCHDOG=1\nSTATUS=fine"


def test_without_a_timeout_only_the_status_is_sent(listener: Listener) -> None:
    with running(listener, None):
        assert listener.hear() == "STATUS=fine"
        assert listener.heard.empty()  # the next status comes seconds later


@pytest.mark.expect_log("making the status line for systemd failed")
def test_a_failure_to_describe_the_status_does_not_end_the_heartbeats(listener: Listener) -> None:
    def describe() -> str:
        raise ZeroDivisionError

    watchdog = Watchdog(listener.lock, describe, notify=listener.heard.put, timeout=TIMEOUT)
    watchdog.start()
    assert listener.hear() == "WATCHDOG=1\nSTATUS=unknown"
    watchdog.close(DEADLINE)
