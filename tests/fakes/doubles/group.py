"""A real group thread on a CPG service in memory, with a content that records its calls."""

import functools
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from pmxcfs.cluster.group import GroupThread
from pmxcfs.cluster.loop import Delivery
from pmxcfs.cluster.status_group import StatusGroup
from pmxcfs.cluster.tree_group import TreeGroup
from pmxcfs.dfsm.effects import Commit, SendUpdates
from pmxcfs.dfsm.timeouts import Deadlines
from pmxcfs.errors import PmxcfsError
from pmxcfs.host.threads import Wakeup
from pmxcfs.messages import (
    Body,
    Create,
    EntryType,
    Epoch,
    Group,
    Member,
    Message,
    Normal,
    Record,
    State,
    SyncStart,
)
from tests.fakes.doubles.corosync import World

OTHER = Member(2, 200)
REJOIN = 0.3  # seconds until a thread joins again; 5 in the product
RECORD = Record(0, 0, 1, 0, 0, EntryType.DIRECTORY, b"", None)


def index(version: int) -> bytes:
    """Return the index of a tree that holds the root alone."""
    numbers = [(version, 8), (0, 8), (0, 4), (0, 4), (1, 4), (72, 4), (0, 8)]
    return b"".join(value.to_bytes(size, "little") for value, size in numbers) + bytes(32)


class FakeContent:
    """A ``Content`` that records its calls; a version number stands for the tree."""

    def __init__(self, world: World) -> None:
        self.version = 5
        self.is_quorate = True
        self.commit_failure: PmxcfsError | None = None
        self.crash: Exception | None = None
        self.batches: list[list[Body]] = []
        self.threads: list[int] = []  # the thread of each delivery
        self.members: list[list[Member]] = []
        self.synced = self.left = 0
        self.is_common = self.has_room = False
        self.is_hidden = False  # whether the tree must not lead
        self.trials = 0
        self.agreed: Collection[Member] = ()
        self.commits: list[Commit] = []
        self.merged: list[Mapping[Member, bytes]] = []
        self.records = [RECORD]  # what a leader sends
        self._world = world

    def _note(self) -> None:
        with self._world.changed:
            self._world.changed.notify_all()

    def state(self) -> bytes:
        return index(self.version)

    def checksum(self) -> bytes:
        return bytes([self.version] * 32)

    def deliver(self, changes: Sequence[Delivery]) -> bool:
        self.threads.append(threading.get_ident())
        if self.crash is not None:
            crash, self.crash = self.crash, None
            raise crash
        if self.is_quorate:
            self.batches.append([message.body for _, message in changes])
            self._note()
        return self.is_quorate

    def on_members(self, members: Sequence[Member], *, me: Member) -> None:
        self.members.append(list(members))
        self._note()

    def on_synced(self, agreed: Collection[Member]) -> None:
        self.synced += 1
        self.agreed = agreed
        self._note()

    def on_tick(self, *, is_common: bool) -> None:
        self.is_common = is_common

    def on_left(self) -> None:
        self.left += 1
        self._note()

    def updates(self, effect: SendUpdates) -> list[Record]:
        return self.records

    def commit(self, effect: Commit) -> None:
        if self.commit_failure is not None:
            raise self.commit_failure
        self.commits.append(effect)
        self._note()

    def may_lead(self) -> bool:
        was_hidden, self.is_hidden = self.is_hidden, False
        return not was_hidden

    def can_keep_copy(self) -> bool:
        self.trials += 1
        self._note()
        return self.has_room

    def merge(self, states: Mapping[Member, bytes]) -> None:
        self.merged.append(states)
        self._note()

    @property
    def delivered(self) -> list[Body]:
        return [body for batch in self.batches for body in batch]


class FakeSource:
    """A ``Source`` that offers a list of changes in order."""

    def __init__(self) -> None:
        self.bodies: list[Body] = []
        self.sent_count = 0

    def take(self, now: float) -> Body | None:
        return self.bodies[0] if self.bodies else None

    def sent(self, serial: int) -> None:
        self.bodies.pop(0)
        self.sent_count += 1

    def not_sent(self) -> None: ...

    def refused(self, error: PmxcfsError) -> None: ...


class Node:
    """A group thread under test, with its content, its source and its CPG service."""

    def __init__(self, group: Group = Group.TREE) -> None:
        self.world = World(group)
        self.content = FakeContent(self.world)
        self.source = FakeSource()
        self.explanation = ""  # of what keeps corosync from running; for the tree's group
        kind = functools.partial(TreeGroup, explain=lambda: self.explanation)
        make = kind if group is Group.TREE else StatusGroup
        self.thread: GroupThread = make(
            self.content, self.source, wakeup=Wakeup(), connect=self.world.connect
        )
        self.thread.set_deadlines(replace(Deadlines(), rejoin=REJOIN))

    def start(self) -> None:
        self.thread.start()
        self.until_synced()
        with self.thread.ownership:  # once it is free, another thread can take it
            pass

    def until_synced(self, times: int = 1) -> None:
        self.world.wait_until(lambda: self.content.synced >= times, f"{times} times synced")

    def meet(self, *others: Member) -> Epoch:
        """Deliver a membership with *others*; return the epoch of the round that follows."""
        before = len(self.world.sent)
        self.world.meet(*others)
        if min(others) < self.world.me:
            return self.begin(min(others))
        self.until_sent(State, since=before)
        (state,) = [m for m in self.world.messages[before:] if isinstance(m, State)]
        return state.epoch

    def begin(self, leader: Member) -> Epoch:
        """Deliver a SYNC_START of *leader*, wait for the STATE, and return the epoch."""
        epoch = Epoch(9, 9, *leader)
        before = len(self.world.sent)
        self.world.deliver(leader, SyncStart(0, epoch))
        self.until_sent(State, since=before)
        return epoch

    def until_sent(self, kind: type[Message], *, since: int = 0) -> None:
        self.world.wait_until(
            lambda: any(isinstance(m, kind) for m in self.world.messages[since:]), kind.__name__
        )

    def until_connected(self, times: int) -> None:
        self.world.wait_until(
            lambda: len(self.world.handles) >= times and "join" in self.world.handle.calls,
            f"connection {times}",
        )


def changes(count: int, *, start: int = 1) -> list[Message]:
    return [Normal(0, number, Create(f"{number}")) for number in range(start, start + count)]
