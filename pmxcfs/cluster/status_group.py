"""The status group: keys and the cluster log, on their way to the other nodes and from them.

What a client of this node sets takes effect here at once, with or without corosync; the message to
the others follows when it can. ``StatusSource`` keeps what they have not been sent: of each key the
newest value only, so a cluster that is away for long costs bounded memory.

Threads: ``StatusContent`` is called by the group's thread and takes the tree's lock for what others
see; ``StatusSource`` is for any thread and never blocks.
Contract: docs/spec/status.md, "Key/value store" and "Cluster log"; cluster.md.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from pmxcfs._cpg import Cpg
from pmxcfs.cluster.group import Connect, Content, GroupThread
from pmxcfs.cluster.sender import Source
from pmxcfs.dfsm.effects import Deliver, Merge
from pmxcfs.errors import PmxcfsError
from pmxcfs.messages import Body, Group, LogEntry, Member, SetKey
from pmxcfs.status import cluster_log as clusterlog
from pmxcfs.status.counters import Status
from pmxcfs.status.log_ring import in_order

_log = logging.getLogger("pmxcfs.status")

MAX_UNSENT_BYTES = 16 << 20  # that keys with their values take; beyond it the oldest are dropped
KEY_OVERHEAD = 256  # bytes that a key costs beside its name and value
MAX_UNSENT_ENTRIES = 1000  # of the log; likewise


class StatusSource:
    """What the other nodes have not been sent, as ``cluster.Source``: keys first."""

    def __init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None  # the group's thread, once there is one
        self._lock = threading.Lock()
        self._keys: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0  # that the keys take
        self._entries: deque[LogEntry] = deque(maxlen=MAX_UNSENT_ENTRIES)
        self._current: SetKey | LogEntry | None = None

    def put(self, *messages: SetKey | LogEntry) -> None:
        """Have *messages* sent, instead of older values of the same keys."""
        with self._lock:
            for message in messages:
                if isinstance(message, SetKey):
                    self._put_key(message)
                else:
                    self._entries.append(message)
        self.wake()

    def _put_key(self, message: SetKey) -> None:
        self._drop_key(message.key)
        self._keys[message.key] = message.value
        self._bytes += _cost(message.key, message.value)
        while self._bytes > MAX_UNSENT_BYTES:
            self._drop_key(next(iter(self._keys)))

    def _drop_key(self, key: str) -> None:
        value = self._keys.pop(key, None)
        if value is not None:
            self._bytes -= _cost(key, value)

    def take(self, *, now: float) -> Body | None:
        """Return the next message's body."""
        with self._lock:
            if self._keys:
                key, value = next(iter(self._keys.items()))
                self._drop_key(key)
                self._current = SetKey(key, value)
            elif self._entries:
                self._current = self._entries.popleft()
            else:
                return None
            return self._current

    def sent(self, serial: int) -> None:
        """It is on its way."""
        self._current = None

    def not_sent(self) -> None:
        """It is the next once more, unless there is a newer value by now."""
        with self._lock:
            current, self._current = self._current, None
            if isinstance(current, LogEntry):
                if len(self._entries) < MAX_UNSENT_ENTRIES:  # or it would push out the newest
                    self._entries.appendleft(current)
            elif current is not None and current.key not in self._keys:
                self._keys[current.key] = current.value
                self._keys.move_to_end(current.key, last=False)
                self._bytes += _cost(*current)

    def refused(self, error: PmxcfsError) -> None:
        """Nobody waits for it; it stays until there is room."""
        self.not_sent()


def _cost(key: str, value: bytes) -> int:
    return KEY_OVERHEAD + len(key) + len(value)


class StatusContent:
    """Keys and log as ``cluster.Merged``."""

    def __init__(
        self, status: Status, source: StatusSource, *, lock: AbstractContextManager[object]
    ) -> None:
        self._status = status
        self._source = source
        self._lock = lock
        self._me = Member(0, 0)

    def state(self) -> bytes:
        """Return the ring in order."""
        with self._lock:
            ring = self._status.log.share()
        return in_order(ring)

    def merge(self, states: Mapping[Member, bytes]) -> None:
        """Take the rings of all members, and tell them our keys."""
        merged = clusterlog.merge(states.values())
        with self._lock:
            self._status.log.adopt(merged)
            self._source.put(*self._status.keys.own_messages())

    def deliver(self, changes: Sequence[Deliver]) -> bool:
        """Take what other nodes told; no quorum is needed for it."""
        now = time.monotonic()
        with self._lock:
            for sender, message in changes:
                body = message.body
                if isinstance(body, LogEntry):
                    self._status.log.insert(body)
                elif isinstance(body, SetKey) and sender != self._me:
                    self._status.keys.receive(sender.nodeid, body, now=now)
        return True

    def on_members(self, members: Sequence[Member], *, me: Member) -> None:
        """Whoever is in the group is online."""
        self._me = me
        with self._lock:
            self._status.members.set_present(members)

    def on_synced(self) -> None:
        """Nothing depends on it: own keys are on their way already."""

    def on_left(self) -> None:
        """Nobody waits for status messages; the next round sends all keys again."""


class Merged(Content, Protocol):
    """A content that all members' copies are joined to."""

    def merge(self, states: Mapping[Member, bytes]) -> None:
        """Join what all members have."""


class StatusGroup(GroupThread):
    """This node in the group of keys and cluster log."""

    def __init__(self, content: Merged, source: Source, *, connect: Connect = Cpg) -> None:
        log = logging.getLogger("pmxcfs.status")
        super().__init__(Group.STATUS, content, source, log=log, connect=connect)
        self._status = content
        self._executors |= {Merge: self._merge}

    def _merge(self, effect: Merge) -> None:
        self._status.merge(effect.states)
