"""The log handlers: one ASCII line a record, and no call that blocks."""

import contextlib
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.host import log

FUSE = logging.getLogger("pmxcfs.fuse")
PREFIX = f"pmxcfs[{os.getpid()}]: "


class Recorder:
    """A sink that records its lines, and refuses them while it is full."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.is_full = False

    def send(self, level: str, line: str) -> bool:
        if not self.is_full:
            self.lines.append(line)
        return not self.is_full

    def close(self) -> None:
        pass


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    sink = Recorder()
    handler = log.LineHandler(sink)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield sink
    root.removeHandler(handler)
    root.setLevel(logging.WARNING)


@pytest.fixture
def system_log(tmp_path: Path) -> Iterator[socket.socket]:
    """A stand-in for syslogd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log"))
        server.settimeout(30)
        yield server


@pytest.mark.parametrize(
    ("logger", "domain"),
    [
        ("pmxcfs.main", "main"),
        ("pmxcfs.dcdb", "dcdb"),
        ("pmxcfs.status", "status"),
        ("pmxcfs.database", "database"),
        ("pmxcfs.quorum", "quorum"),
        ("pmxcfs.confdb", "confdb"),
        ("pmxcfs.ipcs", "ipcs"),
        ("pmxcfs.fuse", "fuse"),
        ("pmxcfs", "main"),
        ("llfuse", "main"),
        ("other.fuse", "main"),
    ],
)
def test_a_line_names_its_domain(logger: str, domain: str, recorder: Recorder) -> None:
    logging.getLogger(logger).info("node has %s", "quorum")
    assert recorder.lines == [f"{PREFIX}[{domain}] info: node has quorum"]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ('plain "quoted" \\ text', 'plain "quoted" \\ text'),
        ("a\nb\tc\x7f", "a#010b#009c#127"),
        ("ä€", "\\u00e4\\u20ac"),
        ('"ä"', '"\\u00e4"'),
        ("x\U0001f600y", "xy"),
        (os.fsdecode(b"\xff\xfe"), "??"),
    ],
)
def test_a_line_is_printable_ascii(text: str, escaped: str, recorder: Recorder) -> None:
    FUSE.info("%s", text)
    assert recorder.lines == [f"{PREFIX}[fuse] info: {escaped}"]


def test_a_long_line_is_cut(recorder: Recorder) -> None:
    FUSE.info("x" * 10_000)
    assert len(recorder.lines[0]) == log.MAX_LINE


@pytest.mark.expect_log("it broke")
def test_each_line_of_a_traceback_is_a_log_line(recorder: Recorder) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        FUSE.exception("it broke")
    assert recorder.lines[0] == f"{PREFIX}[fuse] error: it broke"
    assert recorder.lines[1].endswith("error: Traceback (most recent call last):")
    assert recorder.lines[-2:] == [
        f"{PREFIX}[fuse] error: ValueError: two",
        f"{PREFIX}[fuse] error: lines",
    ]


def test_a_message_that_can_not_be_formatted_is_reported() -> None:
    sink = Recorder()
    record = logging.LogRecord("pmxcfs.fuse", logging.INFO, "file.py", 7, "%d", ("x",), None)
    log.LineHandler(sink).handle(record)
    assert len(sink.lines) == 1
    assert "log message of file.py:7 can't be formatted" in sink.lines[0]


def test_dropped_lines_are_counted_and_reported(recorder: Recorder) -> None:
    recorder.is_full = True
    FUSE.info("one")
    FUSE.info("two")
    recorder.is_full = False
    FUSE.info("three")
    FUSE.info("four")
    assert recorder.lines == [
        f"{PREFIX}[main] warning: 2 log messages were lost",
        f"{PREFIX}[fuse] info: three",
        f"{PREFIX}[fuse] info: four",
    ]


def test_verbose_applies_to_all_loggers_at_once(recorder: Recorder) -> None:
    other = logging.getLogger("another.package")
    FUSE.debug("hidden")
    log.set_verbose(True)
    FUSE.debug("shown")
    other.debug("shown")
    log.set_verbose(False)
    other.debug("hidden")
    assert [line.rpartition(" ")[2] for line in recorder.lines] == ["shown", "shown"]


def test_a_datagram_to_the_system_log_has_the_priority(
    tmp_path: Path, system_log: socket.socket
) -> None:
    with contextlib.closing(log.SystemLog(str(tmp_path / "log"))) as sink:
        for level in ("debug", "info", "warning", "error", "critical", "level 25"):
            assert sink.send(level, level)
    got = [system_log.recv(100).decode() for _ in range(6)]
    expected = ["<31>debug", "<30>info", "<28>warning", "<27>error", "<26>critical"]
    assert got == [*expected, "<30>level 25"]


