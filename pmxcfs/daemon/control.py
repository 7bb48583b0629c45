"""The test control: a Unix socket on which tests send commands to the daemon.

The socket exists only with ``--test-control``, in the run directory, and only root can connect. A
request is a line with a JSON object, ``{"do": NAME, ...arguments}``. The answer is a line with a
JSON object: the result, or ``{"error": ERRNO, "message": ...}``.
Contract: docs/spec/operations.md, "Command line".
"""

import errno
import json
import logging
import os
import socketserver
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pmxcfs import messages
from pmxcfs.errors import PmxcfsError
from pmxcfs.host.threads import BackgroundThread

_log = logging.getLogger("pmxcfs.main")

POLL = 0.02  # seconds that a stop may take to be noticed

Command = Callable[..., Mapping[str, object] | None]


class Control:
    """A server of *commands*, each called with *lock* held and the request's other fields.

    Those in *unlocked* are called without the lock.
    """

    def __init__(
        self,
        path: Path,
        commands: Mapping[str, Command],
        *,
        lock: AbstractContextManager[object],
        unlocked: Collection[str] = (),
    ) -> None:
        self._path = path
        with suppress(FileNotFoundError):
            path.unlink()  # of a daemon that was killed; the state lock says it is not running
        self._commands = dict(commands)
        self._lock = lock
        self._server = _Server(str(path), _handler_of(self._commands, lock, unlocked))
        path.chmod(0o600)
        self._thread = BackgroundThread("control", lambda: self._server.serve_forever(POLL))

    def start(self) -> None:
        """Start answering."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering and remove the socket. Must not hold the lock."""
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            self._commands.clear()  # for clients that are still connected
        with suppress(FileNotFoundError):
            self._path.unlink()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False  # a client that stays connected must not delay the stop
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        _log.warning("a connection to the test control socket failed", exc_info=True)


def _handler_of(
    commands: Mapping[str, Command], lock: AbstractContextManager[object], unlocked: Collection[str]
) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                answer = _answer(commands, lock, unlocked, line)
                self.wfile.write(json.dumps(answer).encode() + b"\n")

    return Handler


def _answer(
    commands: Mapping[str, Command],
    lock: AbstractContextManager[object],
    unlocked: Collection[str],
    line: bytes,
) -> Mapping[str, object]:
    try:
        request = json.loads(line)
        name = request.pop("do")
        with nullcontext() if name in unlocked else lock:
            return commands[name](**request) or {}
    except PmxcfsError as error:
        return {"error": error.errno, "message": str(error)}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        return {"error": errno.EINVAL, "message": f"not a request: {error!r}"}


def mutation_of(request: Mapping[str, Any]) -> messages.Mutation:
    """Return the mutation that a request describes.

    Raises KeyError for what it lacks.
    """
    path = request["path"]
    match request["kind"]:
        case "write":
            data = os.fsencode(request["data"])
            return messages.Write(
                path, request.get("offset", 0), data, request.get("truncate", True)
            )
        case "create":
            return messages.Create(path)
        case "mkdir":
            return messages.Mkdir(path)
        case "delete":
            return messages.Delete(path)
        case "rename":
            return messages.Rename(path, request["to"])
        case "mtime":
            return messages.Mtime(path, request["mtime"])
        case kind:
            raise KeyError(kind)
