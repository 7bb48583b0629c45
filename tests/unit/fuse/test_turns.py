"""The turns of the native session's threads: who reads, and that nobody is forgotten."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest

from pmxcfs.errors import Busy
from pmxcfs.fuse.turns import SPARE_THREADS, Turns
from pmxcfs.host.locking import Lock
from tests.fakes.doubles.yielding import watching, writing

TIMEOUT = 10.0  # seconds until a wait fails the test


class Device:
    """Requests, which readers take one at a time when they have the turn."""

    def __init__(self) -> None:
        self.turn = 0
        self.end_errno = 0
        self.descriptor = -1
        self.changed = threading.Condition()
        self.requests: list[Callable[[], None]] = []
        self.readers: dict[int, threading.Thread] = {}

    def reader(self, number: int) -> "Reader":
        return Reader(number, self)

    def ask(self, handle: Callable[[], None]) -> None:
        """Send a request that is handled by *handle*."""
        with self.changed:
            self.requests.append(handle)
            self.changed.notify_all()

    def end(self, number: int) -> None:
        """End the session as the kernel does."""
        with self.changed:
            self.end_errno = number
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, TIMEOUT)


class Reader:
    """Takes requests in its turns."""

    def __init__(self, number: int, device: Device) -> None:
        self.unique = number
        self.is_interrupted = False
        self.on_interrupt: Callable[[], None] | None = None
        self._number = number
        self._device = device

    def run(self) -> None:
        device = self._device
        device.readers[self._number] = threading.current_thread()
        while True:
            with device.changed:
                device.changed.wait_for(
                    lambda: device.turn != self._number or device.end_errno or device.requests
                )
                if device.turn != self._number or device.end_errno:
                    return
                handle = device.requests.pop(0)
            handle()


class World:
    """A session with its device, and handlers that wait."""

    def __init__(self, limit: int) -> None:
        self.lock = Lock()
        self.device = Device()
        self.turns = Turns(self.lock, limit=limit)
        self.turns.begin(self.device, self.device.reader)
        self.released = threading.Event()
        self.handled: list[int] = []  # by which threads

    def handle(self) -> None:
        """Handle a request that does not wait."""
        with self.device.changed:
            self.handled.append(threading.get_ident())
            self.device.changed.notify_all()

    def handle_waiting(self) -> None:
        """Handle a request that waits until ``released``."""
        with self.lock, self.turns.waiting():
            with self.device.changed:
                self.device.changed.notify_all()
            self.released.wait(TIMEOUT)
        self.handle()

    def await_handled(self, count: int) -> None:
        self.device.wait_for(lambda: len(self.handled) == count)

    def await_waiting(self, count: int) -> None:
        self.device.wait_for(lambda: self.turns.waiting_count == count)


@contextlib.contextmanager
def made(limit: int = 8) -> Iterator[World]:
    world = World(limit)
    try:
        yield world
    finally:
        world.released.set()
        world.turns.close()
        world.device.end(19)
        for thread in world.device.readers.values():
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def test_one_thread_handles_what_does_not_wait() -> None:
    with made() as world:
        for number in range(20):
            world.device.ask(world.handle)
            world.await_handled(number + 1)
        assert len(set(world.handled)) == 1


def test_requests_are_handled_while_others_wait() -> None:
    with made() as world:
        for number in range(8):
            world.device.ask(world.handle_waiting)
            world.await_waiting(number + 1)
        world.device.ask(world.handle)
        world.await_handled(1)
        world.released.set()
        world.await_handled(9)
        assert len(set(world.handled)) == 9


def test_beyond_the_limit_a_wait_is_refused() -> None:
    refused: list[Busy] = []
    with made(limit=1) as world:

        def handle_refused() -> None:
            try:
                world.handle_waiting()
            except Busy as error:
                refused.append(error)
                world.handle()

        world.device.ask(world.handle_waiting)
        world.await_waiting(1)
        world.device.ask(handle_refused)
        world.await_handled(1)
        assert len(refused) == 1


def test_the_threads_of_a_burst_end_again() -> None:
    with made(limit=20) as world:
        for number in range(20):
            world.device.ask(world.handle_waiting)
            world.await_waiting(number + 1)
        threads = list(world.device.readers.values())
        world.released.set()
        world.await_handled(20)
        for _ in range(2):  # one that is spare goes on after all
            world.device.ask(world.handle)
        world.await_handled(22)
        ended = 0
        for thread in threads:
            thread.join(0.2 if ended >= 20 - SPARE_THREADS else TIMEOUT / 10)
            ended += not thread.is_alive()
        assert ended >= 20 - SPARE_THREADS - 1


def test_a_thread_that_watches_keeps_the_turn_until_the_watch_is_stopped() -> None:
    with made() as world:
        stop, stopped = threading.Event(), threading.Event()

        def handle_watching() -> None:
            with world.lock, watching(world.turns) as watch:
                assert watch.is_active
                assert stop.wait(TIMEOUT)
                watch.stop()
                stopped.set()
                world.released.wait(TIMEOUT)
            world.handle()

        world.device.ask(handle_watching)
        world.device.ask(world.handle)
        stop.set()
        assert stopped.wait(TIMEOUT)
        world.await_handled(1)
        world.released.set()
        world.await_handled(2)
        assert len(set(world.handled)) == 2


def test_a_wait_can_be_interrupted() -> None:
    with made() as world:
        woken = threading.Event()

        def handle_interruptible() -> None:
            with world.lock:
                interruption = world.turns.interruptible(woken.set)
                with interruption, world.turns.waiting():
                    with world.device.changed:
                        world.device.changed.notify_all()
                    assert woken.wait(TIMEOUT)
                if interruption.is_given:
                    world.handle()

        world.device.ask(handle_interruptible)
        world.await_waiting(1)
        with world.lock:
            world.turns.interrupts.interrupt(1)
        world.await_handled(1)


def test_a_wait_of_another_thread_takes_no_turn_away() -> None:
    with made() as world, world.lock, watching(world.turns) as watch:
        assert not watch.is_active


def test_the_session_is_over_when_the_kernel_ends_it() -> None:
    with made() as world:
        assert not world.turns.is_over.is_set()
        world.device.end(19)
        assert world.turns.is_over.wait(TIMEOUT)


def test_a_stop_is_not_held_up_by_a_handler_that_waits() -> None:
    with made() as world:
        world.device.ask(world.handle_waiting)
        world.await_waiting(1)
        world.turns.close()
        assert world.turns.is_over.is_set()


def check_another_reads_beside(world: World, handle: Callable[[], None]) -> None:
    """Assert that a request is handled while *handle*, whose write lasts, handles another one."""
    world.turns.stalls.start()
    world.device.ask(handle)
    world.device.ask(world.handle)
    world.await_handled(1)
    world.released.set()
    world.await_handled(2)
    world.turns.stalls.close(TIMEOUT)


def test_a_write_that_lasts_gives_the_turn_away() -> None:
    with made() as world:

        def handle_writing() -> None:
            with world.lock, writing(world.turns):
                world.released.wait(TIMEOUT)
            world.handle()

        check_another_reads_beside(world, handle_writing)


def test_a_write_that_lasts_at_the_end_of_a_wait_gives_the_turn_away() -> None:
    with made() as world:

        def handle_watching() -> None:
            with world.lock, watching(world.turns) as watch:
                world.turns.expect_write(watch)
                world.released.wait(TIMEOUT)
            assert not world.turns.stalls.writes.running
            world.handle()

        check_another_reads_beside(world, handle_watching)


@pytest.mark.parametrize("count", [1, 3])
def test_close_ends_threads_that_have_no_turn(count: int) -> None:
    with made() as world:
        for number in range(count):
            world.device.ask(world.handle_waiting)
            world.await_waiting(number + 1)
        world.released.set()
        world.await_handled(count)
