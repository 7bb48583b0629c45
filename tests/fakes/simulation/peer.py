"""One node in memory: a ``Dfsm``, the content of its group, and effects carried out on a bus.

A ``Peer`` has the role of ``cluster.group.GroupThread`` and its loop, without threads, handles and
a database.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from pmxcfs._core import Entry, Tree
from pmxcfs.dfsm.effects import (
    Commit,
    Deliver,
    Effect,
    Enter,
    Leave,
    Log,
    Merge,
    Mode,
    Quit,
    Send,
    SendState,
    SendUpdates,
    TakeChecksum,
)
from pmxcfs.dfsm.machine import Dfsm
from pmxcfs.dfsm.timeouts import Deadlines, Moment
from pmxcfs.errors import PmxcfsError
from pmxcfs.messages import (
    Body,
    Epoch,
    Group,
    LogEntry,
    Member,
    Message,
    Normal,
    Record,
    SetKey,
    State,
    UnlockRequest,
    Update,
    UpdateComplete,
)
from pmxcfs.text import to_bytes
from pmxcfs.tree import apply as delivery
from pmxcfs.tree.guests import Guests
from pmxcfs.tree.index import parse, records_needed
from tests.fakes.simulation.bus import Bus, Delivery, Departure, Foreign, Port, Quorum, View


def record_of(entry: Entry) -> Record:
    """Return the record of an entry, as an UPDATE carries it."""
    parent = entry.parent.inode if entry.parent else 0
    stamp = (entry.version, entry.writer, entry.mtime)
    data = None if entry.is_directory else entry.stored
    return Record(entry.inode, parent, *stamp, entry.type, to_bytes(entry.name), data)


def records_of(tree: Tree) -> dict[int, Record]:
    """Return the records of all entries, the root included, by inode."""
    found, todo = {}, [tree.root]
    while todo:
        entry = todo.pop()
        found[entry.inode] = record_of(entry)
        todo += entry.children() if entry.is_directory else []
    return found


class TreeContent:
    """The tree of the configuration, and its guests."""

    group = Group.TREE

    def __init__(self, tree: Tree | None = None) -> None:
        self.tree = tree or Tree()
        self.guests = Guests()
        self.guests.rebuild(self.tree)

    @property
    def version(self) -> int:
        """The version of the tree."""
        return self.tree.version

    def state(self) -> bytes:
        """Return the index of the tree: the payload of a STATE."""
        return self.tree.index()

    def apply(self, sender: Member, message: Normal) -> None:
        """Apply a mutation."""
        body = message.body
        if isinstance(body, UnlockRequest):
            return
        assert not isinstance(body, SetKey | LogEntry)
        delivery.apply(self.tree, self.guests, body, writer=sender.nodeid, mtime=message.time)

    def updates(self, effect: SendUpdates) -> list[Record]:
        """Return the records that this node sends as the leader."""
        records = records_of(self.tree)
        return [records[i] for i in records_needed(effect.state, effect.states.values())]

    def adopt(self, effect: Commit) -> bool:
        """Replace the tree by the leader's tree; tell whether its index and records fit."""
        wanted = parse(effect.state).digests
        records = {i: record for i, record in records_of(self.tree).items() if i in wanted}
        records |= {record.inode: record for record in effect.records}
        try:
            self.load(records.values())
        except (PmxcfsError, ValueError, AssertionError):
            return False
        return self.tree.index() == effect.state

    def load(self, records: Iterable[Record]) -> None:
        """Replace the tree by one made of *records*."""
        tree = Tree()
        tree.load(records)
        self.tree = tree
        self.guests.rebuild(tree)


class StatusContent:
    """A log of all keys that were set, which merges with the logs of other nodes."""

    group = Group.STATUS

    def __init__(self) -> None:
        self.lines: set[str] = set()

    @property
    def version(self) -> int:
        """The length of the log."""
        return len(self.lines)

    def state(self) -> bytes:
        """Return the log: the payload of a STATE."""
        return json.dumps(sorted(self.lines)).encode()

    def apply(self, sender: Member, message: Normal) -> None:
        """Add a key that was set to the log."""
        assert isinstance(message.body, SetKey)
        self.lines.add(f"{sender.nodeid} {message.body.key}={message.body.value.decode()}")

    def merge(self, states: Iterable[bytes]) -> None:
        """Add the lines of other logs."""
        self.lines.update(*(json.loads(state) for state in states))


