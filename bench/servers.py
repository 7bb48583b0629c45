"""The servers of the benchmarks: daemons on real mounts, which are always cleaned up.

Placement: clients and servers share one CPU, where a message costs two context switches. On two
CPUs it also costs two wake-ups of a sleeping CPU. On a virtual machine these take several times as
long as the operations to measure. Benchmarks of several clients use ``on_all_cpus``.
"""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from bench.data import NODE

START_TIMEOUT, STOP_TIMEOUT = 60.0, 20.0  # seconds; the longest start loads 100,000 files
FIRST, NORMAL = -20, 0  # nice values
REPOSITORY = Path(__file__).parents[1]
FLOOR_SOURCE = Path(__file__).parent / "floor" / "floor.c"
ECHO_SOURCE = Path(__file__).parent / "floor" / "echo.c"


class Server(NamedTuple):
    """A running server whose mountpoint is *root*."""

    root: str
    pid: int
    start_s: float  # seconds from the start of the process until the mount answered


def pin(cpus: set[int], *, pids: Sequence[int] = ()) -> None:
    """Pin this process and all threads of *pids* to these CPUs; children inherit that."""
    os.sched_setaffinity(0, cpus)
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cpus)


@contextlib.contextmanager
def on_all_cpus(*servers: Server) -> Iterator[None]:
    """Let this process and the servers use all CPUs within the block."""
    before, pids = os.sched_getaffinity(0), [server.pid for server in servers]
    pin(set(range(os.cpu_count() or 1)), pids=pids)
    try:
        yield
    finally:
        pin(before, pids=pids)


@contextlib.contextmanager
def preferred() -> Iterator[None]:
    """Give this process and its children the highest nice priority within the block."""
    group = Path("/proc/self/autogroup")  # with autogroups, nice values count only within a group
    os.setpriority(os.PRIO_PROCESS, 0, FIRST)
    if group.exists():
        group.write_text(str(FIRST))
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, NORMAL)
        if group.exists():
            group.write_text(str(NORMAL))


def build_floor(directory: Path) -> Path:
    """Compile the floor server into *directory*; return the program's path."""
    program = directory / "floor"
    query = ["pkg-config", "--cflags", "--libs", "fuse"]
    flags = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    options = ["-O2", "-Wall", "-Wextra", "-Werror", *shlex.split(flags)]
    subprocess.run(["cc", os.fspath(FLOOR_SOURCE), "-o", os.fspath(program), *options], check=True)
    return program


@contextlib.contextmanager
def floor_server(program: Path, workdir: Path) -> Iterator[Server]:
    """Run the floor server below *workdir*, which must not exist yet."""
    mountpoint = workdir / "mnt"
    mountpoint.mkdir(parents=True)
    with _mounted([program, mountpoint], mountpoint) as server:
        yield server


@contextlib.contextmanager
def echo_server(program: Path, name: str) -> Iterator[None]:
    """Run a libqb server that answers request N with N bytes."""
    with subprocess.Popen([program, name], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()  # its first line says that it listens
            yield
        finally:
            process.terminate()


def ipc_name(workdir: Path) -> str:
    """Return the IPC name of the daemon below *workdir*."""
    return "bench" + os.fspath(workdir).replace("/", "-")


@contextlib.contextmanager
def pmxcfs_server(workdir: Path, *, statedir: Path | None = None) -> Iterator[Server]:
    """Run pmxcfs on the database in *statedir*, by default ``workdir/state``; it may be missing."""
    mountpoint, rundir, statedir = workdir / "mnt", workdir / "run", statedir or workdir / "state"
    for directory in (mountpoint, rundir, statedir):
        directory.mkdir(parents=True, exist_ok=True)
    options: dict[str, Path | str] = {
        "--mountpoint": mountpoint,
        "--statedir": statedir,
        "--rundir": rundir,
        "--pidfile": rundir / "pid",
        "--nodename": NODE,
        "--ipc-name": ipc_name(workdir),
    }
    command = [sys.executable, "-m", "pmxcfs", "-f", "-l", *chain.from_iterable(options.items())]
    with _mounted(command, mountpoint) as server:
        yield server


@contextlib.contextmanager
def _mounted(command: Sequence[str | Path], mountpoint: Path) -> Iterator[Server]:
    """Run a server until the block ends. Raises RuntimeError if its exit status is not 0."""
    log = mountpoint.parent / "log"
    with contextlib.ExitStack() as cleanup:
        output = cleanup.enter_context(log.open("wb"))
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=output)
        cleanup.callback(_unmount, mountpoint)
        cleanup.callback(_stop, process)
        _await_mount(mountpoint, process, log=log)
        yield Server(os.fspath(mountpoint), process.pid, time.perf_counter() - start)
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {log.read_text()}")


def _await_mount(mountpoint: Path, process: subprocess.Popen[bytes], *, log: Path) -> None:
    """Block until the mount answers. Raises RuntimeError at a timeout or if the server ends."""
    deadline = time.monotonic() + START_TIMEOUT
    while not os.path.ismount(mountpoint):
        if process.poll() is not None:
            raise RuntimeError(f"no mount, exit status {process.returncode}: {log.read_text()}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"no mount within {START_TIMEOUT} s: {log.read_text()}")
        time.sleep(0.002)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _unmount(mountpoint: Path) -> None:
    """Remove the mount that a killed server has left."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    if any(line.split()[1] == os.fspath(mountpoint) for line in mounts):
        subprocess.run(["umount", "-l", mountpoint], check=True)
