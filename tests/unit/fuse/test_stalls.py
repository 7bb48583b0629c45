"""The watch for stalled writes: which writes wake another worker, and that none is missed."""

import contextlib
import threading
from collections.abc import Iterator

import pytest

from pmxcfs.fuse import stalls as module
from pmxcfs.fuse.stalls import StallWatch
from pmxcfs.replica.waiting import RequestWatch

TIMEOUT = 10.0  # seconds until a wait fails the test


class Woken:
    """A watch, and whether it has woken another worker."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.watch = RequestWatch(-1, self.event.set, is_active=True)


def begin(stalls: StallWatch, watch: RequestWatch) -> None:
    """Begin a write, as ``Waits`` does."""
    if stalls.writes.begin(watch):
        stalls.wake()


@contextlib.contextmanager
def writing(stalls: StallWatch, watch: RequestWatch) -> Iterator[None]:
    """Write until the block ends."""
    begin(stalls, watch)
    try:
        yield
    finally:
        stalls.writes.end(watch)


@pytest.fixture
def stalls() -> Iterator[StallWatch]:
    made = StallWatch()
    made.start()
    yield made
    made.close(TIMEOUT)
    assert not made.is_alive


def test_a_write_that_lasts_wakes_a_worker(stalls: StallWatch) -> None:
    woken = Woken()
    with writing(stalls, woken.watch):
        assert woken.event.wait(TIMEOUT)
    assert not woken.watch.is_active
    assert not stalls.writes.running


def test_every_write_that_lasts_wakes_a_worker(stalls: StallWatch) -> None:
    first, second = Woken(), Woken()
    with writing(stalls, first.watch), writing(stalls, second.watch):
        assert first.event.wait(TIMEOUT)
        assert second.event.wait(TIMEOUT)


def test_a_write_that_has_ended_wakes_nobody(stalls: StallWatch) -> None:
    short, other = Woken(), Woken()
    with pytest.raises(KeyError), writing(stalls, short.watch):
        raise KeyError
    with writing(stalls, other.watch):
        assert other.event.wait(TIMEOUT)  # by then the thread has looked
    assert short.watch.is_active
    assert not short.event.is_set()


def test_a_write_is_watched_after_a_long_time_without_one(
    stalls: StallWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_AFTER", 0.0)
    for _ in range(20):  # the thread falls asleep between them
        woken = Woken()
        with writing(stalls, woken.watch):
            assert woken.event.wait(TIMEOUT)


class Hesitant(threading.Event):
    """An event that lets a write begin just before it is cleared."""

    def __init__(self, begin: "list[RequestWatch]", stalls: StallWatch) -> None:
        super().__init__()
        self._begin, self._stalls = begin, stalls

    def clear(self) -> None:
        if self._begin:
            begin(self._stalls, self._begin.pop())
        super().clear()


def test_a_write_that_begins_as_the_thread_falls_asleep_is_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "IDLE_AFTER", -1.0)
    stalls, woken = StallWatch(), Woken()
    hesitant = Hesitant([woken.watch], stalls)
    monkeypatch.setattr(stalls, "_is_needed", hesitant)
    hesitant.set()
    stalls.start()
    assert woken.event.wait(TIMEOUT)
    stalls.writes.end(woken.watch)
    stalls.close(TIMEOUT)
    assert not stalls.is_alive


def test_a_thread_without_writes_can_be_closed() -> None:
    stalls = StallWatch()
    stalls.start()
    stalls.close(TIMEOUT)
    assert not stalls.is_alive
