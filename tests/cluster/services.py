"""The services of a node: corosync, the daemon under test, and a witness with its clients."""

import contextlib
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.cluster.node import PATIENCE, POLL_INTERVAL, Node, Process
from tests.harness import PROGRAM, Control, session_flags, thread_states

CONTROL_SOCKET = Path("run/pve-cluster/control.sock")  # below the node's root
CONTROL_PATIENCE = 5.0  # seconds for an answer of the test control
# The id of a node, its votes, perhaps the state of its qdevice, its address; the qdevice is 0.
MEMBER = re.compile(r"^ *([1-9]\d*) +\d+ +\S", re.MULTILINE)
LOSS = re.compile(r"^(\w+ \d+ [\d:.]+) .* This node is within the non-primary", re.MULTILINE)
LOG_TIME = "%Y %b %d %H:%M:%S.%f%z"  # corosync's, in UTC; it does not tell the year


class Service:
    """A long-running program in a node; *log* has its output."""

    name = "service"

    def __init__(self, node: Node) -> None:
        self.node = node
        self.process: Process | None = None
        self.is_frozen = False
        self.log = node.log.with_name(f"{self.name}.log")

    @property
    def is_running(self) -> bool:
        """Whether the service was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def launch(self, argv: Sequence[str | Path], env: dict[str, str]) -> None:
        """Start the program; called by subclasses."""
        assert not self.is_running, f"{self} runs"
        with self.log.open("ab") as log:
            self.process = self.node.spawn(argv, output=log.fileno(), env=env)
        self.is_frozen = False

    def check(self) -> None:
        """Fail if the service was started and has ended by itself."""
        if self.process is not None and (status := self.process.poll()) is not None:
            raise AssertionError(f"{self} ended with status {status}\n{self.log_tail()}")

    def terminate(self) -> None:
        """Send SIGTERM, without waiting."""
        assert self.process, f"{self} was not started"
        self.thaw()
        self.process.signal(signal.SIGTERM)

    def stop(self, *, seconds: float = PATIENCE) -> int:
        """Send SIGTERM and return the exit status; fail after *seconds*."""
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
        """Send SIGSTOP, and wait until no thread runs any more; the connections stay open."""
        assert self.process, f"{self} was not started"
        self.process.signal(signal.SIGSTOP)
        self.is_frozen = True
        deadline = time.monotonic() + PATIENCE
        process = self.node.root / "proc" / str(self.process.pid)
        while {"R", "S"} & set(thread_states(process)):
            assert time.monotonic() < deadline, f"{self} does not stop"
            time.sleep(POLL_INTERVAL)

    def thaw(self) -> None:
        """Send SIGCONT."""
        if self.process and self.is_frozen:
            self.process.signal(signal.SIGCONT)
        self.is_frozen = False

    def cpu_seconds(self) -> float:
        """Return the CPU time that the program has used."""
        assert self.process, f"{self} was not started"
        stat = (self.node.root / "proc" / str(self.process.pid) / "stat").read_text()
        user, system = stat.rpartition(") ")[2].split(" ")[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def log_text(self) -> str:
        """Return the log of all runs so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_lines(self, text: str) -> list[str]:
        """Return the lines of the log that contain *text*; the daemon writes them with a delay."""
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
        """Start corosync; the node is quorate seconds later."""
        self.launch(["corosync", "-f"], {})

    def quorum_losses(self) -> list[float]:
        """Return the times of logged losses of quorum, on time.monotonic()."""
        offset = time.time() - time.monotonic()
        year = time.gmtime().tm_year
        stamps = LOSS.findall(self.log_text())
        moments = [datetime.strptime(f"{year} {stamp}Z", LOG_TIME) for stamp in stamps]
        return [moment.timestamp() - offset for moment in moments]

    def is_quorate(self) -> bool:
        """Ask corosync whether this node is in the quorate part; false if corosync is dead."""
        return "Quorate:          Yes" in self._ask_quorum()

    def members(self) -> list[int]:
        """Return the node ids that corosync sees, sorted; none if it does not answer."""
        return sorted(int(number) for number in MEMBER.findall(self._ask_quorum()))

    def _ask_quorum(self) -> str:
        if self.is_frozen or not self.is_running:
            return ""
        return self.node.run("corosync-quorumtool", "-s", "-i", check=False)


class QuorumDevice(Service):
    """corosync-qdevice, which adds the vote of a witness to the node's votes."""

    name = "corosync-qdevice"

    def start(self) -> None:
        """Start the device; corosync must run."""
        start = "mkdir -p /run/corosync-qdevice && exec corosync-qdevice -f"
        self.launch(["sh", "-c", start], {})


class Witness(Service):
    """corosync-qnetd, which gives one part of a cluster a vote; without TLS."""

    name = "corosync-qnetd"

    def start(self) -> None:
        """Start the witness."""
        start = "mkdir -p /run/corosync-qnetd && exec corosync-qnetd -f -s off"
        self.launch(["sh", "-c", start], {})


class Daemon(Service):
    """The daemon of this checkout, on the paths of a real node, with its test control."""

    name = "pmxcfs"

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.program: Sequence[str | Path] = PROGRAM  # what Python runs
        self._lives = itertools.count(1)

    def start(self, *flags: str | Path, clock_offset: int = 0) -> None:
        """Start the daemon without waiting. Its wall clock is off by *clock_offset* seconds.

        With an offset, ``set_clock`` can change it later.
        """
        argv = [sys.executable, "-X", "faulthandler", *self.program, "-f", "--test-control"]
        self.log = self.node.log.with_name(f"{self.name}{next(self._lives)}.log")
        self.launch(
            [*argv, "--nodename", self.node.name, *session_flags(), *flags],
            clock(clock_offset, file=self._clock_file),
        )

    @property
    def _clock_file(self) -> Path:
        return self.node.log.with_name("clock")

    def set_clock(self, offset: int) -> None:
        """Have the wall clock of the running daemon jump to the real time + *offset* seconds."""
        fresh = self._clock_file.with_name("clock.new")
        fresh.write_text(f"{offset:+d}\n")
        fresh.rename(self._clock_file)

    def kill(self) -> None:
        """Kill the daemon. Its dead mount stays until the next daemon starts."""
        if self.process:
            self.process.signal(signal.SIGKILL)
            self.node.ask("abort")
        super().kill()

    def is_mounted(self) -> bool:
        """Tell whether the daemon has started; it creates its pid file last."""
        with contextlib.suppress(FileNotFoundError):
            pid = (self.node.root / "run" / "pve-cluster.pid").read_text()
            return self.process is not None and pid == f"{self.process.pid}\n"
        return False

    def wait_until_mounted(self, seconds: float = PATIENCE) -> None:
        """Wait until mount and test control work; fail if the daemon ends, or after *seconds*."""
        deadline = time.monotonic() + seconds
        while not (self.is_mounted() and self.can_be_asked()):
            self.check()
            assert time.monotonic() < deadline, f"{self} not mounted\n{self.log_tail()}"
            time.sleep(POLL_INTERVAL)

    def can_be_asked(self) -> bool:
        """Tell whether the test control takes connections; it starts last."""
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
        """Return the state of the daemon: version, checksum, mode and more."""
        return self.control("info")


def clock(offset: int, *, file: Path) -> dict[str, str]:
    """Return the environment that shifts a program's wall clock by *offset* seconds.

    The program reads the offset from *file* again whenever it asks for the time.
    """
    if not offset:
        return {}
    file.write_text(f"{offset:+d}\n")
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_RESET": "1",
    }
