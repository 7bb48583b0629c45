"""The thread that writes records for which nobody waits, and tries again after failures."""

import threading

import pytest

from pmxcfs.replica import record_writer as module
from pmxcfs.replica.record_writer import RecordWriter

TIMEOUT = 10.0  # seconds until a wait fails the test


class Records:
    """Records that wait, of a journal that fails some times."""

    def __init__(self, *, failures: int = 0) -> None:
        self.waiting = self.writes = self.attempts = self.looks = 0
        self.failures = failures
        self.was_written, self.was_flushed = threading.Event(), threading.Event()

    @property
    def is_degraded(self) -> bool:
        return self.failures > 0

    def write_out(self) -> None:
        self.writes += 1
        if not self.failures:
            self.waiting = 0
            self.was_written.set()

    def sync_if_due(self) -> None:
        self.looks += 1
        if self.looks > 1:
            self.was_flushed.set()

    def try_again(self) -> bool:
        self.attempts += 1
        self.failures -= 1
        if not self.failures:
            self.waiting = 0
            self.was_written.set()
        return not self.failures


def test_a_record_is_written_soon() -> None:
    records, writer = Records(), RecordWriter()
    writer.start(records)
    records.waiting = 1
    writer.notice()
    assert records.was_written.wait(TIMEOUT)
    assert records.waiting == 0
    writer.close()


def test_records_of_one_moment_are_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_AFTER", 0.2)
    records, writer = Records(), RecordWriter()
    for _ in range(100):
        writer.notice()
    writer.start(records)
    assert records.was_written.wait(TIMEOUT)
    assert records.writes == 1
    writer.close()


def test_a_record_that_comes_during_a_write_is_written_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WRITE_AFTER", 0.0)
    records, writer = Records(), RecordWriter()
    plain = records.write_out

    def write_out() -> None:
        plain()
        if records.writes == 1:
            records.waiting = 1
            records.was_written.clear()
            writer.notice()

    monkeypatch.setattr(records, "write_out", write_out)
    writer.start(records)
    writer.notice()
    while not records.writes:
        assert records.was_written.wait(TIMEOUT)
    assert records.was_written.wait(TIMEOUT)
    writer.close()
    assert records.waiting == 0


def test_after_a_failure_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_INTERVAL", 0.001)
    records, writer = Records(failures=3), RecordWriter()
    writer.start(records)
    writer.notice()
    assert records.was_written.wait(TIMEOUT)
    writer.close()
    assert (records.attempts, records.failures) == (3, 0)


def test_the_end_writes_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_AFTER", 1000.0)
    records, writer = Records(), RecordWriter()
    writer.start(records)
    records.waiting = 1
    writer.close()
    assert records.was_written.wait(TIMEOUT)
    assert records.waiting == 0


def test_what_is_staged_is_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_INTERVAL", 0.001)
    records, writer = Records(), RecordWriter()
    writer.start(records)
    assert records.was_flushed.wait(TIMEOUT)
    assert records.writes == 0
    writer.close()


def test_a_writer_that_was_not_started_can_be_closed() -> None:
    writer = RecordWriter()
    writer.notice()
    writer.close()
