"""The process as the operating system sees it: name, directories, lock, mountpoint, fork, signals.

This module knows nothing of the tree, its files or the database. If a resource is missing, it
raises a ``StartError`` that says what to do. ``daemonize`` forks: call it before any thread starts
and before SQLite or llfuse is used. Take the lock and write the pid file after ``daemonize``, as
both contain the daemon's pid.
"""

import contextlib
import ctypes
import errno
import fcntl
import grp
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Self

from pmxcfs.errors import InUse, NotRoot, PmxcfsError, StartError
from pmxcfs.host.directories import open_below, open_directory, opened
from pmxcfs.host.files import replace_file
from pmxcfs.host.mounts import topmost_on
from pmxcfs.host.threads import BackgroundThread
from pmxcfs.messages import MAX_FILE_SIZE
from pmxcfs.settings import Settings

STOP_SIGNALS = frozenset([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
SIGNAL_INTERVAL = 0.02  # seconds between two signals to a thread that has to leave a system call

UMASK = 0o027
DIRECTORY_MODE = 0o750
LOCK_TIMEOUT = 10.0  # seconds that a daemon which is stopping may still hold the lock
NICE = 15  # nice value of a low-priority thread: 1/30 of the CPU beside a thread of value 0
LOCK_INTERVAL = 0.1  # seconds between attempts

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_MNT_FORCE = 1  # umount2(2): requests that still wait for an answer fail
_MNT_DETACH = 2  # out of sight now, gone when nothing uses it any more
_STDOUT, _STDERR = 1, 2  # descriptors
_UNWRITABLE = frozenset([errno.EROFS, errno.ENOSPC, errno.EDQUOT])
_READY = b"\0"  # what the daemon writes to its parent; anything else is the reason of a failure

_log = logging.getLogger("pmxcfs.main")


def name_process(name: str = "pmxcfs") -> None:
    """Set the name that ps and killall know this process by."""
    Path("/proc/self/comm").write_text(name)


def program_name(pid: int) -> str:
    """Return the name of the program of a process, which may be in another namespace or over."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return "an unknown program"


def open_standard_streams() -> None:
    """Open descriptors 0 to 2 on /dev/null where they are closed, and sys.stdout and sys.stderr.

    Otherwise a file or socket of the daemon could get one of these numbers, and output meant for
    stdout or stderr would be written to it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(descriptor)
    # Python has none where it found the descriptor closed.
    sys.stdout = sys.stdout or os.fdopen(_STDOUT, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(_STDERR, "w", closefd=False)


def lower_priority() -> None:
    """Lower the priority of the calling thread to nice value NICE.

    Its work takes milliseconds of CPU time. At normal priority, request threads that become ready
    meanwhile would wait about that long for the CPU.
    """
    thread = threading.get_native_id()
    nice = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, max(nice, NICE))


def keep_freed_memory() -> None:
    """Make malloc keep freed buffers of up to 2 MiB instead of returning them to the kernel.

    Otherwise glibc unmaps the buffer of each 1 MiB write, and a quarter of the time of the next
    write is spent on page faults.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's, whose malloc needs it
        libc.mallopt(_M_MMAP_THRESHOLD, 2 * MAX_FILE_SIZE)
        libc.mallopt(_M_TRIM_THRESHOLD, 8 * MAX_FILE_SIZE)


def check_user() -> None:
    """Raise StartError if this process has not the rights of root, without which nothing mounts."""
    if os.geteuid() != 0:
        raise NotRoot("only root can mount the file system: run it as root, as with sudo")


def find_gid(name: str) -> int:
    """Return the gid of the group that owns every file."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise StartError(
            f"there is no group {name!r}: create it (groupadd --system {name}) "
            "or name another one with --group"
        ) from None


def make_directories(settings: Settings, *, gid: int) -> None:
    """Make the state and run directories; nothing that is made from now on is for others."""
    os.umask(UMASK)
    _make_directory(settings.statedir)
    _make_directory(settings.rundir, gid=gid)
    for path in (settings.statedir, settings.rundir):
        _check_is_ours(path)


def _make_directory(path: Path, *, gid: int = -1) -> None:
    """Make a directory of mode 0750. One that is there already is left as it is."""
    try:
        with opened(open_directory(path.parent, make=0o777)) as parent:  # the umask applies
            os.mkdir(path.name, DIRECTORY_MODE, dir_fd=parent)
            with opened(open_below(parent, os.fsencode(path.name))) as made:
                os.fchown(made, -1, gid)
    except FileExistsError:
        if not path.is_dir():
            raise StartError(f"{path} is not a directory") from None
    except OSError as error:
        raise StartError(f"can't make directory {path}: {error.strerror}") from None


def _check_is_ours(path: Path) -> None:
    """Warn if other users can replace files in the directory *path*, as by symbolic links."""
    status = os.stat(path)
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        _log.warning(
            "other users can replace files in %s: make root its owner, and nobody else able to "
            "write to it (chown root, chmod go-w)",
            path,
        )


class StateLock:
    """The lock on a state directory, which one daemon at a time may use.

    It is a lock on a file in it. If that file can't be written, as the directory is read-only or
    full, the directory itself is locked, too: the file may be missing.
    """

    def __init__(self, path: Path, *, mountpoint: Path, timeout: float = LOCK_TIMEOUT) -> None:
        self._path = path
        self._mountpoint = mountpoint  # where a holder that was killed may be stuck
        self._timeout = timeout  # seconds
        self._descriptors = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Take the lock. Blocks up to *timeout* seconds. Raises InUse, and StartError."""
        try:
            with contextlib.ExitStack() as opened_here:
                self._take(opened_here)
                self._descriptors = opened_here.pop_all()
        except OSError as error:
            raise StartError(f"can't open lock file {self._path}: {error.strerror}") from None
        return self

    def _take(self, descriptors: contextlib.ExitStack) -> None:
        is_writable = True
        file = -1
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            is_writable = False
            with contextlib.suppress(FileNotFoundError):
                file = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW)
        if file >= 0:
            descriptors.callback(os.close, file)
            self._lock(file, self._path)
        if is_writable:
            is_writable = _write_pid(file)
        self._lock_directory(descriptors, is_kept=not is_writable)
        if not is_writable and file >= 0 and not os.fstat(file).st_size:
            with contextlib.suppress(OSError):  # nobody is to take it for a trace of use
                self._path.unlink()  # the lock on the directory is kept

    def _lock(self, descriptor: int, path: Path) -> None:
        if path == self._path and _has_dying_holder(descriptor):
            self._free_holder()
        if not lock_file(descriptor, self._timeout):
            holder = (_holder(descriptor) if path == self._path else "") or "unknown"
            raise InUse(
                f"the state directory {self._path.parent} is in use by the daemon with pid {holder}"
            )

    def _lock_directory(self, descriptors: contextlib.ExitStack, *, is_kept: bool) -> None:
        """Wait until no daemon that could not write the file has the directory; lock it if kept."""
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        descriptors.callback(os.close, directory)
        self._lock(directory, self._path.parent)
        if not is_kept:
            fcntl.flock(directory, fcntl.LOCK_UN)

    def _free_holder(self) -> None:
        """Detach the mount of a killed daemon that can't exit, so that it releases the lock.

        One of its threads is blocked in a notification to the kernel, until a FUSE request is
        answered that the killed daemon will never answer. The detach aborts that request.
        """
        top = topmost_on(self._mountpoint)
        if top is None or not top.is_fuse:
            return
        _log.warning("removing the mount of a daemon that is ending from %s", self._mountpoint)
        with contextlib.suppress(StartError):
            detach(self._mountpoint)

    def __exit__(self, *exc_info: object) -> None:
        """Give the lock back. The file stays: removing it would let two daemons lock two files."""
        self._descriptors.close()


def _write_pid(descriptor: int) -> bool:
    """Write this process's pid into the lock file; return whether there was room for it."""
    pid = b"%d\n" % os.getpid()
    try:
        os.pwrite(descriptor, pid, 0)
        os.ftruncate(descriptor, len(pid))
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        return False
    return True


def _holder(descriptor: int) -> str:
    """Return the pid that the lock file tells, empty for none."""
    return os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()


def _has_dying_holder(descriptor: int) -> bool:
    """Tell whether a killed daemon that can't exit holds the lock; take the lock if it is free."""
    if lock_file(descriptor, 0) or not is_dying(_holder(descriptor)):
        return False
    # A daemon that stops normally releases the lock before it exits, perhaps since the check above.
    return not lock_file(descriptor, 0)


def is_dying(pid: str) -> bool:
    """Tell whether the main thread of process *pid* has exited (state Z or X in /proc/PID/stat)."""
    try:
        status = Path("/proc", pid, "stat").read_text()
    except (OSError, ValueError):
        return False
    return pid.isdecimal() and status.rpartition(")")[2].split()[0] in ("Z", "X")


def lock_file(descriptor: int, timeout: float) -> bool:
    """Take the flock(2) of an open file or directory; return False after *timeout* seconds.

    The stop signals must be blocked.

    Raises StartError if a stop signal arrives meanwhile.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            if signal.sigtimedwait(STOP_SIGNALS, LOCK_INTERVAL):
                raise StartError(
                    "stopped by a signal while waiting for another daemon to end"
                ) from None
        else:
            return True


def forget_pid(path: Path) -> None:
    """Remove the pid file of a daemon that was killed, so that there is none until this one serves.

    Raises nothing: if the file can't be removed, ``pid_file`` replaces it or reports the error.
    """
    with contextlib.suppress(OSError):
        path.unlink()


@contextlib.contextmanager
def pid_file(path: Path) -> Iterator[None]:
    """Keep this process's pid in *path*; at the end remove it, unless it is another's by then."""
    mine = f"{os.getpid()}\n"
    try:
        replace_file(path, mine.encode(), mode=0o644)
    except OSError as error:
        raise StartError(f"can't write pid file {path}: {error.strerror}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.read_text() == mine:
                path.unlink()


def stat_error(path: Path) -> int:
    """Return the errno that stat(2) gives for *path*, 0 for none."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def detach(path: Path) -> None:
    """Take the topmost mount off *path* at once, even if files on it are open or requests wait."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _MNT_FORCE | _MNT_DETACH) != 0:
        raise StartError(f"can't unmount {path}: {os.strerror(ctypes.get_errno())}")


def is_mounted(path: Path) -> bool:
    """Tell whether a FUSE file system is mounted on *path* and answers; blocks while it starts."""
    top = topmost_on(path)
    return top is not None and top.is_fuse and stat_error(path) == 0


def daemonize(body: Callable[[Callable[[], None]], int], *, mountpoint: Path) -> int:
    """Run *body* in the background; return the exit status, in the parent and in the daemon.

    *body* gets a function to call once the mount is there. The parent blocks until then, looks at
    the mount itself, and returns 0; or it prints why the daemon did not start and returns 1.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if SIGCHLD is ignored, waitpid fails
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        os.waitpid(child, 0)
        return _await_daemon(reader, mountpoint)
    os.setsid()
    if os.fork():  # a session leader could get a terminal again, so the daemon is none
        os._exit(0)
    os.close(reader)
    os.chdir("/")
    with open(writer, "wb", buffering=0) as parent:
        return _run_reporting(body, parent)


def _run_reporting(body: Callable[[Callable[[], None]], int], parent: BinaryIO) -> int:
    """Run *body*; report its success or its error to the parent through a pipe."""

    def report_ready() -> None:
        _silence_stdio()
        _answer(parent, _READY)

    try:
        return body(report_ready)
    except (PmxcfsError, OSError) as error:
        _answer(parent, str(error).encode("utf-8", "backslashreplace"))
        return 1


def _answer(parent: BinaryIO, answer: bytes) -> None:
    if not parent.closed:
        # A parent that was interrupted meanwhile is no reason to fail.
        with parent, contextlib.suppress(BrokenPipeError):
            parent.write(answer)


def _await_daemon(reader: int, mountpoint: Path) -> int:
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    if answer == _READY and is_mounted(mountpoint):
        return 0
    if answer == _READY:
        reason = f"the daemon runs, but the mount on {mountpoint} does not answer"
    else:
        reason = answer.decode("utf-8", "replace") or "the daemon died while it started"
    print(f"pmxcfs: {reason}", file=sys.stderr)
    return 1


def _silence_stdio() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


class SignalWaiter:
    """A thread that calls a function once, when the first signal to stop arrives.

    The signals are blocked in every thread, and this thread waits for them with sigwait. llfuse's
    own handlers are C code: no Python code would run before llfuse's main loop has returned, and
    the main loop waits for its workers.
    """

    def __init__(self) -> None:
        """Set the signal mask to exactly STOP_SIGNALS. Call in the main thread.

        Threads created later inherit the mask. If a mask inherited from the parent process blocked
        SIGUSR1, ``end_llfuse_main`` would wait for ever.
        """
        signal.pthread_sigmask(signal.SIG_SETMASK, STOP_SIGNALS)
        # end_llfuse_main uses these two. They must not kill the process while llfuse's handlers
        # are not in place yet, or not any more.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, exit statuses are lost
        self._thread: BackgroundThread | None = None

    def start(self, on_stop: Callable[[], None]) -> None:
        """Start the thread that will call *on_stop*."""
        self._thread = thread = BackgroundThread("signals", lambda: self._wait(thread, on_stop))
        thread.start()

    def close(self) -> None:
        """End the thread, whether a signal came or not; blocks until *on_stop* has returned."""
        thread = self._thread
        if thread is None:
            return
        thread.stop()
        if thread.is_alive:
            # Signal the process: the thread may be ending already. All other threads block SIGTERM.
            os.kill(os.getpid(), signal.SIGTERM)
            thread.close(timeout=None)

    @staticmethod
    def _wait(thread: BackgroundThread, on_stop: Callable[[], None]) -> None:
        signal.sigwait(STOP_SIGNALS)
        if not thread.is_stopping:
            on_stop()


def end_llfuse_main(main_thread: int, finished: threading.Event) -> None:
    """End ``llfuse.main(handle_signals=True)``, which runs in the thread *main_thread*.

    Call it in the thread of a ``SignalWaiter``; blocks until *finished* is set, which the main
    thread does as soon as ``llfuse.main`` has returned. SIGHUP, taken by this thread, makes
    llfuse's C handler set the session's exit flag. SIGUSR1, for which llfuse has a handler that
    does nothing, interrupts the threads that block in read(2). Both signals are repeated, because a
    thread that has checked the flag and not yet entered read(2) misses a single signal. llfuse
    itself sends only one to each worker.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    while True:
        signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
        signal.pthread_kill(main_thread, signal.SIGUSR1)
        for worker in _llfuse_workers():
            _signal_thread(worker, signal.SIGUSR1)
        if finished.wait(SIGNAL_INTERVAL):
            break
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def _llfuse_workers() -> list[int]:
    """Return the kernel's ids of llfuse's threads, which name themselves."""
    return [
        thread.native_id
        for thread in threading.enumerate()
        if thread.name.startswith("fuse-worker-") and thread.native_id
    ]


def _signal_thread(native_id: int, number: signal.Signals) -> None:
    """Send a signal to a thread that may have ended, which pthread_kill does not allow."""
    libc = ctypes.CDLL(None)
    libc.tgkill(os.getpid(), native_id, number)


def notify_service_manager(state: str) -> None:
    """Send a state of sd_notify(3), such as READY=1, to the systemd that started this process."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract address
        address = "\0" + address[1:]
    # Errors are ignored, and the send does not block: the daemon works without a service manager.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        out.sendto(state.encode("utf-8", "replace"), address)


def has_service_manager() -> bool:
    """Tell whether a service manager has set NOTIFY_SOCKET."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def watchdog_timeout() -> float | None:
    """Return the watchdog timeout of the service manager in seconds; None if there is none.

    As in sd_watchdog_enabled(3): if WATCHDOG_PID names another process, there is none.
    """
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or not int(microseconds):
        return None
    return int(microseconds) / 1_000_000
