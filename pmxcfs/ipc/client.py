"""A client of a running daemon: one method for each IPC request.

A method takes the values of a request and returns the answer's content, unparsed: status files are
JSON in bytes, keys and files are bytes. Methods block, up to the connection's timeout.
Contract: docs/spec/ipc.md.
"""

import errno
import struct
from collections.abc import Sequence
from typing import Self

from pmxcfs.errors import IpcError, NoAnswer, NotFound, NotRunning
from pmxcfs.ipc._qbclient import Client
from pmxcfs.ipc.requests import NAME_FIELD, Number
from pmxcfs.text import to_bytes, to_text

TIMEOUT_MS = 10_000

_NO_ANSWER = (errno.ETIMEDOUT, errno.EPERM, errno.EACCES, errno.ENOTCONN)
_LOG_STEP = "see its log: journalctl -t pmxcfs"
_STEPS = {
    errno.EPERM: "ask as root",
    errno.EACCES: "ask as root",
    errno.ETIMEDOUT: f"the daemon does not answer in time: {_LOG_STEP}",
    errno.ENOTCONN: f"the daemon has ended: {_LOG_STEP}",
    errno.ENOENT: "see what there is with pmxcfs ipc version and below the mountpoint",
    errno.EISDIR: "name a file",
    errno.EIO: f"the daemon could not do it: {_LOG_STEP}",
}
# What a request is about, if not about a name in it.
_NAMES = {
    Number.GET_FS_VERSION: "the version counters",
    Number.GET_CLUSTER_INFO: "the members",
    Number.GET_GUEST_LIST: "the guests",
    Number.GET_RRD_DUMP: "the metrics",
    Number.GET_REPORT: "the report on the daemon's state",
    Number.LOG_CLUSTER_MSG: "the new entry of the cluster log",
    Number.GET_CLUSTER_LOG: "the cluster log",
    Number.GET_GUEST_CONFIG_PROPERTIES: "the properties",
    Number.VERIFY_TOKEN: "the token",
    Number.SAVE: "the save of the database",
}


