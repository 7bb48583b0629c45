"""A group's thread: connecting, batching, ownership, leaving and rejoining, on a fake corosync."""

import functools
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pmxcfs.cluster import tree_group
from pmxcfs.cluster.group import JOIN_PAUSE, LEAVE_TIMEOUT
from pmxcfs.cluster.sender import MOST_CHANGES_IN_FLIGHT, MOST_IN_FLIGHT
from pmxcfs.dfsm.effects import Commit, Mode
from pmxcfs.dfsm.timeouts import Deadlines
from pmxcfs.errors import ClusterError, NoCopy, StoreError, TryAgain
from pmxcfs.messages import (
    Create,
    Epoch,
    Group,
    Member,
    Mkdir,
    Normal,
    State,
    SyncStart,
    Update,
    UpdateComplete,
    Verify,
    VerifyRequest,
)
from pmxcfs.replica.waiting import RequestWatch
from tests.fakes.doubles.corosync import NO_ROOM, PATIENCE
from tests.fakes.doubles.group import OTHER, RECORD, REJOIN, Node, changes, index
from tests.fakes.doubles.yielding import NO_WATCH

LOWER = Member(0, 50)
DOWN = ClusterError("cpg_initialize", 2, "corosync is not there")


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.thread.close()
    assert not made.thread.is_alive


@pytest.fixture
def status_node() -> Iterator[Node]:
    made = Node(Group.STATUS)
    yield made
    made.thread.close()
    assert not made.thread.is_alive


# The life of a membership.


def test_a_node_alone_is_synced_and_sends(node: Node) -> None:
    node.start()
    assert node.thread.mode is Mode.SYNCED
    node.source.bodies = [Mkdir("a"), Mkdir("b")]
    node.thread.wake()
    node.world.wait_until(lambda: len(node.content.delivered) == 2)
    assert node.content.delivered == [Mkdir("a"), Mkdir("b")]
    assert list(node.thread.members) == [node.world.me]
    assert node.thread.sent_bytes > 0


def test_a_stop_leaves_the_group(node: Node) -> None:
    node.start()
    node.thread.close()
    assert node.world.handle.calls[-2:] == ["leave", "close"]
    assert node.content.left == 1
    assert node.content.members[-1] == []


def test_a_stop_does_not_wait_for_a_confirmation_that_does_not_come(node: Node) -> None:
    node.start()
    node.world.says_goodbye = False
    before = time.monotonic()
    node.thread.close()
    assert time.monotonic() - before < LEAVE_TIMEOUT


@pytest.mark.expect_log("corosync is not there")
def test_an_outage_is_logged_once_and_so_is_its_end(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    node.world.fail("connect", DOWN, DOWN, DOWN)
    node.thread.set_deadlines(replace(Deadlines(), rejoin=0.02))
    node.start()
    outages = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in outages] == [
        "cpg_initialize: corosync is not there (code 2); connecting again every 0 s"
    ]
    assert caplog.messages.count("connected to corosync again") == 1
    assert len(node.world.handles) == 4
    assert all(handle.is_closed for handle in node.world.handles[:3])


def is_logged(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in line for line in caplog.messages)


