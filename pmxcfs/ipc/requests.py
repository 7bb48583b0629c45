"""The IPC requests of local clients: one table, one method for each request.

A method takes a request's content without the header and returns the answer's content. An invalid
request raises a ``PmxcfsError`` with the errno that the client gets. Knows nothing of libqb.

Threads: ``answer`` takes the tree's lock before it calls the method, except for requests that the
table marks with ``needs_lock=False``.
Contract: docs/spec/ipc.md, "Requests".
"""

import hmac
import json
import struct
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import NamedTuple, Protocol

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import Invalid, NotFound, NotPermitted, UnknownRequest
from pmxcfs.ipc.guest_properties import Properties
from pmxcfs.messages import LogEntry, SetKey
from pmxcfs.status.cluster_log import DEFAULT_COUNT, render
from pmxcfs.status.counters import Status
from pmxcfs.status.files import StatusFile
from pmxcfs.text import to_bytes, to_text
from pmxcfs.tree.guests import Guests
from pmxcfs.tree.modes import is_private_path

NAME_FIELD = 256  # bytes of a name field: the name, its NUL and padding
MAX_PRIORITY = 7  # syslog's
FIRST_VMID = 100
TOKENS = "priv/token.cfg"

_U32 = struct.Struct("<I")
_LOG_QUERY = struct.Struct("<I12x")  # the largest number of entries; reserved bytes
_LENGTHS = struct.Struct("<BBB")  # priority; lengths of ident and tag


class Number(IntEnum):
    """The numbers of the requests.

    Requests that only pmxcfs has are far from the numbers that Proxmox VE may assign in the future.
    """

    GET_FS_VERSION = 1
    GET_CLUSTER_INFO = 2
    GET_GUEST_LIST = 3
    SET_STATUS = 4
    GET_STATUS = 5
    GET_CONFIG = 6
    LOG_CLUSTER_MSG = 7
    GET_CLUSTER_LOG = 8
    GET_RRD_DUMP = 10
    GET_GUEST_CONFIG_PROPERTY = 11
    VERIFY_TOKEN = 12
    GET_GUEST_CONFIG_PROPERTIES = 13
    GET_REPORT = 0x706D7801  # only pmxcfs has it: the report of ``pmxcfs status``
    SAVE = 0x706D7802  # only pmxcfs has it: ``pmxcfs checkpoint``


class Saves(Protocol):
    """Saves of the tree that local clients ask for. No method blocks."""

    def begin(self) -> int:
        """Begin a save of all that is unsaved, or have one follow that runs; return its number."""

    def outcome(self, number: int) -> str | None:
        """Return why a save failed, "" if it succeeded, None while it runs. Raises NotFound."""


class Caller(NamedTuple):
    """The process at the other end of a connection, and its rights."""

    pid: int
    may_write: bool  # may also read private files


class _Entry(NamedTuple):
    answer: Callable[["Requests", Caller, bytes], bytes]
    is_privileged: bool = False  # only for callers that may write
    needs_lock: bool = True  # call it with the tree's lock held


def text_of(raw: bytes, *, what: str) -> str:
    """Return the text before the first NUL. Raises Invalid if *raw* does not end with NUL."""
    if not raw.endswith(b"\0"):
        raise Invalid(f"{what} does not end with NUL")
    return to_text(raw.partition(b"\0")[0])


def name_of(field: bytes, *, what: str) -> str:
    """Return the text of a name field. Raises Invalid without NUL or for another size."""
    if len(field) != NAME_FIELD or b"\0" not in field:
        raise Invalid(f"{what} is not a NUL-terminated name in a field of {NAME_FIELD} bytes")
    return to_text(field.partition(b"\0")[0])


def split_vmid(payload: bytes) -> tuple[int, bytes]:
    """Return the vmid and the rest of the payload. Raises Invalid for a vmid from 1 to 99."""
    if len(payload) < _U32.size:
        raise Invalid("the payload is too short for a vmid")
    (vmid,) = _U32.unpack_from(payload)
    if 0 < vmid < FIRST_VMID:
        raise Invalid(f"vmid {vmid} is below {FIRST_VMID}")
    return vmid, payload[_U32.size :]


def names_of(payload: bytes) -> list[str]:
    """Return the names of a list: a count in one byte, then names that each end with NUL.

    Raises Invalid if the count is 0 or wrong, or a name does not start with a lower-case letter.
    """
    names = payload[1:].split(b"\0")
    if not payload or names.pop() or len(names) != payload[0] or not names:
        raise Invalid("the count of names in the payload is wrong")
    if not all(b"a" <= name[:1] <= b"z" for name in names):
        raise Invalid("a name does not start with a lower-case letter")
    return [to_text(name) for name in names]


