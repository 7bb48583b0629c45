"""The wall clock: times that a message and the database can hold."""

import time

import pytest

from pmxcfs.host import clock
from pmxcfs.messages import MAX_TIME


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (1_800_000_000.9, 1_800_000_000),
        (0.5, 0),
        (-1.5, 0),
        (-2_000_000_000.0, 0),
        (float(1 << 31), 1 << 31),
        (MAX_TIME + 0.5, MAX_TIME),
        (float(MAX_TIME + 1), MAX_TIME),
        (9.2e9, MAX_TIME),  # the kernel's clock ends there
    ],
)
def test_a_time_has_32_bits(monkeypatch: pytest.MonkeyPatch, now: float, expected: int) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: int(now * 1e9))
    assert clock.seconds() == expected


@pytest.mark.parametrize(("now", "expected"), [(1 << 60, 1 << 60), (-1, 0), (-(10**18), 0)])
def test_a_time_in_the_journal_is_not_before_1970(
    monkeypatch: pytest.MonkeyPatch, now: int, expected: int
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: now)
    assert clock.nanoseconds() == expected