@pytest.mark.expect_log("corosync is not there")
def test_an_outage_is_logged_again_when_its_explanation_is_known(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.world.fail("connect", *[DOWN] * 1000)
    node.thread.set_deadlines(replace(Deadlines(), rejoin=0.001))
    node.thread.start()
    for explanation in ("", "its file is empty", "its file is broken"):
        node.explanation = explanation
        middle = f" {explanation};" if explanation else ""
        told = f"corosync is not there (code 2);{middle} connecting again every 0 s"
        node.world.wait_until(functools.partial(is_logged, caplog, told))
    assert len(caplog.messages) == 3
    assert node.thread.corosync_error == "cpg_initialize: corosync is not there (code 2)"


@pytest.mark.expect_log("the connection is gone")
def test_a_lost_connection_is_replaced_not_too_soon(node: Node) -> None:
    joined = time.monotonic()
    node.start()
    node.world.handle.break_off()
    node.until_connected(2)
    assert time.monotonic() - joined >= REJOIN
    node.until_synced(2)
    assert node.content.left == 1
    assert node.world.handles[0].is_closed
    assert "leave" not in node.world.handles[0].calls


def test_a_join_is_retried_until_corosync_is_ready(node: Node) -> None:
    node.world.fail("join", *[TryAgain("cpg_join", 6, "try again")] * 2)
    node.start()
    assert node.world.handle.calls[:4] == ["connect", "join", "join", "join"]


@pytest.mark.expect_log("the connection is gone")
def test_the_time_between_two_joins_begins_when_the_first_succeeds(node: Node) -> None:
    attempts = 4
    node.world.fail("join", *[TryAgain("cpg_join", 6, "try again")] * attempts)
    began = time.monotonic()
    node.start()
    node.world.handle.break_off()
    node.until_connected(2)
    assert time.monotonic() - began >= attempts * JOIN_PAUSE + REJOIN


@pytest.mark.expect_log("leaving the group")
def test_leaving_waits_for_its_confirmation_and_rejoins_after_a_while(node: Node) -> None:
    joined = time.monotonic()
    node.start()
    node.content.is_quorate = False
    node.world.deliver(OTHER, *changes(1))
    node.until_connected(2)
    assert time.monotonic() - joined >= REJOIN
    first = node.world.handles[0]
    assert first.calls[-2:] == ["leave", "close"]
    assert not node.content.delivered
    node.content.is_quorate = True
    node.until_synced(2)


@pytest.mark.expect_log("a membership change removed this node")
def test_an_expelled_node_joins_again(node: Node) -> None:
    node.start()
    node.world.handle.expel()
    node.until_connected(2)
    node.until_synced(2)


@pytest.mark.expect_log("which is a bug")
def test_a_bug_costs_one_membership_only(node: Node) -> None:
    node.start()
    node.content.crash = RuntimeError("a bug")
    node.world.deliver(OTHER, *changes(1))
    node.until_synced(2)
    node.world.deliver(OTHER, *changes(1))
    node.world.wait_until(lambda: bool(node.content.delivered))


@pytest.mark.expect_log("update this node")
def test_a_newer_protocol_ends_the_thread(node: Node) -> None:
    node.start()
    newer = bytes([0, 0, 1, 0, 99]) + bytes(40)
    node.world.handle.put(OTHER, newer)
    node.world.wait_until(lambda: node.content.left == 1)
    assert node.thread.mode is Mode.VERSION_ERROR
    assert len(node.world.handles) == 1


# Messages.


def test_pending_messages_are_applied_together(node: Node) -> None:
    node.start()
    with node.world.changed:  # the thread can take none of them before all are there
        node.world.deliver(OTHER, *changes(100))
    node.world.wait_until(lambda: len(node.content.delivered) == 100)
    assert len(node.content.batches) == 1
    assert node.content.delivered == [Create(f"{number}") for number in range(1, 101)]


def test_a_flood_is_applied_in_bursts(node: Node) -> None:
    node.start()
    with node.world.changed:
        node.world.deliver(OTHER, *changes(1000))
    node.world.wait_until(lambda: len(node.content.delivered) == 1000)
    assert [len(batch) for batch in node.content.batches] == [256, 256, 256, 232]


@pytest.mark.expect_log("dropped a message of member 2/200")
def test_a_message_that_can_t_be_decoded_is_dropped_and_counted(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.start()
    hostile = [
        b"",
        b"\0" * 15,
        bytes([77, 0, 0, 0, 1]) + bytes(60),
        bytes([0, 0, 77, 0, 1]) + bytes(60),
    ]
    for data in hostile:
        node.world.handle.put(OTHER, data)
    node.world.deliver(OTHER, *changes(1))
    node.world.wait_until(lambda: bool(node.content.delivered))
    assert node.thread.dropped == len(hostile)
    assert len([line for line in caplog.messages if "dropped a message" in line]) == 1
    assert len(node.world.handles) == 1


# Ownership by a request thread.


class Own:
    """A change of this node that a request thread waits for."""

    def __init__(self, node: Node, name: str) -> None:
        self._content = node.content
        self._body = Mkdir(name)
        node.source.bodies.append(self._body)

    @property
    def is_done(self) -> bool:
        return self._body in self._content.delivered

    @is_done.setter
    def is_done(self, value: bool) -> None:
        raise AssertionError("only its delivery finishes the change")


def dispatch_until(
    node: Node, name: str = "mine", *, watch: RequestWatch = NO_WATCH
) -> threading.Thread:
    """Start a request thread that sends a change and waits for its delivery."""
    own = Own(node, name)
    thread = threading.Thread(target=node.thread.dispatch_until, args=(own, PATIENCE, watch))
    thread.start()
    return thread


def until_in_flight(node: Node) -> None:
    node.world.wait_until(lambda: node.source.sent_count > 0, "a change to be sent")


def test_a_request_thread_sends_and_dispatches_its_change(node: Node) -> None:
    node.start()
    node.thread.dispatch_until(Own(node, "mine"), PATIENCE, NO_WATCH)
    assert node.content.delivered == [Mkdir("mine")]
    assert node.content.threads == [threading.get_ident()]


def test_the_group_s_thread_goes_on_after_a_request_thread(node: Node) -> None:
    node.start()
    node.thread.dispatch_until(Own(node, "mine"), PATIENCE, NO_WATCH)
    node.world.deliver(OTHER, *changes(1))
    node.world.wait_until(lambda: len(node.content.delivered) == 2)
    assert node.content.threads[1] != threading.get_ident()


def test_a_request_thread_gives_up_after_its_time(node: Node) -> None:
    node.start()
    node.world.echoes = False
    started = time.monotonic()
    node.thread.dispatch_until(Own(node, "mine"), 0.05, NO_WATCH)
    assert 0.05 <= time.monotonic() - started < PATIENCE
    assert node.source.sent_count == 1


def test_one_request_thread_sends_for_all(node: Node) -> None:
    node.start()
    node.world.echoes = False
    first = dispatch_until(node, "first")
    until_in_flight(node)
    # Returns at once, and the first request thread sends the change.
    node.thread.dispatch_until(Own(node, "second"), PATIENCE, NO_WATCH)
    node.world.wait_until(lambda: node.source.sent_count == 2)
    bodies = [m.body for m in node.world.messages if isinstance(m, Normal)]
    assert bodies == [Mkdir("first"), Mkdir("second")]
    node.world.deliver(node.world.me, *node.world.messages)
    first.join(PATIENCE)
    assert not first.is_alive()


@pytest.mark.expect_log("which is a bug")
def test_the_group_s_thread_raises_an_error_of_a_request_thread(node: Node) -> None:
    node.start()
    node.content.crash = RuntimeError("a bug")
    node.thread.dispatch_until(Own(node, "mine"), PATIENCE, NO_WATCH)
    node.until_synced(2)
    assert node.content.left == 1


@pytest.mark.expect_log("the connection is gone")
def test_a_connection_lost_by_a_request_thread_is_replaced(node: Node) -> None:
    node.start()
    node.world.echoes = False
    waiting = dispatch_until(node)
    until_in_flight(node)
    node.world.handle.break_off()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    node.until_synced(2)


def test_a_round_is_left_to_the_group_s_thread(node: Node) -> None:
    node.start()
    node.world.echoes = False
    waiting = dispatch_until(node)
    until_in_flight(node)
    node.world.echoes = True
    node.meet(OTHER)
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_a_thread_that_computes_a_checksum_stops_watching(node: Node) -> None:
    node.start()
    node.world.echoes = False
    called = threading.Event()
    with open(os.eventfd(0), "rb") as requests:
        waiting = dispatch_until(
            node, watch=RequestWatch(requests.fileno(), called.set, is_active=True)
        )
        until_in_flight(node)
        assert not called.is_set()
        node.world.deliver(node.world.me, VerifyRequest(0, node.thread.dfsm.epoch, 1))
        assert called.wait(PATIENCE)
        node.world.deliver(node.world.me, *node.world.messages)
        waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_a_stop_ends_the_wait_of_a_request_thread(node: Node) -> None:
    node.start()
    node.world.echoes = False
    waiting = dispatch_until(node)
    until_in_flight(node)
    node.thread.close()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_with_many_messages_in_flight_a_request_thread_waits_for_a_delivery(node: Node) -> None:
    node.start()
    node.world.echoes = False
    node.source.bodies = [Mkdir(f"{number}") for number in range(MOST_CHANGES_IN_FLIGHT)]
    node.thread.wake()
    node.world.wait_until(lambda: node.source.sent_count == MOST_CHANGES_IN_FLIGHT)
    node.thread.dispatch_until(Own(node, "one more"), 0.05, NO_WATCH)
    assert node.source.sent_count == MOST_CHANGES_IN_FLIGHT
    waiting = dispatch_until(node, "another")
    node.world.echoes = True
    node.world.deliver(node.world.me, *node.world.messages)
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert node.content.delivered[-2:] == [Mkdir("one more"), Mkdir("another")]


def updates_of(node: Node) -> list[Update]:
    return [message for message in node.world.messages if isinstance(message, Update)]


def test_updates_are_left_to_the_group_s_thread(node: Node) -> None:
    """They can take long: a large one is sent in parts, each of which waits for corosync."""
    node.start()
    node.content.records = [RECORD._replace(inode=number) for number in range(2 * MOST_IN_FLIGHT)]
    sent_by: list[int] = []
    node.world.on_sent = lambda message: sent_by.append(threading.get_ident())
    epoch = node.meet(OTHER)
    node.world.echoes = False
    node.world.deliver(OTHER, State(0, epoch, index(3)))
    node.world.wait_until(lambda: len(updates_of(node)) >= MOST_IN_FLIGHT)
    sent_by.clear()
    node.world.echoes = True
    node.thread.dispatch_until(Own(node, "mine"), PATIENCE, NO_WATCH)
    node.world.deliver(node.world.me, *updates_of(node))
    node.until_sent(UpdateComplete)
    assert [update.record for update in updates_of(node)] == node.content.records
    node.world.wait_until(lambda: node.content.delivered == [Mkdir("mine")])
    assert threading.get_ident() not in sent_by


# Rounds.


def test_a_leader_sends_updates_of_what_differs(node: Node) -> None:
    node.start()
    epoch = node.meet(OTHER)
    node.world.deliver(OTHER, State(0, epoch, index(3)))
    node.until_sent(UpdateComplete)
    kinds = [type(message) for message in node.world.messages]
    assert kinds == [SyncStart, State, Update, UpdateComplete]
    assert node.thread.mode is Mode.SYNCED


@pytest.mark.expect_log("no member has a tree with all its entries, so this node's is to lead")
def test_a_tree_that_must_not_lead_is_announced_anew_if_it_is_to_lead(node: Node) -> None:
    node.start()
    node.content.is_hidden = True
    epoch = node.meet(OTHER)
    node.world.others.clear()
    node.world.deliver(OTHER, State(0, epoch, index(3)))
    node.until_connected(2)
    node.until_synced(2)
    assert not [message for message in node.world.messages if isinstance(message, Update)]


def test_a_follower_adopts_the_leader_s_tree(node: Node) -> None:
    node.start()
    epoch = node.meet(OTHER)
    node.world.deliver(
        OTHER, State(0, epoch, index(7)), Update(0, epoch, RECORD), UpdateComplete(0, epoch)
    )
    node.world.wait_until(lambda: bool(node.content.commits))
    (commit,) = node.content.commits
    assert (commit.leader, commit.state, commit.records) == (OTHER, index(7), [RECORD])
    node.until_synced(2)


@pytest.mark.expect_log("could not be adopted: the disk is full")
@pytest.mark.expect_log("leaving the group")
def test_a_tree_that_can_t_be_adopted_is_requested_again(node: Node) -> None:
    node.start()
    node.content.commit_failure = StoreError("the disk is full")
    epoch = node.meet(OTHER)
    node.world.others.clear()
    node.world.deliver(OTHER, State(0, epoch, index(7)), UpdateComplete(0, epoch))
    node.until_connected(2)
    node.until_synced(2)
    assert not node.content.commits


def fail_to_copy(node: Node, *, times: int) -> None:
    """Let the node lose changes that it can't copy, for the *times*-th time."""
    node.content.commit_failure = NoCopy("the disk is full")
    epoch = node.meet(OTHER)
    node.world.others.clear()
    node.world.deliver(OTHER, State(0, epoch, index(7)), UpdateComplete(0, epoch))
    node.world.wait_until(lambda: node.content.left >= times, "left")


@pytest.mark.expect_log("can't be copied: the disk is full; staying out of the cluster")
def test_a_node_that_can_t_copy_its_changes_stays_out_until_it_can(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tree_group, "FIRST_COPY_WAIT", PATIENCE)
    monkeypatch.setattr(tree_group, "TRIAL_INTERVAL", 0.01)
    node.start()
    fail_to_copy(node, times=1)
    node.world.wait_until(lambda: node.content.trials > 10, "trials")
    assert isinstance(node.thread, tree_group.TreeGroup)
    assert node.thread.copy_error == "the disk is full"
    assert len(node.world.handles) == 1
    node.content.commit_failure = None
    node.content.has_room = True
    node.until_synced(2)
    assert len(node.world.handles) == 2
    node.world.wait_until(lambda: getattr(node.thread, "copy_error", "") == "", "no error")
    assert len(caplog.records) == 1


@pytest.mark.expect_log("can't be copied: the disk is full; staying out of the cluster")
def test_the_wait_for_a_copy_doubles_up_to_five_minutes(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.content.commit_failure = NoCopy("the disk is full")
    waits = []
    for _ in range(8):
        getattr(node.thread, "_commit")(Commit(OTHER, b"", [], agreed=[OTHER]))  # noqa: B009
        waits.append(getattr(node.thread, "_copy_wait"))  # noqa: B009
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300]
    assert len(caplog.records) == 1


def test_a_change_waits_for_the_end_of_the_round(node: Node) -> None:
    node.start()
    epoch = node.meet(OTHER)
    node.source.bodies = [Mkdir("a")]
    node.thread.wake()
    node.world.deliver(OTHER, VerifyRequest(0, epoch, 1))  # another message to process
    assert node.source.sent_count == 0
    node.world.deliver(OTHER, State(0, epoch, index(5)))
    node.world.wait_until(lambda: node.content.delivered == [Mkdir("a")])
    kinds = [type(message) for message in node.world.messages]
    assert kinds == [SyncStart, State, Normal, Update, UpdateComplete]


def test_a_new_membership_drops_unsent_messages_of_the_round(node: Node) -> None:
    node.start()
    node.world.fail("mcast", *[NO_ROOM] * 3)
    first = node.meet(OTHER, Member(3, 300))
    with node.world.changed:
        node.world.fail("mcast", *[NO_ROOM] * 1000)
        node.world.deliver(OTHER, SyncStart(0, Epoch(1, 1, *OTHER)))
    calls = node.world.handle.calls
    count = calls.count("mcast")
    node.world.wait_until(lambda: calls.count("mcast") > count + 1, "attempts to send a STATE")
    with node.world.changed:
        node.world.failures.clear()
        second = node.meet(OTHER)
    assert second != first
    states = [m.epoch for m in node.world.messages if isinstance(m, State)]
    assert states == [first, second]


def test_queued_changes_are_sent_again_unchanged_when_a_member_joins(node: Node) -> None:
    node.start()
    with node.world.changed:
        node.world.deliver(node.world.me, Normal(77, 5, Mkdir("mine")))
        node.content.is_quorate = True
    node.world.wait_until(lambda: node.content.delivered == [Mkdir("mine")])
    epoch = node.meet(OTHER)
    before = len(node.world.sent)
    with node.world.changed:
        node.world.deliver(node.world.me, Normal(78, 6, Mkdir("queued")))
        node.world.deliver(OTHER, Normal(79, 1, Mkdir("theirs")))
        node.world.meet(OTHER, Member(3, 300))
    node.world.wait_until(lambda: len(node.world.sent) >= before + 3)
    again, start, state = node.world.messages[before : before + 3]
    assert again == Normal(78, 6, Mkdir("queued"))
    assert isinstance(start, SyncStart)
    assert isinstance(state, State)
    assert state.epoch != epoch
    assert node.content.delivered == [Mkdir("mine")]


def test_a_verification_is_requested_and_answered(node: Node) -> None:
    node.thread.set_deadlines(replace(Deadlines(), rejoin=REJOIN, verification=0.05))
    node.start()
    node.until_sent(Verify)
    (verify, *_) = [m for m in node.world.messages if isinstance(m, Verify)]
    assert verify.checksum == bytes([5] * 32)


@pytest.mark.expect_log("restarting the round")
def test_a_silent_member_makes_the_lowest_member_restart_the_round(node: Node) -> None:
    node.thread.set_deadlines(replace(Deadlines(), rejoin=REJOIN, restarts=(0.1,)))
    node.start()
    node.meet(OTHER)
    starts = [m for m in node.world.messages if isinstance(m, SyncStart)]
    node.world.wait_until(
        lambda: sum(isinstance(m, SyncStart) for m in node.world.messages) > len(starts)
    )


@pytest.mark.expect_log("leaving the group")
def test_a_silent_leader_makes_the_node_leave(node: Node) -> None:
    node.thread.set_deadlines(replace(Deadlines(), rejoin=REJOIN, updates=0.1))
    node.start()
    epoch = node.meet(LOWER)
    node.world.others.clear()
    node.world.deliver(LOWER, State(0, epoch, index(9)))
    node.until_connected(2)
    node.until_synced(2)


def test_the_states_of_the_status_group_are_merged(status_node: Node) -> None:
    node = status_node
    node.start()
    epoch = node.meet(OTHER)
    node.world.deliver(OTHER, State(0, epoch, b"their ring"))
    node.until_synced(2)
    assert node.content.merged == [{node.world.me: index(5), OTHER: b"their ring"}]
