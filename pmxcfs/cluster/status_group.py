"""The status group: replication of the key/value store and the cluster log.

A key that a client of this node sets takes effect on this node at once, with or without corosync;
the message to the other nodes is queued. ``StatusSource`` is the queue of unsent messages. It keeps
only the newest value of each key and a limited number of log entries, so its memory is bounded
during an outage of corosync.

Threads: the group's thread calls ``StatusContent``, which takes the tree's lock. Any thread may use
``StatusSource``, which never blocks.
Contract: docs/spec/status.md, "Key/value store" and "Cluster log"; cluster.md, "State machine".
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from pmxcfs._cpg import Cpg
from pmxcfs.cluster.group import Connect, GroupThread
from pmxcfs.cluster.loop import Content, Delivery
from pmxcfs.cluster.sender import Source
from pmxcfs.dfsm.effects import Merge
from pmxcfs.errors import PmxcfsError
from pmxcfs.host.threads import Wakeup
from pmxcfs.messages import Body, Group, LogEntry, Member, SetKey
from pmxcfs.status import cluster_log as clusterlog
from pmxcfs.status.counters import Status
from pmxcfs.status.log_ring import in_order

MAX_UNSENT_BYTES = 16 << 20  # of unsent keys and values; beyond it the oldest are dropped
KEY_OVERHEAD = 256  # bytes of memory that a key takes beside its name and value
MAX_UNSENT_ENTRIES = 1000  # unsent entries of the log; beyond it the oldest are dropped


class StatusSource:
    """The queue of unsent status messages: a ``Source`` that sends keys before log entries."""

    def __init__(self, *, wake: Callable[[], None]) -> None:
        self._wake = wake  # the group's thread
        self._lock = threading.Lock()
        self._keys: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0  # memory that the keys take
        self._entries: deque[LogEntry] = deque(maxlen=MAX_UNSENT_ENTRIES)
        self._current: SetKey | LogEntry | None = None

    def put(self, *messages: SetKey | LogEntry) -> None:
        """Queue *messages*; a key's new value replaces its unsent value."""
        with self._lock:
            for message in messages:
                if isinstance(message, SetKey):
                    self._put_key(message)
                else:
                    self._entries.append(message)
        self._wake()

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

    def take(self, now: float) -> Body | None:
        """Return the next body, a key if there is any, or None if there is no unsent message."""
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
        """Forget the body, which was sent."""
        self._current = None

    def not_sent(self) -> None:
        """Put the body back as the next one, unless the key has a newer value by now."""
        with self._lock:
            current, self._current = self._current, None
            if isinstance(current, LogEntry):
                if len(self._entries) < MAX_UNSENT_ENTRIES:  # else it would drop the newest
                    self._entries.appendleft(current)
            elif current is not None and current.key not in self._keys:
                self._keys[current.key] = current.value
                self._keys.move_to_end(current.key, last=False)
                self._bytes += _cost(*current)

    def refused(self, error: PmxcfsError) -> None:
        """Keep the body as the next one to send: no caller waits, so *error* is ignored."""
        self.not_sent()


def _cost(key: str, value: bytes) -> int:
    return KEY_OVERHEAD + len(key) + len(value)


class StatusContent:
    """The ``Merged`` content of the status group: key/value store and cluster log."""

    def __init__(
        self,
        status: Status,
        source: StatusSource,
        *,
        lock: AbstractContextManager[object],
        on_echo: Callable[[], None],
    ) -> None:
        """*on_echo* is called when a message of this node was delivered to it."""
        self._status = status
        self._source = source
        self._lock = lock
        self._on_echo = on_echo
        self._me = Member(0, 0)

    def state(self) -> bytes:
        """Return the log's ring, ordered, as a STATE payload. Takes the tree's lock."""
        with self._lock:
            ring = self._status.log.share()
        return in_order(ring)

    def merge(self, states: Mapping[Member, bytes]) -> None:
        """Merge the rings of all members, and queue all keys of this node. Takes the lock."""
        merged = clusterlog.merge(states.values())
        with self._lock:
            self._status.log.adopt(merged)
            self._source.put(*self._status.keys.own_messages())

    def deliver(self, changes: Sequence[Delivery]) -> bool:
        """Apply log entries and other nodes' keys; needs no quorum. Takes the tree's lock."""
        now = time.monotonic()
        with self._lock:
            for sender, message in changes:
                body = message.body
                if sender == self._me:
                    self._on_echo()
                if isinstance(body, LogEntry):
                    self._status.log.insert(body)
                elif isinstance(body, SetKey) and sender != self._me:
                    self._status.keys.receive(sender.nodeid, body, now=now)
        return True

    def on_members(self, members: Sequence[Member], *, me: Member) -> None:
        """Report the members of the group as online. Takes the tree's lock."""
        self._me = me
        with self._lock:
            self._status.members.set_present(members)

    def on_synced(self, agreed: Collection[Member]) -> None:
        """Do nothing: ``merge`` has queued the keys of this node already."""

    def on_left(self) -> None:
        """Do nothing: no caller waits for a status message, and ``merge`` sends all keys again."""


class Merged(Content, Protocol):
    """A group's content that is the union of all members' states."""

    def merge(self, states: Mapping[Member, bytes]) -> None:
        """Become the union of the members' *states*."""


class StatusGroup(GroupThread):
    """This node's membership in the status group."""

    def __init__(
        self, content: Merged, source: Source, *, wakeup: Wakeup, connect: Connect = Cpg
    ) -> None:
        log = logging.getLogger("pmxcfs.status")
        super().__init__(Group.STATUS, content, source, log=log, wakeup=wakeup, connect=connect)
        self._status = content
        self._executors |= {Merge: self._merge}

    def _merge(self, effect: Merge) -> None:
        self._status.merge(effect.states)
