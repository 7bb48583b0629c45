"""The IPC server: admits local clients, and turns their requests into answers or errnos.

The only user of libqb's server. What requests mean is in ``requests``.

Threads: one, named ``ipc``, runs libqb and answers all requests, one after the other. So a client
waits for another client at most as long as one answer takes.
Contract: docs/spec/ipc.md, "Who may connect" and "Restart flag".
"""

import contextlib
import errno
import functools
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pmxcfs.errors import IpcError, PmxcfsError, StartError
from pmxcfs.host.directories import make_new_file, open_directory, opened
from pmxcfs.host.log_limit import LogLimit
from pmxcfs.host.threads import BackgroundThread
from pmxcfs.ipc._qb import Server
from pmxcfs.ipc.requests import TABLE, Caller, Number, Requests

SHARED_MEMORY = Path("/dev/shm")
RESTART_FLAG = "cfs-restart-flag"  # in the run directory: with it, clients wait for a restart

_log = logging.getLogger("pmxcfs.ipcs")


class Gate:
    """Decides which processes may connect, and with which rights."""

    def __init__(self, *, gid: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._gid = gid  # processes of this group may read
        self._log_limit = LogLimit(_log, clock=clock)

    def admit(self, uid: int, gid: int, pid: int) -> Caller | int:
        """Return the caller that a process becomes, or the errno to refuse it with.

        *gid* is the process's primary group; libqb does not report supplementary groups.
        """
        if (uid, gid) == (0, 0):
            return Caller(pid, may_write=True)
        if gid == self._gid:
            return Caller(pid, may_write=False)
        text = f"refused a connection of uid {uid}, gid {gid}, pid {pid}"
        self._log_limit.warn(uid, text)  # any local process can cause one
        return errno.EACCES


class IpcServer:
    """The libqb service *name*, which answers requests from ``start`` to ``close``.

    Processes of the group *gid* may read. The file *flag* exists between ``close`` and the next
    ``start``: it tells clients that the daemon restarts.
    """

    def __init__(self, name: str, *, gid: int, flag: Path) -> None:
        self._name = name
        self._gid = gid
        self._flag = flag
        self._server: Server | None = None
        self._thread: BackgroundThread | None = None

    def start(self, requests: Requests) -> None:
        """Start the thread that answers *requests*, and remove the flag file. Raises StartError.

        Call it after the last fork: libqb remembers the pid.
        """
        remove_leftovers(self._name)
        gate = Gate(gid=self._gid)
        try:
            self._server = Server(
                self._name, admit=gate.admit, answer=functools.partial(_answer, requests)
            )
        except IpcError as error:
            raise StartError(_explain(self._name, error)) from None
        self._thread = BackgroundThread("ipc", functools.partial(_serve, self._server))
        self._thread.start()
        with contextlib.suppress(FileNotFoundError):
            self._flag.unlink()

    def close(self) -> None:
        """Create the flag file, disconnect all clients, and end the thread.

        Blocks until the current answer is sent: don't call it with the tree's lock held.
        """
        if self._server is None or self._thread is None:
            return
        with contextlib.suppress(OSError):  # if the run directory is gone, go on stopping
            make_flag(self._flag, gid=self._gid)
        self._server.stop()
        self._thread.close(timeout=None)
        self._server.close()
        self._server = None

    @property
    def connections(self) -> int:
        """The number of connected clients."""
        return self._server.connections if self._server else 0


def _serve(server: Server) -> None:
    while True:
        try:
            server.run()
        except Exception:  # noqa: BLE001, as a bug must not end the service
            _log.exception("the IPC server failed, which is a bug")
        else:
            return


def _answer(requests: Requests, caller: Caller, number: int, payload: bytes) -> bytes | int:
    if _log.isEnabledFor(logging.DEBUG):
        return _answer_logged(requests, caller, number, payload)
    return _outcome(requests, caller, number, payload)


def _outcome(requests: Requests, caller: Caller, number: int, payload: bytes) -> bytes | int:
    """Return the answer, or the errno of the error that answering raised."""
    try:
        return requests.answer(caller, number, payload)
    except PmxcfsError as error:
        return error.errno
    except Exception:  # noqa: BLE001, as a bug in one request must not end the service
        _log.exception("IPC request %d failed, which is a bug", number)
        return errno.EIO


def _answer_logged(requests: Requests, caller: Caller, number: int, payload: bytes) -> bytes | int:
    start_ns = time.perf_counter_ns()
    outcome = _outcome(requests, caller, number, payload)
    what = errno.errorcode.get(outcome, "?") if isinstance(outcome, int) else "ok"
    _log.debug(
        "%s pid %d -> %s (%d us)",
        Number(number).name.lower() if number in TABLE else f"request {number}",
        caller.pid,
        what,
        (time.perf_counter_ns() - start_ns) // 1000,
    )
    return outcome


def _explain(name: str, error: IpcError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"another process answers local clients as {name!r}: "
            "stop it, or choose another name with --ipc-name"
        )
    return f"can't answer local clients as {name!r}: {error}"


def make_flag(path: Path, *, gid: int) -> None:
    """Create the empty file *path*, which the group *gid* can read. A link there is replaced."""
    with opened(open_directory(path.parent)) as directory:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=directory)
        with opened(make_new_file(path.name, 0o640, directory=directory)) as flag:
            os.fchown(flag, -1, gid)


def remove_leftovers(name: str, *, below: Path = SHARED_MEMORY) -> None:
    """Remove the shared memory of killed servers of this name. Call it before the server starts.

    Each connection has a directory ``qb-SERVERPID-CLIENTPID-FD-RANDOM``, which libqb removes unless
    the server is killed. Directories with the pid of this process belong to a dead process that
    had the same pid, as this server has no connections yet.
    """
    for directory in below.glob("qb-*-*-*-*"):
        pid = directory.name.split("-")[1]
        if pid.isdecimal() and (pid == str(os.getpid()) or not Path("/proc", pid).exists()):
            with contextlib.suppress(OSError):  # another program's, which removes it just now
                if any(directory.glob(f"qb-*-{name}-header")):
                    shutil.rmtree(directory, ignore_errors=True)
