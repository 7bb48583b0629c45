"""A member of both groups that is no daemon: it answers rounds, and sends arbitrary messages.

``serve`` runs in a node, ``Intruder`` in the test. In a round of the tree's group it repeats the
first STATE of another member, so it counts as synced if all others are. In a round of the status
group it sends the ring that it was given.
"""

import contextlib
import os
import select
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection

from pmxcfs._cpg import Cpg, decode, encode
from pmxcfs.errors import PmxcfsError, TryAgain
from pmxcfs.messages import Epoch, Group, Member, State, SyncStart
from tests.cluster.node import PATIENCE, Node

TARGET = "tests.cluster.intruder:serve"
BREATH = 0.001  # seconds until corosync may have room again


class _Membership:
    """The membership in one of the two groups."""

    def __init__(self, group: Group, states: Sequence[bytes]) -> None:
        self.epoch = Epoch(0, 0, 0, 0)
        self.returned = 0  # own messages that were delivered
        self._group = group
        self._states = states  # sent first in a round; in the tree's group they are no answer to it
        self._is_answered = True
        self._members: Sequence[Member] = ()
        self._unsent: list[bytes] = []  # nothing is sent from within a dispatch
        self.cpg = Cpg(self)
        self.cpg.connect()
        self._me = Member(self.cpg.local_nodeid(), os.getpid())
        self.cpg.join(group.cpg_name)

    def on_confchg(self, members: list[Member], left: list[Member], joined: list[Member]) -> None:
        self._members = members
        self._is_answered = True
        if len(members) > 1 and self._me == min(members):
            epoch = Epoch(1, int(time.time()), *self._me)
            self._unsent.append(encode(SyncStart(epoch.time, epoch), group=self._group))

    def on_deliver(self, sender: Member, data: bytes) -> None:
        if sender == self._me:
            self.returned += 1
        with contextlib.suppress(PmxcfsError):
            message = decode(data, group=self._group)
            if isinstance(message, SyncStart) and sender == min(self._members):
                self.epoch = message.epoch
                self._tell(self._states)
                self._is_answered = self._group is Group.STATUS
            elif isinstance(message, State) and self._answers_round(sender, message):
                self._tell([message.payload])
                self._is_answered = True

    def _answers_round(self, sender: Member, message: State) -> bool:
        """Tell whether a message is the first STATE of another member in an unanswered round."""
        return not self._is_answered and sender != self._me and message.epoch == self.epoch

    def _tell(self, states: Sequence[bytes]) -> None:
        messages = [State(self.epoch.time, self.epoch, state) for state in states]
        self._unsent += [encode(message, group=self._group) for message in messages]

    def dispatch(self) -> None:
        """Handle all delivered events, and answer rounds."""
        while self.cpg.dispatch_one():
            pass
        unsent, self._unsent = self._unsent, []
        self._send(unsent)

    def _send(self, messages: Sequence[bytes]) -> None:
        """Send a message; retry while corosync has no room."""
        for data in messages:
            while not self._try(data):
                time.sleep(BREATH)
                while self.cpg.dispatch_one():
                    pass

    def _try(self, data: bytes) -> bool:
        try:
            self.cpg.mcast(data)
        except TryAgain:
            return False
        return True

    def send_and_wait(self, messages: Sequence[bytes]) -> None:
        """Send messages, and wait until all are delivered to this member."""
        goal = self.returned + len(messages)
        self._send(messages)
        while self.returned < goal:
            select.select([self.cpg], [], [])
            self.dispatch()


def serve(connection: Connection) -> None:
    """Join both groups, then send the requested messages; the first request has the states."""
    indexes, ring = connection.recv()
    memberships = {
        Group.TREE: _Membership(Group.TREE, indexes),
        Group.STATUS: _Membership(Group.STATUS, [ring]),
    }
    sources: list[Connection | Cpg] = [connection]
    sources += [membership.cpg for membership in memberships.values()]
    while True:
        ready = select.select(sources, [], [])[0]
        for membership in memberships.values():
            membership.dispatch()
        if connection in ready:
            try:
                group, messages = connection.recv()
            except EOFError:
                return
            memberships[group].send_and_wait(messages)
            connection.send({each: one.epoch for each, one in memberships.items()})


class Intruder:
    """An intruder on *node*. In rounds it sends *indexes* first, and *ring*."""

    def __init__(self, node: Node, *, indexes: Sequence[bytes] = (), ring: bytes = b"") -> None:
        self._worker = node.start_worker(TARGET)
        self._worker.connection.send((indexes, ring))

    def send(self, group: Group, *messages: bytes) -> Mapping[Group, Epoch]:
        """Send messages, wait until the group has received them; return the latest rounds."""
        self._worker.connection.send((group, messages))
        epochs: Mapping[Group, Epoch] = self._worker.receive(PATIENCE)
        return epochs

    def epoch(self, group: Group) -> Epoch:
        """Return the epoch of the group's last round."""
        return self.send(group)[group]

    def close(self) -> None:
        """Kill the process, as a crash would."""
        self._worker.close()


@contextlib.contextmanager
def intruding(
    node: Node, *, indexes: Sequence[bytes] = (), ring: bytes = b""
) -> Iterator[Intruder]:
    """Run an intruder while the block runs."""
    with contextlib.closing(Intruder(node, indexes=indexes, ring=ring)) as intruder:
        yield intruder
