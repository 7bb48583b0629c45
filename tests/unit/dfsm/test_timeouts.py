"""The state machine: leaving the group, deadlines, and verification of checksums."""

import pytest

from pmxcfs.dfsm.effects import (
    Enter,
    Leave,
    Log,
    Mode,
    Quit,
    Send,
    TakeChecksum,
)
from pmxcfs.dfsm.timeouts import Deadlines
from pmxcfs.messages import (
    Epoch,
    Group,
    Member,
    State,
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
    at,
    change,
    index,
    synced_node,
    texts,
    updating_node,
    without_logs,
)

# Leaving.


def test_leaving_empties_the_queues() -> None:
    node = Node(TWO)
    node.start_round()
    node.hears(TWO, change(1))
    node.machine.leave("a test")
    node.machine.on_disconnected()
    node.machine.join(TWO)
    assert without_logs(node.members(TWO)) == [Enter(Mode.SYNCED)]


def test_events_after_a_leave_are_ignored() -> None:
    node = synced_node()
    node.machine.leave("a test")
    assert node.machine.leave("again") == []
    assert node.members(*ALL, STRANGER, joined=[STRANGER]) == []
    assert node.hears(ONE, change(1)) == []
    assert node.hears(ONE, SyncStart(WALL, Epoch(9, WALL, *ONE))) == []
    assert node.tick(1000) == []
    assert node.members(ONE, THREE) == []
    assert node.mode is Mode.LEFT


def test_a_node_can_join_again_after_a_lost_connection() -> None:
    node = synced_node()
    node.machine.on_disconnected()
    assert node.hears(ONE, change(1)) == []
    assert not node.machine.members
    node.machine.join(Member(4, 40))
    assert texts(node.members(Member(4, 40)))[0] == "members: 4/40"


def test_a_newer_protocol_makes_the_node_leave_for_good() -> None:
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


def test_a_delivered_state_resets_the_deadline() -> None:
    node = Node(ONE)
    epoch = node.start_round()
    node.tick(4)
    node.hears(TWO, State(WALL, epoch, index(1)))
    assert node.tick(4) == []
    assert len(node.tick(1)) == 1


def test_a_restart_takes_effect_only_when_it_is_delivered() -> None:
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


def test_the_lowest_member_leaves_without_updates_too() -> None:
    node = Node(ONE)
    node.start_round()
    node.hear_states({ONE: index(4), TWO: index(5), THREE: index(5)})
    (effect,) = node.tick(15)
    assert isinstance(effect, Leave)


def test_deadlines_make_the_node_leave_at_most_once_a_minute() -> None:
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


def test_the_lowest_member_requests_a_verification_once_an_hour() -> None:
    node = synced_node(ONE)
    node.tick(0)
    assert node.tick(3599) == []
    assert node.tick(1) == [Send(VerifyRequest(WALL + 3600, node.epoch, 1))]
    assert node.tick(3600) == []  # the first request is unanswered
    request = VerifyRequest(WALL, node.epoch, 1)
    assert node.hears(ONE, request) == [TakeChecksum()]
    answer = Verify(WALL + 7200, node.epoch, 1, b"c" * 32)
    assert node.machine.on_checksum(b"c" * 32, at=at(node.seconds)) == [Send(answer)]
    assert node.hears(ONE, answer) == [Log("data verification successful", kind="verified")]
    assert node.tick(3600) == [Send(VerifyRequest(WALL + 10800, node.epoch, 2))]


def complete_updates(node: Node) -> None:
    """Deliver the end of the first member's UPDATEs."""
    node.hears(ONE, UpdateComplete(WALL, node.epoch))


def test_a_round_with_updates_is_verified_three_seconds_later() -> None:
    node = synced_node(ONE, others_behind=True)
    assert node.tick(10) == []  # the updates are not complete
    complete_updates(node)
    assert node.tick(2.9) == []
    assert node.tick(0.1) == [Send(VerifyRequest(WALL + 13, node.epoch, 1))]
    node.hears(ONE, VerifyRequest(WALL, node.epoch, 1))
    node.machine.on_checksum(bytes(32), at=at(node.seconds))
    node.hears(ONE, Verify(WALL, node.epoch, 1, bytes(32)))
    assert node.tick(3599) == []  # once only
    assert len(node.tick(1)) == 1  # an hour after the last request


def test_a_lowest_member_that_got_updates_requests_the_verification_too() -> None:
    node = Node(ONE)
    node.start_round()
    node.hear_states({ONE: index(4), TWO: index(5), THREE: index(5)})
    node.hears(TWO, UpdateComplete(WALL, node.epoch))
    assert node.tick(2.9) == []
    node.machine.on_committed(ok=True)
    assert node.tick(0.1) == [Send(VerifyRequest(WALL + 3, node.epoch, 1))]


def test_a_round_without_updates_is_not_verified() -> None:
    node = synced_node(ONE)
    complete_updates(node)
    assert node.tick(60) == []


def test_only_the_lowest_member_verifies_a_round_with_updates() -> None:
    node = synced_node(TWO, others_behind=True)
    complete_updates(node)
    assert node.tick(60) == []


def test_a_new_round_settles_the_verification_of_the_last() -> None:
    node = synced_node(ONE, others_behind=True)
    complete_updates(node)
    node.start_round()
    node.hear_states(dict.fromkeys(ALL, index(5)))
    complete_updates(node)
    assert node.tick(60) == []


def test_the_verification_after_updates_waits_for_an_unanswered_request() -> None:
    node = synced_node(ONE, others_behind=True)
    node.machine.deadlines = Deadlines(verification=1.0)
    node.tick(0)
    assert len(node.tick(1)) == 1
    complete_updates(node)
    assert node.tick(60) == []
    node.hears(ONE, Verify(WALL, node.epoch, 1, bytes(32)))
    assert len(node.tick(0)) == 1


def test_other_members_request_no_verification() -> None:
    node = synced_node(TWO)
    node.tick(0)
    assert node.tick(10_000) == []


def test_a_verification_request_of_a_peer_delays_the_next_own_request() -> None:
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
    assert effects == [Log("data verification successful", kind="verified")]


def test_a_different_checksum_makes_the_node_leave_and_is_logged() -> None:
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
def test_an_answer_to_another_request_is_ignored(sender: Member, number: int) -> None:
    node = synced_node(THREE)
    node.hears(ONE, VerifyRequest(WALL, node.epoch, 1))
    node.machine.on_checksum(b"c" * 32, at=at(0))
    assert node.hears(sender, Verify(WALL, node.epoch, number, bytes(32))) == []


def test_a_membership_change_drops_an_unanswered_request() -> None:
    node = synced_node(ONE)
    node.tick(0)
    assert len(node.tick(3600)) == 1
    node.start_round()
    node.hear_states(dict.fromkeys(ALL, index(5)))
    assert node.hears(ONE, Verify(WALL, node.epoch, 1, bytes(32))) == []
    assert node.tick(3600) == [Send(VerifyRequest(WALL + 7200, node.epoch, 2))]
