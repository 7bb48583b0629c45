"""Saves that local clients ask for."""

import threading
import time
from collections.abc import Callable

import pytest

from pmxcfs.daemon.save_requests import SaveRequests
from pmxcfs.errors import NotFound, StoreError
from tests.conftest import ExpectLog

TIMEOUT = 10.0  # seconds


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until *condition* is true."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Saves:
    """A save that waits for ``go``, and fails with what ``error`` says."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.error = ""
        self.count = 0

    def save(self) -> None:
        """Save."""
        self.count += 1
        assert self.go.acquire(timeout=TIMEOUT)
        if self.error:
            raise StoreError(self.error)


def test_requests_that_wait_are_answered_by_one_more_save() -> None:
    saves = Saves()
    requests = SaveRequests(saves.save)
    first = requests.begin()
    wait_for(lambda: saves.count == 1)
    later = [requests.begin(), requests.begin()]
    assert [requests.outcome(number) for number in (first, *later)] == [None] * 3
    saves.go.release()
    wait_for(lambda: requests.outcome(first) == "")
    assert requests.outcome(later[0]) is None
    saves.go.release()
    wait_for(lambda: requests.outcome(later[1]) == "")
    assert saves.count == 2


def test_a_failure_is_told_and_the_next_save_is_tried() -> None:
    saves = Saves()
    saves.error = "the disk is full"
    saves.go.release(2)
    requests = SaveRequests(saves.save)
    number = requests.begin()
    wait_for(lambda: requests.outcome(number) == "the disk is full")
    saves.error = ""
    number = requests.begin()
    wait_for(lambda: requests.outcome(number) == "")


def test_an_unknown_number_is_refused() -> None:
    requests = SaveRequests(lambda: None)
    for number in (0, 1):
        with pytest.raises(NotFound):
            requests.outcome(number)


def test_a_bug_in_a_save_does_not_keep_later_requests_from_an_answer(
    expect_log: ExpectLog,
) -> None:
    expect_log("the save for a client has failed, which is a bug")
    faults: list[Exception] = [ValueError()]

    def save() -> None:
        if faults:
            raise faults.pop()

    requests = SaveRequests(save)
    number = requests.begin()
    wait_for(lambda: requests.outcome(number) == "a bug, see the log")
    number = requests.begin()
    wait_for(lambda: requests.outcome(number) == "")