@dataclass
class Wish:
    """A change that this node asks for, and its outcome so far."""

    body: Body
    serial: int = 0
    outcome: str = "waits"  # then "sent", then "done", "refused: ..." or "lost"


@dataclass(frozen=True)
class Segment:
    """The changes that were applied in one round, up to the view that ended it."""

    epoch: Epoch
    next_view: int
    applied: tuple[tuple[Member, int], ...]


class Peer:
    """A node whose process runs."""

    def __init__(
        self,
        bus: Bus,
        member: Member,
        content: TreeContent | StatusContent,
        *,
        now: Moment,
        deadlines: Deadlines | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.member = member
        self.content = content
        self.now = now
        self.is_quorate = False
        self.is_forced = False  # quorate, whatever the number of votes
        self.is_blocked = False  # corosync takes no message
        self.allowance = 0  # messages that a blocked corosync still takes
        self.dfsm = Dfsm(content.group, deadlines=deadlines)
        self.wishes: list[Wish] = []
        self.applied: list[tuple[Member, int]] = []  # since the last view
        self.ever_applied: list[tuple[Member, int]] = []
        self.versions: list[
            tuple[int, tuple[Member, int]]
        ] = []  # of the content, each with the change that made it
        self.segments: list[Segment] = []
        self._bus = bus
        self._tell = tell
        self._outbox: list[Message] = []
        self.port: Port | None = None
        self._joined_at = float("-inf")
        self.join()

    def join(self) -> None:
        """Join the group with a new port."""
        self.dfsm.join(self.member)
        self.port = self._bus.connect(self.member)
        self._joined_at = self.now.monotonic

    def wish(self, body: Body) -> Wish:
        """Ask for a change."""
        wish = Wish(body)
        self.wishes.append(wish)
        return wish

    # Running.

    @property
    def has_event(self) -> bool:
        """Whether a delivered event waits to be handled."""
        return self.port is not None and bool(self.port.inbox)

    def handle(self) -> None:
        """Handle the next event that was delivered."""
        assert self.port is not None
        event = self.port.read()
        match event:
            case Quorum():
                self.is_quorate = event.is_there or self.is_forced
            case View():
                self._on_view(event)
            case Delivery():
                self._carry_out(self.dfsm.on_message(*event, at=self.now))
            case Foreign():
                self._carry_out(self.dfsm.on_other_protocol(event.sender, is_newer=event.is_newer))

    def tick(self, now: Moment) -> None:
        """Set the clock, join again if that is due, and carry out the effects of a tick."""
        self.now = now
        is_due = now.monotonic - self._joined_at >= self.dfsm.deadlines.rejoin
        if self.port is None and is_due and self.dfsm.mode is not Mode.VERSION_ERROR:
            self._tell("joins again")
            self.join()
        self._carry_out(self.dfsm.on_tick(now))

    def pump(self) -> bool:
        """Send queued messages as far as corosync takes them; tell whether it took any.

        After each UPDATE, changes of this node go out.
        """
        has_sent = is_update = False
        while self._outbox and self._may_send() and not is_update:
            is_update = isinstance(self._outbox[0], Update)
            self._give(self._outbox.pop(0))
            has_sent = True
        gives_way = not self._outbox or isinstance(self._outbox[0], Update | UpdateComplete)
        for wish in self.wishes:
            if wish.outcome == "waits" and gives_way and self._can_issue():
                message = self.dfsm.number(wish.body, self.now.wall)
                wish.serial, wish.outcome = message.serial, "sent"
                self._give(message)
                has_sent = True
        return has_sent

    def _can_issue(self) -> bool:
        needs_quorum = self.content.group is Group.TREE
        return self.dfsm.is_synced and (self.is_quorate or not needs_quorum) and self._may_send()

    def _may_send(self) -> bool:
        return self.port is not None and (not self.is_blocked or self.allowance > 0)

    def _give(self, message: Message) -> None:
        assert self.port is not None
        self.allowance = max(0, self.allowance - 1)
        self.port.queue.append(message)

    # Effects.

    def _on_view(self, view: View) -> None:
        if self.dfsm.mode in (Mode.LEFT, Mode.VERSION_ERROR) and self.member not in view.members:
            self.port = None
            self.dfsm.on_disconnected()
            return
        self._end_segment(view)
        self._outbox = [message for message in self._outbox if isinstance(message, Normal)]
        self._carry_out(self.dfsm.on_membership(view.members, joined=view.joined, at=self.now))

    def _end_segment(self, view: View) -> None:
        if self.dfsm.is_synced:
            self.segments.append(Segment(self.dfsm.epoch, view.number, tuple(self.applied)))
        self.applied = []

    def _carry_out(self, effects: list[Effect]) -> None:
        while effects:
            effects = self._carry_out_list(effects)

    def _carry_out_list(self, effects: list[Effect]) -> list[Effect]:
        """Carry out *effects*, or up to one that replaces the rest; return that new list."""
        for effect in effects:
            match effect:
                case Deliver():
                    if self.content.group is Group.TREE and not self.is_quorate:
                        return self.dfsm.leave("not quorate")
                    self._deliver(effect)
                case Commit() | TakeChecksum():
                    return self._answer(effect)
                case Leave() | Quit():
                    self._depart()
                case _:
                    self._carry_out_simple(effect)
        return []

    def _answer(self, effect: Commit | TakeChecksum) -> list[Effect]:
        assert isinstance(self.content, TreeContent)
        if isinstance(effect, TakeChecksum):
            return self.dfsm.on_checksum(self.content.tree.checksum(), at=self.now)
        backup = self.content.tree
        is_adopted = self.content.adopt(effect)
        if not is_adopted:
            self.content.tree = backup
        self._tell(f"commits {len(effect.records)} updates: {'ok' if is_adopted else 'failed'}")
        return self.dfsm.on_committed(ok=is_adopted)

    def _carry_out_simple(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._send(effect.message)
            case SendState():
                self._send(State(effect.time, effect.epoch, self.content.state()))
            case SendUpdates():
                assert isinstance(self.content, TreeContent)
                for record in self.content.updates(effect):
                    self._send(Update(effect.time, effect.epoch, record))
                self._send(UpdateComplete(effect.time, effect.epoch))
            case Merge():
                assert isinstance(self.content, StatusContent)
                self.content.merge(effect.states.values())
            case Enter():
                self._tell(f"is {effect.mode.value}")
            case Log():
                self._tell(f"logs: {effect.text}")

    def _send(self, message: Message) -> None:
        self._tell(f"sends {describe(message)}")
        self._outbox.append(message)

    def _deliver(self, effect: Deliver) -> None:
        sender, message = effect
        change = (sender, message.serial)
        self.applied.append(change)
        self.ever_applied.append(change)
        outcome = "done"
        try:
            self.content.apply(sender, message)
            self.versions.append((self.content.version, change))
        except PmxcfsError as error:
            outcome = f"refused: {type(error).__name__}"
        self._tell(f"delivers {sender} {describe(message)}")
        if sender == self.member:
            self._finish(message.serial, outcome)

    def _finish(self, serial: int, outcome: str) -> None:
        (wish,) = [wish for wish in self.wishes if wish.serial == serial]
        assert wish.outcome == "sent", f"{wish} came twice, or after it was given up"
        wish.outcome = outcome

    def _depart(self) -> None:
        """Leave after the messages that corosync has accepted; all others are lost."""
        self.applied = []
        self._outbox.clear()
        for wish in self.wishes:
            if wish.outcome == "sent":
                wish.outcome = "lost"
                self._tell(f"reports {describe_body(wish.body)} as lost")
        if self.port is not None:
            self.port.queue.append(Departure())

    def with_deadlines(self, **changes: float) -> None:
        """Replace some deadlines of the state machine."""
        self.dfsm.deadlines = replace(self.dfsm.deadlines, **changes)  # type: ignore[arg-type]


def describe_body(body: Body) -> str:
    """Return a change in a few words."""
    words = [type(body).__name__.lower()]
    words += [str(getattr(body, name)) for name in ("path", "to", "key") if hasattr(body, name)]
    return " ".join(words)


def describe(message: Message) -> str:
    """Return a message in a few words."""
    if isinstance(message, Normal):
        return f"#{message.serial} {describe_body(message.body)}"
    epoch = f"{message.epoch.number}@{message.epoch.nodeid}"
    name = type(message).__name__
    detail = f" {message.record.inode}" if isinstance(message, Update) else ""
    return f"{name}{detail} of round {epoch}"
