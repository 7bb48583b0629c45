"""A corosync of one node, in a network and mount namespace of its own.

libqb's sockets are abstract, so they belong to the network namespace: ``own_network`` moves the
calling thread into a new one and back again, and what it starts meanwhile, threads and processes,
is in it, too. Shared memory is the host's; what a killed corosync leaves there is taken away.
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
# Each directory that corosync writes to is private; then this shell executes corosync.
SCRIPT = """
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mkdir /var/lib/corosync
ip link set lo up
exec corosync -f -c "$1"
"""


def configuration(*, version: int = 1, nodes: int = 1) -> str:
    """Return a corosync.conf in which only the first node exists."""
    listed = "".join(NODE.format(nodeid=number + 1) for number in range(nodes))
    return CONFIGURATION.format(version=version, nodes=listed)


@dataclass
class Corosync:
    """A running corosync."""

    process: subprocess.Popen[bytes]
    conf: Path
    log: Path

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
        while b"ready to provide service" not in self.log.read_bytes():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)


def start(workdir: Path) -> Corosync:
    """Start corosync with the configuration in *workdir*, and wait until it serves clients."""
    conf, log = workdir / "corosync.conf", workdir / "corosync.log"
    isolated = ["unshare", "--mount", "setpriv", "--pdeathsig", "KILL"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*isolated, "sh", "-ec", SCRIPT, "sh", conf], stdout=output, stderr=output
        )
    corosync = Corosync(process, conf, log)
    try:
        corosync.await_start()
    except BaseException:
        corosync.kill()
        raise
    return corosync


@contextlib.contextmanager
def started(workdir: Path) -> Iterator[Corosync]:
    """Run a corosync of one node; kill it at the end. Needs ``own_network``."""
    (workdir / "corosync.conf").write_text(configuration())
    corosync = start(workdir)
    try:
        yield corosync
    finally:
        corosync.kill()


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Move the calling thread into a new network namespace, and back."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as home:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
