"""Progress: when a change in flight is overdue, and from when to when the node is stuck."""

import pytest

from pmxcfs.errors import Busy
from pmxcfs.replica.progress import ATTEMPT_INTERVAL, OVERDUE, Progress

START = 100.0  # monotonic seconds
LATER = START + 1000.0
STUCK = "refused until the cluster delivers"


@pytest.fixture
def progress() -> Progress:
    made = Progress()
    made.synced()
    return made


def fail(progress: Progress, *, now: float) -> None:
    progress.failed(Busy("no room"), now=now)


def test_the_oldest_change_in_flight_is_overdue_after_two_seconds(progress: Progress) -> None:
    assert OVERDUE == 2.0
    assert progress.oldest == 0.0
    assert not progress.is_overdue(LATER)
    progress.sent("first", START)
    progress.sent("second", START + 1)
    assert progress.oldest == START
    assert not progress.is_overdue(START + OVERDUE)
    assert progress.is_overdue(START + OVERDUE + 0.1)
    progress.came_back("first")
    assert progress.oldest == START + 1
    assert not progress.is_overdue(START + OVERDUE + 0.1)


def test_what_was_in_flight_when_the_group_was_left_is_not_overdue(progress: Progress) -> None:
    progress.sent("first", START)
    progress.left()
    assert not progress.is_overdue(LATER)


def test_a_change_of_two_messages_is_in_flight_since_the_first(progress: Progress) -> None:
    progress.sent("whole", START)
    progress.sent("whole", START)
    assert progress.oldest == START
    progress.came_back("whole")
    progress.came_back("whole")
    assert progress.oldest == 0.0


def test_a_slow_change_alone_refuses_nothing(progress: Progress) -> None:
    progress.sent("first", START)
    assert not progress.refuses(LATER)


@pytest.mark.expect_log(STUCK)
def test_a_stuck_node_refuses_until_a_change_comes_back(progress: Progress) -> None:
    progress.sent("first", START)
    fail(progress, now=START + 10)
    assert progress.is_stuck()
    assert progress.refuses(START + 10)
    assert progress.refuses(LATER), "the change may still come back"
    progress.came_back("first")
    assert not progress.is_stuck()
    assert not progress.refuses(LATER)


@pytest.mark.expect_log(STUCK)
def test_a_stuck_node_refuses_until_a_synchronization_has_ended(progress: Progress) -> None:
    progress.sync_began()
    fail(progress, now=START)
    assert progress.refuses(LATER)
    progress.synced()
    assert not progress.refuses(START)


@pytest.mark.expect_log(STUCK)
def test_after_a_loss_of_the_group_only_a_synchronization_helps(progress: Progress) -> None:
    progress.sent("first", START)
    fail(progress, now=START + 10)
    progress.left()
    assert progress.refuses(LATER)
    progress.synced()
    assert not progress.refuses(LATER)


@pytest.mark.expect_log(STUCK)
def test_a_stuck_node_with_nothing_in_flight_lets_attempts_through(progress: Progress) -> None:
    fail(progress, now=START)
    assert progress.refuses(START + 0.9 * ATTEMPT_INTERVAL)
    assert not progress.refuses(START + ATTEMPT_INTERVAL)
    assert progress.is_stuck()
    fail(progress, now=START + 5)
    assert progress.refuses(START + 5)
    progress.sent("attempt", START + 6)
    assert not progress.refuses(START + 6.1), "others need not fail beside the attempt"
    progress.came_back("attempt")
    assert not progress.is_stuck()
