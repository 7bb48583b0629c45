"""The two services of a node: corosync, and the daemon under test."""

import contextlib
import itertools
import re
import signal
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.cluster.node import PATIENCE, POLL_INTERVAL, Node, Process
from tests.harness import PROGRAM, Control

CONTROL_SOCKET = Path("run/pve-cluster/control.sock")  # below the node's root
CONTROL_PATIENCE = 5.0  # seconds for an answer of the test control
MEMBER = re.compile(r"^ +(\d+) +\d+ \S", re.MULTILINE)  # its id, votes, address
LOSS = re.compile(r"^(\w+ \d+ [\d:.]+) .* This node is within the non-primary", re.MULTILINE)
LOG_TIME = "%Y %b %d %H:%M:%S.%f%z"  # corosync's, in UTC; it does not tell the year


class Service:
    """A program that a node runs until it is told to stop; *log* has its output."""

    name = "service"

    def __init__(self, node: Node) -> None:
        self.node = node
        self.process: Process | None = None
        self.is_frozen = False
        self.log = node.log.with_name(f"{self.name}.log")

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended since."""
        return self.process is not None and self.process.poll() is None

    def launch(self, argv: Sequence[str | Path], env: dict[str, str]) -> None:
        """Start it; for the classes below."""
        assert not self.is_running, f"{self} runs"
        with self.log.open("ab") as log:
            self.process = self.node.spawn(argv, output=log.fileno(), env=env)
        self.is_frozen = False

    def check(self) -> None:
        """Fail if it was started, and ended though nobody told it to."""
        if self.process is not None and (status := self.process.poll()) is not None:
            raise AssertionError(f"{self} ended with status {status}\n{self.log_tail()}")

    def terminate(self) -> None:
        """Tell it to stop, without waiting."""
        assert self.process, f"{self} was not started"
        self.thaw()
        self.process.signal(signal.SIGTERM)

    def stop(self, *, seconds: float = PATIENCE) -> int:
        """Tell it to stop and return its exit status; fail if it takes longer than *seconds*."""
        self.terminate()
        assert self.process
        status = self.process.wait(seconds)
        self.process = None
        return status

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process:
            self.process.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None
        self.is_frozen = False

    def freeze(self) -> None:
        """Stop it where it is, with its connections open."""
        assert self.process, f"{self} was not started"
        self.process.signal(signal.SIGSTOP)
        self.is_frozen = True

    def thaw(self) -> None:
        """Undo ``freeze``."""
        if self.process and self.is_frozen:
            self.process.signal(signal.SIGCONT)
        self.is_frozen = False

    def log_text(self) -> str:
        """Return what it has logged in all its lives."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_lines(self, text: str) -> list[str]:
        """Return the lines of its log that contain *text*; a thread of the daemon writes them."""
        return [line for line in self.log_text().splitlines() if text in line]

    def log_tail(self) -> str:
        """Return the end of the log, for messages of failed tests."""
        return "\n".join([f"--- log of {self}:", *self.log_text().splitlines()[-30:]])

    def __str__(self) -> str:
        return f"{self.name} on {self.node.name}"


class Corosync(Service):
    """corosync with the configuration in the node's /etc/corosync/corosync.conf."""

    name = "corosync"

    def start(self) -> None:
        """Start it; the node is quorate seconds later."""
        self.launch(["corosync", "-f"], {})

    def quorum_losses(self) -> list[float]:
        """Return the moments, of time.monotonic(), at which it has logged a loss of quorum."""
        offset = time.time() - time.monotonic()
        year = time.gmtime().tm_year
        stamps = LOSS.findall(self.log_text())
        moments = [datetime.strptime(f"{year} {stamp}Z", LOG_TIME) for stamp in stamps]
        return [moment.timestamp() - offset for moment in moments]

    def is_quorate(self) -> bool:
        """Ask corosync whether this node is in the quorate part; a dead one is not."""
        return "Quorate:          Yes" in self._ask_quorum()

    def members(self) -> list[int]:
        """Return the node ids that corosync sees, sorted; none if it does not answer."""
        return sorted(int(number) for number in MEMBER.findall(self._ask_quorum()))

    def _ask_quorum(self) -> str:
        if self.is_frozen or not self.is_running:
            return ""
        return self.node.run("corosync-quorumtool", "-s", "-i", check=False)


class Daemon(Service):
    """The daemon of this checkout, where a real node has it, with its test control."""

    name = "pmxcfs"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.program: Sequence[str | Path] = PROGRAM  # what Python runs
        self._lives = itertools.count(1)

    def start(self, *flags: str | Path, clock_offset: int = 0) -> None:
        """Start it without waiting. Its wall clock is off by *clock_offset* seconds."""
        argv = [sys.executable, "-X", "faulthandler", *self.program, "-f", "--test-control"]
        self.log = self.node.log.with_name(f"{self.name}{next(self._lives)}.log")
        self.launch([*argv, "--nodename", self.node.name, *flags], clock(clock_offset))

    def kill(self) -> None:
        """End it as a crash would. Its mount stays, dead, until the next one starts."""
        if self.process:
            self.process.signal(signal.SIGKILL)
            self.node.ask("abort")
        super().kill()

    def is_mounted(self) -> bool:
        """Tell whether it has started: its pid file is the last thing it makes."""
        with contextlib.suppress(FileNotFoundError):
            pid = (self.node.root / "run" / "pve-cluster.pid").read_text()
            return self.process is not None and pid == f"{self.process.pid}\n"
        return False

    def wait_until_mounted(self, seconds: float = PATIENCE) -> None:
        """Wait until it serves and can be controlled; fail if it ends first, or after *seconds*."""
        deadline = time.monotonic() + seconds
        while not (self.is_mounted() and self.can_be_asked()):
            self.check()
            assert time.monotonic() < deadline, f"{self} not mounted\n{self.log_tail()}"
            time.sleep(POLL_INTERVAL)

    def can_be_asked(self) -> bool:
        """Tell whether its test control takes connections; it is the last thing to start."""
        try:
            with Control(self.node.root / CONTROL_SOCKET, patience=CONTROL_PATIENCE):
                return True
        except (FileNotFoundError, ConnectionRefusedError):
            return False

    def control(self, command: str, **arguments: object) -> dict[str, Any]:
        """Send one command to the test control and return its answer.

        Raises TimeoutError if the daemon does not answer, OSError if it refuses or is gone.
        """
        with Control(self.node.root / CONTROL_SOCKET, patience=CONTROL_PATIENCE) as control:
            return control(command, **arguments)

    def info(self) -> dict[str, Any]:
        """Return what the daemon knows of itself: version, checksum, mode and more."""
        return self.control("info")


def clock(offset: int) -> dict[str, str]:
    """Return the environment that moves a program's wall clock, and no other, by seconds."""
    if not offset:
        return {}
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{offset:+d}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_RESET": "1",
    }
