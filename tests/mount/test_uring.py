"""FUSE over io_uring: when it is used, what happens where it can't be, and requests of one CPU."""

import contextlib
import errno
import functools
import os
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pmxcfs.fuse.turns import MAX_WAITING
from pmxcfs.settings import Settings
from tests.harness import Daemon, held, launch, mounted, offered_uring, wait_for

pytestmark = pytest.mark.needs_uring

DISABLED = Path("/proc/sys/kernel/io_uring_disabled")
CANT = "FUSE over io_uring can't be used"
PROMPT = 0.3  # seconds for a request that need not wait, beside all those that do, on one CPU
KILLS = 100
QUEUE_MEMORY = 96 << 10  # bytes of resident memory, for each queue that is not used
MANY_CPUS = 128


@pytest.fixture(autouse=True)
def _offered() -> Iterator[None]:
    with offered_uring():
        yield


@contextlib.contextmanager
def no_uring_in_this_kernel() -> Iterator[None]:
    """Have the kernel refuse new rings to everybody."""
    before = DISABLED.read_text()
    DISABLED.write_text("2")
    try:
        yield
    finally:
        DISABLED.write_text(before)


def refusal(workdir: Path) -> str:
    """Return what a daemon says that insists on io_uring and does not get it."""
    daemon = launch(workdir, "--fuse", "uring")
    assert daemon.process.wait(20) == 1
    return daemon.log.read_text()


def test_auto_takes_it_if_the_administrator_has_switched_it_on(tmp_path: Path) -> None:
    assert Settings.fuse == "auto"
    with mounted(tmp_path, "--fuse", "auto") as daemon:
        daemon.wait_for_log("FUSE session uring")
        (daemon.path / "file").write_text("content")
        assert (daemon.path / "file").read_text() == "content"
    with offered_uring("N"), mounted(tmp_path, "--fuse", "auto") as daemon:
        daemon.wait_for_log("FUSE session native")


def test_a_daemon_that_insists_does_not_start_without_it(tmp_path: Path) -> None:
    with offered_uring("N"):
        assert "can't use FUSE over io_uring: the kernel does not offer it" in refusal(tmp_path)


def test_where_rings_are_disabled_the_native_session_serves(tmp_path: Path) -> None:
    with no_uring_in_this_kernel():
        with mounted(tmp_path, "--fuse", "auto", expect_log=[CANT]) as daemon:
            daemon.wait_for_log("FUSE session native")
            (daemon.path / "file").write_text("content")
        assert "the queue of CPU 0: [Errno 1] Operation not permitted" in refusal(tmp_path)


def test_where_no_memory_may_be_locked_the_native_session_serves(tmp_path: Path) -> None:
    """For a process without the right to lock more, as in the package's unit."""
    limited = ["prlimit", "--memlock=0", "setpriv", "--bounding-set=-ipc_lock"]
    limited += ["--inh-caps=-ipc_lock"]
    program = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
    argv = ["-c", program, *limited, sys.executable, "-X", "faulthandler", "-m", "pmxcfs"]
    with mounted(tmp_path, "--fuse", "auto", expect_log=[CANT], program=argv) as daemon:
        daemon.wait_for_log("FUSE session native")
        (daemon.path / "file").write_text("content")


def on_cpu(cpu: int, operation: Callable[[], object]) -> tuple[int, float]:
    """Do *operation* on *cpu*; return its errno, 0 for success, and the seconds it took."""
    os.sched_setaffinity(0, {cpu})
    begin = time.monotonic()
    try:
        operation()
    except OSError as error:
        return error.errno or -1, time.monotonic() - begin
    return 0, time.monotonic() - begin


@pytest.mark.parametrize("cpu", sorted(os.sched_getaffinity(0))[:2])
def test_reads_go_on_beside_as_many_waiting_changes_as_may_be_on_one_cpu(
    tmp_path: Path, cpu: int
) -> None:
    with (
        mounted(tmp_path, "--test-control", "--fuse", "uring") as mount,
        ThreadPoolExecutor(2 * MAX_WAITING) as pool,
    ):
        files = [mount.path / f"file{number}" for number in range(2 * MAX_WAITING)]
        descriptors = [os.open(path, os.O_WRONLY | os.O_CREAT) for path in files]
        mount.control("publish-after", seconds=3600)
        with held(mount):
            for descriptor in descriptors:
                os.write(descriptor, b"content")
            closes = [functools.partial(os.close, descriptor) for descriptor in descriptors]
            changes = [pool.submit(on_cpu, cpu, close) for close in closes]
            wait_for(lambda: mount.control("info")["waiting"] == MAX_WAITING, mount)
            refused = len(files) - MAX_WAITING
            wait_for(lambda: sum(change.done() for change in changes) == refused, mount)
            reads: list[Callable[[], object]] = [
                *(functools.partial(os.path.exists, mount.path / f"no{n}") for n in range(20)),
                *((mount.path / ".version").read_bytes for _ in range(20)),
                *(functools.partial(os.listdir, mount.path) for _ in range(20)),
            ]
            with ThreadPoolExecutor(1) as reader:
                found = [reader.submit(on_cpu, cpu, read).result() for read in reads]
        outcomes = Counter(change.result()[0] for change in changes)
        mount.expect_log("the last writes to file.* are lost: EBUSY")
    assert outcomes == {0: MAX_WAITING, errno.EBUSY: refused}
    assert {failure for failure, _ in found} == {0}
    assert max(seconds for _, seconds in found) < PROMPT


