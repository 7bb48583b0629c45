"""A CPG service in memory for one group's thread, with deliveries and failures on demand.

``World`` opens the connections, keeps the messages that were sent and delivers those that the test
puts in. ``World.wait_until`` waits for an effect of the thread under test.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from pmxcfs._cpg import decode, encode
from pmxcfs.cluster.loop import GroupLoop
from pmxcfs.errors import ClusterError, Disconnected, TryAgain
from pmxcfs.messages import Group, Member, Message

PATIENCE = 30.0  # seconds that the thread under test may take for one step
NO_ROOM = TryAgain("cpg_mcast_joined", 6, "try again")
GONE = Disconnected("cpg_dispatch", 2, "the connection is gone")


class Sent(NamedTuple):
    """A message that this node has sent."""

    handle: int  # the index of the connection in World.handles
    message: Message


class World:
    """Corosync on one node, and the other members of the group."""

    def __init__(self, group: Group, *, nodeid: int = 1) -> None:
        self.group = group
        self.me = Member(nodeid, os.getpid())
        self.others: list[Member] = []
        self.handles: list[FakeCpg] = []
        self.sent: list[Sent] = []
        self.failures: dict[
            str, deque[ClusterError]
        ] = {}  # by call, the errors that it raises next
        self.echoes = True  # sent messages are delivered to this node too
        self.on_sent: Callable[[Message], object] = lambda message: None  # in the sending thread
        self.says_goodbye = True  # a leave is answered by a membership without this node
        self.changed = threading.Condition(threading.RLock())

    def connect(self, sink: GroupLoop) -> "FakeCpg":
        """Open a connection; stands in for the constructor of ``Cpg``."""
        with self.changed:
            self.handles.append(FakeCpg(self, sink, len(self.handles)))
            self.changed.notify_all()
            return self.handles[-1]

    @property
    def handle(self) -> "FakeCpg":
        """The latest connection."""
        return self.handles[-1]

    @property
    def messages(self) -> list[Message]:
        """All messages that this node has sent."""
        return [sent.message for sent in self.sent]

    def fail(self, call: str, *errors: ClusterError) -> None:
        """Let the next calls of *call* raise *errors*, one each."""
        with self.changed:
            self.failures.setdefault(call, deque()).extend(errors)

    def meet(self, *others: Member) -> None:
        """Deliver a membership of this node and *others*."""
        with self.changed:
            joined = [member for member in others if member not in self.others]
            self.others = list(others)
            self.handle.tell_members(joined)

    def deliver(self, sender: Member, *messages: Message) -> None:
        """Deliver *messages* of *sender*."""
        with self.changed:
            for message in messages:
                self.handle.put(sender, encode(message, group=self.group))

    def wait_until(self, condition: Callable[[], bool], wanted: str = "something") -> None:
        """Return once *condition* is true; fail if that takes too long."""
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE), f"waited in vain for {wanted}"


class FakeCpg:
    """One connection, with the interface of ``_cpg.Cpg``."""

    def __init__(self, world: World, sink: GroupLoop, number: int) -> None:
        self.calls: list[str] = []
        self.is_closed = False
        self._world = world
        self._sink = sink
        self._number = number
        self._events: deque[Callable[[], object]] = deque()
        self._readable = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)

    def _call(self, name: str) -> None:
        world = self._world
        with world.changed:
            self.calls.append(name)
            world.changed.notify_all()
            if errors := world.failures.get(name):
                raise errors.popleft()

    def connect(self) -> None:
        self._call("connect")

    def local_nodeid(self) -> int:
        return self._world.me.nodeid

    def join(self, name: str) -> None:
        assert name == self._world.group.cpg_name
        self._call("join")
        self.tell_members([self._world.me])

    def leave(self, name: str) -> None:
        self._call("leave")
        if self._world.says_goodbye:
            self._put(lambda: self._sink.on_confchg(self._world.others, [self._world.me], []))

    def mcast(self, data: bytes) -> None:
        self._call("mcast")
        message = decode(data, group=self._world.group)
        with self._world.changed:
            self._world.sent.append(Sent(self._number, message))
            self._world.on_sent(message)
            if self._world.echoes:
                self.put(self._world.me, data)
            self._world.changed.notify_all()

    def dispatch_one(self) -> bool:
        with self._world.changed:
            if not self._events:
                return False
            event = self._events.popleft()
            os.eventfd_read(self._readable)
        event()
        return True

    def fileno(self) -> int:
        return self._readable

    def close(self) -> None:
        self._call("close")
        self.is_closed = True
        os.close(self._readable)

    # Events of corosync, called by World.

    def put(self, sender: Member, data: bytes) -> None:
        """Deliver an encoded message."""
        self._put(lambda: self._sink.on_deliver(sender, data))

    def tell_members(self, joined: list[Member]) -> None:
        """Deliver the membership of the world, in which *joined* are new."""
        members = [self._world.me, *self._world.others]
        self._put(lambda: self._sink.on_confchg(members, [], joined))

    def expel(self) -> None:
        """Deliver a membership without this node."""
        self._put(lambda: self._sink.on_confchg(self._world.others, [self._world.me], []))

    def break_off(self) -> None:
        """Let the next dispatch find that corosync is gone."""

        def fail() -> None:
            raise GONE

        self._put(fail)

    def _put(self, event: Callable[[], object]) -> None:
        with self._world.changed:
            self._events.append(event)
            if not self.is_closed:
                os.eventfd_write(self._readable, 1)