class IpcClient:
    """A connection to the daemon that listens as *name*; use it in one thread at a time.

    Connecting raises NotRunning if no daemon listens, and NoAnswer if the daemon refuses or does
    not answer. Each method sends one request, blocks for up to *timeout_ms*, and raises IpcError
    with the errno of the answer, NoAnswer if it is that the client may not ask, or none came.
    """

    def __init__(self, name: str, *, timeout_ms: int = TIMEOUT_MS) -> None:
        self._timeout_ms = timeout_ms
        try:
            self._client = Client(name, timeout_ms=timeout_ms)
        except IpcError as error:
            raise _explained(name, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._client.close()

    def _ask(self, number: Number, payload: bytes = b"", *, about: str = "") -> bytes:
        """Send a request. An IpcError that is raised names what it was *about*."""
        try:
            return self._client.ask(number, payload, timeout_ms=self._timeout_ms)
        except IpcError as error:
            raise _named(about or _NAMES[number], error) from None

    def version(self) -> bytes:
        """Return ``.version``."""
        return self._ask(Number.GET_FS_VERSION)

    def members(self) -> bytes:
        """Return ``.members``."""
        return self._ask(Number.GET_CLUSTER_INFO)

    def guests(self) -> bytes:
        """Return ``.vmlist``."""
        return self._ask(Number.GET_GUEST_LIST)

    def metrics(self) -> bytes:
        """Return ``.rrd``."""
        return self._ask(Number.GET_RRD_DUMP).rstrip(b"\0")

    def report(self) -> bytes:
        """Return the report on the daemon's state, the JSON of ``pmxcfs.daemon.report``."""
        return self._ask(Number.GET_REPORT)

    def begin_save(self) -> int:
        """Have the daemon save its tree into the database; return the number of the save."""
        return int.from_bytes(self._ask(Number.SAVE), "little")

    def save_outcome(self, number: int) -> str | None:
        """Return why a save failed, "" if it succeeded, None while it runs."""
        answer = self._ask(Number.SAVE, struct.pack("<I", number))
        return to_text(answer[1:]) if answer else None

    def config(self, path: str) -> bytes:
        """Return the published content of a file."""
        return self._ask(Number.GET_CONFIG, _text(path), about=f"the file {path!r}")

    def get_key(self, key: str, *, node: str = "") -> bytes:
        """Return the value of *key* of *node*; an empty *node* means this node."""
        about = f"the key {key!r} of {f'node {node!r}' if node else 'this node'}"
        return self._ask(Number.GET_STATUS, _name(key) + _name(node), about=about)

    def set_key(self, key: str, value: bytes) -> None:
        """Set a key of this node; an empty value removes it."""
        self._ask(Number.SET_STATUS, _name(key) + value, about=f"the key {key!r}")

    def log(self, message: str, *, ident: str, tag: str, priority: int) -> None:
        """Append an entry to the cluster log; *priority* is a number of syslog, 0 to 7."""
        names = _text(ident), _text(tag)
        head = _packed(
            "<BBB", priority, *map(len, names), what="the length of user or tag, or the priority,"
        )
        self._ask(Number.LOG_CLUSTER_MSG, head + b"".join(names) + _text(message))

    def cluster_log(self, *, most: int = 0, user: str = "") -> bytes:
        """Return the newest *most* entries of the cluster log, 0 for the daemon's default.

        If *user* is given, return only entries of this user.
        """
        head = _packed("<I12x", most, what="the number of entries")
        return self._ask(Number.GET_CLUSTER_LOG, head + _text(user))

    def properties(self, names: Sequence[str], *, vmid: int = 0) -> bytes:
        """Return these properties of the guest *vmid*, or of all guests if *vmid* is 0."""
        head = _packed("<IB", vmid, len(names), what="the vmid or the number of properties")
        payload = head + b"".join(map(_text, names))
        about = f"the guest {vmid}" if vmid else ""
        return self._ask(Number.GET_GUEST_CONFIG_PROPERTIES, payload, about=about)

    def has_token(self, token: str) -> bool:
        """Tell whether *token* is a line of the file of API tokens."""
        try:
            self._ask(Number.VERIFY_TOKEN, _text(token))
        except IpcError as error:
            if error.errno != NotFound.errno:
                raise
            return False
        return True


def _packed(layout: str, *numbers: int, what: str) -> bytes:
    """Pack numbers. Raises IpcError, which names *what*, if one does not fit its field."""
    try:
        return struct.pack(layout, *numbers)
    except struct.error:
        raise IpcError(f"{what} is out of range", errno.EINVAL) from None


def _text(text: str) -> bytes:
    return to_bytes(text) + b"\0"


def _name(name: str) -> bytes:
    raw = to_bytes(name)
    if len(raw) >= NAME_FIELD:
        raise IpcError(f"a key or node name has at most {NAME_FIELD - 1} bytes", errno.ENAMETOOLONG)
    return raw.ljust(NAME_FIELD, b"\0")


def _named(about: str, error: IpcError) -> IpcError:
    """Return the error to raise for a refused or unanswered request *about* something."""
    kind = NoAnswer if error.errno in _NO_ANSWER else IpcError
    step = _STEPS.get(error.errno)
    return kind(f"{about}: {error}{f': {step}' if step else ''}", error.errno)


def _explained(name: str, error: IpcError) -> IpcError:
    match error.errno:
        case errno.ECONNREFUSED | errno.ENOENT:
            return NotRunning(f"no pmxcfs listens as {name!r}: is it running?", error.errno)
        case errno.EACCES:
            return NoAnswer(
                f"permission denied: only root and the daemon's group may connect to {name!r}: "
                "ask as root",
                error.errno,
            )
        case errno.ETIMEDOUT:
            return NoAnswer(
                f"the pmxcfs that listens as {name!r} does not answer in time", error.errno
            )
    return error
