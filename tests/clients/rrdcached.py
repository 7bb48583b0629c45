"""A real rrdcached for tests, and values for it."""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pmxcfs.rrd.schema import update_of
from tests.harness import thread_states

TIMEOUT = 20.0  # seconds


class RrdCached:
    """A running rrdcached with its own socket and directory."""

    def __init__(self, workdir: Path) -> None:
        if not shutil.which("rrdcached"):
            pytest.skip("rrdcached is not installed; `make test-deps` installs it")
        self.directory = workdir / "db"
        self.socket = workdir / "rrdcached.sock"
        self.directory.mkdir()
        self._argv: list[str | Path] = ["rrdcached", "-g", "-p", workdir / "pid"]
        self._argv += ["-l", f"unix:{self.socket}", "-b", self.directory, "-B"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        await_true(self._listens)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(TIMEOUT)

    def freeze(self) -> None:
        """Send SIGSTOP, and wait until no thread runs any more."""
        self.process.send_signal(signal.SIGSTOP)
        await_true(lambda: set(thread_states(Path(f"/proc/{self.process.pid}"))) == {"T"})

    def flush(self, file: Path) -> None:
        """Make rrdcached write the values that it holds for *file*."""
        command = ["rrdtool", "flushcached", "--daemon", f"unix:{self.socket}", str(file)]
        subprocess.run(command, check=True, capture_output=True)


def await_true(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds, for at most TIMEOUT; poll it."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def metric(name: str, age: int = 0) -> bytes:
    """Return the text of a metric that was taken *age* seconds ago, with values 0.5, 1.5, …"""
    form = update_of(name, b"0:0:0:0:0:0").format
    now = int(time.time()) - age
    values = [str(number + 0.5) for number in range(len(form.columns))]
    return ":".join([*["0"] * form.live, str(now), *values]).encode()
