"""The state machine: each rule of docs/spec/cluster.md, "State machine"."""

import logging
import sys

import pytest

from pmxcfs.dfsm.effects import (
    Commit,
    Deliver,
    Enter,
    Leave,
    Log,
    Merge,
    Mode,
    Send,
    SendState,
    SendUpdates,
)
from pmxcfs.errors import Busy
from pmxcfs.messages import (
    Epoch,
    Group,
    Member,
    Mkdir,
    Normal,
    State,
    StateMessage,
    SyncStart,
    Update,
    UpdateComplete,
    Verify,
    VerifyRequest,
)
from tests.fakes.simulation.single_machine import (
    ALL,
    ONE,
    RECORD,
    STRANGER,
    THREE,
    TWO,
    WALL,
    Node,
    change,
    index,
    synced_node,
    texts,
    updating_node,
    without_logs,
)

# Membership changes.


def test_messages_before_the_first_membership_are_ignored() -> None:
    node = Node(TWO)
    assert node.mode is Mode.START
    assert node.hears(ONE, change(1)) == []
    assert node.hears(ONE, SyncStart(WALL, Epoch(1, WALL, *ONE))) == []


def test_a_single_member_is_synced() -> None:
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


def test_another_member_with_this_node_s_id_is_an_error_in_the_log() -> None:
    node, twin = Node(TWO), Member(TWO.nodeid, TWO.pid + 1)
    effects = node.members(ONE, TWO, twin, joined=[twin])
    (error,) = [each for each in effects if isinstance(each, Log) and each.level == logging.ERROR]
    assert error.text.startswith(f"member {twin} has this node's id: stop the other daemon")
    assert node.machine.twins == [twin]
    assert texts(node.members(ONE, TWO)) == [f"members: {ONE}, {TWO}"]
    assert node.machine.twins == []


def test_of_two_members_with_one_id_the_one_with_the_lower_pid_starts_the_round() -> None:
    twins = TWO, Member(TWO.nodeid, TWO.pid + 1)
    starts = [without_logs(Node(each).members(*twins, joined=twins)) for each in twins]
    assert [[type(effect) for effect in effects] for effects in starts] == [[Enter, Send], [Enter]]


def test_other_members_wait_for_the_sync_start() -> None:
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


def test_a_single_member_delivers_its_own_queued_changes_and_drops_the_others() -> None:
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


def test_a_membership_change_without_this_node_makes_the_node_leave() -> None:
    node = synced_node()
    effects = node.members(ONE, THREE)
    assert [type(effect) for effect in effects] == [Log, Leave]
    assert node.mode is Mode.LEFT


# SYNC_START.


@pytest.mark.parametrize("sender", ALL)
def test_a_sync_start_of_any_member_counts(sender: Member) -> None:
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


def hear_other_round(node: Node, number: int, *answers: Member) -> None:
    """Let the first member begin a round that *node*, which is synced, does not know."""
    epoch = Epoch(number, WALL, *ONE)
    assert node.hears(ONE, SyncStart(WALL, epoch)) == []
    for member in answers:
        assert node.hears(member, State(WALL, epoch, index(5))) == []


def test_a_synced_node_leaves_if_all_others_wait_for_it_in_a_round_that_it_does_not_know() -> None:
    node = synced_node()
    hear_other_round(node, 6, ONE, THREE)
    assert node.tick(2) == []
    (effect,) = node.tick(1)
    assert effect == Leave("all other members wait for this node in a round that it does not know")
    assert node.mode is Mode.LEFT


def test_a_node_leaves_for_that_reason_once_a_minute_at_most() -> None:
    node = synced_node()
    hear_other_round(node, 6, ONE, THREE)
    assert node.tick(3)
    node.machine.join(TWO)
    node.start_round()
    node.hear_states(dict.fromkeys(ALL, index(5)))
    hear_other_round(node, 7, ONE, THREE)
    assert node.tick(50) == []
    assert len(node.tick(10)) == 1


@pytest.mark.parametrize("answers", [(), (ONE,)], ids=["late restart", "a member alone"])
def test_a_round_that_not_all_others_are_in_is_ignored(answers: tuple[Member, ...]) -> None:
    """A member that waits for another one, which is dead, gets the states of no healthy node."""
    node = synced_node()
    for number in range(6, 10):
        hear_other_round(node, number, *answers)
        assert node.tick(10) == []
    assert node.mode is Mode.SYNCED


def test_a_membership_change_ends_the_waiting_for_a_synced_node() -> None:
    node = synced_node()
    hear_other_round(node, 6, ONE, THREE)
    node.members(*ALL)
    node.start_round()
    node.hear_states(dict.fromkeys(ALL, index(5)))
    assert node.tick(10) == []


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


def test_a_state_of_a_process_that_is_no_member_makes_the_node_leave() -> None:
    node = Node(TWO)
    epoch = node.start_round()
    effects = node.hears(STRANGER, State(WALL, epoch, index(1)))
    assert isinstance(effects[-1], Leave)


def test_a_second_state_of_one_member_makes_the_node_leave() -> None:
    node = Node(TWO)
    epoch = node.start_round()
    assert node.hears(ONE, State(WALL, epoch, index(1))) == []
    assert isinstance(node.hears(ONE, State(WALL, epoch, index(1)))[-1], Leave)
    assert isinstance(synced_node().hears(ONE, State(WALL, epoch, index(1)))[-1], Leave)


