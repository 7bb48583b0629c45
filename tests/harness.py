"""Start, control and clean end of a real daemon in a process of its own.

``mounted`` starts a daemon on directories below *workdir* and asserts that it ends cleanly: exit
status 0, no mount, no write-ahead log, and no warning that the test has not expected.
"""

import contextlib
import ctypes
import hashlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pmxcfs.fuse.choice import URING_SWITCH, kind_for
from pmxcfs.settings import Settings
from pmxcfs.storage.staging import read_staged

POLL_INTERVAL = 0.005  # seconds
PROGRAM = ("-m", "pmxcfs")  # arguments of Python
# Seconds for steps of milliseconds on an idle machine; tests assert the deadlines of the contract.
GRACE = 30.0
MNT_FORCE, MNT_DETACH = 1, 2  # umount2(2): requests fail, and the mount is detached at once

# One line of the log: time, pid, domain, level, text.
LOG_LINE = re.compile(r"[-0-9]{10} [:0-9]{8}\.\d{3} pmxcfs\[\d+\]: \[\w+\] (?P<level>\w+): ")
QUIET_LEVELS = frozenset(["debug", "info"])
# What libfuse prints at an unmount, if a request was just being handed over.
LIBFUSE_ENDS = "fuse: reading device: Software caused connection abort"


