"""Demonstration of a cluster of three nodes on this machine: ``make demo``.

Prints each command with its node, its result and its duration. Corosync, the mounts and the daemon
of this checkout are real. Exits with status 1 if a result is not the expected one; leaves nothing.
"""

import contextlib
import errno
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.cluster import sweep
from tests.cluster.lab import Member
from tests.cluster.together import Cluster

GUEST = "memory: 512\nname: web\n"
FIRST, SECOND = "nodes/node1/qemu-server/100.conf", "nodes/node2/qemu-server/100.conf"
PATIENCE = 30.0  # seconds for one step
WRITES = 100


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)


def tell(node: Member, command: str, result: str, seconds: float | None = None) -> None:
    """Print a command on a node, as at a shell prompt."""
    took = f"  [{1000 * seconds:.1f} ms]" if seconds is not None else ""
    say(f"  {node.name}# {command}{took}")
    for line in result.splitlines():
        say(f"        {line}")


class Demo:
    """The acts of the demonstration, on a lab."""

    def __init__(self, lab: Cluster) -> None:
        self._lab = lab
        self._one, self._two, self._three = lab.nodes

    def run(self) -> None:
        """Show everything."""
        self._start()
        self._replicate()
        self._measure()
        self._move_guest()
        self._contend()
        self._cut_off()
        self._crash()
        self._stop()

    def _start(self) -> None:
        say("== Three nodes, each with corosync and the file system in namespaces of its own")
        start = time.monotonic()
        self._lab.start()
        say(f"  one cluster after {time.monotonic() - start:.1f} s")
        self._show(self._one, ".members")

    def _replicate(self) -> None:
        say("\n== A file written on one node is on all")
        self._write(self._one, "datacenter.cfg", "keyboard: de\n")
        for node in (self._two, self._three):
            seconds = self._await_content(node, "datacenter.cfg", "keyboard: de\n")
            tell(node, "cat /etc/pve/datacenter.cfg", "keyboard: de", seconds)
        self._show_trees()

    def _measure(self) -> None:
        say(f"\n== A file overwritten {WRITES} times on node1, each time until it is seen on node3")
        written, seen = [], []
        for number in range(WRITES):
            text = f"{number}\n"
            written.append(self._time(partial((self._one.path / "file").write_text, text)))
            seen.append(self._await_content(self._three, "file", text))
        for name, times in {"written": written, "seen after that": seen}.items():
            times.sort()
            middle, last = 1000 * times[WRITES // 2], 1000 * times[-1]
            say(f"  {name}: median {middle:.2f} ms, slowest {last:.2f} ms")
        (self._one.path / "file").unlink()

    def _move_guest(self) -> None:
        say("\n== A guest moves from node1 to node2 by one rename, and is never on both")
        for node in (self._one, self._two):
            (node.path / "nodes" / node.name / "qemu-server").mkdir(parents=True)
        self._await(lambda: (self._one.path / "nodes/node2/qemu-server").is_dir(), "directories")
        self._write(self._one, FIRST, GUEST)
        self._await_content(self._two, FIRST, GUEST)
        with self._refusal(errno.EEXIST, self._two, f"echo ... > /etc/pve/{SECOND}"):
            (self._two.path / SECOND).write_text(GUEST)
        seconds = self._time(lambda: (self._one.path / FIRST).rename(self._one.path / SECOND))
        tell(self._one, f"mv /etc/pve/{FIRST} /etc/pve/{SECOND}", "", seconds)
        self._await_content(self._two, SECOND, GUEST)
        self._show(self._two, ".vmlist")

    def _contend(self) -> None:
        say("\n== A lock is a directory: one node gets it")
        (self._one.path / "priv" / "lock").mkdir(parents=True)
        lock = Path("priv/lock/demo")
        self._await(lambda: (self._three.path / lock.parent).is_dir(), "the directory of locks")
        seconds = self._time((self._one.path / lock).mkdir)
        tell(self._one, f"mkdir /etc/pve/{lock}", "", seconds)
        with self._refusal(errno.EEXIST, self._three, f"mkdir /etc/pve/{lock}"):
            (self._three.path / lock).mkdir()
        (self._one.path / lock).rmdir()

    def _cut_off(self) -> None:
        say("\n== node3 is cut off from the network")
        self._lab.cut_off(self._three)
        start = time.monotonic()
        self._await(lambda: not self._is_quorate(self._three), "node3 to notice")
        say(f"  node3 has noticed that it is alone after {time.monotonic() - start:.1f} s")
        tell(self._three, "cat /etc/pve/datacenter.cfg", "keyboard: de")
        with self._refusal(errno.EACCES, self._three, "echo ... > /etc/pve/datacenter.cfg"):
            (self._three.path / "datacenter.cfg").write_text("keyboard: fr\n")
        self._lab.wait_for_agreement(self._one, self._two)
        self._write(self._one, "datacenter.cfg", "keyboard: en-us\n")
        say("  the network is healed")
        self._lab.heal()
        start = time.monotonic()
        self._await_content(self._three, "datacenter.cfg", "keyboard: en-us\n")
        tell(self._three, "cat /etc/pve/datacenter.cfg", "keyboard: en-us")
        say(f"  node3 has caught up {time.monotonic() - start:.1f} s after the healing")
        self._show_trees()

    def _crash(self) -> None:
        say("\n== node2's daemon and corosync are killed (-9), and started again")
        self._two.daemon.kill()
        self._two.corosync.kill()
        self._lab.wait_for_members(self._one, self._three)
        self._write(self._one, "datacenter.cfg", "keyboard: sv\n")
        start = time.monotonic()
        self._two.corosync.start()
        self._lab.launch(self._two)
        self._lab.wait_for_agreement()
        say(f"  node2 is back, with the same tree, after {time.monotonic() - start:.1f} s")
        self._show_trees()

    def _stop(self) -> None:
        say("\n== The daemons are stopped; the database files hold the same tree")
        for node in self._lab.nodes:
            seconds = self._time(lambda node=node: node.daemon.stop())  # type: ignore[misc]
            say(
                f"  {node.name}: stopped in {seconds:.2f} s, checksum {node.stored_checksum()[:16]}"
            )
        assert len({node.stored_checksum() for node in self._lab.nodes}) == 1

    # ReportSources of the acts.

    def _write(self, node: Member, path: str, text: str) -> None:
        seconds = self._time(lambda: (node.path / path).write_text(text))
        tell(node, f"echo {text.splitlines()[0]!r} > /etc/pve/{path}", "", seconds)

    def _show(self, node: Member, name: str) -> None:
        tell(node, f"cat /etc/pve/{name}", (node.path / name).read_text())

    def _show_trees(self) -> None:
        self._lab.wait_for_agreement()
        for node in self._lab.nodes:
            info = node.daemon.info()
            say(f"  {node.name}: version {info['version']}, checksum {info['checksum'][:16]}")

    def _await(self, condition: Callable[[], bool], wanted: str) -> float:
        return self._lab.wait_until(condition, PATIENCE, wanted, interval=0.001)

    def _await_content(self, node: Member, path: str, text: str) -> float:
        """Return the seconds until a node shows *text*."""

        def is_there() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return (node.path / path).read_text() == text
            return False

        return self._await(is_there, f"{path} on {node.name}")

    @contextlib.contextmanager
    def _refusal(self, code: int, node: Member, command: str) -> Iterator[None]:
        """Assert that the block fails with this errno, and print it."""
        found = 0
        try:
            yield
        except OSError as error:
            found = error.errno or errno.EIO
        assert found == code, f"{command} on {node.name}: {os.strerror(found)}"
        tell(node, command, os.strerror(code))

    @staticmethod
    def _time(action: Callable[[], object]) -> float:
        start = time.monotonic()
        action()
        return time.monotonic() - start

    @staticmethod
    def _is_quorate(node: Member) -> bool:
        return bool(node.daemon.info()["quorate"])


def main() -> int:
    """Run the demonstration; return the exit status."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pmxcfs-demo-") as directory:
        with Cluster(Path(directory)) as lab:
            Demo(lab).run()
        assert not sweep.mine(), "processes are left"
    say(f"\nAll went as it should, in {time.monotonic() - start:.0f} s; nothing is left.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