@pytest.mark.parametrize(
    "payload",
    [b"", index(1)[:-1], index(1, entries=1)[:-40], index(1, entries=1)[:-80] + bytes(80)],
    ids=["empty", "cut", "entry missing", "root twice"],
)
def test_a_state_that_is_no_index_is_dropped(payload: bytes) -> None:
    node = Node(TWO)
    epoch = node.start_round()
    (text,) = texts(node.hears(ONE, State(WALL, epoch, payload)))
    assert text.startswith("member 1/300 sent an invalid state: ")
    assert node.mode is Mode.START_SYNC
    assert node.hears(ONE, State(WALL, epoch, index(1))) == []


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
    assert effects == [Commit(ONE, index(5), [RECORD], agreed=frozenset([ONE, TWO]))]
    assert without_logs(node.machine.on_committed(ok=True)) == [Enter(Mode.SYNCED)]


def test_updates_of_other_members_than_the_leader_are_ignored() -> None:
    node = updating_node()
    node.hears(TWO, Update(WALL, node.epoch, RECORD))
    assert node.hears(TWO, UpdateComplete(WALL, node.epoch)) == []
    assert node.mode is Mode.UPDATE
    effects = node.hears(ONE, UpdateComplete(WALL, node.epoch))
    assert effects == [Commit(ONE, index(5), [], agreed=frozenset([ONE, TWO]))]


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


def test_a_commit_that_failed_makes_the_node_leave() -> None:
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


# Memory.


def hear_states_of(node: Node, *versions: int) -> list[bytes]:
    """Deliver a STATE of each member, with a tree of these *versions*; return the payloads."""
    payloads = [index(version) for version in versions]
    node.hear_states(dict(zip(ALL, payloads, strict=True)))
    return payloads


def is_kept(payloads: list[bytes]) -> list[bool]:
    """Tell of each of *payloads* whether anything but the list refers to it."""
    alone = [index(1)]
    counts = [sys.getrefcount(payloads[place]) for place in range(len(payloads))]
    return [count > sys.getrefcount(alone[0]) for count in counts]


@pytest.mark.parametrize("me", [ONE, TWO])
def test_a_synced_member_keeps_no_state_after_the_decision(me: Member) -> None:
    node = Node(me)
    node.start_round()
    payloads = hear_states_of(node, 5, 5, 4)
    assert node.mode is Mode.SYNCED
    assert is_kept(payloads) == [False] * 3


def test_a_member_that_waits_for_updates_keeps_the_leader_s_state_only() -> None:
    node = Node(THREE)
    node.start_round()
    payloads = hear_states_of(node, 5, 3, 4)
    assert node.mode is Mode.UPDATE
    assert is_kept(payloads) == [True, False, False]


def test_nothing_of_the_updates_is_kept_after_the_commit() -> None:
    node = Node(THREE)
    node.start_round()
    kept = hear_states_of(node, 5, 5, 4)
    kept.append(index(7))
    node.hears(ONE, Update(WALL, node.epoch, RECORD._replace(data=kept[-1])))
    assert is_kept(kept) == [True, False, False, True]
    node.hears(ONE, UpdateComplete(WALL, node.epoch))
    node.machine.on_committed(ok=True)
    assert is_kept(kept) == [False] * 4


def test_the_status_group_keeps_no_state_after_the_merge() -> None:
    node = Node(ONE, Group.STATUS)
    node.start_round()
    payloads = hear_states_of(node, 1, 2, 3)
    assert node.mode is Mode.SYNCED
    assert is_kept(payloads) == [False] * 3


@pytest.mark.parametrize("group", list(Group))
def test_a_state_after_the_decision_makes_the_node_leave(group: Group) -> None:
    node = Node(TWO, group)
    node.start_round()
    node.hear_states(dict.fromkeys(ALL, index(5)))
    effects = node.hears(THREE, State(WALL, node.epoch, index(5)))
    assert isinstance(effects[-1], Leave)


# Changes.


def test_in_sync_changes_of_any_sender_are_delivered_at_once() -> None:
    node = synced_node(others_behind=True)
    for sender in (*ALL, STRANGER):
        assert node.hears(sender, change(1)) == [Deliver(sender, change(1))]


def test_changes_of_processes_that_left_are_dropped_at_delivery() -> None:
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


def test_members_have_one_content_once_the_leader_has_sent_its_last_update() -> None:
    node = synced_node(others_behind=True)
    assert set(node.machine.agreed) == {ONE, TWO}
    assert not node.machine.is_common
    node.hears(ONE, UpdateComplete(WALL, node.epoch))
    assert node.machine.is_common
    assert set(node.machine.agreed) == {ONE, TWO}


def test_a_node_that_gets_updates_knows_who_had_the_leaders_content() -> None:
    node = updating_node()
    assert not node.machine.is_common
    node.hears(ONE, UpdateComplete(WALL, node.epoch))
    node.machine.on_committed(ok=True)
    assert node.machine.is_common
    assert set(node.machine.agreed) == {ONE, TWO}


def test_a_membership_change_ends_the_agreement() -> None:
    node = synced_node()
    node.members(ONE, TWO)
    assert not node.machine.is_common
    assert not node.machine.agreed
