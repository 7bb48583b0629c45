"""One state machine as one of three members; the test feeds it each event."""

import struct
from collections.abc import Iterable

from pmxcfs.dfsm.effects import (
    Effect,
    Log,
    Mode,
)
from pmxcfs.dfsm.machine import Dfsm
from pmxcfs.dfsm.timeouts import Moment
from pmxcfs.messages import (
    Epoch,
    Group,
    Member,
    Message,
    Mkdir,
    Normal,
    Record,
    State,
    SyncStart,
)

ONE, TWO, THREE = Member(1, 300), Member(2, 90), Member(3, 7)
ALL = (ONE, TWO, THREE)
STRANGER = Member(9, 9)
WALL = 1_800_000_000
RECORD = Record(7, 0, 7, 1, WALL, 8, b"f", b"x")


def at(seconds: float) -> Moment:
    return Moment(WALL + int(seconds), seconds)


def index(version: int, mtime: int = 0, *, entries: int = 0) -> bytes:
    """Return the index of a tree that has *entries* besides the root."""
    digests = b"".join(struct.pack("<Q32x", inode) for inode in range(entries + 1))
    return (
        struct.pack("<QQIIII", version, entries, 0, mtime, entries + 1, 32 + len(digests)) + digests
    )


def change(serial: int) -> Normal:
    return Normal(WALL, serial, Mkdir(f"d{serial}"))


def without_logs(effects: Iterable[Effect]) -> list[Effect]:
    return [effect for effect in effects if not isinstance(effect, Log)]


def texts(effects: Iterable[Effect]) -> list[str]:
    return [effect.text for effect in effects if isinstance(effect, Log)]


class Node:
    """A state machine and the clock of its events."""

    def __init__(self, me: Member, group: Group = Group.TREE) -> None:
        self.machine = Dfsm(group)
        self.seconds = 0.0
        self.machine.join(me)

    @property
    def mode(self) -> Mode:
        return self.machine.mode

    @property
    def epoch(self) -> Epoch:
        return self.machine.epoch

    def members(self, *members: Member, joined: Iterable[Member] = ()) -> list[Effect]:
        return self.machine.on_membership(members, joined=list(joined), at=at(self.seconds))

    def hears(self, sender: Member, message: Message) -> list[Effect]:
        return self.machine.on_message(sender, message, at=at(self.seconds))

    def tick(self, seconds: float) -> list[Effect]:
        """Let time pass; return the effects of one tick at the end."""
        self.seconds += seconds
        return without_logs(self.machine.on_tick(at(self.seconds)))

    def start_round(self, epoch: Epoch | None = None) -> Epoch:
        """Let the lowest of three members begin a round; return its epoch."""
        self.members(*ALL, joined=ALL)
        epoch = epoch or Epoch(5, WALL, *ONE)
        self.hears(ONE, SyncStart(WALL, epoch))
        return epoch

    def hear_states(self, states: dict[Member, bytes]) -> list[Effect]:
        """Deliver a STATE of each member in *states*; return the effects of the last."""
        effects: list[Effect] = []
        for member, payload in states.items():
            effects = self.hears(member, State(WALL, self.epoch, payload))
        return effects


def synced_node(me: Member = TWO, *, others_behind: bool = False) -> Node:
    """Return a synced member of three; with *others_behind* the third member has an older tree."""
    node = Node(me)
    node.start_round()
    last = index(4 if others_behind else 5)
    node.hear_states({ONE: index(5), TWO: index(5), THREE: last})
    assert node.mode is Mode.SYNCED
    return node


def updating_node() -> Node:
    """Return the third of three members, which waits for the updates of the first."""
    node = Node(THREE)
    node.start_round()
    node.hear_states({ONE: index(5), TWO: index(5), THREE: index(4)})
    assert node.mode is Mode.UPDATE
    return node