def test_a_full_system_log_drops_instead_of_blocking(
    tmp_path: Path, system_log: socket.socket
) -> None:
    with contextlib.closing(log.SystemLog(str(tmp_path / "log"))) as sink:
        attempts = 0
        while sink.send("info", "x"):
            attempts += 1
            assert attempts < 100_000
        system_log.recv(100)
        assert sink.send("info", "x")


def test_a_missing_system_log_is_found_once_it_starts(tmp_path: Path) -> None:
    with (
        contextlib.closing(log.SystemLog(str(tmp_path / "log"))) as sink,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server,
    ):
        assert not sink.send("info", "nobody")
        server.bind(str(tmp_path / "log"))
        assert sink.send("info", "somebody")
        assert server.recv(100) == b"<30>somebody"


def test_a_line_on_the_terminal_has_a_time_stamp() -> None:
    reader, writer = os.pipe()
    terminal = log.Terminal(writer)
    assert terminal.send("info", "one")
    assert terminal.send("info", "two")
    terminal.close()
    os.close(writer)
    with open(reader) as pipe:
        lines = pipe.read().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} one", lines[0])
    assert lines[1].endswith(" two")
    assert len(lines) == 2


def test_a_stuck_terminal_drops_instead_of_blocking() -> None:
    """Without a reader the pipe fills up, then the queue; then lines are refused."""
    reader, writer = os.pipe()
    terminal = log.Terminal(writer)
    line = "x" * 1000
    sent = 0
    while terminal.send("info", line):
        sent += 1
        assert sent < log.MAX_QUEUED + 1000
    assert sent >= log.MAX_QUEUED
    terminal.close()  # returns even so
    os.close(reader)  # ends the thread, which is still writing
    os.close(writer)


def test_a_closed_terminal_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    terminal = log.Terminal(writer)
    assert terminal.send("info", "into the void")
    terminal.close()
    os.close(writer)


def test_a_non_blocking_terminal_loses_no_line() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = b"y" * 1_000_000  # more than a pipe can hold
    thread = threading.Thread(target=log.write_fully, args=(writer, data))
    thread.start()
    with open(reader, "rb") as pipe:
        assert pipe.read(len(data)) == data
    thread.join()
    os.close(writer)


def test_the_foreground_logs_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    before = list(logging.getLogger().handlers)
    stop = log.start(foreground=True, debug=True)
    FUSE.debug("a request")
    stop()
    FUSE.info("after the end")
    assert logging.getLogger().handlers == before
    assert logging.getLogger().level == logging.WARNING
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(f"{PREFIX}[fuse] debug: a request")


def test_a_service_logs_to_the_journal_through_the_system_log(
    system_log: socket.socket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """JOURNAL_STREAM tells that stderr is the journal; then lines go to it with a priority."""
    status = os.fstat(sys.stderr.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    monkeypatch.setattr(log.SystemLog.__init__, "__defaults__", (str(tmp_path / "log"),))
    stop = log.start(foreground=True, debug=False)
    FUSE.info("a request")
    stop()
    assert system_log.recv(1000).decode() == f"<30>{PREFIX}[fuse] info: a request"
    assert capfd.readouterr().err == ""


def test_a_terminal_is_not_taken_for_the_journal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A login shell can inherit JOURNAL_STREAM from a service."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:1234567")
    stop = log.start(foreground=True, debug=False)
    FUSE.info("a request")
    stop()
    assert capfd.readouterr().err.endswith("[fuse] info: a request\n")


@pytest.mark.expect_log("thread doomed ended by an exception")
def test_an_exception_that_ends_a_thread_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    stop = log.start(foreground=True, debug=False)
    thread = threading.Thread(target=lambda: [][1], name="doomed")
    thread.start()
    thread.join()
    stop()
    text = capfd.readouterr().err
    assert "[main] critical: thread doomed ended by an exception" in text
    assert text.splitlines()[-1].endswith("IndexError: list index out of range")


def test_a_thread_that_raises_system_exit_is_not_logged(capfd: pytest.CaptureFixture[str]) -> None:
    stop = log.start(foreground=True, debug=False)
    thread = threading.Thread(target=sys.exit)
    thread.start()
    thread.join()
    stop()
    assert capfd.readouterr().err == ""
