"""The IPC edge: who may connect, and requests of local clients in, answers or errnos out.

The only user of libqb's server. A thread of its own runs it; each request is answered on that
thread, so one client waits for another at most as long as an answer takes. Requests and their
meaning are in ``requests``. Contract: docs/spec/ipc.md.
"""

import contextlib
import errno
import logging
import os
import shutil
import threading
import time
from pathlib import Path

from pmxcfs.errors import IpcError, PmxcfsError, StartError
from pmxcfs.ipc._qb import Server
from pmxcfs.ipc.requests import TABLE, Caller, Number, Requests

SHARED_MEMORY = Path("/dev/shm")
REFUSALS_LOGGED = 10.0  # seconds between two of them: anybody can cause one
RESTART_FLAG = "cfs-restart-flag"  # in the run directory: clients wait a while for a restart

_log = logging.getLogger("pmxcfs.ipcs")


class Gate:
    """Decides who may connect."""

    def __init__(self, *, gid: int) -> None:
        self._gid = gid  # whose processes may read
        self._silent_until = 0.0
        self._unlogged = 0

    def admit(self, uid: int, gid: int, pid: int) -> Caller | int:
        """Return who that is, or an errno. Only the primary group counts: libqb knows no other."""
        if (uid, gid) == (0, 0):
            return Caller(pid, may_write=True)
        if gid == self._gid:
            return Caller(pid, may_write=False)
        self._log_refusal(uid, gid, pid)
        return errno.EACCES

    def _log_refusal(self, uid: int, gid: int, pid: int) -> None:
        now = time.monotonic()
        if now < self._silent_until:
            self._unlogged += 1
            return
        more = f"; {self._unlogged} more before" if self._unlogged else ""
        _log.warning("refused a connection of uid %d, gid %d, pid %d%s", uid, gid, pid, more)
        self._silent_until, self._unlogged = now + REFUSALS_LOGGED, 0


class IpcServer:
    """The service *name*, which answers *requests* from ``start`` to ``close``.

    *flag* is a file that is there while the daemon is between two runs.
    """

    def __init__(self, name: str, requests: Requests, *, gid: int, flag: Path) -> None:
        self._name = name
        self._requests = requests
        self._gid = gid
        self._flag = flag
        self._server: Server | None = None
        self._thread = threading.Thread(target=self._serve, name="ipc", daemon=True)

    def start(self) -> None:
        """Start answering. Raises StartError. Not before the last fork: libqb keeps the pid."""
        remove_leftovers(self._name)
        gate = Gate(gid=self._gid)
        try:
            self._server = Server(self._name, admit=gate.admit, answer=self._answer)
        except IpcError as error:
            raise StartError(_explain(self._name, error)) from None
        self._thread.start()
        with contextlib.suppress(FileNotFoundError):
            self._flag.unlink()

    def close(self) -> None:
        """Tell clients of a restart, disconnect them, and end the thread. Not with the lock."""
        if self._server is None:
            return
        with contextlib.suppress(OSError):  # a run directory that is gone must not stop the stop
            make_flag(self._flag, gid=self._gid)
        self._server.stop()
        self._thread.join()
        self._server.close()
        self._server = None

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return self._server.connections if self._server else 0

    def _serve(self) -> None:
        server = self._server
        assert server is not None
        while True:
            try:
                server.run()
            except Exception:  # noqa: BLE001, as clients must be served whatever happens
                _log.exception("serving local clients failed, which is a bug")
            else:
                return

    def _answer(self, caller: Caller, number: int, payload: bytes) -> bytes | int:
        if _log.isEnabledFor(logging.DEBUG):
            return self._answer_logged(caller, number, payload)
        return self._outcome(caller, number, payload)

    def _outcome(self, caller: Caller, number: int, payload: bytes) -> bytes | int:
        """Return the answer or an errno: the translator of errors."""
        try:
            return self._requests.answer(caller, number, payload)
        except PmxcfsError as error:
            return error.errno
        except Exception:  # noqa: BLE001, as one bad request must not take the others with it
            _log.exception("request %d failed, which is a bug", number)
            return errno.EIO

    def _answer_logged(self, caller: Caller, number: int, payload: bytes) -> bytes | int:
        start_ns = time.perf_counter_ns()
        outcome = self._outcome(caller, number, payload)
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
    """Make an empty file that the group can read."""
    path.touch(mode=0o640)
    os.chown(path, -1, gid)


def remove_leftovers(name: str, *, below: Path = SHARED_MEMORY) -> None:
    """Remove the shared memory that servers of this name left when they were killed.

    Connections have directories ``qb-SERVERPID-CLIENTPID-FD-RANDOM``; libqb removes them unless
    the server dies. A pid that is our own is that of a dead process, as we have no connection yet.
    """
    for directory in below.glob("qb-*-*-*-*"):
        pid = directory.name.split("-")[1]
        is_ours = pid.isdecimal() and any(directory.glob(f"qb-*-{name}-header"))
        if is_ours and (pid == str(os.getpid()) or not Path("/proc", pid).exists()):
            shutil.rmtree(directory, ignore_errors=True)
