"""The state machine, sentence by sentence: what cluster.md says under "State machine" and after."""

import struct
from collections.abc import Iterable

import pytest

from pmxcfs.deadlines import Deadlines, Moment
from pmxcfs.dfsm import Dfsm
from pmxcfs.effects import (
    Commit,
    Deliver,
    Effect,
    Enter,
    Group,
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
from pmxcfs.election import Election, elect, rank_of
from pmxcfs.errors import BadMessage, Busy
from pmxcfs.letters import Letter, Letters
from pmxcfs.messages import (
    Epoch,
    Member,
    Message,
    Mkdir,
    Normal,
    Record,
    State,
    StateMessage,
    SyncStart,
    Update,
    UpdateComplete,
    Verify,
    VerifyRequest,
)

ONE, TWO, THREE = Member(1, 300), Member(2, 90), Member(3, 7)
ALL = (ONE, TWO, THREE)
STRANGER = Member(9, 9)
WALL = 1_800_000_000
RECORD = Record(7, 0, 7, 1, WALL, 8, b"f", b"x")


def at(seconds: float) -> Moment:
    return Moment(WALL + int(seconds), seconds)


def index(version: int, mtime: int = 0, entries: int = 0) -> bytes:
    """An index as far as an election looks into it."""
    size = 32 + 40 * entries
    return struct.pack("<QQIIII", version, 1, 0, mtime, entries, size) + bytes(size - 32)


def change(serial: int) -> Normal:
    return Normal(WALL, serial, Mkdir(f"d{serial}"))


def without_logs(effects: Iterable[Effect]) -> list[Effect]:
    return [effect for effect in effects if not isinstance(effect, Log)]


def texts(effects: Iterable[Effect]) -> list[str]:
    return [effect.text for effect in effects if isinstance(effect, Log)]


class Node:
    """A machine and the clock that its events carry."""

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
        """Let time pass; return what is done at the end of it."""
        self.seconds += seconds
        return without_logs(self.machine.on_tick(at(self.seconds)))

    def start_round(self, epoch: Epoch | None = None) -> Epoch:
        """Let the lowest of three members begin a round."""
        self.members(*ALL, joined=ALL)
        epoch = epoch or Epoch(5, WALL, *ONE)
        self.hears(ONE, SyncStart(WALL, epoch))
        return epoch

    def hear_states(self, states: dict[Member, bytes]) -> list[Effect]:
        """Hear a STATE of everybody in the present round; return what the last one brings."""
        effects: list[Effect] = []
        for member, payload in states.items():
            effects = self.hears(member, State(WALL, self.epoch, payload))
        return effects


def synced_node(me: Member = TWO, *, others_behind: bool = False) -> Node:
    """A member of three that is synced; with *others_behind* the third is not."""
    node = Node(me)
    node.start_round()
    last = index(4 if others_behind else 5)
    node.hear_states({ONE: index(5), TWO: index(5), THREE: last})
    assert node.mode is Mode.SYNCED
    return node


def updating_node() -> Node:
    """The third of three, which waits for updates of the first."""
    node = Node(THREE)
    node.start_round()
    node.hear_states({ONE: index(5), TWO: index(5), THREE: index(4)})
    assert node.mode is Mode.UPDATE
    return node


# Membership changes.


def test_nothing_counts_before_the_first_membership() -> None:
    node = Node(TWO)
    assert node.mode is Mode.START
    assert node.hears(ONE, change(1)) == []
    assert node.hears(ONE, SyncStart(WALL, Epoch(1, WALL, *ONE))) == []


def test_alone_it_is_synced() -> None:
    effects = Node(TWO).members(TWO, joined=[TWO])
    assert without_logs(effects) == [Enter(Mode.SYNCED)]
    assert texts(effects) == ["members: 2/90", "all data is up to date"]


def test_the_lowest_member_starts_a_round_with_a_new_epoch() -> None:
    node = Node(ONE)
    node.seconds = 3
    effects = node.members(THREE, ONE, TWO, joined=[ONE])
    epoch = Epoch(1, WALL + 3, *ONE)
    start = SyncStart(WALL + 3, epoch)
    assert without_logs(effects) == [Enter(Mode.START_SYNC), Send(start)]
    assert texts(effects) == ["members: 1/300, 2/90, 3/7"]
    effects = node.members(ONE, THREE)
    assert Send(SyncStart(WALL + 3, Epoch(2, WALL + 3, *ONE))) in effects


def test_other_members_wait_for_it() -> None:
    assert without_logs(Node(TWO).members(*ALL, joined=[TWO])) == [Enter(Mode.START_SYNC)]


def test_the_lowest_is_the_one_with_the_lowest_node_and_then_process() -> None:
    node = Node(TWO)
    node.members(Member(2, 91), TWO)
    assert node.machine.is_lowest
    node.members(Member(2, 89), TWO)
    assert not node.machine.is_lowest


def test_epochs_count_every_membership_change_of_the_process() -> None:
    node = Node(ONE)
    node.members(ONE)
    node.machine.on_disconnected()
    node.machine.join(ONE)
    effects = node.members(ONE, TWO)
    assert Send(SyncStart(WALL, Epoch(2, WALL, *ONE))) in effects


def test_alone_it_delivers_its_own_queued_changes_and_drops_the_others() -> None:
    node = Node(TWO)
    node.start_round()
    node.hears(ONE, change(1))
    node.hears(TWO, change(2))
    effects = node.members(TWO)
    assert without_logs(effects) == [Enter(Mode.SYNCED), Deliver(TWO, change(2))]


def test_when_members_join_the_queue_is_emptied_and_own_changes_are_sent_again() -> None:
    node = Node(TWO)
    node.start_round()
    for sender, serial in ((TWO, 8), (ONE, 3), (TWO, 7), (THREE, 9)):
        node.hears(sender, change(serial))
    effects = node.members(*ALL, STRANGER, joined=[STRANGER])
    sends = [Send(change(7)), Send(change(8))]
    assert without_logs(effects) == [*sends, Enter(Mode.START_SYNC)]
    assert without_logs(node.members(TWO)) == [Enter(Mode.SYNCED)]


def test_a_resent_change_goes_out_before_the_new_round_begins() -> None:
    node = Node(ONE)
    node.start_round()
    node.hears(ONE, change(1))
    effects = without_logs(node.members(*ALL, STRANGER, joined=[STRANGER]))
    assert effects[0] == Send(change(1))
    assert isinstance(effects[-1], Send)
    assert isinstance(effects[-1].message, SyncStart)


def test_when_members_only_leave_the_queue_stays() -> None:
    node = Node(TWO)
    node.start_round()
    node.hears(ONE, change(1))
    assert without_logs(node.members(ONE, TWO)) == [Enter(Mode.START_SYNC)]
    node.hears(ONE, SyncStart(WALL, Epoch(6, WALL, *ONE)))
    effects = node.hear_states({ONE: index(1), TWO: index(1)})
    assert Deliver(ONE, change(1)) in effects


def test_a_membership_change_forgets_the_sync_queue() -> None:
    node = updating_node()
    node.hears(ONE, change(1))
    node.members(THREE)
    assert node.mode is Mode.SYNCED
    node = updating_node()
    node.hears(ONE, change(1))
    node.members(ONE, THREE)
    node.hears(ONE, SyncStart(WALL, Epoch(6, WALL, *ONE)))
    effects = node.hear_states({ONE: index(5), THREE: index(5)})
    assert not [effect for effect in effects if isinstance(effect, Deliver)]


def test_a_membership_change_without_us_is_a_leave() -> None:
    node = synced_node()
    effects = node.members(ONE, THREE)
    assert [type(effect) for effect in effects] == [Log, Leave]
    assert node.mode is Mode.LEFT


# SYNC_START.


@pytest.mark.parametrize("sender", ALL)
def test_a_sync_start_counts_whoever_sent_it(sender: Member) -> None:
    node = Node(TWO)
    node.members(*ALL, joined=ALL)
    epoch = Epoch(3, WALL, *sender)
    assert node.hears(sender, SyncStart(WALL - 5, epoch)) == [SendState(WALL, epoch)]
    assert node.epoch == epoch


def test_a_second_sync_start_drops_the_states_of_the_first() -> None:
    node = Node(TWO)
    first = node.start_round()
    node.hears(ONE, State(WALL, first, index(5)))
    second = Epoch(6, WALL, *THREE)
    assert node.hears(THREE, SyncStart(WALL, second)) == [SendState(WALL, second)]
    assert node.hears(TWO, State(WALL, first, index(5))) == []
    assert node.hears(THREE, State(WALL, first, index(5))) == []
    assert node.hear_states({ONE: index(5), TWO: index(5)}) == []
    assert Enter(Mode.SYNCED) in node.hears(THREE, State(WALL, second, index(5)))


def test_a_sync_start_of_a_process_that_is_no_member_is_ignored() -> None:
    node = Node(TWO)
    epoch = node.start_round()
    assert node.hears(STRANGER, SyncStart(WALL, Epoch(1, WALL, *STRANGER))) == []
    assert node.epoch == epoch


@pytest.mark.parametrize("node", [synced_node(), updating_node()], ids=["synced", "update"])
def test_in_other_modes_a_sync_start_is_ignored(node: Node) -> None:
    mode, epoch = node.mode, node.epoch
    assert node.hears(ONE, SyncStart(WALL, Epoch(6, WALL, *ONE))) == []
    assert (node.mode, node.epoch) == (mode, epoch)


@pytest.mark.parametrize(
    "changed", [{"number": 6}, {"time": WALL + 1}, {"nodeid": 2}, {"pid": 301}], ids=str
)
def test_messages_of_an_epoch_that_differs_in_anything_do_not_count(
    changed: dict[str, int],
) -> None:
    node = Node(TWO)
    other = node.start_round()._replace(**changed)
    messages: list[StateMessage] = [
        State(WALL, other, index(1)),
        State(WALL, other, index(1)),
        Update(WALL, other, RECORD),
        UpdateComplete(WALL, other),
        VerifyRequest(WALL, other, 1),
        Verify(WALL, other, 1, bytes(32)),
    ]
    for message in messages:
        assert node.hears(ONE, message) == []
    assert node.mode is Mode.START_SYNC


# STATE.


def test_a_state_from_a_stranger_means_that_we_lost_track() -> None:
    node = Node(TWO)
    epoch = node.start_round()
    effects = node.hears(STRANGER, State(WALL, epoch, index(1)))
    assert isinstance(effects[-1], Leave)


def test_so_does_a_second_state_of_one_member() -> None:
    node = Node(TWO)
    epoch = node.start_round()
    assert node.hears(ONE, State(WALL, epoch, index(1))) == []
    assert isinstance(node.hears(ONE, State(WALL, epoch, index(1)))[-1], Leave)
    assert isinstance(synced_node().hears(ONE, State(WALL, epoch, index(1)))[-1], Leave)


def test_a_state_that_is_no_index_is_dropped() -> None:
    node = Node(TWO)
    epoch = node.start_round()
    effects = node.hears(ONE, State(WALL, epoch, index(1)[:-1]))
    assert texts(effects) == [
        "member 1/300 sent no valid state: an index of 31 bytes has no header"
    ]
    assert node.mode is Mode.START_SYNC
    assert node.hears(ONE, State(WALL, epoch, index(1))) == []


@pytest.mark.parametrize(
    "payload",
    [b"", bytes(32), index(1, entries=2)[:-1], index(1) + bytes(40), index(1, entries=1)[:-40]],
)
def test_an_index_must_be_as_long_as_it_says(payload: bytes) -> None:
    with pytest.raises(BadMessage):
        rank_of(payload)


@pytest.mark.parametrize(
    ("states", "leader", "synced"),
    [
        ({ONE: index(4), TWO: index(5), THREE: index(5)}, TWO, {TWO, THREE}),
        ({ONE: index(5, 8), TWO: index(5, 9), THREE: index(4, 10)}, TWO, {TWO}),
        ({THREE: index(5), TWO: index(5), ONE: index(5)}, ONE, {ONE, TWO, THREE}),
        ({ONE: index(5, 9, entries=1), TWO: index(5, 9)}, ONE, {ONE}),
        ({Member(1, 9): index(5), Member(1, 8): index(5, entries=1)}, Member(1, 8), {Member(1, 8)}),
    ],
    ids=["version", "mtime", "member", "equal rank, other content", "process"],
)
def test_the_leader_has_the_highest_version_then_mtime_then_is_the_earliest(
    states: dict[Member, bytes], leader: Member, synced: set[Member]
) -> None:
    assert elect(states) == Election(leader, frozenset(synced))


def test_the_leader_sends_updates_before_it_delivers_anything() -> None:
    node = Node(ONE)
    epoch = node.start_round()
    node.hears(TWO, change(1))
    states = {TWO: index(4), THREE: index(5), ONE: index(5)}
    effects = node.hear_states(states)
    updates = SendUpdates(WALL, epoch, index(5), states)
    assert without_logs(effects) == [updates, Enter(Mode.SYNCED)]
    assert texts(effects)[:2] == ["leader is 1/300", "synced members: 1/300, 3/7"]


def test_the_leader_sends_the_end_of_the_updates_also_if_nothing_differs() -> None:
    node = Node(ONE)
    epoch = node.start_round()
    states = dict.fromkeys(ALL, index(5))
    assert SendUpdates(WALL, epoch, index(5), states) in node.hear_states(states)


def test_a_synced_member_delivers_what_synced_members_sent_in_queue_order() -> None:
    node = Node(TWO)
    node.start_round()
    for sender, serial in ((ONE, 9), (THREE, 1), (TWO, 2), (ONE, 2)):
        node.hears(sender, change(serial))
    effects = node.hear_states({ONE: index(5), TWO: index(5), THREE: index(4)})
    delivered = [Deliver(TWO, change(2)), Deliver(ONE, change(2)), Deliver(ONE, change(9))]
    assert without_logs(effects) == [Enter(Mode.SYNCED), *delivered]
    effects = node.hears(ONE, UpdateComplete(WALL, node.epoch))
    assert effects == [Deliver(THREE, change(1))]


def test_members_of_the_status_group_are_synced_at_once() -> None:
    node = Node(TWO, Group.STATUS)
    node.start_round()
    node.hears(THREE, change(1))
    states = {ONE: b"any", TWO: b"ring", THREE: b""}
    effects = without_logs(node.hear_states(states))
    assert effects == [Merge(states), Enter(Mode.SYNCED), Deliver(THREE, change(1))]


# UPDATE.


def test_a_member_that_is_not_synced_collects_updates_and_commits_them() -> None:
    node = updating_node()
    assert node.hears(ONE, Update(WALL, node.epoch, RECORD)) == []
    effects = node.hears(ONE, UpdateComplete(WALL, node.epoch))
    assert effects == [Commit(ONE, index(5), [RECORD])]
    assert without_logs(node.machine.on_committed(ok=True)) == [Enter(Mode.SYNCED)]


def test_what_others_than_the_leader_send_as_updates_does_not_count() -> None:
    node = updating_node()
    node.hears(TWO, Update(WALL, node.epoch, RECORD))
    assert node.hears(TWO, UpdateComplete(WALL, node.epoch)) == []
    assert node.mode is Mode.UPDATE
    effects = node.hears(ONE, UpdateComplete(WALL, node.epoch))
    assert effects == [Commit(ONE, index(5), [])]


def test_after_the_commit_the_sync_queue_comes_before_the_message_queue() -> None:
    node = Node(THREE)
    node.start_round()
    for sender, serial in ((THREE, 1), (TWO, 5), (ONE, 4)):
        node.hears(sender, change(serial))
    node.hear_states({ONE: index(5), TWO: index(5), THREE: index(4)})
    for sender, serial in ((TWO, 2), (THREE, 3), (ONE, 1)):
        node.hears(sender, change(serial))
    node.hears(ONE, UpdateComplete(WALL, node.epoch))
    delivered = [effect for effect in node.machine.on_committed(ok=True) if type(effect) is Deliver]
    before = [Deliver(ONE, change(4)), Deliver(TWO, change(5))]
    meanwhile = [Deliver(TWO, change(2)), Deliver(ONE, change(1))]
    assert delivered == [*before, *meanwhile, Deliver(THREE, change(1)), Deliver(THREE, change(3))]


def test_a_commit_that_failed_makes_it_leave() -> None:
    node = updating_node()
    node.hears(ONE, change(1))
    node.hears(ONE, UpdateComplete(WALL, node.epoch))
    effects = node.machine.on_committed(ok=False)
    assert [type(effect) for effect in effects] == [Log, Leave]


def test_all_members_count_as_synced_after_the_updates() -> None:
    node = updating_node()
    node.hears(ONE, UpdateComplete(WALL, node.epoch))
    node.machine.on_committed(ok=True)
    assert node.hears(THREE, change(1)) == [Deliver(THREE, change(1))]


def test_a_synced_member_ignores_updates() -> None:
    node = synced_node(others_behind=True)
    assert node.hears(ONE, Update(WALL, node.epoch, RECORD)) == []
    assert node.hears(ONE, UpdateComplete(WALL, node.epoch)) == []


# Changes.


def test_in_sync_changes_are_delivered_at_once_whoever_sent_them() -> None:
    node = synced_node(others_behind=True)
    for sender in (*ALL, STRANGER):
        assert node.hears(sender, change(1)) == [Deliver(sender, change(1))]


def test_the_message_queue_is_in_the_order_of_serials_and_then_of_arrival() -> None:
    letters = Letters()
    arrived = [Letter(s, change(n)) for s, n in ((ONE, 2), (TWO, 1), (THREE, 2), (ONE, 1))]
    for letter in arrived:
        letters.add(letter)
    assert letters.take([TWO]) == [arrived[1]]
    assert letters.take_all() == [arrived[3], arrived[0], arrived[2]]
    assert len(letters) == 0


def test_what_processes_sent_that_are_gone_is_dropped_at_delivery() -> None:
    node = Node(TWO)
    node.start_round()
    node.hears(THREE, change(1))
    node.members(ONE, TWO)
    node.hears(ONE, SyncStart(WALL, Epoch(6, WALL, *ONE)))
    assert Deliver(THREE, change(1)) not in node.hear_states({ONE: index(1), TWO: index(1)})
    assert node.hears(ONE, UpdateComplete(WALL, node.epoch)) == []


def test_changes_get_rising_serials_in_sync_only() -> None:
    node = Node(TWO)
    with pytest.raises(Busy):
        node.machine.number(Mkdir("a"), WALL)
    node.members(TWO)
    assert node.machine.number(Mkdir("a"), 5) == Normal(5, 1, Mkdir("a"))
    node.members(*ALL)
    assert not node.machine.is_synced
    with pytest.raises(Busy):
        node.machine.number(Mkdir("b"), WALL)
    node.members(TWO)
    assert node.machine.number(Mkdir("b"), 6) == Normal(6, 2, Mkdir("b"))


def test_changes_can_not_be_numbered_while_updates_are_awaited() -> None:
    with pytest.raises(Busy):
        updating_node().machine.number(Mkdir("a"), WALL)


def test_serials_go_on_after_leaving() -> None:
    node = synced_node()
    node.machine.number(Mkdir("a"), WALL)
    assert isinstance(node.machine.leave("not quorate")[-1], Leave)
    node.machine.on_disconnected()
    node.machine.join(TWO)
    node.members(TWO)
    assert node.machine.number(Mkdir("b"), WALL).serial == 2


# Leaving.


def test_leaving_empties_the_queues() -> None:
    node = Node(TWO)
    node.start_round()
    node.hears(TWO, change(1))
    node.machine.leave("a test")
    node.machine.on_disconnected()
    node.machine.join(TWO)
    assert without_logs(node.members(TWO)) == [Enter(Mode.SYNCED)]


def test_on_the_way_out_nothing_counts() -> None:
    node = synced_node()
    node.machine.leave("a test")
    assert node.machine.leave("again") == []
    assert node.members(*ALL, STRANGER, joined=[STRANGER]) == []
    assert node.hears(ONE, change(1)) == []
    assert node.hears(ONE, SyncStart(WALL, Epoch(9, WALL, *ONE))) == []
    assert node.tick(1000) == []
    assert node.members(ONE, THREE) == []
    assert node.mode is Mode.LEFT


def test_after_a_lost_connection_it_joins_anew() -> None:
    node = synced_node()
    node.machine.on_disconnected()
    assert node.hears(ONE, change(1)) == []
    assert not node.machine.members
    node.machine.join(Member(4, 40))
    assert texts(node.members(Member(4, 40)))[0] == "members: 4/40"


def test_a_newer_protocol_makes_it_leave_for_good() -> None:
    node = synced_node()
    assert node.machine.on_other_protocol(ONE, is_newer=False) == []
    effects = node.machine.on_other_protocol(ONE, is_newer=True)
    assert [type(effect) for effect in effects] == [Log, Quit]
    assert texts(effects) == ["member 1/300 speaks a newer protocol: update this node"]
    node.machine.on_disconnected()
    assert node.mode is Mode.VERSION_ERROR
    assert node.members(*ALL, joined=ALL) == []
    assert node.machine.leave("a test") == []
    with pytest.raises(AssertionError):
        node.machine.join(TWO)


# Deadlines.


def test_the_lowest_member_starts_a_quiet_round_again_at_growing_intervals() -> None:
    node = Node(ONE)
    node.start_round()
    for number, wait in enumerate([5, 10, 20, 40, 60, 60], 2):
        assert node.tick(wait - 0.5) == []
        (effect,) = node.tick(0.5)
        assert isinstance(effect, Send)
        assert isinstance(effect.message, SyncStart)
        assert effect.message.epoch == Epoch(number, WALL + int(node.seconds), *ONE)


def test_a_state_that_comes_starts_the_wait_again() -> None:
    node = Node(ONE)
    epoch = node.start_round()
    node.tick(4)
    node.hears(TWO, State(WALL, epoch, index(1)))
    assert node.tick(4) == []
    assert len(node.tick(1)) == 1


def test_a_restart_counts_only_when_it_comes_back() -> None:
    node = Node(ONE)
    epoch = node.start_round()
    node.hears(ONE, State(WALL, epoch, index(1)))
    node.hears(TWO, State(WALL, epoch, index(1)))
    (restart,) = node.tick(5)
    assert isinstance(restart, Send)
    assert Enter(Mode.SYNCED) in node.hears(THREE, State(WALL, epoch, index(1)))
    assert node.hears(ONE, restart.message) == []


def test_a_new_membership_starts_with_the_short_wait_again() -> None:
    node = Node(ONE)
    node.start_round()
    assert len(node.tick(5)) == 1
    node.members(ONE, TWO)
    assert len(node.tick(5)) == 1


def test_another_member_leaves_a_round_that_is_silent_for_90_seconds() -> None:
    node = Node(TWO)
    node.start_round()
    node.tick(80)
    node.hears(ONE, SyncStart(WALL, Epoch(6, WALL, *ONE)))
    assert node.tick(80) == []
    node.hears(ONE, State(WALL, node.epoch, index(1)))
    assert node.tick(89) == []
    (effect,) = node.tick(1)
    assert isinstance(effect, Leave)


def test_a_member_without_updates_for_15_seconds_leaves() -> None:
    node = updating_node()
    assert node.tick(14) == []
    node.hears(ONE, Update(WALL, node.epoch, RECORD))
    assert node.tick(14) == []
    (effect,) = node.tick(1)
    assert isinstance(effect, Leave)


def test_the_lowest_member_too_leaves_for_want_of_updates() -> None:
    node = Node(ONE)
    node.start_round()
    node.hear_states({ONE: index(4), TWO: index(5), THREE: index(5)})
    (effect,) = node.tick(15)
    assert isinstance(effect, Leave)


def test_deadlines_make_it_leave_at_most_once_a_minute() -> None:
    node = updating_node()
    assert len(node.tick(15)) == 1
    node.machine.on_disconnected()
    node.machine.join(THREE)
    node.start_round()
    node.hear_states({ONE: index(5), TWO: index(5), THREE: index(4)})
    assert node.mode is Mode.UPDATE
    assert node.tick(59) == []
    assert len(node.tick(1)) == 1


def test_deadlines_can_be_changed() -> None:
    node = Node(ONE)
    node.start_round()
    node.machine.deadlines = Deadlines(restarts=(1.0,))
    assert len(node.tick(1)) == 1
    assert len(node.tick(1)) == 1


# Verification.


def test_the_lowest_member_asks_for_a_verification_once_an_hour() -> None:
    node = synced_node(ONE)
    node.tick(0)
    assert node.tick(3599) == []
    assert node.tick(1) == [Send(VerifyRequest(WALL + 3600, node.epoch, 1))]
    assert node.tick(3600) == []  # that one is unanswered
    request = VerifyRequest(WALL, node.epoch, 1)
    assert node.hears(ONE, request) == [TakeChecksum()]
    answer = Verify(WALL + 7200, node.epoch, 1, b"c" * 32)
    assert node.machine.on_checksum(b"c" * 32, at=at(node.seconds)) == [Send(answer)]
    assert node.hears(ONE, answer) == [Log("data verification successful")]
    assert node.tick(3600) == [Send(VerifyRequest(WALL + 10800, node.epoch, 2))]


def test_others_do_not_ask() -> None:
    node = synced_node(TWO)
    node.tick(0)
    assert node.tick(10_000) == []


def test_a_request_that_another_made_delays_ours() -> None:
    node = synced_node(TWO)
    node.tick(0)
    node.tick(3000)
    node.hears(ONE, VerifyRequest(WALL, node.epoch, 1))
    node.members(TWO)
    assert node.tick(3599) == []
    assert len(node.tick(1)) == 1


def test_the_status_group_is_not_verified() -> None:
    node = Node(ONE, Group.STATUS)
    node.members(ONE)
    node.tick(0)
    assert node.tick(10_000) == []


def test_only_the_requester_answers() -> None:
    node = synced_node(TWO)
    assert node.hears(ONE, VerifyRequest(WALL, node.epoch, 4)) == [TakeChecksum()]
    assert node.machine.on_checksum(b"c" * 32, at=at(0)) == []
    effects = node.hears(ONE, Verify(WALL, node.epoch, 4, b"c" * 32))
    assert effects == [Log("data verification successful")]


def test_another_checksum_makes_it_leave_and_tells_both() -> None:
    node = synced_node(TWO)
    node.hears(ONE, VerifyRequest(WALL, node.epoch, 4))
    node.machine.on_checksum(b"\x0c" * 32, at=at(0))
    effects = node.hears(ONE, Verify(WALL, node.epoch, 4, b"\x0d" * 32))
    assert isinstance(effects[-1], Leave)
    assert "0c" * 32 in effects[-1].reason
    assert "0d" * 32 in effects[-1].reason


def test_in_another_mode_request_and_answer_are_ignored() -> None:
    node = updating_node()
    assert node.hears(ONE, VerifyRequest(WALL, node.epoch, 1)) == []
    node.hears(ONE, UpdateComplete(WALL, node.epoch))
    node.machine.on_committed(ok=True)
    assert node.hears(ONE, Verify(WALL, node.epoch, 1, bytes(32))) == []
    assert node.mode is Mode.SYNCED


@pytest.mark.parametrize(("sender", "number"), [(TWO, 1), (ONE, 2)])
def test_an_answer_to_something_else_is_ignored(sender: Member, number: int) -> None:
    node = synced_node(THREE)
    node.hears(ONE, VerifyRequest(WALL, node.epoch, 1))
    node.machine.on_checksum(b"c" * 32, at=at(0))
    assert node.hears(sender, Verify(WALL, node.epoch, number, bytes(32))) == []


def test_a_membership_change_settles_an_unanswered_request() -> None:
    node = synced_node(ONE)
    node.tick(0)
    assert len(node.tick(3600)) == 1
    node.start_round()
    node.hear_states(dict.fromkeys(ALL, index(5)))
    assert node.hears(ONE, Verify(WALL, node.epoch, 1, bytes(32))) == []
    assert node.tick(3600) == [Send(VerifyRequest(WALL + 7200, node.epoch, 2))]
