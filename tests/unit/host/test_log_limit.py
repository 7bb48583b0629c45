"""Limits of log lines: what is logged at once, what is counted, and when the counts are logged."""

import logging
import re
import threading
from collections.abc import Iterator

import pytest

from pmxcfs.host.log_limit import INTERVAL, MOST_KINDS, LogLimit, Reporter

LOGGER = logging.getLogger("pmxcfs.dcdb")
TIMEOUT = 30.0  # seconds until a wait fails the test
pytestmark = pytest.mark.expect_log("dropped")


class World:
    """A limit, its clock and the lines that it has logged."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 1000.0
        self.limit = LogLimit(LOGGER, clock=lambda: self.now)
        self._caplog = caplog

    def take(self) -> list[str]:
        """Return the lines since the last call."""
        found = self._caplog.messages
        self._caplog.clear()
        return found


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> World:
    return World(caplog)


def test_the_first_of_a_kind_is_logged_at_once_and_the_rest_is_counted(world: World) -> None:
    for number in range(1000):
        world.limit.warn("a", f"dropped {number}")
    assert world.take() == ["dropped 0"]
    assert world.limit.flush()  # events are counted and not logged
    world.now += INTERVAL
    assert not world.limit.flush()
    assert world.take() == ["dropped 999 (999 times since the last such line)"]


def test_kinds_do_not_share_a_limit(world: World) -> None:
    for kind in ("a", "b", "a", "b"):
        world.limit.warn(kind, f"dropped {kind}")
    assert world.take() == ["dropped a", "dropped b"]


def test_a_flood_that_lasts_is_one_line_a_minute(world: World) -> None:
    for _ in range(10 * 60):
        world.limit.warn("a", "dropped")
        world.now += INTERVAL / 60
    world.limit.flush(everything=True)
    lines = world.take()
    assert len(lines) == 11
    assert lines[0] == "dropped"
    counts = [int(found[1]) for line in lines if (found := re.search(r"\((\d+) times", line))]
    assert 1 + sum(counts) == 600


def test_after_a_quiet_minute_the_next_event_is_logged_at_once(world: World) -> None:
    world.limit.warn("a", "dropped 1")
    world.now += INTERVAL
    world.limit.warn("a", "dropped 2")
    world.limit.warn("a", "dropped 3")
    world.now += INTERVAL
    world.limit.warn("b", "dropped 4")  # any event has the lines logged that are due
    assert world.take() == [
        "dropped 1",
        "dropped 2",
        "dropped 3 (1 times since the last such line)",
        "dropped 4",
    ]


def test_many_kinds_use_little_memory_and_few_lines(world: World) -> None:
    for number in range(10_000):
        world.limit.warn(number, f"dropped {number}")
    assert len(world.take()) == MOST_KINDS + 1
    world.limit.flush(everything=True)
    count = 10_000 - MOST_KINDS - 1
    assert world.take() == [f"dropped 9999 ({count} times since the last such line)"]


def test_a_line_keeps_its_level(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        world.limit.log(logging.ERROR, "a", "dropped")
    world.limit.flush(everything=True)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


class Awaiting(logging.Handler):
    """Sets *found* when a line with *text* is logged."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found = threading.Event()
        self._text = text

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self.found.set()


@pytest.fixture
def reporter() -> Iterator[Reporter]:
    reporter = Reporter()
    reporter.start()
    yield reporter
    reporter.close()


def test_the_reporter_logs_all_counts_when_it_is_closed(world: World, reporter: Reporter) -> None:
    for _ in range(3):
        world.limit.warn("a", "dropped")
    reporter.close(timeout=TIMEOUT)
    assert world.take() == ["dropped", "dropped (2 times since the last such line)"]


def test_the_reporter_logs_a_count_that_is_due_without_another_event(
    world: World, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmxcfs.host.log_limit.CHECK_INTERVAL", 0.001)
    counted = Awaiting("times since")
    LOGGER.addHandler(counted)
    world.limit.warn("a", "dropped")
    world.limit.warn("a", "dropped")
    world.now += INTERVAL
    assert counted.found.wait(TIMEOUT)
    LOGGER.removeHandler(counted)
