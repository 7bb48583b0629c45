"""The sender: the order of messages, retries, and what a membership change drops."""

import itertools
from collections.abc import Callable

import pytest

from pmxcfs._cpg import decode
from pmxcfs.cluster.sender import (
    FEW_IN_FLIGHT,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    LOT,
    MOST_BYTES_IN_FLIGHT,
    MOST_CHANGES_IN_FLIGHT,
    MOST_IN_FLIGHT,
    MOST_LOTS,
    SEND_RETRY_LIMIT,
    Clock,
    Sender,
)
from pmxcfs.dfsm.effects import Mode
from pmxcfs.dfsm.machine import Dfsm
from pmxcfs.dfsm.timeouts import Moment
from pmxcfs.errors import Busy, Disconnected, Interrupted, Invalid, PmxcfsError, TryAgain
from pmxcfs.messages import (
    Body,
    Create,
    Epoch,
    Group,
    Member,
    Message,
    Mkdir,
    Mtime,
    Normal,
    State,
    SyncStart,
    Update,
    UpdateComplete,
    VerifyRequest,
)
from tests.fakes.simulation.single_machine import RECORD, index

ME, OTHER = Member(1, 100), Member(2, 200)
EPOCH = Epoch(1, 0, 1, 100)
ROUND = UpdateComplete(0, EPOCH)


class FakeSource:
    """Hands out a list of bodies, and notes what the sender reports about each."""

    def __init__(self) -> None:
        self.bodies: list[Body] = []
        self.notes: list[object] = []

    def take(self, now: float) -> Body | None:
        return self.bodies[0] if self.bodies else None

    def sent(self, serial: int) -> None:
        self.notes.append(("sent", self.bodies.pop(0), serial))

    def not_sent(self) -> None:
        self.notes.append("not sent")

    def refused(self, error: PmxcfsError) -> None:
        self.notes.append(("refused", self.bodies.pop(0), type(error)))


class FakeClock(Clock):
    """The clock of a World."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def wall(self) -> int:
        return 0

    def monotonic(self) -> float:
        return self._world.now


class World:
    """A sender, a clock that the test moves, and a corosync that accepts or refuses messages."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sent: list[Message] = []
        self.unread = self.most_unread = 0  # messages that corosync has not delivered
        self.failure: Callable[[], PmxcfsError] | None = None
        self.source = FakeSource()
        self.dfsm = Dfsm(Group.TREE)
        self.dfsm.join(ME)
        self.members(ME)
        self.sender = Sender(Group.TREE, self.dfsm, self.source, clock=FakeClock(self))

    def members(self, *members: Member) -> None:
        self.dfsm.on_membership(members, joined=(), at=Moment(0, self.now))

    def hear(self, sender: Member, *messages: Message) -> None:
        for message in messages:
            self.dfsm.on_message(sender, message, at=Moment(0, self.now))

    def mcast(self, data: bytes) -> None:
        if self.failure is not None:
            raise self.failure()
        self.sent.append(decode(data, group=Group.TREE))
        self.unread += 1
        self.most_unread = max(self.most_unread, self.unread)

    def deliver(self, count: int) -> None:
        """Deliver the oldest *count* messages in flight, or all if there are fewer."""
        for _ in range(min(count, self.unread)):
            self.unread -= 1
            self.sender.echoed()

    def send(self) -> None:
        self.sender.send(self.mcast)

    def bodies(self) -> list[Body]:
        return [message.body for message in self.sent if isinstance(message, Normal)]


@pytest.fixture
def world() -> World:
    return World()


def no_room() -> PmxcfsError:
    return TryAgain("cpg_mcast_joined", 6, "try again")


def test_messages_of_the_state_machine_go_before_changes(world: World) -> None:
    world.source.bodies = [Mkdir("a"), Mkdir("b")]
    state = State(0, EPOCH, index(1))
    world.sender.put(state)
    world.send()
    assert world.sent == [state, *world.sent[1:]]
    assert world.bodies() == [Mkdir("a"), Mkdir("b")]
    assert [note[2] for note in world.source.notes if isinstance(note, tuple)] == [1, 2]
    assert world.sender.sent_bytes > 3 * 16


def test_a_change_waits_for_the_end_of_the_round(world: World) -> None:
    world.source.bodies = [Mkdir("a")]
    world.members(ME, OTHER)
    world.send()
    assert not world.sent
    world.sender.put(ROUND)
    world.send()
    assert world.sent == [ROUND]
    world.members(ME)
    world.send()
    assert world.bodies() == [Mkdir("a")]


def test_pauses_double_up_to_a_limit_and_end_with_success(world: World) -> None:
    world.source.bodies = [Mkdir("a")]
    world.failure = no_room
    pauses = []
    for _ in range(9):
        world.send()
        pauses.append(world.sender.retry_at - world.now)
        world.send()  # too early: nothing is tried
        world.now = world.sender.retry_at
    assert world.source.notes == ["not sent"] * 9
    expected = [min(FIRST_PAUSE * 2**n, LONGEST_PAUSE) for n in range(9)]
    assert pauses == pytest.approx(expected)
    world.failure = None
    world.send()
    assert world.bodies() == [Mkdir("a")]
    assert world.sender.retry_at == float("inf")


