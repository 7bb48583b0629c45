"""The cluster log: messages of the management daemons of all nodes, newest first.

Text is made printable ASCII before it is stored, in a form that can be put into a JSON string
unchanged. Other nodes may store any text, so it is checked again when it is shown. Callers hold the
tree's lock, except for the function ``merge``, for ``log_ring.in_order`` and to read a snapshot.
Contract: docs/spec/status.md, "Cluster log".
"""

import logging
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from pmxcfs.host.log_limit import LogLimit
from pmxcfs.messages import MAX_TIME, LogEntry
from pmxcfs.status.log_ring import (
    MAX_ENTRY,
    MAX_NAME,
    LogRing,
    fits,
    in_order,
    merged,
    nominal_size,
    walk,
)
from pmxcfs.text import printable, printable_character, to_bytes

DEFAULT_COUNT = 50  # entries in the ``.clusterlog`` file
INFO = 6  # syslog priority
MAX_SENDERS = 4096  # nodes whose newest (time, uid) is remembered; a full ring has fewer entries

MAX_TEXT = 4 * MAX_ENTRY  # characters of a message that are converted; some become nothing
NONE = (-1, 0)  # older than every (time, uid)

# An escape in stored text; a surrogate must be part of a pair. Any other backslash stands for
# itself.
_ESCAPE = (
    r'\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}'
    r"|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
_UNIT = re.compile(f"{_ESCAPE}|.", re.DOTALL)
_NOT_JSON = re.compile(rf'({_ESCAPE})|[\\"]|[^ -~]')


def digest(name: bytes) -> int:
    """Return the 64-bit FNV-1a hash of *name* and a NUL."""
    value = 0xCBF29CE484222325
    for byte in name:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF


def json_text(stored: bytes) -> str:
    """Return stored text, which may hold any bytes, as the content of a valid JSON string."""
    text = stored.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return _NOT_JSON.sub(_mend, text)


def _mend(match: re.Match[str]) -> str:
    found = match[0]
    if match[1]:
        return found
    return "\\\\" if found == "\\" else printable_character(found)


def _cut(text: str, most: int) -> bytes:
    """Return printable *text*, cut to at most *most* bytes but not inside an escape."""
    if len(text) > most:
        size = 0
        for unit in _UNIT.finditer(text):
            if unit.end() > most:
                break
            size = unit.end()
        text = text[:size]
    return text.encode("ascii")


def _to_json(entry: LogEntry) -> str:
    return (
        f'{{"uid": {entry.uid}, "time": {entry.time}, "pri": {entry.priority}, '
        f'"tag": "{json_text(entry.tag)}", "pid": {entry.pid}, '
        f'"node": "{json_text(entry.node)}", "user": "{json_text(entry.ident)}", '
        f'"msg": "{json_text(entry.message)}"}}'
    )


def render(entries: Iterable[LogEntry], *, most: int = DEFAULT_COUNT, user: str = "") -> str:
    """Return the first *most* entries as the JSON text of ``.clusterlog``.

    If *user* is given, only entries of that user are returned.
    """
    wanted = digest(to_bytes(user)) if user else None
    chosen = (entry for entry in entries if wanted in (None, entry.ident_digest))
    lines = ",\n".join(map(_to_json, islice(chosen, most)))
    return f'{{\n"data": [\n{lines}\n]\n}}\n'


class Merged(NamedTuple):
    """The merged log of all members, for ``ClusterLog.adopt``."""

    ring: LogRing
    newest: dict[int, tuple[int, int]]  # node digest -> (time, uid) of its newest entry


def merge(states: Iterable[bytes]) -> Merged:
    """Merge the rings that the members sent; they may hold any bytes.

    This is the slow part of a synchronization. Needs no lock.
    """
    entries = merged(states)
    return Merged(LogRing.of(entries), _newest(entries))


def _newest(entries: Iterable[LogEntry]) -> dict[int, tuple[int, int]]:
    newest: dict[int, tuple[int, int]] = {}
    for entry in entries:
        stamp = (entry.time, entry.uid)
        newest[entry.node_digest] = max(stamp, newest.get(entry.node_digest, stamp))
    return newest


class ClusterLog:
    """This node's copy of the cluster log. All methods need the tree's lock."""

    def __init__(self, node: str) -> None:
        self.revision = 0  # changes whenever the content does
        self._node = _cut(printable(node), MAX_NAME)
        self._digest = digest(to_bytes(node))
        self._log_limit = LogLimit(logging.getLogger("pmxcfs.status"))
        self._uid = 0  # of this node's latest entry
        self._ring = LogRing()
        self._newest: dict[int, tuple[int, int]] = {}  # node digest -> (time, uid)
        self._shared = NONE  # (time, uid) of this node's newest entry in the last STATE message

    def begin(self, *, pid: int, time: int) -> None:
        """Insert the first entry of a new process. *time* is in seconds since 1970."""
        self.insert(
            self.compose(
                "starting cluster log",
                ident="root",
                tag="cluster",
                priority=INFO,
                pid=pid,
                time=time,
            )
        )

    def __iter__(self) -> Iterator[LogEntry]:
        """Yield the entries, newest first."""
        return iter(self._ring)

    def compose(
        self, text: str, *, ident: str, tag: str, priority: int, pid: int, time: int
    ) -> LogEntry:
        """Return a new entry of this node, for ``insert``. *time* is in seconds since 1970.

        All nodes drop an entry that is not newer than the last entry of the same node. So the
        entry gets a later time if the clock was set back or the daemon restarted within a second.
        """
        self._uid += 1
        last_time, last_uid = self._newest.get(self._digest, NONE)
        entry = LogEntry(
            self._uid,
            min(max(time, last_time + (self._uid <= last_uid)), MAX_TIME),
            self._digest,
            digest(to_bytes(ident)),
            pid,
            priority,
            self._node,
            _cut(printable(ident), MAX_NAME),
            _cut(printable(tag), MAX_NAME),
            b"",
        )
        room = MAX_ENTRY - nominal_size(entry)
        return entry._replace(message=_cut(printable(text[:MAX_TEXT]), room))

    def insert(self, entry: LogEntry) -> bool:
        """Insert *entry* as the newest. Return False if it is a duplicate or too large to store."""
        if not fits(entry):
            size = nominal_size(entry)
            text = f"dropped a cluster log entry of {size} bytes: it is too large"
            self._log_limit.warn("size", text)
            return False
        stamp = (entry.time, entry.uid)
        if stamp <= self._newest.get(entry.node_digest, NONE):
            return False
        self._ring.append(entry)
        self._newest[entry.node_digest] = stamp
        if len(self._newest) > MAX_SENDERS:
            self._newest = _newest(self._ring)
        self.revision += 1
        return True

    def share(self) -> bytes:
        """Return the bytes of the ring for a STATE message.

        The payload of the message is ``log_ring.in_order`` of these bytes, which needs no lock.
        """
        self._shared = self._newest.get(self._digest, NONE)
        return bytes(self._ring)

    def state(self) -> bytes:
        """Return the payload of this node's STATE message."""
        return in_order(self.share())

    def adopt(self, cluster: Merged) -> None:
        """Replace the log by *cluster*; add this node's entries that are newer than its STATE."""
        known = max(self._shared, cluster.newest.get(self._digest, NONE))
        missing = [
            entry
            for entry in self
            if entry.node_digest == self._digest and (entry.time, entry.uid) > known
        ]
        self._ring, self._newest = cluster
        self.revision += 1
        for entry in reversed(missing):
            self.insert(entry)

    def merge(self, states: Iterable[bytes]) -> None:
        """Merge the members' rings and adopt the result."""
        self.adopt(merge(states))

    def snapshot(self) -> Iterator[LogEntry]:
        """Return an iterator over the current entries, newest first; reading it needs no lock."""
        return walk(bytes(self._ring))

    def render(self, *, most: int = DEFAULT_COUNT, user: str = "") -> str:
        """Return the newest *most* entries, of *user* if given, as the text of ``.clusterlog``."""
        return render(self, most=most, user=user)