class Requests:
    """Answers requests from the state of the daemon's parts."""

    def __init__(
        self,
        tree: Tree,
        guests: Guests,
        status: Status,
        files: Mapping[str, StatusFile],
        properties: Properties,
        *,
        lock: AbstractContextManager[object],
        clock: Callable[[], int],
        monotonic: Callable[[], float],
        give_way: Callable[[], None],
        publish: Callable[[SetKey | LogEntry], None] | None,
        report: Callable[[], Mapping[str, object]],
        saves: Saves,
    ) -> None:
        self._publish = publish  # called with each change that other nodes must get; None: alone
        self._report = report  # returns the report of ``pmxcfs status``; needs the lock
        self._saves = saves
        self._tree = tree
        self._guests = guests
        self._status = status
        self._files = files
        self._properties = properties
        self._lock = lock
        self._clock = clock  # seconds since 1970
        self._monotonic = monotonic  # seconds
        self._give_way = give_way  # lets other threads run; called without the lock
        self._metrics = b""  # the content of .rrd in _dump
        self._dump = b"\0"

    def _tell_nodes(self, change: SetKey | LogEntry) -> None:
        if self._publish is not None:
            self._publish(change)

    def answer(self, caller: Caller, number: int, payload: bytes) -> bytes:
        """Return the answer to the request *number* with the content *payload*.

        Takes the lock. Raises PmxcfsError with the errno for the client.
        """
        entry = TABLE.get(number)
        if entry is None:
            raise UnknownRequest(f"unknown request number {number}")
        if entry.is_privileged and not caller.may_write:
            raise NotPermitted("this client may only read")
        if not entry.needs_lock:
            return entry.answer(self, caller, payload)
        with self._lock:
            return entry.answer(self, caller, payload)

    def get_version(self, _caller: Caller, payload: bytes) -> bytes:
        """Return ``.version``."""
        return self._file(".version", payload)

    def get_members(self, _caller: Caller, payload: bytes) -> bytes:
        """Return ``.members``."""
        return self._file(".members", payload)

    def get_guests(self, _caller: Caller, payload: bytes) -> bytes:
        """Return ``.vmlist``."""
        return self._file(".vmlist", payload)

    def get_metrics(self, _caller: Caller, payload: bytes) -> bytes:
        """Return ``.rrd`` and a NUL."""
        content = self._file(".rrd", payload)
        if content is not self._metrics:
            self._metrics, self._dump = content, content + b"\0"
        return self._dump

    def _file(self, name: str, payload: bytes) -> bytes:
        if payload:
            raise Invalid("this request takes no payload")
        return self._files[name].content

    def get_report(self, caller: Caller, _payload: bytes) -> bytes:
        """Return the report on the daemon's state, as JSON; locks only to one that may write."""
        report = dict(self._report())
        if not caller.may_write:
            report["locks"] = {}
        return json.dumps(report).encode("ascii")

    def save(self, _caller: Caller, payload: bytes) -> bytes:
        """Begin a save and return its number; or return the outcome of the save with a number.

        The outcome is nothing while the save runs, else a byte, 0 for success, and the reason of a
        failure. So the thread that answers never waits for the device.
        """
        if not payload:
            return _U32.pack(self._saves.begin())
        if len(payload) != _U32.size:
            raise Invalid("the payload is neither empty nor the number of a save")
        outcome = self._saves.outcome(*_U32.unpack(payload))
        return b"" if outcome is None else bytes([bool(outcome)]) + to_bytes(outcome)

    def set_key(self, _caller: Caller, payload: bytes) -> bytes:
        """Set a key of this node; an empty value removes it."""
        key = name_of(payload[:NAME_FIELD], what="the key")
        if not key:
            raise Invalid("the key is empty")
        value = payload[NAME_FIELD:]
        self._status.keys.set(key, value, now=self._monotonic())
        self._tell_nodes(SetKey(key, value))
        return b""

    def get_key(self, _caller: Caller, payload: bytes) -> bytes:
        """Return the value of a key of a node; an empty node name means this node."""
        key = name_of(payload[:NAME_FIELD], what="the key")
        node = name_of(payload[NAME_FIELD:], what="the node")
        return self._status.keys.get(key, node)

    def get_config(self, caller: Caller, payload: bytes) -> bytes:
        """Return the published content of a file."""
        path = "/".join(filter(None, text_of(payload, what="the path").split("/")))
        if is_private_path(path) and not caller.may_write:
            raise NotPermitted("this client may not read private files")
        return self._file_at(path).content

    def _file_at(self, path: str) -> Entry:
        entry = self._tree.find(path)
        if entry is None or entry.is_directory:
            raise NotFound(f"no file {path}")
        return entry

    def add_to_log(self, caller: Caller, payload: bytes) -> bytes:
        """Append an entry to the cluster log."""
        if len(payload) < _LENGTHS.size:
            raise Invalid("the payload is too short for priority and lengths")
        priority, ident_size, tag_size = _LENGTHS.unpack_from(payload)
        texts = payload[_LENGTHS.size :]
        ident = text_of(texts[:ident_size], what="the ident")
        tag = text_of(texts[ident_size:][:tag_size], what="the tag")
        message = text_of(texts[ident_size + tag_size :], what="the message")
        if priority <= MAX_PRIORITY:
            entry = self._status.log.compose(
                message,
                ident=ident,
                tag=tag,
                priority=priority,
                pid=caller.pid,
                time=self._clock(),
            )
            self._status.log.insert(entry)
            self._tell_nodes(entry)
        return b""

    def get_log(self, _caller: Caller, payload: bytes) -> bytes:
        """Return the newest entries of the cluster log. Renders up to 2,000 without the lock."""
        if len(payload) < _LOG_QUERY.size:
            raise Invalid("the payload is too short for the number of entries")
        (most,) = _LOG_QUERY.unpack_from(payload)
        user = text_of(payload[_LOG_QUERY.size :], what="the user")
        with self._lock:
            entries = self._status.log.snapshot()
        return render(entries, most=most or DEFAULT_COUNT, user=user).encode("ascii")

    def verify_token(self, _caller: Caller, payload: bytes) -> bytes:
        """Return an empty answer if the token is a line of the file of tokens; constant time."""
        token, rest = payload[:-1], payload[-1:]
        if rest != b"\0" or not token or b"\0" in token or b"\n" in token:
            raise Invalid("the token is not one line that ends with NUL")
        lines = self._file_at(TOKENS).content.split(b"\n")
        if not sum(hmac.compare_digest(line, token) for line in lines):
            raise NotFound("unknown token")
        return b""

    def get_property(self, _caller: Caller, payload: bytes) -> bytes:
        """Return one property of one or all guests."""
        vmid, rest = split_vmid(payload)
        return self._find_properties(vmid, rest, lambda raw: [_property(raw)])

    def get_properties(self, _caller: Caller, payload: bytes) -> bytes:
        """Return several properties of one or all guests."""
        vmid, rest = split_vmid(payload)
        return self._find_properties(vmid, rest, names_of)

    def _find_properties(
        self, vmid: int, payload: bytes, parse: Callable[[bytes], list[str]]
    ) -> bytes:
        if vmid == 0:
            return self._properties.of_all(parse(payload), give_way=self._give_way)
        with self._lock:
            guest = self._guests.get(vmid)
            if guest is None:
                raise NotFound(f"no guest {vmid}")
            return self._properties.of_guest(guest, parse(payload))


