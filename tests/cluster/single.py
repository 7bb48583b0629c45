"""A cluster of one node: a real corosync in a network and mount namespace of its own.

libqb's sockets are abstract, so they belong to the network namespace: ``started`` moves the calling
thread into corosync's and back again; threads that are started meanwhile are in it, too. Shared
memory is the host's, where a killed corosync leaves files: they are taken away at the end.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNET = 0x40000000
START = 20.0  # seconds
SHARED_MEMORY = Path("/dev/shm")

CONFIGURATION = """
totem {{
  version: 2
  cluster_name: single
  config_version: {version}
  transport: udpu
  token: 1000
  secauth: off
}}
nodelist {{
{nodes}}}
system {{
  sched_rr: no
  move_to_cgroup: no
}}
quorum {{
  provider: corosync_votequorum
}}
logging {{
  to_syslog: no
  to_stderr: yes
}}
"""
NODE = """  node {{
    name: node{nodeid}
    nodeid: {nodeid}
    quorum_votes: 1
    ring0_addr: 127.0.0.{nodeid}
  }}
"""
# Everything that corosync writes to has a place of its own; then this shell becomes corosync.
SCRIPT = """
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib/corosync
ip link set lo up
exec corosync -f -c "$1"
"""


def configuration(*, version: int = 1, nodes: int = 1) -> str:
    """Return a corosync.conf; this node is the first, all others are never there."""
    listed = "".join(NODE.format(nodeid=number + 1) for number in range(nodes))
    return CONFIGURATION.format(version=version, nodes=listed)


@dataclass
class Corosync:
    """A running corosync."""

    process: subprocess.Popen[bytes]
    conf: Path
    log: Path

    @property
    def namespace(self) -> Path:
        """The network namespace."""
        return Path(f"/proc/{self.process.pid}/ns/net")

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()
        for path in SHARED_MEMORY.glob(f"qb-*{self.process.pid}-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def await_start(self) -> None:
        """Wait until it serves clients."""
        deadline = time.monotonic() + START
        while b"ready to provide service" not in self.log.read_bytes().replace(b"\n", b" "):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)


def start(conf: Path, log: Path, *, namespace: Path | None = None) -> Corosync:
    """Start corosync, in *namespace* if that is given, else in a new one; return at once."""
    enter = [f"--net={namespace}", "unshare"] if namespace else []
    command = ["nsenter", *enter] if enter else ["unshare", "--net"]
    command += ["--mount", "setpriv", "--pdeathsig", "KILL", "sh", "-ec", SCRIPT, "sh", str(conf)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    return Corosync(process, conf, log)


@contextlib.contextmanager
def started(workdir: Path) -> Iterator[Corosync]:
    """Run a corosync with this thread in its network namespace; kill it at the end."""
    conf = workdir / "corosync.conf"
    conf.write_text(configuration())
    corosync = start(conf, workdir / "corosync.log")
    try:
        corosync.await_start()
        with inside(corosync.namespace):
            yield corosync
    finally:
        corosync.kill()


@contextlib.contextmanager
def inside(namespace: Path) -> Iterator[None]:
    """Move the calling thread into a network namespace, and back."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as home, namespace.open() as there:
        assert libc.setns(there.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
