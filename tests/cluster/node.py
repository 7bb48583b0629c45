"""A node of the lab, as tests use it: its files, its processes, and the start of programs."""

import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.cluster import network, sweep
from tests.harness import Starvation
from tests.places import ROOT

BOOT = Path(__file__).with_name("boot.sh")
NAMESPACES = ("--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--mount-proc")
PLACES = ("corosync", "pve-cluster", "rrdcached")
PATIENCE = 60.0  # seconds for a node to boot, to end, or to answer
MAX_ANSWER = 1 << 16  # bytes
POLL_INTERVAL = 0.01  # seconds


class Process:
    """A process in a node."""

    def __init__(self, node: "Node", pid: int) -> None:
        self.pid = pid  # in the node's own namespace
        self._node = node

    def poll(self) -> int | None:
        """Return the exit status, minus the signal's number if one ended it; None if it runs."""
        status: int | None = self._node.ask("poll", pid=self.pid)["status"]
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; no error if the process has ended."""
        self._node.ask("signal", pid=self.pid, number=number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return the exit status; fail if there is none within *seconds*.

        The time that its threads wait for a processor does not count.
        """
        deadline, starved = time.monotonic() + seconds, 0.0
        starvation = Starvation(self._node.root / "proc" / str(self.pid))
        while (status := self.poll()) is None:
            starved = max(starved, starvation.seconds())
            assert time.monotonic() < deadline + starved, f"pid {self.pid} runs after {seconds} s"
            time.sleep(POLL_INTERVAL)
        return status


class Worker(Process):
    """A Python function that runs in a node, with a connection to it."""

    def __init__(self, node: "Node", pid: int, connection: Connection) -> None:
        super().__init__(node, pid)
        self.connection = connection

    def receive(self, seconds: float = PATIENCE) -> Any:
        """Return the next object that the function sends; fail after *seconds*."""
        assert self.connection.poll(seconds), f"no answer from pid {self.pid} in {seconds} s"
        try:
            return self.connection.recv()
        except EOFError:
            log = self._node.log.read_text(errors="replace")
            raise AssertionError(f"pid {self.pid} has ended\n{log[-4000:]}") from None

    def close(self) -> None:
        """Close the connection, and kill the process if it still runs."""
        self.connection.close()
        with contextlib.suppress(ConnectionError):  # the node is gone, and the process with it
            self.signal(signal.SIGKILL)


