"""What rings, for whom, and that nothing is lost while it is hushed."""

import os
import threading
import time
from collections.abc import Iterator

import pytest

from pmxcfs.cluster.poller import Alarm
from pmxcfs.replica.waiting import Door

PATIENCE = 5.0  # seconds
BRIEF = 0.02  # seconds that nothing must happen in


class World:
    """An alarm, something that can be read, and a wake-up."""

    def __init__(self) -> None:
        self.readable = os.eventfd(0, os.EFD_NONBLOCK)
        self.wakeup = os.eventfd(0, os.EFD_NONBLOCK)
        self.alarm = Alarm(self.readable, self.wakeup)
        self.requests = os.eventfd(0, os.EFD_NONBLOCK)
        self.called = 0

    def door(self, *, is_kept: bool = True) -> Door:
        """Return the door where a request is an event of ``requests``."""

        def call() -> None:
            self.called += 1

        return Door(self.requests, call, is_kept=is_kept)

    def close(self) -> None:
        self.alarm.close()
        os.close(self.readable)
        os.close(self.wakeup)
        os.close(self.requests)

    def sleep(self, seconds: float) -> bool:
        """Tell whether it rang within that time."""
        start = time.monotonic()
        self.alarm.sleep(seconds)
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
        assert world.alarm.listen(PATIENCE)
    os.eventfd_read(world.readable)
    assert not world.alarm.listen(0)
    assert not world.sleep(BRIEF)


def test_a_wakeup_rings_until_it_was_listened_to(world: World) -> None:
    for _ in range(2):
        os.eventfd_write(world.wakeup, 1)
        assert world.sleep(PATIENCE)
        assert world.sleep(PATIENCE)
        assert not world.alarm.listen(PATIENCE)
        assert not world.sleep(BRIEF)


def test_who_sleeps_sleeps_on_while_it_is_hushed(world: World) -> None:
    rang = threading.Event()

    def sleep() -> None:
        world.alarm.sleep(PATIENCE)
        rang.set()

    world.alarm.hush()
    thread = threading.Thread(target=sleep)
    thread.start()
    os.eventfd_write(world.readable, 1)
    assert world.alarm.listen(PATIENCE)
    assert not rang.wait(BRIEF)
    world.alarm.end_hush()
    thread.join(PATIENCE)
    assert rang.is_set()


def test_what_rang_and_was_settled_meanwhile_does_not_ring_later(world: World) -> None:
    world.alarm.hush()
    os.eventfd_write(world.wakeup, 1)
    world.alarm.listen(PATIENCE)
    world.alarm.end_hush()
    assert not world.sleep(BRIEF)


def test_a_request_calls_somebody_once_where_the_door_is_kept(world: World) -> None:
    door = world.door()
    assert not world.alarm.listen(BRIEF, door)
    os.eventfd_write(world.requests, 1)
    assert not world.alarm.listen(PATIENCE, door)
    assert world.called == 1
    assert not door.is_kept
    assert not world.alarm.listen(BRIEF, door)
    assert not world.alarm.listen(BRIEF, world.door(is_kept=False))
    assert world.called == 1
    assert not world.alarm.listen(PATIENCE, world.door())
    assert world.called == 2


def test_all_else_rings_at_the_door_too(world: World) -> None:
    door = world.door()
    os.eventfd_write(world.wakeup, 1)
    assert not world.alarm.listen(PATIENCE, door)
    assert not world.sleep(BRIEF)
    os.eventfd_write(world.readable, 1)
    assert world.alarm.listen(PATIENCE, door)
    assert world.sleep(PATIENCE)
    assert door.is_kept