class Control:
    """A connection to the daemon's test control; one request at a time."""

    def __init__(self, path: Path, *, patience: float = 60.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(patience)
        try:
            self._socket.connect(str(path))
        except BaseException:
            self._socket.close()
            raise
        self._answers = self._socket.makefile("rb")

    def __call__(self, command: str, **arguments: object) -> dict[str, Any]:
        """Send one command and return its answer; raise OSError if it is refused."""
        request = {"do": command, **arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(self._answers.readline())
        if "error" in answer:
            raise OSError(answer["error"], answer.get("message", command))
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._answers.close()
        self._socket.close()


class Starvation:
    """The time that the threads of a process, and the calling thread, wait for a processor."""

    def __init__(self, process: Path) -> None:
        self._places = (Path("/proc/thread-self"), process / "task")
        self._before = self._waits()

    def seconds(self) -> float:
        """Return the sum of the waits of all threads since the construction."""
        now = self._waits()
        return sum(waited - self._before.get(name, 0) for name, waited in now.items()) / 1e9

    def _waits(self) -> dict[Path, int]:
        """Return the nanoseconds that each thread has waited: the second number of schedstat."""
        own, tasks = self._places
        found = {}
        for file in (own / "schedstat", *tasks.glob("*/schedstat")):
            with contextlib.suppress(OSError):  # a thread has ended
                found[file] = int(file.read_bytes().split()[1])
        return found


@dataclass
class Daemon:
    """A running daemon. *path* is where it is mounted, *log* the file that has its stderr."""

    path: Path
    state: Path
    run: Path
    log: Path
    process: subprocess.Popen[bytes]
    expected: list[str] = field(default_factory=list)
    was_killed: bool = False
    exit_status: int = 0  # the expected one

    def is_ready(self) -> bool:
        """Tell whether the daemon has started; it creates its pid file last."""
        with contextlib.suppress(FileNotFoundError):
            return (self.run / "pmxcfs.pid").read_text() == f"{self.process.pid}\n"
        return False

    def connect(self) -> Control:
        """Open a connection to the test control, for many commands."""
        return Control(self.run / "control.sock")

    def control(self, command: str, **arguments: object) -> dict[str, Any]:
        """Send one command to the test control and return its answer."""
        with self.connect() as control:
            return control(command, **arguments)

    def wait_until_notified(self) -> None:
        """Wait until the daemon's notifier thread has notified the kernel of all changes so far."""
        wait_for(lambda: self.control("info")["handed"] is True, self)

    def starvation(self) -> Starvation:
        """Start to count the time that the daemon's threads and the caller wait for a processor."""
        return Starvation(Path(f"/proc/{self.process.pid}"))

    def publish_only_on_request(self) -> None:
        """Let the timer publish nothing, however slow the machine is."""
        self.control("publish-after", seconds=3600)

    def wait_for_log(self, text: str, *, count: int = 1) -> None:
        """Wait until *count* lines of the log contain *text*; a thread writes them later."""
        wait_for(lambda: self.log_count(text) >= count, self)
        assert self.log_count(text) == count, self.log_tail()

    def log_count(self, text: str) -> int:
        """Return how many lines of the log contain *text* so far."""
        return sum(text in line for line in self.log_text().splitlines())

    def expect_log(self, pattern: str) -> None:
        """Declare that the log has a warning or an error that matches *pattern*."""
        self.expected.append(pattern)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, grace: float = GRACE) -> None:
        """Send a signal and wait for the end; after *grace* seconds log all stacks and fail."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler prints every thread's stack
            self.process.wait(grace)
            raise AssertionError(f"no end after {grace} s\n{self.log_tail()}") from None

    def kill(self) -> None:
        """Kill the daemon as a crash would, and detach its dead mount."""
        self.was_killed = True
        self.process.kill()
        detach(self.path)  # a thread of the daemon may wait in the kernel for a request
        self.process.wait()

    def log_text(self) -> str:
        """Return what the daemon has logged so far."""
        return self.log.read_text(errors="replace")

    def log_tail(self) -> str:
        """Return the end of the log, for messages of failed tests."""
        return "\n".join(["--- log:", *self.log_text().splitlines()[-40:]])

    def check_end(self) -> None:
        """Assert that only the database and the log are left of the daemon."""
        assert not is_mount(self.path), f"{self.path} is still mounted\n{self.log_tail()}"
        if not self.was_killed:
            status = self.process.returncode
            assert status == self.exit_status, f"exit status {status}\n{self.log_tail()}"
            left = sorted(path.name for path in self.state.glob("config.db-*"))
            assert not left or status, f"{left} left beside the database"
            assert not read_staged(self.state / "journal") or status, "something is left in memory"
        self.check_log()

    def check_log(self) -> None:
        """Assert that the log has the expected warnings, and no others."""
        loud = [line for line in self.log_text().splitlines() if is_loud(line)]
        missing = [p for p in self.expected if not any(re.search(p, line) for line in loud)]
        assert not missing, f"not in the log: {missing}\n{self.log_tail()}"
        surprises = [line for line in loud if not any(re.search(p, line) for p in self.expected)]
        assert not surprises, "unexpected in the log:\n" + "\n".join(surprises)


def is_loud(line: str) -> bool:
    """Tell whether a line of the daemon's stderr is a warning, an error, or no log line."""
    match = LOG_LINE.match(line)
    if match is None:
        return line != LIBFUSE_ENDS
    return match["level"] not in QUIET_LEVELS


@contextlib.contextmanager
def mounted(
    workdir: Path,
    *flags: str | Path,
    nodename: str = "node1",
    local: bool = True,
    grace: float = GRACE,
    expect_log: Sequence[str] = (),
    program: Sequence[str | Path] = PROGRAM,
) -> Iterator[Daemon]:
    """Run a daemon in *local* mode on *workdir*/{pve,state,run}; stop and check it at the end.

    *flags* are added to the command line. *expect_log* are patterns of warnings that must appear.
    *program* are the arguments of Python, for a program that behaves like the daemon.
    """
    daemon = launch(workdir, *flags, nodename=nodename, local=local, program=program)
    daemon.expected.extend(expect_log)
    try:
        wait_for(daemon.is_ready, daemon, grace)
        yield daemon
        if not daemon.was_killed:
            daemon.stop(grace=grace)
    finally:
        if daemon.process.poll() is None:
            daemon.kill()
        detach(daemon.path)
    daemon.check_end()


def launch(
    workdir: Path,
    *flags: str | Path,
    nodename: str = "node1",
    local: bool = True,
    program: Sequence[str | Path] = PROGRAM,
) -> Daemon:
    """Start a daemon on *workdir*/{pve,state,run} without waiting; the caller must end it."""
    mountpoint, state, run = workdir / "pve", workdir / "state", workdir / "run"
    workdir.mkdir(parents=True, exist_ok=True)
    log = next(path for n in itertools.count(1) if not (path := workdir / f"log{n}").exists())
    argv: list[str | Path] = [sys.executable, "-X", "faulthandler", *program, "-f"]
    argv += ["-l"] if local else []
    argv += ["--mountpoint", mountpoint, "--statedir", state, "--rundir", run]
    argv += ["--nodename", nodename, "--ipc-name", ipc_name(workdir)]
    argv += ["--rrddir", workdir / "rrd", "--rrdcached-socket", workdir / "rrdcached.sock"]
    argv += [*session_flags(), *flags]
    with log.open("wb") as stderr:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=stderr, cwd=workdir)
    return Daemon(mountpoint, state, run, log, process)


