"""ClusterIssuer: how long a request waits for its change, and its answer on each failure."""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import cast

import pytest

from pmxcfs._core import Entry
from pmxcfs.errors import (
    Busy,
    Exists,
    Failed,
    NoQuorum,
    Signaled,
    StoreError,
)
from pmxcfs.messages import (
    Kind,
    Mkdir,
    Mtime,
    Mutation,
    UnlockRequest,
    Write,
)
from pmxcfs.replica import cluster_issuer as module
from pmxcfs.replica import progress, tickets
from pmxcfs.replica.cluster_issuer import MAX_MESSAGE, split
from pmxcfs.replica.outbox import Proposal
from pmxcfs.replica.tickets import Ticket
from pmxcfs.tree.apply import Change
from tests.fakes.doubles.requests import DEADLINE, LONG, World
from tests.fakes.doubles.yielding import Request

BRIEF = 0.1  # seconds; a timeout that the test lets expire
STUCK = "refused until the cluster delivers"
ENOUGH = 1.0  # seconds; a timeout that leaves the test time to send the message


def limit_sending(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let all changes wait at most *seconds* until they are sent."""
    monkeypatch.setattr(tickets, "NAME_TIMEOUT", seconds)
    monkeypatch.setattr(tickets, "CONTENT_TIMEOUT", seconds)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    limit_sending(monkeypatch, LONG)
    monkeypatch.setattr(module, "DELIVERY_TIMEOUT", LONG)
    monkeypatch.setattr(tickets, "NAME_LIMIT", LONG)
    monkeypatch.setattr(module, "STOP_TIMEOUT", LONG)
    made = World()
    yield made
    made.pool.shutdown()
    assert made.yielding.count == 0


def test_a_change_is_answered_when_it_is_delivered(world: World) -> None:
    future = world.mkdir()
    proposal = world.send()
    assert not future.done()
    assert world.replica.writes == 0
    world.arrive(proposal)
    assert future.result(DEADLINE) is proposal.ticket.change
    assert world.outbox.next(1.0) is None
    assert world.replica.writes == 1  # the request thread writes the record itself


def test_a_change_is_not_sent_while_too_much_waits_to_be_saved(world: World) -> None:
    world.replica.busy = Busy("too many changes wait to be saved")
    with world.lock, pytest.raises(Busy, match="to be saved"):
        world.issuer.submit(Mkdir("a"))
    assert world.outbox.next(1.0) is None


def test_the_error_of_delivery_is_the_answer(world: World) -> None:
    future = world.mkdir()
    world.arrive(world.send(), Exists("there"))
    with pytest.raises(Exists, match="there"):
        future.result(DEADLINE)


@pytest.mark.expect_log(STUCK)
def test_a_change_that_is_not_sent_in_time_is_withdrawn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: dict[Mutation, float] = {Mkdir("a"): BRIEF, Mtime("a", 1): 2 * BRIEF}
    monkeypatch.setattr(tickets, "NAME_TIMEOUT", limits[Mkdir("a")])
    monkeypatch.setattr(tickets, "CONTENT_TIMEOUT", limits[Mtime("a", 1)])
    for mutation, limit in limits.items():
        world.outbox.progress.synced()
        start = time.monotonic()
        future = world.begin(functools.partial(world.issuer.submit, mutation))
        with pytest.raises(Busy, match="nothing was changed"):
            future.result(DEADLINE)
        assert time.monotonic() - start >= limit
        assert world.outbox.next(1.0) is None


@pytest.mark.expect_log(STUCK)
@pytest.mark.expect_log("sent but not delivered within")
def test_a_change_that_is_not_delivered_in_time_has_an_unknown_outcome(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_sending(monkeypatch, ENOUGH)
    monkeypatch.setattr(module, "DELIVERY_TIMEOUT", BRIEF)
    start = time.monotonic()
    future = world.mkdir()
    proposal = world.send()
    with pytest.raises(Failed, match="outcome is unknown"):
        future.result(DEADLINE)
    assert time.monotonic() - start >= BRIEF
    world.arrive(proposal)  # a late delivery does no harm
    assert proposal.ticket.error is not None


def test_a_change_given_up_while_it_is_being_sent_is_not_sent_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Corosync refuses the message after the caller has given up waiting."""
    limit_sending(monkeypatch, ENOUGH)
    future = world.mkdir()
    proposal = world.outbox.next(time.monotonic())
    assert proposal is not None
    while proposal.refusal is None:  # until its caller has given up
        threading.Event().wait(0.005)
    assert not world.outbox.not_sent(proposal)
    with world.lock:
        proposal.ticket.finish(Busy("no room"))
    with pytest.raises(Busy, match="no room"):
        future.result(DEADLINE)
    assert world.outbox.next(1.0) is None


def test_a_message_that_corosync_refused_stays_first(world: World) -> None:
    futures = [world.mkdir("a"), world.mkdir("b")]
    first = world.outbox.next(1.0)
    assert first is not None
    assert world.outbox.not_sent(first)
    assert first.sent_at == 0.0
    for _ in futures:
        world.arrive(world.send())
    assert [future.result(DEADLINE) for future in futures]
    assert first.ticket.is_done


def test_without_quorum_nothing_is_queued(world: World) -> None:
    world.quorum.is_quorate = False
    with world.lock, pytest.raises(NoQuorum):
        world.issuer.submit(Mkdir("a"))
    world.quorum.is_quorate = True
    assert world.outbox.next(1.0) is None


def test_losing_the_quorum_ends_all_waiting_at_once(world: World) -> None:
    sent, unsent = world.begin(lambda: world.issuer.submit(two_parts())), world.mkdir()
    world.send()  # only the first part
    world.quorum.is_quorate = False
    with world.lock:
        world.outbox.refuse_unsent()
    with pytest.raises(NoQuorum):
        unsent.result(DEADLINE)
    with pytest.raises(Failed, match="outcome is unknown"):
        sent.result(DEADLINE)
    world.quorum.is_quorate = True
    assert world.outbox.next(1.0) is None, "the rest would go into whatever is there by then"


def test_a_node_that_can_t_write_its_database_sends_nothing(world: World) -> None:
    world.replica.failure = StoreError("the disk is full")
    with world.lock, pytest.raises(StoreError, match="full"):
        world.issuer.submit(Mkdir("a"))
    assert world.outbox.next(1.0) is None


def test_if_too_many_requests_wait_the_next_is_refused_and_not_sent(world: World) -> None:
    world.yielding.room = 0
    with world.lock, pytest.raises(Busy, match="full"):
        world.issuer.submit(Mkdir("a"))
    assert world.outbox.next(1.0) is None


@pytest.mark.expect_log("sent but not delivered within")
def test_a_stop_refuses_unsent_changes_and_soon_gives_up_sent_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_TIMEOUT", BRIEF)
    sent = world.mkdir("sent")
    world.send()
    unsent = world.begin(lambda: world.issuer.submit(Mtime("unsent", 1)))
    start = time.monotonic()
    with world.lock:
        world.issuer.refuse()
    with pytest.raises(Busy, match="stopping"):
        unsent.result(DEADLINE)
    late = world.begin(lambda: world.issuer.submit(Mtime("late", 1)))
    with world.lock:
        world.issuer.abandon()
    with pytest.raises(Failed, match="outcome is unknown"):
        sent.result(DEADLINE)
    with pytest.raises(Busy):
        late.result(DEADLINE)
    assert time.monotonic() - start >= BRIEF


def test_a_stop_waits_briefly_for_the_delivery_of_sent_changes(world: World) -> None:
    future = world.mkdir()
    proposal = world.send()
    with world.lock:
        world.issuer.refuse()
    world.arrive(proposal)
    with world.lock:
        world.issuer.abandon()
    assert future.result(DEADLINE) is proposal.ticket.change


def test_expiring_a_lock_sends_an_unlock_request_and_a_utime(world: World) -> None:
    future = world.begin(
        lambda: world.issuer.expire_lock("priv/lock/a", bytes(32), has_expired=False)
    )
    proposal = world.send()
    second = world.send()
    assert proposal is second
    assert world.outbox.next(1.0) is None
    world.arrive(proposal)
    assert not future.done()
    world.arrive(proposal, Exists("as delivered"))
    with pytest.raises(Exists):
        future.result(DEADLINE)


@pytest.mark.parametrize("is_written", [True, False], ids=["written", "device stands still"])
def test_who_waits_for_a_change_of_another_thread_is_answered_when_it_is_written(
    world: World, is_written: bool
) -> None:
    """The ticket is done at the delivery, before its record is written."""
    change = Change(Kind.MKDIR, "a", cast(Entry, None))
    ticket = Ticket(Mkdir("a"))
    ticket.change = change
    ticket.finish()
    world.replica.has_unwritten, world.replica.can_write = True, is_written
    with world.lock:
        if is_written:
            world.issuer.wait(ticket, ENOUGH)
        else:
            with pytest.raises(Failed, match="its outcome is unknown"):
                world.issuer.wait(ticket, ENOUGH)
    assert world.replica.writes == 1


def test_a_change_that_was_delivered_and_can_t_begin_to_be_written_has_an_unknown_outcome(
    world: World,
) -> None:
    world.replica.can_write = False
    future = world.mkdir()
    world.arrive(world.send())
    with pytest.raises(Failed, match="its outcome is unknown"):
        future.result(DEADLINE)


def test_a_thread_that_waits_for_a_ticket_gets_its_result(world: World) -> None:
    ticket = Ticket(Mkdir("a"))
    first = world.begin(lambda: world.issuer.carry_out(ticket))
    proposal = world.send()

    def wait() -> None:
        with world.lock:
            world.issuer.wait(ticket, DEADLINE)

    second = world.pool.submit(wait)
    world.arrive(proposal, Exists("there"))
    for future in (first, second):
        with pytest.raises(Exists, match="there"):
            future.result(DEADLINE)


# Behind an overdue change, and while this node is stuck.


@pytest.fixture
def behind(world: World, monkeypatch: pytest.MonkeyPatch) -> Future[Change]:
    """A change that is overdue, and that is given up after ENOUGH seconds in flight."""
    world.outbox.progress.synced()
    monkeypatch.setattr(progress, "OVERDUE", BRIEF)
    limit_sending(monkeypatch, ENOUGH)
    monkeypatch.setattr(module, "DELIVERY_TIMEOUT", ENOUGH)
    future = world.mkdir("overdue")
    world.first = world.send()
    while not world.outbox.progress.is_overdue(time.monotonic()):
        threading.Event().wait(0.005)
    return future


@pytest.mark.expect_log(STUCK)
@pytest.mark.expect_log("sent but not delivered within")
def test_changes_behind_an_overdue_one_are_refused_with_it(
    world: World, behind: Future[Change]
) -> None:
    calls = [functools.partial(world.issuer.submit, m) for m in (Mkdir("a"), Mtime("b", 1))]
    unsent = [world.begin(call) for call in calls]
    assert world.outbox.next(time.monotonic()) is None
    with pytest.raises(Failed, match="outcome is unknown"):
        behind.result(DEADLINE)
    for future in unsent:
        with pytest.raises(Busy, match="nothing was changed"):
            future.result(BRIEF)
    world.outbox.progress.came_back(world.first)
    assert world.outbox.next(time.monotonic()) is None, "what was refused is never sent"


def test_changes_behind_an_overdue_one_are_sent_when_it_was_delivered(
    world: World, behind: Future[Change], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_sending(monkeypatch, BRIEF)
    second, third = world.mkdir("second"), world.mkdir("third")
    threading.Event().wait(2 * BRIEF)
    assert not second.done(), "it has the time of the overdue change"
    world.arrive(world.first)
    assert behind.result(DEADLINE)
    for future in (second, third):
        world.arrive(world.send())
        assert future.result(DEADLINE)


@pytest.mark.expect_log(STUCK)
@pytest.mark.expect_log("sent but not delivered within")
def test_a_stuck_node_refuses_at_once_until_a_change_comes_back(
    world: World, behind: Future[Change]
) -> None:
    assert world.issuer.refusal() is None
    with pytest.raises(Failed):
        behind.result(DEADLINE)
    for _ in range(24):
        with world.lock, pytest.raises(Busy, match="nothing was changed"):
            world.issuer.submit(Mkdir("a"))
    assert isinstance(world.issuer.refusal(), Busy)
    world.arrive(world.first)
    assert world.issuer.refusal() is None
    assert world.outbox.next(time.monotonic()) is None


@pytest.mark.expect_log(STUCK)
def test_an_attempt_of_a_stuck_node_is_brief(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "ATTEMPT_INTERVAL", 0.0)
    monkeypatch.setattr(module, "ATTEMPT_TIMEOUT", BRIEF)
    world.outbox.progress.synced()
    world.outbox.progress.failed(Busy("no room"), now=time.monotonic())
    failing = world.mkdir()
    with pytest.raises(Busy, match="nothing was changed"):
        failing.result(DEADLINE)
    succeeding = world.mkdir()
    world.arrive(world.send())
    assert succeeding.result(DEADLINE)
    assert world.issuer.refusal() is None


@pytest.mark.expect_log("sent but not delivered within")
@pytest.mark.expect_log(STUCK)
def test_a_change_of_a_name_is_answered_in_time_even_if_it_was_sent_late(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_sending(monkeypatch, ENOUGH)
    monkeypatch.setattr(tickets, "NAME_LIMIT", ENOUGH + BRIEF)
    start = time.monotonic()
    future = world.mkdir()
    threading.Event().wait(ENOUGH / 2)
    world.send()
    with pytest.raises(Failed):
        future.result(DEADLINE)
    assert ENOUGH + BRIEF <= time.monotonic() - start < LONG


def test_the_rest_of_a_write_is_sent_though_another_change_is_overdue(world: World) -> None:
    future = world.begin(lambda: world.issuer.submit(two_parts()))
    proposal = world.send()
    later = time.monotonic() + progress.OVERDUE + 1
    assert world.outbox.next(later) is proposal
    world.outbox.sent(proposal)
    other = world.mkdir()
    assert world.outbox.next(later) is None
    for _ in range(2):
        world.arrive(proposal)
    assert future.result(DEADLINE)
    world.arrive(world.send())
    assert other.result(DEADLINE)


# Writes in two parts.


def two_parts() -> Write:
    return Write("file", 0, bytes(1 << 20), truncate=True)


def test_the_second_part_is_sent_directly_after_the_first(world: World) -> None:
    future, other = world.begin(lambda: world.issuer.submit(two_parts())), world.mkdir()
    proposal = world.send()
    assert world.send() is proposal
    third = world.send()
    assert third is not proposal
    for each in (proposal, proposal, third):
        world.arrive(each)
    assert future.result(DEADLINE)
    assert other.result(DEADLINE)


def test_a_write_of_which_a_part_was_sent_can_t_be_withdrawn(world: World) -> None:
    future = world.begin(lambda: world.issuer.submit(two_parts()))
    proposal = world.send()
    world.arrive(proposal)
    assert proposal.is_partly_sent
    assert not world.outbox.withdraw(proposal, Busy("too late"))
    assert world.outbox.next(1.0) is proposal
    assert world.outbox.not_sent(proposal), "the rest is still to be sent"
    world.send()
    world.arrive(proposal)
    assert future.result(DEADLINE)


@pytest.mark.expect_log(STUCK)
@pytest.mark.expect_log("sent but not delivered within")
def test_the_rest_of_a_write_that_was_given_up_is_never_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_sending(monkeypatch, ENOUGH)
    monkeypatch.setattr(module, "DELIVERY_TIMEOUT", BRIEF)
    future = world.begin(lambda: world.issuer.submit(two_parts()))
    world.send()
    with pytest.raises(Failed):
        future.result(DEADLINE)
    assert world.outbox.next(1.0) is None


@pytest.mark.parametrize("path", ["a", "nodes/" + "n" * 250])
@pytest.mark.parametrize("truncate", [True, False])
def test_the_parts_of_a_write_fit_and_are_complete(path: str, truncate: bool) -> None:
    data = bytes(range(256)) * 4096
    head, rest = (cast(Write, part) for part in split(Write(path, 0, data, truncate)))
    assert head.truncate is truncate
    assert not rest.truncate
    assert (head.offset, rest.offset) == (0, len(head.data))
    assert head.data + rest.data == data
    overhead = 16 + 8 + 20 + len(path) + 1
    assert overhead + len(head.data) == MAX_MESSAGE


def test_a_write_that_just_fits_is_one_message() -> None:
    fits = MAX_MESSAGE - (16 + 8 + 20 + 2)
    assert len(split(Write("a", 0, bytes(fits), truncate=True))) == 1
    assert len(split(Write("a", 0, bytes(fits + 1), truncate=True))) == 2


def test_an_unlock_request_is_not_a_mutation() -> None:
    proposal = Proposal(Ticket(Mtime("a", 0)), [UnlockRequest("a", bytes(32)), Mtime("a", 0)])
    proposal.arrived(None, None)
    assert not proposal.ticket.is_done
    change = Change(Kind.MTIME, "a", cast(Entry, None))
    proposal.arrived(change, None)
    assert proposal.ticket.result() is change


# A program that gets a signal while its request waits.


def interruptible(world: World, call: Callable[[], Change]) -> tuple[Future[Change], Request]:
    """Begin *call* as the handling of a request."""
    requests: list[Request] = []

    def handle() -> Change:
        requests.append(world.yielding.handling())
        return call()

    return world.begin(handle), requests[0]


def test_a_change_whose_program_gets_a_signal_is_withdrawn(world: World) -> None:
    future, request = interruptible(world, lambda: world.issuer.submit(Mkdir("a")))
    with world.lock:
        request.interrupt()
    with pytest.raises(Signaled):
        future.result(DEADLINE)
    assert world.queued.acquire(timeout=DEADLINE), "the owner of the group was not woken"
    assert world.outbox.next(1.0) is None
    assert world.replica.writes == 0, "there is nothing of it to write"


def test_a_change_that_was_sent_is_answered_by_its_delivery_in_spite_of_a_signal(
    world: World,
) -> None:
    future, request = interruptible(world, lambda: world.issuer.submit(Mkdir("a")))
    proposal = world.send()
    with world.lock:
        request.interrupt()
    assert not future.done()
    world.arrive(proposal)
    assert future.result(DEADLINE) is proposal.ticket.change


def test_a_signal_while_a_change_is_being_sent_counts_if_that_fails(world: World) -> None:
    future, request = interruptible(world, lambda: world.issuer.submit(Mkdir("a")))
    proposal = world.outbox.next(1.0)
    assert proposal is not None
    with world.lock:
        request.interrupt()
    assert not future.done()
    assert not world.outbox.not_sent(proposal)
    assert isinstance(proposal.refusal, Signaled)
    with world.lock:
        proposal.ticket.finish(proposal.refusal)
    with pytest.raises(Signaled):
        future.result(DEADLINE)


def test_a_change_that_is_withdrawn_before_it_is_queued_is_not_sent(world: World) -> None:
    proposal = Proposal(Ticket(Mkdir("a")), [Mkdir("a")])
    assert not world.outbox.withdraw(proposal, Signaled())
    with pytest.raises(Signaled):
        world.outbox.queue(proposal)
    assert world.outbox.next(1.0) is None


def test_a_wait_for_the_change_of_another_thread_ends_by_a_signal(world: World) -> None:
    ticket = Ticket(Mkdir("a"))
    first = world.begin(lambda: world.issuer.carry_out(ticket))
    requests: list[Request] = []

    def wait() -> None:
        with world.lock:
            requests.append(world.yielding.handling())
            world.issuer.wait(ticket, LONG)

    second = world.pool.submit(wait)
    world.yielding.await_away(2)
    with world.lock:
        requests[0].interrupt()
    with pytest.raises(Signaled):
        second.result(DEADLINE)
    world.arrive(world.send())
    assert first.result(DEADLINE) is ticket.change
