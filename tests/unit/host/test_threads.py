"""Background threads: start, stop and close, and the eventfd that wakes one."""

import select
import threading

from pmxcfs.host.threads import BackgroundThread, Wakeup

DEADLINE = 20.0  # seconds
FOREVER = 3600.0  # seconds; a test that waits so long has failed


class Sleeper(BackgroundThread):
    """A thread that sleeps on an event of its own until it is told to stop."""

    def __init__(self) -> None:
        super().__init__("sleeper")
        self.event = threading.Event()
        self.names: list[str] = []

    def run(self) -> None:
        self.names.append(threading.current_thread().name)
        while not self.is_stopping:
            self.event.wait(FOREVER)

    def wake(self) -> None:
        self.event.set()


def test_a_close_wakes_the_thread_and_waits_for_its_end() -> None:
    sleeper = Sleeper()
    sleeper.start()
    assert sleeper.is_alive
    sleeper.close(DEADLINE)
    assert not sleeper.is_alive
    assert sleeper.names == ["sleeper"]


def test_a_thread_that_was_not_started_can_be_closed() -> None:
    sleeper = Sleeper()
    sleeper.close(timeout=None)
    assert sleeper.is_stopping
    assert not sleeper.is_alive


def test_a_close_gives_up_after_its_timeout() -> None:
    may_end = threading.Event()

    def block() -> None:
        may_end.wait(FOREVER)

    stuck = BackgroundThread("stuck", block)
    stuck.start()
    stuck.close(0.01)
    assert stuck.is_alive
    may_end.set()
    stuck.close(DEADLINE)
    assert not stuck.is_alive


def test_a_stop_ends_a_pause() -> None:
    paused: list[bool] = []
    thread = BackgroundThread("pausing", lambda: paused.append(thread.pause(FOREVER)))
    thread.start()
    thread.stop()
    thread.close(DEADLINE)
    assert paused == [True]
    assert BackgroundThread("other").pause(0.0) is False


def test_a_wakeup_is_readable_from_set_to_clear() -> None:
    wakeup = Wakeup()

    def is_readable() -> bool:
        return bool(select.select([wakeup], [], [], 0)[0])

    wakeup.clear()
    assert not is_readable()
    wakeup.set()
    wakeup.set()
    assert is_readable()
    wakeup.clear()
    assert not is_readable()
