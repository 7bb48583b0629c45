"""What rings, for whom, and that nothing is lost while it is muted."""

import os
import threading
import time
from collections.abc import Iterator

import pytest

from pmxcfs.cluster.poller import Poller
from pmxcfs.replica.waiting import RequestWatch

PATIENCE = 5.0  # seconds
BRIEF = 0.02  # seconds that nothing must happen in


class World:
    """An poller, something that can be read, and a wake-up."""

    def __init__(self) -> None:
        self.readable = os.eventfd(0, os.EFD_NONBLOCK)
        self.wakeup = os.eventfd(0, os.EFD_NONBLOCK)
        self.poller = Poller(self.readable, self.wakeup)
        self.requests = os.eventfd(0, os.EFD_NONBLOCK)
        self.called = 0

    def watch(self, *, is_active: bool = True) -> RequestWatch:
        """Return the watch where a request is an event of ``requests``."""

        def call() -> None:
            self.called += 1

        return RequestWatch(self.requests, call, is_active=is_active)

    def close(self) -> None:
        self.poller.close()
        os.close(self.readable)
        os.close(self.wakeup)
        os.close(self.requests)

    def sleep(self, seconds: float) -> bool:
        """Tell whether it rang within that time."""
        start = time.monotonic()
        self.poller.sleep(seconds)
        return time.monotonic() - start < seconds


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def test_what_can_be_read_rings_until_it_was_read(world: World) -> None:
    assert not world.sleep(BRIEF)
    os.eventfd_write(world.readable, 1)
    for _ in range(2):
        assert world.sleep(PATIENCE)
        assert world.poller.listen(PATIENCE)
    os.eventfd_read(world.readable)
    assert not world.poller.listen(0)
    assert not world.sleep(BRIEF)


def test_a_wakeup_rings_until_it_was_listened_to(world: World) -> None:
    for _ in range(2):
        os.eventfd_write(world.wakeup, 1)
        assert world.sleep(PATIENCE)
        assert world.sleep(PATIENCE)
        assert not world.poller.listen(PATIENCE)
        assert not world.sleep(BRIEF)


def test_who_sleeps_sleeps_on_while_it_is_hushed(world: World) -> None:
    rang = threading.Event()

    def sleep() -> None:
        world.poller.sleep(PATIENCE)
        rang.set()

    world.poller.mute()
    thread = threading.Thread(target=sleep)
    thread.start()
    os.eventfd_write(world.readable, 1)
    assert world.poller.listen(PATIENCE)
    assert not rang.wait(BRIEF)
    world.poller.unmute()
    thread.join(PATIENCE)
    assert rang.is_set()


def test_what_rang_and_was_settled_meanwhile_does_not_ring_later(world: World) -> None:
    world.poller.mute()
    os.eventfd_write(world.wakeup, 1)
    world.poller.listen(PATIENCE)
    world.poller.unmute()
    assert not world.sleep(BRIEF)


def test_a_request_calls_another_worker_once_where_it_is_watched_for(world: World) -> None:
    watch = world.watch()
    assert not world.poller.listen(BRIEF, watch)
    os.eventfd_write(world.requests, 1)
    assert not world.poller.listen(PATIENCE, watch)
    assert world.called == 1
    assert not watch.is_active
    assert not world.poller.listen(BRIEF, watch)
    assert not world.poller.listen(BRIEF, world.watch(is_active=False))
    assert world.called == 1
    assert not world.poller.listen(PATIENCE, world.watch())
    assert world.called == 2


def test_the_poller_wakes_for_a_request_too(world: World) -> None:
    watch = world.watch()
    os.eventfd_write(world.wakeup, 1)
    assert not world.poller.listen(PATIENCE, watch)
    assert not world.sleep(BRIEF)
    os.eventfd_write(world.readable, 1)
    assert world.poller.listen(PATIENCE, watch)
    assert world.sleep(PATIENCE)
    assert watch.is_active
