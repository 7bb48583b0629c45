"""ClusterIssuer: announcements of new files with their content."""

import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from pmxcfs.errors import Exists, GuestTaken, NotFound
from pmxcfs.messages import Create, Rename, Write
from pmxcfs.replica import progress
from pmxcfs.replica.cluster_issuer import MAX_MESSAGE
from pmxcfs.replica.tickets import Announcement
from tests.fakes.doubles.requests import DEADLINE, LONG, World


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.pool.shutdown()
    assert made.yielding.count == 0


def announcement(content: bytes = b"x", *, rename: bool = False) -> Announcement:
    write = Write("f", 0, content, truncate=True) if content else None
    target = Rename("f", "g") if rename else None
    return Announcement(Create("f"), write, target, timeout=LONG)


def announce(world: World, ticket: Announcement) -> "Future[None]":
    def call() -> None:
        with world.lock:
            world.issuer.announce(ticket)

    future = world.pool.submit(call)
    assert world.queued.acquire(timeout=DEADLINE), "nothing was queued"
    return future


def test_a_new_file_is_sent_with_its_content_and_its_name_back_to_back(world: World) -> None:
    ticket = announcement(rename=True)
    future = announce(world, ticket)
    proposal = world.outbox.next(time.monotonic())
    assert proposal is not None
    assert list(proposal.unsent) == [ticket.create, ticket.content, ticket.rename]
    for _ in range(3):
        assert world.send() is proposal
    for number in range(3):
        assert not future.done()
        assert ticket.is_announced == (number == 2)
        world.arrive(proposal)
    assert future.result(DEADLINE) is None
    assert world.replica.writes == 1


def test_a_large_new_file_is_two_writes(world: World) -> None:
    ticket = announcement(bytes(MAX_MESSAGE))
    future = announce(world, ticket)
    proposal = world.send()
    world.send()
    world.send()
    for _ in range(3):
        assert not ticket.is_announced
        assert not future.done()
        world.arrive(proposal)
    assert future.result(DEADLINE) is None
    assert ticket.is_announced


@pytest.mark.parametrize("content", [b"x", b""])
def test_a_new_file_that_is_there_already_is_no_error(world: World, content: bytes) -> None:
    ticket = announcement(content)
    future = announce(world, ticket)
    proposal = world.send()
    world.arrive(proposal, Exists("there"))
    if content:
        world.send()
        world.arrive(proposal)
    assert future.result(DEADLINE) is None
    assert ticket.has_found_file


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_announcement_tells_what_has_failed(world: World, failing: int) -> None:
    ticket = announcement(rename=True)
    future = announce(world, ticket)
    proposal = world.send()
    world.send()
    world.send()
    for number in range(3):
        world.arrive(proposal, NotFound("gone") if number == failing else None)
    with pytest.raises(NotFound, match="gone"):
        future.result(DEADLINE)
    assert ticket.is_announced == (failing == 2)


def test_files_are_announced_later_only_if_they_could_be_sent_now(world: World) -> None:
    answers = [world.issuer.can_announce_later()]
    world.outbox.progress.synced()
    answers.append(world.issuer.can_announce_later())
    world.issuer.hold()
    answers.append(world.issuer.can_announce_later())
    world.issuer.resume()
    world.quorum.is_quorate = False
    answers.append(world.issuer.can_announce_later())
    world.quorum.is_quorate = True
    world.outbox.progress.sent(object(), time.monotonic() - progress.OVERDUE - 1)
    answers.append(world.issuer.can_announce_later())
    assert answers == [False, True, False, False, False]


def test_a_guest_number_that_is_in_use_is_an_error_of_the_creation() -> None:
    """It is an EEXIST, too, but no file of the name is there."""
    ticket, error = announcement(), GuestTaken("nodes/a/qemu-server/1.conf", "another file")
    assert ticket.judge(error, 0) is error
    assert not ticket.has_found_file