def test_each_change_is_retried_for_ten_seconds(world: World) -> None:
    world.source.bodies = [Mkdir("a"), Mkdir("b")]
    world.failure = no_room
    start = world.now
    while ("refused", Mkdir("a"), Busy) not in world.source.notes:
        world.send()
        world.now = world.sender.retry_at
    assert SEND_RETRY_LIMIT <= world.now - start < SEND_RETRY_LIMIT + 3 * LONGEST_PAUSE
    second = world.now
    while world.source.bodies:
        world.send()
        world.now = world.sender.retry_at
    assert world.source.notes[-1] == ("refused", Mkdir("b"), Busy)
    assert SEND_RETRY_LIMIT <= world.now - second < SEND_RETRY_LIMIT + 3 * LONGEST_PAUSE


def test_a_message_of_the_state_machine_is_retried_without_limit(world: World) -> None:
    world.sender.put(ROUND)
    world.failure = no_room
    world.send()
    world.now += 1000 * SEND_RETRY_LIMIT
    world.send()
    world.failure = None
    world.now = world.sender.retry_at
    world.send()
    assert world.sent == [ROUND]


def test_a_round_that_has_moved_on_is_not_restarted(world: World) -> None:
    """A member of the existing implementation that is in UPDATE would leave the group on it."""
    start, again = SyncStart(0, EPOCH), SyncStart(0, EPOCH._replace(number=2))
    world.members(ME, OTHER)
    world.sender.put(start)
    world.send()
    assert world.sent == [start]
    world.sender.put(again)
    world.failure = no_room
    world.send()
    world.hear(ME, start, State(0, EPOCH, index(1)))
    world.hear(OTHER, State(0, EPOCH, index(2)))
    assert world.dfsm.mode is Mode.UPDATE
    world.failure = None
    world.now = world.sender.retry_at
    world.send()
    assert world.sent == [start]


def test_an_interrupted_message_is_dropped(world: World) -> None:
    """A membership change ended its round; the next round makes a new message."""
    world.sender.put(ROUND)
    world.failure = lambda: Interrupted("cpg_mcast_joined", 4, "interrupt")
    world.send()
    world.failure = None
    world.send()
    assert not world.sent


def test_a_new_membership_drops_the_round_and_keeps_changes(world: World) -> None:
    change = Normal(7, 3, Create("queued"))
    world.sender.put(change)
    world.sender.put(ROUND)
    world.sender.forget_round()
    world.send()
    assert world.sent == [change]


def test_only_the_change_that_can_t_be_encoded_is_refused(world: World) -> None:
    world.source.bodies = [Mkdir("a\0b"), Mtime("a", 1 << 40), Mkdir("b")]
    world.send()
    assert world.source.notes[0] == ("refused", Mkdir("a\0b"), Invalid)
    assert world.source.notes[1] == ("refused", Mtime("a", 1 << 40), Invalid)
    assert world.bodies() == [Mkdir("b")]


def test_a_change_is_kept_when_the_connection_is_lost(world: World) -> None:
    world.source.bodies = [Mkdir("a")]
    world.failure = lambda: Disconnected("cpg_mcast_joined", 2, "gone")
    with pytest.raises(Disconnected):
        world.send()
    assert world.source.notes == ["not sent"]
    world.sender.reset()
    world.failure = None
    world.send()
    assert world.bodies() == [Mkdir("a")]


# Many messages.


def updates(count: int) -> list[Message]:
    """Return *count* UPDATEs and what ends them."""
    records = [RECORD._replace(inode=number) for number in range(count)]
    return [*(Update(0, EPOCH, record) for record in records), ROUND]


def put(world: World, messages: list[Message]) -> list[Message]:
    for message in messages:
        world.sender.put(message)
    return messages


def rounds_only(world: World) -> list[Message]:
    return [message for message in world.sent if not isinstance(message, Normal)]


def test_a_change_is_behind_the_updates_in_flight_only(world: World) -> None:
    wanted = put(world, updates(3 * MOST_IN_FLIGHT))
    world.send()
    while world.sender.has_messages:
        world.deliver(100)
        unread = len(world.sent) - world.unread  # what corosync delivers next
        own = Mkdir(f"{unread}")
        world.source.bodies.append(own)
        world.send()
        ahead = list(map(body_of, world.sent[unread:]))
        assert ahead[: ahead.index(own)].count(None) < MOST_IN_FLIGHT + LOT
    assert rounds_only(world) == wanted
    assert len(world.bodies()) > 30


def body_of(message: Message) -> Body | None:
    return message.body if isinstance(message, Normal) else None


