"""Debian machines in namespaces for tests of the package, with systemd as PID 1.

A machine boots from the tree that ``make build/RELEASE/.made`` makes, and never changes this tree.
It has no network unless a test calls ``wire``. ``Machine.run`` runs a command as root.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.places import ROOT

RELEASES = ("bookworm", "trixie")  # Debian 12 and 13
POLL_INTERVAL = 0.02  # seconds
GRACE = 30.0  # seconds for a boot, a start or a stop of a service


class Machine:
    """A running machine of a release. *root* is its root directory, as a path for this process."""

    def __init__(self, work: Path, name: str, release: str) -> None:
        self.work = work
        self.name = name
        self.release = release
        work.mkdir(parents=True)
        self._boot()

    def _boot(self) -> None:
        tree = ROOT / "build" / self.release
        boot = [ROOT / "tests" / "package" / "boot", tree, self.work, self.name]
        # The machines of a killed test run end with it.
        self._booted = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *map(str, boot)])
        self.pid = self._await_init()
        self.root = Path(f"/proc/{self.pid}/root")
        self.wait_for(lambda: self.run("systemctl", "is-system-running", check=False) == "running")

    def _await_init(self) -> int:
        """Return the pid of the machine's PID 1 in the pid namespace of the tests."""

        def init() -> int | None:
            for pid in descendants(self._booted.pid):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                        return pid
            return None

        self.wait_for(init)
        pid = init()
        assert pid
        return pid

    def reboot(self) -> None:
        """Shut down and boot again from the same disk."""
        self.power_off()
        self._boot()

    def command(self, *arguments: str | Path) -> list[str]:
        """Return the command line that runs a command on the machine."""
        path = "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        plain = ["env", "-i", path, "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb"]
        return [*map(str, ["nsenter", "-t", self.pid, "-a", *plain, *arguments])]

    def run(self, *arguments: str | Path, check: bool = True, given: str | None = None) -> str:
        """Run a command as root; return its output, stderr included."""
        result = subprocess.run(
            self.command(*arguments),
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=4 * GRACE,
        )
        assert result.returncode == 0 or not check, f"{arguments}: {result.stdout}{self.journal()}"
        return result.stdout.strip()

    def shell(self, script: str) -> str:
        """Run a shell script as root; the first command that fails fails the test."""
        return self.run("bash", "-euo", "pipefail", "-c", script)

    def install(self, *packages: Path) -> str:
        """Install .deb files; return the output of dpkg and the maintainer scripts."""
        for package in packages:
            shutil.copy(package, self.root / "root" / package.name)
        return self.run("dpkg", "--install", *(f"/root/{package.name}" for package in packages))

    def is_active(self, unit: str) -> bool:
        """Tell whether a unit is active."""
        return self.run("systemctl", "is-active", unit, check=False) == "active"

    def property(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", unit, "--property", name, "--value")

    def main_pid(self, unit: str) -> int:
        """Return the pid of a service in the pid namespace of the machine."""
        return int(self.property(unit, "MainPID"))

    def journal(self, unit: str = "") -> str:
        """Return the end of the log, for messages of failed tests."""
        only = ["--unit", unit] if unit else []
        command = self.command("journalctl", "--no-pager", "--lines=60", *only)
        return "\n" + subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def wait_for(self, condition: Callable[[], object], seconds: float = GRACE) -> None:
        """Wait until *condition* holds; fail if the machine ends first, or after *seconds*."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._booted.poll() is None, f"{self.name} has ended"
            assert time.monotonic() < deadline, f"not within {seconds} s{self.journal()}"
            time.sleep(POLL_INTERVAL)

    def power_off(self) -> None:
        """Shut down in order; kill a machine that does not end in time."""
        self.run("systemctl", "poweroff", check=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._booted.wait(GRACE)
        if self._booted.poll() is None:
            os.kill(self.pid, signal.SIGKILL)  # ends all processes of the machine
            self._booted.wait(GRACE)


@contextlib.contextmanager
def machine(work: Path, release: str, name: str = "node1") -> Iterator[Machine]:
    """Boot a machine on *work*, and power it off at the end."""
    booted = Machine(work / name, name, release)
    try:
        yield booted
    finally:
        booted.power_off()


@contextlib.contextmanager
def busy(node: Machine) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with a working directory and an open file in the mount."""
    use = (
        "exec 3>/etc/pve/in-use; echo unfinished >&3; cd /etc/pve; echo ready; exec sleep infinity"
    )
    command = node.command("bash", "-c", use)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def descendants(pid: int) -> list[int]:
    """Return the pids of a process's children, their children, and so on."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{each}/task/{each}/children").read_text()
            found += map(int, children.split())
    return found


def wire(machines: list[Machine], network: str = "10.79.0") -> None:
    """Connect machines by a bridge; the first gets the address *network*.1, and so on."""
    switch = machines[0]
    switch.run("ip", "link", "add", "switch", "type", "bridge")
    switch.run("ip", "link", "set", "switch", "up")
    for number, each in zip(itertools.count(1), machines):
        peer = ["peer", "name", f"port{number}"]
        add = ["ip", "link", "add", "eth0", "type", "veth", *peer]
        subprocess.run(
            ["nsenter", "-t", str(each.pid), "-n", *add, "netns", str(switch.pid)], check=True
        )
        switch.run("ip", "link", "set", f"port{number}", "master", "switch", "up")
        each.run("ip", "address", "add", f"{network}.{number}/24", "dev", "eth0")
        each.run("ip", "link", "set", "eth0", "up")


if __name__ == "__main__":  # a machine for use by hand
    with machine(Path(sys.argv[1]), sys.argv[2]) as booted:
        subprocess.run(booted.command("bash", "-i"), check=False)
