"""The processes that ask for changes: what /proc tells of them, and for how long it is used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmxcfs.host.callers import FRESH_NS, MAX_KNOWN, UNKNOWN, UNSET, Caller, Callers


class World:
    """A directory like /proc, and a clock."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.now_ns = 5
        self.callers = Callers(monotonic_ns=lambda: self.now_ns, proc=str(proc))

    def start(self, pid: int, name: bytes, login_uid: bytes = b"1000") -> None:
        directory = self.proc / str(pid)
        directory.mkdir(exist_ok=True)
        (directory / "comm").write_bytes(name + b"\n")
        (directory / "loginuid").write_bytes(login_uid)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_caller_is_named_by_proc(world: World) -> None:
    world.start(7, b"pvedaemon worke")
    assert world.callers.of(7, 33) == Caller(7, 33, 1000, b"pvedaemon worke")


def test_an_answer_is_used_for_less_than_a_second(world: World) -> None:
    """A pid that another process gets within that time shows the first one's name."""
    world.start(7, b"first")
    world.callers.of(7, 0)
    world.start(7, b"second")
    world.now_ns += FRESH_NS - 1
    assert world.callers.of(7, 0).process == b"first"
    world.now_ns += 1
    assert world.callers.of(7, 0).process == b"second"


def test_another_user_is_looked_up_anew(world: World) -> None:
    world.start(7, b"first")
    world.callers.of(7, 0)
    world.start(7, b"second")
    assert world.callers.of(7, 33) == Caller(7, 33, 1000, b"second")


def test_a_process_that_is_missing_has_no_name(world: World) -> None:
    assert world.callers.of(7, 33) == Caller(7, 33, UNSET, b"")


@pytest.mark.parametrize("content", [b"4294967295", b"", b"-1", b"nobody"])
def test_a_login_uid_that_is_not_set_is_unknown(world: World, content: bytes) -> None:
    world.start(7, b"cron", content)
    assert world.callers.of(7, 0).login_uid == UNSET


def test_a_login_uid_that_no_field_can_hold_is_unknown(world: World) -> None:
    world.start(7, b"cron", b"4294967296")
    assert world.callers.of(7, 0).login_uid == UNSET


def test_pid_0_is_a_process_of_another_namespace(world: World) -> None:
    world.start(0, b"never read")
    assert world.callers.of(0, 33) is UNKNOWN


def test_a_name_has_any_bytes(world: World) -> None:
    world.start(7, b"\xff\n\n")
    assert world.callers.of(7, 0).process == b"\xff\n\n"


def test_the_number_of_remembered_processes_is_bounded(world: World) -> None:
    world.start(1, b"old")
    world.callers.of(1, 0)
    for pid in range(2, 2 + MAX_KNOWN):
        world.callers.of(pid, 0)
    world.start(1, b"new")
    assert world.callers.of(1, 0).process == b"new"
    world.start(2 + MAX_KNOWN - 1, b"too late")
    assert world.callers.of(2 + MAX_KNOWN - 1, 0).process == b""


def test_a_real_process_is_named_and_one_that_has_ended_is_not() -> None:
    callers = Callers(monotonic_ns=lambda: 0)
    mine = callers.of(os.getpid(), 0)
    assert mine.process == Path("/proc/self/comm").read_bytes()[:-1]
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert callers.of(process.pid, 0) == Caller(process.pid, 0, UNSET, b"")