def _property(payload: bytes) -> str:
    name = text_of(payload, what="the property")
    if not name:
        raise Invalid("the property is empty")
    return name


TABLE: Mapping[int, _Entry] = {
    Number.GET_FS_VERSION: _Entry(Requests.get_version),
    Number.GET_CLUSTER_INFO: _Entry(Requests.get_members),
    Number.GET_GUEST_LIST: _Entry(Requests.get_guests),
    Number.SET_STATUS: _Entry(Requests.set_key, is_privileged=True),
    Number.GET_STATUS: _Entry(Requests.get_key),
    Number.GET_CONFIG: _Entry(Requests.get_config),
    Number.LOG_CLUSTER_MSG: _Entry(Requests.add_to_log, is_privileged=True),
    Number.GET_CLUSTER_LOG: _Entry(Requests.get_log, needs_lock=False),
    Number.GET_RRD_DUMP: _Entry(Requests.get_metrics),
    Number.GET_GUEST_CONFIG_PROPERTY: _Entry(Requests.get_property, needs_lock=False),
    Number.VERIFY_TOKEN: _Entry(Requests.verify_token),
    Number.GET_GUEST_CONFIG_PROPERTIES: _Entry(Requests.get_properties, needs_lock=False),
    Number.GET_REPORT: _Entry(Requests.get_report),
    Number.SAVE: _Entry(Requests.save, is_privileged=True, needs_lock=False),
}