def session_flags() -> list[str]:
    """Return the option for the session that PMXCFS_TEST_FUSE names."""
    name = os.environ.get("PMXCFS_TEST_FUSE", "")
    return ["--fuse", name] if name else []


@contextlib.contextmanager
def offered_uring(setting: str = "Y") -> Iterator[None]:
    """Have the kernel offer FUSE over io_uring to new mounts of this machine, or not."""
    before = URING_SWITCH.read_text()
    URING_SWITCH.write_text(setting)
    try:
        yield
    finally:
        URING_SWITCH.write_text(before)


def session_in_use() -> str:
    """Return the kind of session that daemons of this run have."""
    return kind_for(os.environ.get("PMXCFS_TEST_FUSE", "") or Settings.fuse)


def arguments(workdir: Path, *, nodename: str = "node1") -> list[str]:
    """Return the arguments of ``pmxcfs`` for local mode on *workdir*/{pve,state,run}."""
    places = {"mountpoint": "pve", "statedir": "state", "rundir": "run"}
    options = [f"--{option}={workdir / name}" for option, name in places.items()]
    names = [f"--nodename={nodename}", f"--ipc-name={ipc_name(workdir)}"]
    return ["--local", *names, *options]


def ipc_name(workdir: Path) -> str:
    """Return the name that local clients of a daemon on *workdir* connect to.

    IPC names are shared by the whole machine, so each daemon needs its own.
    """
    return f"test-{hashlib.sha256(os.fsencode(workdir.resolve())).hexdigest()[:16]}"


def wait_for(condition: Callable[[], bool], daemon: Daemon, seconds: float = GRACE) -> None:
    """Wait until *condition* is true; fail if the daemon ends first, or after *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        status = daemon.process.poll()
        assert status is None, f"the daemon ended with {status}\n{daemon.log_tail()}"
        assert time.monotonic() < deadline, f"not within {seconds} s\n{daemon.log_tail()}"
        time.sleep(POLL_INTERVAL)


@contextlib.contextmanager
def held(daemon: Daemon) -> Iterator[None]:
    """Let changes wait, as in a cluster without answers, until the block ends."""
    daemon.control("hold")
    try:
        yield
    finally:
        if daemon.process.poll() is None:
            daemon.control("resume")


def thread_states(process: Path) -> Iterator[str]:
    """Yield the state of each thread of a process, as in proc(5), by its directory in /proc."""
    for stat in (process / "task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            yield stat.read_text().rpartition(") ")[2][0]


def fuse_mounts(below: Path) -> list[Path]:
    """Return the FUSE mounts at *below* and deeper, the deepest first."""
    found = []
    for line in Path("/proc/self/mounts").read_bytes().splitlines():
        _, where, kind, *_ = line.split(b" ")
        path = Path(os.fsdecode(where.decode("unicode_escape").encode("latin-1")))
        if kind.startswith(b"fuse") and path.is_relative_to(below):
            found.append(path)
    return sorted(found, reverse=True)


def is_mount(path: Path) -> bool:
    """Tell whether a FUSE file system is mounted on *path*, without a request to its daemon."""
    return path in fuse_mounts(path)


def detach(path: Path) -> None:
    """Detach all mounts on *path*, dead or alive."""
    libc = ctypes.CDLL(None)
    while is_mount(path) and libc.umount2(os.fsencode(path), MNT_FORCE | MNT_DETACH) == 0:
        pass
