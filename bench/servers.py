"""The servers of the benchmarks: daemons and floors on real mounts, which are always cleaned up."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from bench.data import NODE

START_TIMEOUT, STOP_TIMEOUT = 60.0, 20.0  # seconds; the longest start loads 100,000 files
LOG_TIMEOUT = 5.0  # seconds
REPOSITORY = Path(__file__).parents[1]
FLOORS = REPOSITORY / "build" / "floor"  # programs, which ``make`` builds from floor/
ECHO_SOURCE = Path(__file__).parent / "floor" / "echo.c"


class Server(NamedTuple):
    """A running server whose mountpoint is *root*."""

    root: str
    pid: int
    start_s: float  # seconds from the start of the process until the mount answered
    log: Path

    @property
    def tasks(self) -> Path:
        """The directory with the server's threads."""
        return Path("/proc", str(self.pid), "task")


class Session(NamedTuple):
    """How a daemon speaks with the kernel, and the command of the floor that does it alike."""

    name: str
    floor: Sequence[str]


# The daemon's log names the session; one that names none has llfuse.
SESSIONS = {
    "llfuse": Session("llfuse", ["floor"]),
    "native": Session("native", ["floor_native", "-s", "20", "-n"]),
    "uring": Session("uring", ["floor_native", "-u", "-n"]),
}
SERVING = re.compile(r"\bserving .*")


def session_of(server: Server) -> Session:
    """Return the session that a daemon has chosen, by the line of its log. Blocks."""
    deadline = time.monotonic() + LOG_TIMEOUT
    while not (line := SERVING.search(server.log.read_text(errors="replace"))):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the daemon does not log that it serves: {server.log}")
        time.sleep(0.002)
    named = [word for word in re.findall(r"\w+", line[0]) if word in SESSIONS]
    return SESSIONS[named[-1] if named else "llfuse"]


def cpu_us(tasks: Path) -> float:
    """Return the CPU time of all threads in /proc/PID/task, in microseconds."""
    total = 0
    for thread in tasks.iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1000


@contextlib.contextmanager
def floor_server(session: Session, workdir: Path) -> Iterator[Server]:
    """Run the floor of a session below *workdir*, which must not exist yet."""
    mountpoint = workdir / "mnt"
    mountpoint.mkdir(parents=True)
    program, *options = session.floor
    with _mounted([FLOORS / program, *options, mountpoint], mountpoint) as server:
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
def pmxcfs_server(
    workdir: Path,
    *,
    statedir: Path | None = None,
    checkout: Path = REPOSITORY,
    options: Sequence[str] = (),
) -> Iterator[Server]:
    """Run pmxcfs on the database in *statedir*, by default ``workdir/state``; it may be missing.

    *checkout* has the program and its .venv; *options* are added to the command line.
    """
    mountpoint, rundir, statedir = workdir / "mnt", workdir / "run", statedir or workdir / "state"
    for directory in (mountpoint, rundir, statedir):
        directory.mkdir(parents=True, exist_ok=True)
    places: dict[str, Path | str] = {
        "--mountpoint": mountpoint,
        "--statedir": statedir,
        "--rundir": rundir,
        "--pidfile": rundir / "pid",
        "--nodename": NODE,
        "--ipc-name": ipc_name(workdir),
    }
    python = sys.executable if checkout == REPOSITORY else checkout / ".venv" / "bin" / "python"
    command = [python, "-m", "pmxcfs", "-f", "-l", *chain.from_iterable(places.items()), *options]
    with _mounted(command, mountpoint, directory=checkout) as server:
        yield server


@contextlib.contextmanager
def _mounted(
    command: Sequence[str | Path], mountpoint: Path, *, directory: Path = REPOSITORY
) -> Iterator[Server]:
    """Run a server until the block ends. Raises RuntimeError if its exit status is not 0."""
    log = mountpoint.parent / "log"
    with contextlib.ExitStack() as cleanup:
        output = cleanup.enter_context(log.open("wb"))
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=directory, stdout=output, stderr=output)
        cleanup.callback(_unmount, mountpoint)
        cleanup.callback(_stop, process)
        _await_mount(mountpoint, process, log=log)
        yield Server(os.fspath(mountpoint), process.pid, time.perf_counter() - start, log)
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
