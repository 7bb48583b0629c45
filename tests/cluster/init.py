"""PID 1 of a node: starts and signals its processes; its end is the end of the node.

The lab holds the other end of a socket. Each request is a packet with one JSON object, and so is
each answer; descriptors are passed beside the packet. PID 1 never accesses the file system under
test, so it answers whatever the daemon does. When the lab is gone, killed or not, PID 1 ends. The
kernel then kills all other processes of the pid namespace; mounts and devices go with them.

usage: python -m tests.cluster.init SOCKET_FD
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from tests.cluster.sweep import abort_mounts

MAX_PACKET = 1 << 16  # bytes
MAX_FILES = 3
# Python ignores these signals, and its children would inherit that.
IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)

Answer = dict[str, Any]


class Init:
    """Serves the requests of the lab on *control*, a connected SOCK_SEQPACKET socket."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._ended: dict[int, int] = {}  # exit status by pid; minus the signal's number if killed
        self._commands: dict[str, Callable[..., Answer]] = {
            "spawn": self._spawn,
            "fork": self._fork,
            "signal": self._signal,
            "poll": self._poll,
            "abort": self._abort,
        }

    def greet(self) -> None:
        """Send the lab a descriptor of the root directory, to access this node's files."""
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        socket.send_fds(self._control, [b"{}"], [root])
        os.close(root)

    def serve(self) -> None:
        """Answer until the lab is gone."""
        while True:
            flags = socket.MSG_CMSG_CLOEXEC
            packet, files, _, _ = socket.recv_fds(self._control, MAX_PACKET, MAX_FILES, flags)
            if not packet:
                return
            self._reap()
            request = json.loads(packet)
            try:
                answer = self._commands[request.pop("do")](files=files, **request)
            except OSError as error:
                answer = {"errno": error.errno, "message": str(error)}
            for descriptor in files:
                os.close(descriptor)
            self._control.send(json.dumps(answer).encode())

    def _spawn(self, *, files: Sequence[int], argv: list[str], env: dict[str, str]) -> Answer:
        """Start a program on *files*: its stdin, stdout and stderr."""
        actions = [(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(files)]
        pid = os.posix_spawnp(argv[0], argv, env, file_actions=actions, setsigdef=IGNORED)
        return {"pid": pid}

    def _fork(self, *, files: Sequence[int], target: str, arguments: list[Any]) -> Answer:
        """Call *target*, ``module:function``, in a new process with a connection to the lab."""
        pid = os.fork()
        if pid == 0:
            self._control.close()
            call_and_exit(target, Connection(files[0]), arguments)
        return {"pid": pid}

    def _signal(self, *, files: Sequence[int], pid: int, number: int) -> Answer:
        if pid not in self._ended:
            os.kill(pid, number)
        return {}

    def _poll(self, *, files: Sequence[int], pid: int) -> Answer:
        return {"status": self._ended.get(pid)}

    def _abort(self, *, files: Sequence[int]) -> Answer:
        """Abort all requests to the daemon; a killed one may wait for them in the kernel."""
        abort_mounts(os.getpid())
        return {}

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (end := os.waitpid(-1, os.WNOHANG))[0]:
                self._ended[end[0]] = os.waitstatus_to_exitcode(end[1])


def call_and_exit(target: str, connection: Connection, arguments: list[Any]) -> NoReturn:
    """Run the function of a ``fork`` request, and exit. A traceback goes to the node's log."""
    status = 1
    try:
        module, _, name = target.partition(":")
        getattr(importlib.import_module(module), name)(connection, *arguments)
        status = 0
    finally:  # nothing may return into the loop of the first process
        if status:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)


def end_all() -> None:
    """Kill every process but this one, and abort the FUSE requests that they wait for.

    Otherwise a thread of a killed daemon could wait in the kernel forever.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    abort_mounts(os.getpid())


def main() -> None:
    """Serve until the lab closes its end."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        init = Init(control)
        try:
            init.greet()
            init.serve()
        finally:
            end_all()


if __name__ == "__main__":
    main()