def threads_cpus(mount: Daemon) -> set[str]:
    """Return the lists of CPUs on which the daemon's threads may run."""
    tasks = Path(f"/proc/{mount.process.pid}/task").iterdir()
    lines = [line for task in tasks for line in (task / "status").read_text().splitlines()]
    return {line.split()[1] for line in lines if line.startswith("Cpus_allowed_list:")}


def test_no_thread_is_on_a_cpu_that_the_administrator_has_excluded(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    program = "import os, sys; os.sched_setaffinity(0, {%d}); os.execv(sys.argv[1], sys.argv[1:])"
    argv = ["-c", program % cpu, sys.executable, "-X", "faulthandler", "-m", "pmxcfs"]
    with mounted(tmp_path, "--fuse", "uring", program=argv) as mount:
        (mount.path / "file").write_text("content")
        assert threads_cpus(mount) == {str(cpu)}


SHORT = "there can be no more threads for requests"


def test_without_descriptors_for_more_workers_all_requests_are_answered(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    with mounted(tmp_path, "--fuse", "uring", expect_log=[SHORT]) as mount:
        names = [mount.path / f"file{number}" for number in range(32)]
        os.listdir(mount.path)
        used = len(os.listdir(f"/proc/{mount.process.pid}/fd"))
        resource.prlimit(mount.process.pid, resource.RLIMIT_NOFILE, (used, used))

        def rewrite(name: Path) -> None:
            for _ in range(20):
                name.write_text("content")
                assert name.read_text() == "content"

        with ThreadPoolExecutor(len(names)) as pool:
            rewritten = [pool.submit(on_cpu, cpu, functools.partial(rewrite, n)) for n in names]
            assert {done.result(60)[0] for done in rewritten} == {0}
        with ThreadPoolExecutor(1) as pool:  # one program, while all workers have nothing to do
            alone = pool.submit(on_cpu, cpu, functools.partial(rewrite, names[0]))
            assert alone.result(60)[0] == 0


def use(root: Path, is_over: threading.Event) -> None:
    """Write, read and rename until the daemon is gone."""
    name = root / f"file{threading.get_ident()}"
    with contextlib.suppress(OSError):
        while not is_over.is_set():
            name.write_text("content")
            assert name.read_text() == "content"
            name.rename(root / f"{name.name}.new")
            (root / f"{name.name}.new").unlink()


def killed_under_load(workdir: Path) -> None:
    is_over = threading.Event()
    with mounted(workdir, "--fuse", "uring") as daemon, ThreadPoolExecutor(8) as pool:
        loads = [pool.submit(use, daemon.path, is_over) for _ in range(8)]
        wait_for(lambda: len(os.listdir(daemon.path)) > 8, daemon)
        daemon.was_killed = True
        daemon.process.kill()
        daemon.process.wait()
        for load in loads:
            load.result(20)


@pytest.mark.parametrize("count", [5, pytest.param(KILLS, marks=pytest.mark.long)])
def test_no_program_hangs_on_a_daemon_that_is_killed_under_load(tmp_path: Path, count: int) -> None:
    for _ in range(count):
        killed_under_load(tmp_path)
    with mounted(tmp_path, "--fuse", "uring") as daemon:
        (daemon.path / "file").write_text("content")


FAKED = """
import os, threading
from concurrent.futures import Future
from pmxcfs.fuse._device import Device
from pmxcfs.fuse._queue import Keeper, Slots
from pmxcfs.fuse.uring import SLOTS
from pmxcfs.host.threads import Wakeup

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")

device, end, is_over, rings = Device(), Wakeup(), threading.Event(), []

def keep(ready, cpu):
    ring = Keeper(Slots(cpu, SLOTS, device, end.fileno()))
    ready.set_result(None)
    is_over.wait()
    ring.close()

def start(cpu):
    ready = Future()
    thread = threading.Thread(target=keep, args=(ready, cpu))
    thread.start()
    ready.result()
    return thread

threads = [start(0)]
before = resident()
threads += [start(cpu) for cpu in range(1, {count} + 1)]
print((resident() - before) // {count})
is_over.set()
for thread in threads:
    thread.join()
"""


def test_a_queue_takes_little_memory(report: Callable[[object], None]) -> None:
    """What the kernel takes for its side can't be measured without so many CPUs."""
    argv: Sequence[str] = [sys.executable, "-c", FAKED.format(count=MANY_CPUS)]
    found = int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    report(f"each of {MANY_CPUS} more queues takes {found >> 10} KiB of resident memory")
    assert 0 < found < QUEUE_MEMORY
