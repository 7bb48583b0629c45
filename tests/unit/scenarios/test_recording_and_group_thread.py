"""A recorded session of the original on the tree's group thread, with tree and database.

The thread must multicast the bytes that the original multicast, and its database must end with the
tree that the originals ended with. ``test_recording_and_state_machine`` has no thread.
"""

import os
import threading
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pytest

from pmxcfs._cpg import decode
from pmxcfs.cluster.loop import GroupLoop
from pmxcfs.cluster.sender import Clock
from pmxcfs.cluster.tree_content import TreeContent
from pmxcfs.cluster.tree_group import TreeGroup
from pmxcfs.cluster.tree_source import Proposals
from pmxcfs.dfsm.timeouts import Deadlines
from pmxcfs.errors import PmxcfsError
from pmxcfs.host.threads import Wakeup
from pmxcfs.messages import (
    Body,
    Create,
    Group,
    Member,
    Message,
    Normal,
    State,
    Update,
    VerifyRequest,
    Write,
)
from pmxcfs.replica.outbox import Outbox
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.replica.replica import Replica
from tests.fakes.data.recorded_order import CONFIGURATION, FINAL_CHECKSUM, PID, events_of
from tests.fakes.doubles.replicas import replica_in
from tests.fakes.doubles.store import stored

PATIENCE = 60.0  # seconds for a whole recording
NEVER = Deadlines(verification=1e9, after_updates=1e9)


@dataclass
class Event:
    """A membership change, or a message and its bytes."""

    sender: Member | None = None
    data: bytes = b""
    members: tuple[list[Member], list[Member], list[Member]] = ([], [], [])

    @classmethod
    def parse(cls, event: dict[str, Any]) -> "Event":
        """Parse a recorded event."""
        if event["event"] != "confchg":
            return cls(Member(event["nodeid"], event["pid"]), bytes.fromhex(event["hex"]))
        kinds = [[Member(*pair) for pair in event[key]] for key in ("members", "left", "joined")]
        return cls(members=(kinds[0], kinds[1], kinds[2]))


class Player(Clock):
    """A CPG handle that delivers the recorded events; own messages only once they are sent."""

    def __init__(self, node: int) -> None:
        self.me = Member(node, PID)
        self.events = deque(map(Event.parse, events_of(node)))
        self.to_send = deque(e.data for e in self.events if e.sender == self.me)
        self.updates: Counter[Update] = (
            Counter()
        )  # recorded minus sent, for messages in another order
        self.unread = 0  # own messages that were sent and not delivered yet
        self.surprises: list[tuple[Message, Message]] = []
        self.is_over = threading.Event()
        self.thread: TreeGroup
        self.sink: GroupLoop  # of the events
        self._pauses = False  # between two events the thread sends what is queued
        self._readable = os.eventfd(1)

    @property
    def next_to_send(self) -> Message | None:
        """The next message that the original sent."""
        return decode(self.to_send[0], group=Group.TREE) if self.to_send else None

    def wall(self) -> int:
        """Return the clock that the original must have had: the time of what it sent next."""
        message = self.next_to_send
        return message.time if message else 0

    def open(self, sink: GroupLoop) -> Self:
        """Be the connection whose events go to *sink*."""
        self.sink = sink
        return self

    # The interface ``cluster.loop.Handle``.

    def connect(self) -> None: ...

    def local_nodeid(self) -> int:
        return self.me.nodeid

    def join(self, name: str) -> None: ...

    def leave(self, name: str) -> None: ...

    def mcast(self, data: bytes) -> None:
        expected = self.to_send.popleft()
        self.unread += 1
        self.thread.dfsm.deadlines = NEVER
        if expected != data:
            self._note(decode(expected, group=Group.TREE), decode(data, group=Group.TREE))

    def _note(self, expected: Message, sent: Message) -> None:
        """Record a difference; the UPDATEs of one round may come in another order."""
        if not (isinstance(expected, Update) and isinstance(sent, Update)):
            self.surprises.append((expected, sent))
            return
        self.updates[expected] += 1
        self.updates[sent] -= 1

    def dispatch_one(self) -> bool:
        if not self.events:
            self.is_over.set()
            return False
        if self.events[0].sender == self.me and not self.unread:
            if isinstance(self.next_to_send, VerifyRequest):
                self.thread.dfsm.deadlines = replace(NEVER, verification=0.0)
            return False
        self._pauses = not self._pauses
        if self._pauses:
            return False
        event = self.events.popleft()
        if event.sender is None:
            self.sink.on_confchg(*event.members)
        else:
            self.unread -= event.sender == self.me
            self.sink.on_deliver(event.sender, event.data)
        return True

    def fileno(self) -> int:
        return self._readable

    def close(self) -> None: ...

    # The interface ``cluster.sender.Source``.

    def take(self, now: float) -> Body | None:
        message = self.next_to_send
        return message.body if isinstance(message, Normal) else None

    def sent(self, serial: int) -> None: ...

    def not_sent(self) -> None: ...

    def refused(self, error: PmxcfsError) -> None: ...


class Quorate:
    """A quorum that is never lost."""

    def refresh(self) -> bool:
        return True


@pytest.fixture(params=[1, 2, 3])
def player(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Player]:
    player = Player(request.param)
    monkeypatch.setattr(os, "getpid", lambda: PID)
    yield player
    os.close(player.fileno())


def import_configuration(replica: Replica, player: Player) -> None:
    """Import corosync.conf with the mtime of the first STATE that the original sent."""
    messages = (decode(data, group=Group.TREE) for data in player.to_send)
    first = next(message for message in messages if isinstance(message, State))
    mtime = int.from_bytes(first.payload[20:24], "little")
    content = CONFIGURATION.read_bytes()
    for mutation in (Create("corosync.conf"), Write("corosync.conf", 0, content, truncate=True)):
        replica.inject(mutation, writer=0, mtime=mtime)


def test_a_node_sends_the_recorded_bytes_and_ends_with_the_recorded_database(
    player: Player, tmp_path: Path
) -> None:
    with replica_in(tmp_path) as replica:
        import_configuration(replica, player)
        lock = threading.RLock()
        wakeup = Wakeup()
        outbox = Outbox(QuorumFlag(is_quorate=True), wake=wakeup.set)
        content = TreeContent(
            replica,
            outbox,
            Proposals(),
            lock=lock,
            quorum=Quorate(),
            lock_has_expired=lambda path, checksum: False,
        )
        player.thread = TreeGroup(content, player, wakeup=wakeup, connect=player.open, clock=player)
        player.thread.dfsm.deadlines = NEVER
        player.thread.start()
        try:
            assert player.is_over.wait(PATIENCE), f"{len(player.events)} events are left"
        finally:
            player.thread.close()
        assert not player.surprises
        assert not player.to_send
        assert not any(player.updates.values())
        assert player.thread.dropped == 0
        assert replica.checksum().hex() == FINAL_CHECKSUM
        replica.saver.save()
    assert stored(tmp_path / "config.db").checksum().hex() == FINAL_CHECKSUM
