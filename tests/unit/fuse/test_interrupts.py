"""Interrupts: which request of which thread a number means, and what was interrupted too early."""

import threading
from collections.abc import Callable

import pytest

from pmxcfs.errors import Signaled
from pmxcfs.fuse.interrupts import MOST_REMEMBERED, REMEMBERED, Interrupts
from pmxcfs.replica.waiting import NOT_INTERRUPTIBLE


class Handled:
    """A thread's request, as its reader has it."""

    def __init__(self, unique: int) -> None:
        self.is_interrupted = False
        self.on_interrupt: Callable[[], None] | None = None
        self.unique = unique


class World:
    """The interrupts of a session; the calling thread handles request 100."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.interrupts = Interrupts(monotonic=lambda: self.now)
        self.request = Handled(100)
        self.interrupts.begin(self.request)
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


@pytest.fixture
def world() -> World:
    return World()


def test_a_wait_is_woken_by_the_interrupt_of_its_own_request(world: World) -> None:
    with world.interrupts.interruptible(world.wake) as interruption:
        world.interrupts.interrupt(102)
        assert not interruption.is_given
        world.interrupts.interrupt(100)
        assert interruption.is_given
        assert world.woken == 1
        with pytest.raises(Signaled):
            interruption.check()


def test_a_request_that_was_interrupted_does_not_begin_to_wait(world: World) -> None:
    world.interrupts.interrupt(100)
    with pytest.raises(Signaled), world.interrupts.interruptible(world.wake):
        raise AssertionError("the block is entered")
    assert world.woken == 0


def test_only_the_wait_that_lasts_is_woken(world: World) -> None:
    with world.interrupts.interruptible(world.wake):
        inner: list[int] = []
        with world.interrupts.interruptible(lambda: inner.append(1)):
            world.interrupts.interrupt(100)
        assert (inner, world.woken) == ([1], 0)
        world.interrupts.interrupt(100)
        assert world.woken == 1
    world.interrupts.interrupt(100)
    assert world.woken == 1


def test_an_interrupt_that_comes_before_its_request_counts(world: World) -> None:
    world.interrupts.interrupt(102)
    world.request.unique = 102
    with pytest.raises(Signaled), world.interrupts.interruptible(world.wake):
        raise AssertionError("the block is entered")


def test_an_interrupt_without_a_request_is_forgotten_after_a_while(world: World) -> None:
    world.interrupts.interrupt(102)
    world.now += REMEMBERED
    world.request.unique = 102
    with world.interrupts.interruptible(world.wake) as interruption:
        assert not interruption.is_given


def test_of_many_interrupts_without_a_request_the_last_ones_are_remembered(world: World) -> None:
    numbers = range(102, 102 + 2 * (MOST_REMEMBERED + 1), 2)
    for number in numbers:
        world.interrupts.interrupt(number)
    world.request.unique = numbers[0]
    with world.interrupts.interruptible(world.wake) as interruption:
        assert not interruption.is_given
    world.request.unique = numbers[1]
    with pytest.raises(Signaled), world.interrupts.interruptible(world.wake):
        raise AssertionError("the block is entered")


def test_a_thread_that_handles_no_request_can_not_be_interrupted(world: World) -> None:
    found: list[object] = []
    thread = threading.Thread(
        target=lambda: found.append(world.interrupts.interruptible(world.wake))
    )
    thread.start()
    thread.join()
    assert found == [NOT_INTERRUPTIBLE]
    world.interrupts.end()
    assert world.interrupts.interruptible(world.wake) is NOT_INTERRUPTIBLE
