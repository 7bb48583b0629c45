"""A recorded session of the original on a state machine with a tree in memory.

Each node must send the messages that the original sent, and end with the same tree.
"""

from collections import Counter
from typing import Any

import pytest

from pmxcfs._cpg import decode
from pmxcfs.dfsm.effects import (
    Commit,
    Deliver,
    Effect,
    Leave,
    Log,
    Quit,
    Send,
    SendState,
    SendUpdates,
    TakeChecksum,
)
from pmxcfs.dfsm.machine import Dfsm
from pmxcfs.dfsm.timeouts import Deadlines, Moment
from pmxcfs.messages import (
    Create,
    Group,
    Member,
    Message,
    Normal,
    State,
    Update,
    UpdateComplete,
    VerifyRequest,
    Write,
)
from tests.fakes.data.recorded_order import CONFIGURATION, FINAL_CHECKSUM, PID, events_of
from tests.fakes.simulation.peer import TreeContent


class Replay:
    """One node that handles the events that the original saw."""

    def __init__(self, node: int) -> None:
        self.me = Member(node, PID)
        self.events = [self.parse(event) for event in events_of(node)]
        self.recorded = [e[1] for e in self.events if e[0] == self.me and isinstance(e[1], Message)]
        self.to_number = [m for m in self.recorded if isinstance(m, Normal)]
        self.dfsm = Dfsm(Group.TREE, deadlines=Deadlines(verification=0.0))
        self.content = TreeContent()
        self.sent: list[Message] = []
        self.said: list[str] = []
        self.now = Moment(0, 0.0)

    @staticmethod
    def parse(event: dict[str, Any]) -> tuple[Member | None, Any]:
        if event["event"] == "confchg":
            return None, [[Member(*pair) for pair in event[key]] for key in ("members", "joined")]
        return Member(event["nodeid"], event["pid"]), decode(
            bytes.fromhex(event["hex"]), group=Group.TREE
        )

    def run(self) -> None:
        """Start as the original did, and handle all recorded events."""
        self.import_configuration()
        self.dfsm.join(self.me)
        for place, (sender, what) in enumerate(self.events):
            self.now = self.moment_of(place)
            self.issue()
            if isinstance(what, VerifyRequest) and sender == self.me:
                self.carry_out(self.dfsm.on_tick(self.now))
            if sender is None:
                members, joined = what
                self.carry_out(self.dfsm.on_membership(members, joined=joined, at=self.now))
            else:
                self.carry_out(self.dfsm.on_message(sender, what, at=self.now))

    def import_configuration(self) -> None:
        """Create corosync.conf with the mtime of the first STATE that the original sent."""
        first = next(message for message in self.recorded if isinstance(message, State))
        mtime = int.from_bytes(first.payload[20:24], "little")
        data = CONFIGURATION.read_bytes()
        for body in (Create("corosync.conf"), Write("corosync.conf", 0, data, truncate=True)):
            self.content.apply(Member(0, 0), Normal(mtime, 0, body))

    def moment_of(self, place: int) -> Moment:
        """Return the time in the next message that the original sent after event *place*."""
        after = (what for sender, what in self.events[place:] if sender == self.me)
        next_sent = next((what for what in after if not isinstance(what, Normal)), None)
        wall = next_sent.time if next_sent else self.now.wall
        return Moment(wall, float(wall))

    def issue(self) -> None:
        """Send the recorded changes of this node while it is synced."""
        while self.dfsm.is_synced and self.to_number:
            wanted = self.to_number.pop(0)
            assert self.dfsm.number(wanted.body, wanted.time) == wanted
            self.sent.append(wanted)

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self.sent.append(effect.message)
                case SendState():
                    self.sent.append(State(effect.time, effect.epoch, self.content.state()))
                case SendUpdates():
                    updates = self.content.updates(effect)
                    self.sent += [Update(effect.time, effect.epoch, r) for r in updates]
                    self.sent.append(UpdateComplete(effect.time, effect.epoch))
                case Commit():
                    assert self.content.adopt(effect)
                    self.carry_out(self.dfsm.on_committed(ok=True))
                case TakeChecksum():
                    checksum = self.content.tree.checksum()
                    self.carry_out(self.dfsm.on_checksum(checksum, at=self.now))
                case Deliver():
                    self.content.apply(effect.sender, effect.message)
                case Log():
                    self.said.append(effect.text)
                case Leave() | Quit():
                    pytest.fail(effect.reason)


def without_updates(messages: list[Message]) -> list[Message]:
    """Return *messages* without UPDATEs and changes: the protocol fixes the order of the rest."""
    return [m for m in messages if not isinstance(m, Update | Normal)]


@pytest.fixture(scope="module", params=[1, 2, 3])
def replay(request: pytest.FixtureRequest) -> Replay:
    replay = Replay(request.param)
    replay.run()
    return replay


def test_a_node_sends_the_messages_that_the_original_sent(replay: Replay) -> None:
    assert without_updates(replay.sent) == without_updates(replay.recorded)
    assert len(replay.recorded) > 40
    assert Counter(replay.sent) == Counter(replay.recorded)


def test_each_change_is_sent_once_in_the_order_of_serial_numbers(replay: Replay) -> None:
    serials = [message.serial for message in replay.sent if isinstance(message, Normal)]
    assert serials == list(range(1, len(serials) + 1))
    assert serials


def test_a_node_verifies_its_tree_twice(replay: Replay) -> None:
    assert replay.said.count("data verification successful") == 2


def test_a_node_ends_with_the_tree_of_the_original(replay: Replay) -> None:
    assert replay.content.tree.checksum().hex() == FINAL_CHECKSUM


@pytest.mark.parametrize("node", [1, 2, 3])
def test_a_change_of_the_leader_can_come_between_its_updates(node: int) -> None:
    """In the recording its next change comes after them, and another synced member's before."""
    replay = Replay(node)
    kinds = [type(what) for _, what in replay.events]
    ends = [n for n, kind in enumerate(kinds) if kind is UpdateComplete]
    (end,) = [n for n in ends if replay.events[n][0] == replay.events[n + 1][0]]
    assert kinds[end - 60 : end + 2] == [Update] * 60 + [UpdateComplete, Normal]
    replay.events.insert(end - 30, replay.events.pop(end + 1))
    replay.run()
    assert replay.content.tree.checksum().hex() == FINAL_CHECKSUM
    assert replay.said.count("data verification successful") == 2


def test_the_log_has_the_lines_that_administrators_look_for(replay: Replay) -> None:
    said = [text for text in replay.said if text.startswith(("members", "leader", "synced"))]
    assert said[-3:] == [
        "members: 1/27, 2/27, 3/27",
        "leader is 1/27",
        "synced members: 1/27, 2/27",
    ]