class Node:
    """One set of namespaces. *directory* has the node's own files, by their paths in the node.

    ``boot`` starts it; then *root* leads to its root directory. Reading the mount through that
    blocks this process when the daemon does not answer: under faults let a worker do it.
    """

    def __init__(self, number: int, directory: Path) -> None:
        self.number = number  # from 1 on; also its corosync node id, unless the lab has others
        self.nodeid = number
        self.name = f"node{number}"
        self.address = network.address(number)
        self.directory = directory
        self.log = directory / "var" / "log" / "init.log"
        self.database = directory / "var" / "lib" / "pve-cluster" / "config.db"
        self.root = Path("/nonexistent")
        self._process: subprocess.Popen[bytes] | None = None
        self._root = -1

    @property
    def path(self) -> Path:
        """The mountpoint of the daemon, as a path for this process."""
        return self.root / "etc" / "pve"

    def boot(self, bridge: network.Network, names: Sequence["Node"]) -> None:
        """Start the namespaces without waiting; ``wait_until_up`` does."""
        for place in ("etc/corosync", "var/log", *(f"var/lib/{name}" for name in PLACES)):
            (self.directory / place).mkdir(parents=True, exist_ok=True)
        hosts = [f"{node.address} {node.name}\n" for node in names]
        (self.directory / "etc" / "hosts").write_text("127.0.0.1 localhost\n" + "".join(hosts))
        self._control, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(PATIENCE)
        place = f"{self.address}/{network.BITS}"
        argv: list[str | Path] = ["unshare", *NAMESPACES, "--kill-child", "sh", BOOT]
        argv += [self.name, place, self.directory, str(bridge.descriptor)]
        argv += [sys.executable, "-m", "tests.cluster.init", str(far.fileno())]
        with far, self.log.open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**os.environ, **sweep.MARK, "PYTHONPATH": python_path()},
                pass_fds=[far.fileno(), bridge.descriptor],
                start_new_session=True,  # Ctrl-C ends the tests, which end the node
            )

    def wait_until_up(self) -> None:
        """Wait until the node can start programs."""
        try:
            (self._root,) = socket.recv_fds(self._control, MAX_ANSWER, 1)[1]
        except (OSError, ValueError) as error:
            log = self.log.read_text(errors="replace")
            raise AssertionError(f"{self.name} does not boot: {error}\n{log}") from None
        os.set_inheritable(self._root, False)
        self.root = Path(f"/proc/{os.getpid()}/fd/{self._root}")

    def close(self) -> None:
        """End the node and all its processes."""
        if self._process is None:
            return
        self._control.close()
        if self._root >= 0:
            os.close(self._root)
            self._root = -1
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            sweep.end(self._process.pid)
            raise AssertionError(f"{self.name} did not end") from None
        finally:
            self._process = None

    def ask(self, do: str, *, files: Sequence[int] = (), **arguments: object) -> dict[str, Any]:
        """Send the first process a request and return its answer; raises its OSError.

        Raises ConnectionError if there is no such process.
        """
        if self._process is None:
            raise ConnectionError(f"{self.name} is not up")
        packet = json.dumps({"do": do, **arguments}).encode()
        socket.send_fds(self._control, [packet], files)
        answer: dict[str, Any] = json.loads(self._control.recv(MAX_ANSWER))
        if "errno" in answer:
            raise OSError(answer["errno"], answer["message"])
        return answer

    def spawn(
        self, argv: Sequence[str | Path], *, output: int, env: Mapping[str, str] | None = None
    ) -> Process:
        """Start a program whose stdout and stderr are the descriptor *output*."""
        with open(os.devnull) as null:
            files = (null.fileno(), output, output)
            environment = {**os.environ, **sweep.MARK, **(env or {})}
            words = [str(word) for word in argv]
            return Process(self, self.ask("spawn", files=files, argv=words, env=environment)["pid"])

    def run(self, *argv: str | Path, seconds: float = PATIENCE, check: bool = True) -> str:
        """Run a program to its end; return its stdout and stderr. With *check* it must not fail."""
        ours, theirs = os.pipe()
        with open(ours, "rb") as reader:
            with open(theirs, "wb") as writer:
                process = self.spawn(argv, output=writer.fileno())
            try:
                output = read_all(reader.fileno(), seconds).decode(errors="replace")
            except TimeoutError:
                process.signal(signal.SIGKILL)
                raise
        status = process.wait()
        assert not check or status == 0, f"{argv} on {self.name}: status {status}\n{output}"
        return output

    def start_worker(self, target: str, *arguments: object) -> Worker:
        """Call *target*, ``module:function``, in a process of its own in the node.

        The function gets a connection and *arguments*, which JSON can hold.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            files = [theirs.fileno()]
            pid = self.ask("fork", files=files, target=target, arguments=arguments)["pid"]
        return Worker(self, pid, Connection(ours.detach()))


@functools.cache
def python_path() -> str:
    """Return PYTHONPATH for the node: that of this process, then the checkout."""
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))


def read_all(descriptor: int, seconds: float) -> bytes:
    """Read until the end of file; raise TimeoutError after *seconds*."""
    deadline = time.monotonic() + seconds
    found = b""
    while True:
        if not select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0]:
            raise TimeoutError(f"no end after {seconds} s, but {found[-1000:]!r}")
        if not (chunk := os.read(descriptor, MAX_ANSWER)):
            return found
        found += chunk
