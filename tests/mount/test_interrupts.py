"""Programs that get a signal while they wait: a change that has not begun is withdrawn."""

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmxcfs.fuse.turns import MAX_WAITING
from tests.harness import GRACE, Daemon, held, mounted, session_in_use, wait_for
from tests.mount.devices import ext4, frozen, needs_loop
from tests.mount.observed import published
from tests.places import ROOT

pytestmark = pytest.mark.needs_fuse

PROGRAM = ROOT / "tests" / "fakes" / "programs" / "impatient.py"
PROMPT = 0.5  # seconds until a program is gone that waits for nothing that has begun
NAMES = ["mkdir", "rmdir", "unlink", "rename", "create"]
CONTENTS = ["close", "fsync", "truncate"]
SIGNALS, MANY_SIGNALS = 200, 1000
AT_ONCE = 8  # programs
LONGEST = 0.03  # seconds from one signal to the next
DISK = 64 << 20  # bytes
# llfuse is not told of signals.
SESSION = "uring" if session_in_use() == "uring" else "native"


class Client:
    """A program that does an operation in *directory*."""

    def __init__(self, directory: Path, operation: str) -> None:
        self.directory = directory
        argv = [sys.executable, "-S", "-E", str(PROGRAM), str(directory), operation]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._output = self._process.stdout
        assert self._output.readline() == "ready\n"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def answer(self) -> str:
        """Return the next line that is printed; "" if the program has ended without one."""
        return self._output.readline()

    def end(self) -> str:
        """Wait for the end; return what was printed besides."""
        with self._output:
            found = self._output.read()
            self._process.wait(GRACE)
        return found


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Daemon]:
    with mounted(tmp_path, "--test-control", "--fuse", SESSION) as daemon:
        yield daemon


def prepared(mount: Daemon, name: str = "home") -> Path:
    """Return a directory with an empty directory and a file."""
    home = mount.path / name
    (home / "directory").mkdir(parents=True)
    (home / "file").write_text("before")
    return home


def wait_until_waiting(mount: Daemon, count: int) -> None:
    """Wait until *count* requests wait."""
    wait_for(lambda: mount.control("info")["waiting"] == count, mount)


def interrupt(client: Client, mount: Daemon) -> None:
    """Send a program that waits a SIGINT; assert that it soon gets EINTR."""
    begin, starvation = time.monotonic(), mount.starvation()
    client.signal(signal.SIGINT)
    assert client.answer() == f"{errno.EINTR}\n"
    assert time.monotonic() - begin < PROMPT + starvation.seconds()


def kill(client: Client, mount: Daemon) -> None:
    """Kill a program that waits; assert that it soon is gone."""
    begin, starvation = time.monotonic(), mount.starvation()
    client.signal(signal.SIGKILL)
    assert client.end() == ""
    assert time.monotonic() - begin < PROMPT + starvation.seconds()


@pytest.mark.parametrize("operation", [*NAMES, *CONTENTS, "utime"])
def test_a_change_that_waits_is_withdrawn_when_its_program_gets_a_signal(
    mount: Daemon, operation: str
) -> None:
    home = prepared(mount)
    names, time_before = sorted(os.listdir(home)), (home / "file").stat().st_mtime
    # What the program does before the operation that waits is no change.
    with held(mount):
        client = Client(home, operation)
        wait_until_waiting(mount, 1)
        interrupt(client, mount)
    client.end()
    assert sorted(os.listdir(home)) == names
    if operation not in CONTENTS:
        assert (home / "file").read_text() == "before"
        assert (home / "file").stat().st_mtime == time_before


@pytest.mark.parametrize(("operation", "content"), [("close", b"mine"), ("truncate", b"be")])
def test_the_bytes_of_an_interrupted_change_are_published_all_the_same(
    mount: Daemon, operation: str, content: bytes
) -> None:
    home = prepared(mount)
    with held(mount):
        client = Client(home, operation)
        wait_until_waiting(mount, 1)
        interrupt(client, mount)
    client.end()
    wait_for(lambda: published(mount, "home/file") == content, mount)


# Not in an fsync: the kernel then closes the file, which waits, too.
@pytest.mark.parametrize("operation", [*NAMES, "close", "truncate", "utime"])
def test_a_program_that_waits_can_be_killed(mount: Daemon, operation: str) -> None:
    home = prepared(mount)
    names = sorted(os.listdir(home))
    with held(mount):
        client = Client(home, operation)
        wait_until_waiting(mount, 1)
        kill(client, mount)
    assert sorted(os.listdir(home)) == names


