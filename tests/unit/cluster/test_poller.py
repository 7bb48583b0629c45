"""The poller: which events end a wait, and that no event is lost while it is muted."""

import os
import threading
import time
from collections.abc import Iterator

import pytest

from pmxcfs.cluster.poller import Poller
from pmxcfs.replica.waiting import RequestWatch

TIMEOUT = 5.0  # seconds until a wait fails the test
BRIEF = 0.02  # seconds in which no event must come


class World:
    """A poller on eventfds for the descriptor, the wake-up and the requests."""

    def __init__(self) -> None:
        self.readable = os.eventfd(0, os.EFD_NONBLOCK)
        self.wakeup = os.eventfd(0, os.EFD_NONBLOCK)
        self.poller = Poller(self.readable, self.wakeup)
        self.requests = os.eventfd(0, os.EFD_NONBLOCK)
        self.called = 0

    def watch(self, *, is_active: bool = True) -> RequestWatch:
        """Return a watch on ``requests``."""

        def call() -> None:
            self.called += 1

        return RequestWatch(self.requests, call, is_active=is_active)

    def close(self) -> None:
        self.poller.close()
        os.close(self.readable)
        os.close(self.wakeup)
        os.close(self.requests)

    def sleep(self, seconds: float) -> bool:
        """Return whether an event ended the sleep before *seconds* were over."""
        start = time.monotonic()
        self.poller.sleep(seconds)
        return time.monotonic() - start < seconds


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def test_a_readable_descriptor_ends_waits_until_it_is_read(world: World) -> None:
    assert not world.sleep(BRIEF)
    os.eventfd_write(world.readable, 1)
    for _ in range(2):
        assert world.sleep(TIMEOUT)
        assert world.poller.listen(TIMEOUT)
    os.eventfd_read(world.readable)
    assert not world.poller.listen(0)
    assert not world.sleep(BRIEF)


def test_a_wakeup_ends_sleeps_until_listen_consumes_it(world: World) -> None:
    for _ in range(2):
        os.eventfd_write(world.wakeup, 1)
        assert world.sleep(TIMEOUT)
        assert world.sleep(TIMEOUT)
        assert not world.poller.listen(TIMEOUT)
        assert not world.sleep(BRIEF)


def test_a_sleeping_thread_sleeps_on_while_the_poller_is_muted(world: World) -> None:
    woke_up = threading.Event()

    def sleep() -> None:
        world.poller.sleep(TIMEOUT)
        woke_up.set()

    world.poller.mute()
    thread = threading.Thread(target=sleep)
    thread.start()
    os.eventfd_write(world.readable, 1)
    assert world.poller.listen(TIMEOUT)
    assert not woke_up.wait(BRIEF)
    world.poller.unmute()
    thread.join(TIMEOUT)
    assert woke_up.is_set()


def test_a_wakeup_consumed_while_muted_does_not_end_a_later_sleep(world: World) -> None:
    world.poller.mute()
    os.eventfd_write(world.wakeup, 1)
    world.poller.listen(TIMEOUT)
    world.poller.unmute()
    assert not world.sleep(BRIEF)


def test_a_request_stops_an_active_watch_and_calls_a_worker_once(world: World) -> None:
    watch = world.watch()
    assert not world.poller.listen(BRIEF, watch)
    os.eventfd_write(world.requests, 1)
    assert not world.poller.listen(TIMEOUT, watch)
    assert world.called == 1
    assert not watch.is_active
    assert not world.poller.listen(BRIEF, watch)
    assert not world.poller.listen(BRIEF, world.watch(is_active=False))
    assert world.called == 1
    assert not world.poller.listen(TIMEOUT, world.watch())
    assert world.called == 2


def test_other_events_end_a_wait_with_an_active_watch_too(world: World) -> None:
    watch = world.watch()
    os.eventfd_write(world.wakeup, 1)
    assert not world.poller.listen(TIMEOUT, watch)
    assert not world.sleep(BRIEF)
    os.eventfd_write(world.readable, 1)
    assert world.poller.listen(TIMEOUT, watch)
    assert world.sleep(TIMEOUT)
    assert watch.is_active