def test_a_change_that_comes_while_updates_are_sent_follows_their_lot(world: World) -> None:
    wanted = put(world, updates(3 * LOT))

    def mcast(data: bytes) -> None:
        world.mcast(data)
        if len(world.sent) == LOT + 5:
            world.source.bodies.append(Mkdir("a"))

    world.sender.send(mcast)
    assert body_of(world.sent[2 * LOT]) == Mkdir("a")
    world.deliver(2 * LOT + 1)
    world.send()
    assert rounds_only(world) == wanted


def test_updates_are_sent_in_bulk(world: World) -> None:
    """A new lot does not follow each delivery, but is sent when few messages are left."""
    wanted = put(world, updates(2 * MOST_IN_FLIGHT))
    world.send()
    assert MOST_IN_FLIGHT <= world.unread < MOST_IN_FLIGHT + LOT
    while world.unread > FEW_IN_FLIGHT + 1:
        world.deliver(1)
        world.send()
    sent = len(world.sent)
    world.deliver(1)
    world.send()
    assert len(world.sent) >= sent + MOST_IN_FLIGHT - FEW_IN_FLIGHT
    while world.sender.has_messages:
        world.deliver(100)
        world.send()
    assert world.sent == wanted


def test_a_change_in_flight_can_be_dispatched_between_lots(world: World) -> None:
    wanted = put(world, updates(MOST_IN_FLIGHT))
    world.source.bodies = [Mkdir("a")]
    world.send()
    assert len(world.sent) == 1 + MOST_LOTS * LOT
    world.deliver(1)
    world.send()
    assert rounds_only(world) == wanted


def test_a_message_of_the_next_round_does_not_wait_for_the_updates_in_flight(world: World) -> None:
    put(world, updates(2 * MOST_IN_FLIGHT))
    world.send()
    world.sender.forget_round()
    put(world, [state := State(0, EPOCH, index(1))])
    world.send()
    assert world.sent[-1] == state


def test_few_large_updates_are_in_flight(world: World) -> None:
    data = bytes(MOST_BYTES_IN_FLIGHT // 3)
    wanted = put(world, [Update(0, EPOCH, RECORD._replace(data=data)) for _ in range(20)])
    world.send()
    assert world.unread == 3
    while world.sender.has_messages:
        world.deliver(1)
        world.send()
    assert world.most_unread == 3
    assert world.sent == wanted


def test_a_lot_that_meets_no_room_goes_on_where_it_ended(world: World) -> None:
    wanted = put(world, updates(3 * LOT))
    attempts = itertools.count(1)

    def mcast(data: bytes) -> None:
        if next(attempts) % 5 == 0:
            raise no_room()
        world.mcast(data)

    while world.sender.has_messages:
        world.sender.send(mcast)
        world.now += LONGEST_PAUSE
    assert world.sent == wanted


@pytest.mark.parametrize(
    "message", [Normal(0, 1, Mkdir("again")), State(0, EPOCH, index(1)), VerifyRequest(0, EPOCH, 1)]
)
def test_changes_overtake_nothing_but_updates(world: World, message: Message) -> None:
    world.sender.put(message)
    world.source.bodies = [Mkdir("a")]
    world.failure = no_room
    world.send()
    assert not world.source.notes
    world.failure, world.now = None, world.sender.retry_at
    world.send()
    assert world.sent[0] == message
    assert body_of(world.sent[1]) == Mkdir("a")


def test_what_a_membership_change_drops_lets_no_change_pass(world: World) -> None:
    put(world, updates(2 * MOST_IN_FLIGHT))
    world.send()
    sent = list(world.sent)
    world.members(ME, OTHER)
    world.sender.forget_round()
    world.source.bodies = [Mkdir("a")]
    world.deliver(len(sent))
    world.send()
    assert world.sent == sent
    assert not world.sender.in_flight
    world.members(ME)
    world.send()
    assert world.bodies() == [Mkdir("a")]


def test_changes_in_flight_are_limited_and_all_are_sent(world: World) -> None:
    world.source.bodies = [Mkdir(f"{number}") for number in range(1000)]
    wanted = list(world.source.bodies)
    while world.source.bodies:
        world.send()
        assert world.unread == MOST_CHANGES_IN_FLIGHT
        world.deliver(8)
    assert world.bodies() == wanted


def test_a_change_does_not_wait_behind_an_update_without_room(world: World) -> None:
    put(world, updates(10))
    world.failure = no_room
    world.send()
    world.source.bodies = [Mkdir("a")]
    world.failure, world.now = None, world.sender.retry_at
    world.send()
    assert body_of(world.sent[0]) == Mkdir("a")


def test_a_new_connection_has_nothing_in_flight(world: World) -> None:
    world.source.bodies = [Mkdir(f"{number}") for number in range(2 * MOST_CHANGES_IN_FLIGHT)]
    world.send()
    world.sender.reset()
    assert world.sender.in_flight == 0
    world.sender.echoed()  # of the old connection
    world.send()
    assert world.sender.in_flight == MOST_CHANGES_IN_FLIGHT
