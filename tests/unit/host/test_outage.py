"""Outages: what is logged of a failure that lasts, and which cause is remembered."""

import logging

import pytest

from pmxcfs.errors import StoreError
from pmxcfs.host.outage import MAX_KEYS, Outage, Repetitions

LOGGER = logging.getLogger("pmxcfs.database")
warns = pytest.mark.expect_log("the disk")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, LOGGER.name)
    return caplog


@warns
def test_a_lasting_failure_is_logged_once_and_so_is_its_end(
    lines: pytest.LogCaptureFixture,
) -> None:
    outage: Outage[str] = Outage(LOGGER, describe=lambda why: f"failed: {why}", over="works again")
    outage.works()
    for _ in range(3):
        outage.fails("the disk")
    outage.works()
    outage.works()
    assert lines.messages == ["failed: the disk", "works again"]
    assert outage.cause is None


@warns
def test_without_a_line_for_the_end_none_is_logged(lines: pytest.LogCaptureFixture) -> None:
    outage: Outage[str] = Outage(LOGGER, level=logging.WARNING)
    outage.fails("the disk")
    outage.works()
    outage.fails("the disk again")
    assert [record.levelname for record in lines.records] == ["WARNING", "WARNING"]


@warns
def test_a_failure_of_another_kind_is_logged_again(lines: pytest.LogCaptureFixture) -> None:
    outage: Outage[StoreError] = Outage(LOGGER, kind=lambda error: error.errno)
    for number in (28, 28, 5, 5):
        outage.fails(StoreError(f"the disk, {number}", number))
    assert lines.messages == ["the disk, 28", "the disk, 5"]


@warns
def test_the_latest_cause_is_remembered_though_it_is_not_logged() -> None:
    """An exception that is raised for each request must not be kept for the whole outage."""
    outage: Outage[str] = Outage(LOGGER)
    outage.fails("the disk, first")
    outage.fails("the disk, second")
    assert outage.cause == "the disk, second"


def test_an_occurrence_is_due_once_in_each_interval_for_each_key() -> None:
    repetitions = Repetitions(60)
    assert [repetitions.is_due("a", now_ns=now) for now in (1, 2, 60, 61, 62)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert repetitions.is_due("b", now_ns=62)


def test_the_oldest_of_many_keys_is_forgotten() -> None:
    repetitions = Repetitions(60)
    assert all(repetitions.is_due(key, now_ns=1) for key in range(MAX_KEYS + 1))
    assert not repetitions.is_due(MAX_KEYS, now_ns=2)
    assert repetitions.is_due(0, now_ns=2)