def test_as_many_changes_as_may_wait_are_withdrawn_at_once(mount: Daemon) -> None:
    homes = [prepared(mount, f"home{number}") for number in range(MAX_WAITING)]
    with held(mount):
        clients = [Client(home, "utime") for home in homes]
        wait_until_waiting(mount, MAX_WAITING)
        for client in clients:
            client.signal(signal.SIGINT)
        assert {client.answer() for client in clients} == {f"{errno.EINTR}\n"}
        wait_until_waiting(mount, 0)
    assert {client.end() for client in clients} == {""}
    (mount.path / "after").mkdir()


@needs_loop
def test_a_change_behind_a_device_that_stands_still_is_withdrawn(tmp_path: Path) -> None:
    with (
        ext4(tmp_path / "state", size=DISK),
        mounted(tmp_path, "--test-control", "--fuse", SESSION) as mount,
    ):
        homes = [prepared(mount, f"home{number}") for number in range(4)]
        with frozen(mount.state):
            first = Client(homes[0], "mkdir")  # begins to be written
            first.signal(signal.SIGINT)
            clients = [Client(homes[1], "mkdir"), Client(homes[2], "fsync")]
            wait_until_waiting(mount, 2)
            for client in clients:
                interrupt(client, mount)
            killed = Client(homes[3], "rename")
            wait_until_waiting(mount, 2)  # with the close of the second one's file, at its end
            kill(killed, mount)
        assert first.end() == "0\n"
        assert {client.end() for client in clients} == {""}
        assert [(home / "new").exists() for home in homes] == [True, False, False, False]
        assert (homes[3] / "file").exists()


class Crowd:
    """Programs that change one thing after the other, and a choice of moments for signals."""

    def __init__(self, mount: Daemon, seed: int) -> None:
        self._mount = mount
        self._chance = random.Random(seed)
        self._clients = [self._start(number) for number in range(AT_ONCE)]
        self._count = AT_ONCE
        self.answers: list[tuple[Path, str]] = []  # of those that were not killed
        self.slowest = 0.0  # seconds from a signal to the end

    def _start(self, number: int) -> Client:
        home = self._mount.path / f"crowd{number}"
        home.mkdir()
        return Client(home, "all")

    def signal_one(self, *, while_held: bool) -> None:
        """At a random moment, signal a program; begin another one in its place."""
        number = self._chance.choice([signal.SIGINT, signal.SIGKILL])
        place = self._chance.randrange(AT_ONCE)
        with held(self._mount) if while_held else contextlib.nullcontext():
            time.sleep(self._chance.uniform(0, LONGEST))
            self._clients[place].signal(number)
            begin = time.monotonic()
            time.sleep(self._chance.uniform(0, LONGEST))
        self._note_end(self._clients[place], number)
        self.slowest = max(self.slowest, time.monotonic() - begin)
        self._clients[place] = self._start(self._count)
        self._count += 1

    def _note_end(self, client: Client, number: signal.Signals) -> None:
        found = client.end()
        if number == signal.SIGINT:
            self.answers.append((client.directory, found))
        else:
            assert found == ""

    def end(self) -> None:
        """End all programs."""
        for client in self._clients:
            client.signal(signal.SIGINT)
            self._note_end(client, signal.SIGINT)


@pytest.mark.parametrize("count", [SIGNALS, pytest.param(MANY_SIGNALS, marks=pytest.mark.long)])
def test_no_program_hangs_and_no_answer_is_wrong_after_signals_at_random_moments(
    mount: Daemon, seed: int, count: int, report: Callable[[object], None]
) -> None:
    crowd = Crowd(mount, seed)
    for number in range(count):
        crowd.signal_one(while_held=bool(number % 2))
    crowd.end()
    report(f"seed {seed}: {count} signals, the slowest end {1000 * crowd.slowest:.0f} ms later")
    wait_until_waiting(mount, 0)
    wrong = [
        (home, told)
        for home, told in crowd.answers
        for name, is_there in json.loads(told).items()
        if (home / name).exists() != is_there
    ]
    assert wrong == []
    assert len(crowd.answers) > count / 3
    assert crowd.slowest < GRACE / 3
