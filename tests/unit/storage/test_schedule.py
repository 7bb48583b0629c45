"""When a save is due, by the times and kinds of the changes."""

import pytest

from pmxcfs.storage.schedule import NEVER, NOW, SAVE_SIZE, Schedule


def due_at(schedule: Schedule, size: int = 0, *, is_blocked: bool = False) -> float:
    return schedule.due_at(size, is_blocked=is_blocked)


def schedule_of(*changes: tuple[float, bool]) -> Schedule:
    """Return a schedule with changes: time, and whether it is one of the configuration."""
    schedule = Schedule()
    for time, is_configuration in changes:
        schedule.note_change(time, is_configuration=is_configuration)
    return schedule


def test_nothing_is_due_without_a_change() -> None:
    assert due_at(Schedule()) == NEVER


def test_heartbeats_are_saved_five_minutes_after_the_first() -> None:
    assert due_at(schedule_of((100, False), (399, False))) == 400


@pytest.mark.parametrize(
    ("times", "due"),
    [([100], 102), ([100, 101.5], 103.5), ([100 + n for n in range(30)], 130)],
    ids=["one", "two", "without pause"],
)
def test_the_configuration_is_saved_after_a_pause_or_half_a_minute(
    times: list[float], due: float
) -> None:
    assert due_at(schedule_of(*[(time, True) for time in times])) == due


def test_heartbeats_are_no_reason_to_wait_for_a_pause() -> None:
    assert due_at(schedule_of((100, True), (101, False))) == 102


def test_a_configuration_change_brings_heartbeats_along() -> None:
    assert due_at(schedule_of((100, False), (200, True))) == 202


def test_much_journal_is_saved_at_once() -> None:
    schedule = schedule_of((100, False))
    assert due_at(schedule, SAVE_SIZE - 1) == 400
    assert due_at(schedule, SAVE_SIZE) == NOW


def test_while_the_log_can_t_be_cut_only_much_journal_counts() -> None:
    schedule = schedule_of((100, True))
    assert due_at(schedule, SAVE_SIZE - 1, is_blocked=True) == NEVER
    assert due_at(schedule, SAVE_SIZE, is_blocked=True) == NOW
    assert due_at(schedule, SAVE_SIZE - 1) == 102


def test_what_is_being_saved_is_not_due_again() -> None:
    schedule = schedule_of((100, True))
    schedule.begin()
    assert due_at(schedule) == NEVER
    schedule.note_change(103, is_configuration=False)
    assert due_at(schedule) == 403


def test_after_a_failure_the_times_of_the_first_changes_count() -> None:
    schedule = schedule_of((100, False), (110, True))
    schedule.begin()
    schedule.fail()
    assert due_at(schedule) == 112
    schedule.begin()
    schedule.note_change(139, is_configuration=True)
    schedule.fail()
    assert due_at(schedule) == 140  # half a minute after the first
