"""Processes of labs, and the end of those whose tests are gone.

Every process of a lab has a variable in its environment that names the process that runs the tests.
Tests in another pid namespace, such as a container's, are not judged: their numbers of processes
have no meaning here, and the end of that namespace ends all its processes. Other namespaces, mounts
and devices have no names on the machine: they go with the last process.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

VARIABLE = "PMXCFS_LAB_OWNER"
NAMESPACE = os.readlink("/proc/self/ns/pid")
PATIENCE = 30.0  # seconds for killed processes to go
POLL_INTERVAL = 0.02  # seconds
MOUNTPOINT = "/etc/pve"  # where the nodes have it; boot.sh takes the machine's own away
CONNECTIONS = "/sys/fs/fuse/connections"  # mounted by boot.sh


def identity(pid: int) -> str:
    """Return a unique identity of a process, running or a zombie: pid, start time, namespace."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return f"{pid}:{stat.rpartition(')')[2].split()[19]}:{NAMESPACE}"


def is_gone(owner: str) -> bool:
    """Tell whether the process with this identity, of this pid namespace, has ended."""
    if not owner.endswith(f":{NAMESPACE}"):
        return False
    try:
        return identity(int(owner.partition(":")[0])) != owner
    except OSError:
        return True


ME = identity(os.getpid())
MARK = {VARIABLE: ME}


def members(is_wanted: Callable[[str], bool]) -> Iterator[int]:
    """Yield the processes of labs whose owner *is_wanted*."""
    mark = f"{VARIABLE}=".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process ends right now
            for variable in (process / "environ").read_bytes().split(b"\0"):
                if variable.startswith(mark) and is_wanted(variable.removeprefix(mark).decode()):
                    yield int(process.name)


def mine() -> list[int]:
    """Return the processes of this process's labs."""
    return list(members(lambda owner: owner == ME))


def stale() -> list[int]:
    """Return the processes of labs whose tests are gone."""
    return list(members(is_gone))


def end(*pids: int) -> None:
    """Kill processes, after the abort of FUSE requests that they may wait for."""
    for pid in pids:
        abort_mounts(pid)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def abort_mounts(pid: int) -> None:
    """Abort the FUSE requests in the mount namespace of a lab's process."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
            _, _, device, _, place, *rest = line.split()
            if place == MOUNTPOINT and rest[rest.index("-") + 1].startswith("fuse"):
                number = device.partition(":")[2]
                Path(f"/proc/{pid}/root{CONNECTIONS}/{number}/abort").write_text("1")


def wait_for_end(find: Callable[[], list[int]]) -> list[int]:
    """Return the processes that *find* still finds after some seconds."""
    deadline = time.monotonic() + PATIENCE
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL)
    return left
