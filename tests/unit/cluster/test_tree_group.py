"""The tree's group: delivery of messages, results for waiting callers, and sending."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pmxcfs.cluster.tree_content import TreeContent
from pmxcfs.cluster.tree_source import Proposals, TreeSource
from pmxcfs.dfsm.effects import Commit, Deliver
from pmxcfs.errors import Busy, Exists, Failed, IsADirectory, Signaled
from pmxcfs.messages import (
    Body,
    Create,
    Delete,
    Kind,
    Member,
    Mkdir,
    Mtime,
    Normal,
    Record,
    Unlock,
    UnlockRequest,
    Write,
)
from pmxcfs.replica.outbox import Outbox, Proposal, Sendable
from pmxcfs.replica.progress import OVERDUE
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage.divergence import Note
from pmxcfs.storage.incomplete import Incomplete
from pmxcfs.storage.records import Notes
from pmxcfs.tree.apply import Change
from pmxcfs.tree.index import parse, parse_header
from pmxcfs.vfs._standin import new_file
from tests.fakes.doubles.device import device
from tests.fakes.doubles.replicas import StoredReplica

ME, PEER, LOWEST = Member(2, 200), Member(3, 300), Member(1, 100)
LOCK = "priv/lock/a"
STUCK = "refused until the cluster delivers"


class CheckedLock:
    """A lock that knows whether it is held."""

    def __init__(self) -> None:
        self.is_held = False
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()
        self.is_held = True

    def __exit__(self, *exc_info: object) -> None:
        self.is_held = False
        self._lock.release()


class World:
    """A real tree with the content and the source of its group."""

    def __init__(self, directory: Path) -> None:
        self.is_quorate = True
        self.seconds = 100.0
        self.refreshes = 0
        self.expired: list[tuple[str, bytes]] = []
        self.kinds_when_asked: list[list[Kind]] = []  # changes delivered before each question
        self.changes: list[tuple[Change, bool]] = []
        self.lock = CheckedLock()
        self.wakes = 0  # of the group's thread
        self.syncs = 0
        self.outbox = Outbox(QuorumFlag(is_quorate=True), wake=self._note_wake)
        self.proposals = Proposals()
        self.incomplete = Incomplete()
        self.stored = StoredReplica(directory, lock=self.lock)
        self.replica = self.stored.replica
        self.replica.subscribe(on_change=self._on_change)
        self.source = TreeSource(self.outbox, self.proposals, lock=self.lock)
        self.content = self.content_of(self.replica)
        self.content.on_members([ME, PEER], me=ME)

    def content_of(self, replica: Any) -> TreeContent:
        """Return a content of this world with *replica*, which may be a stand-in."""
        return TreeContent(
            replica,
            self.outbox,
            self.proposals,
            lock=self.lock,
            quorum=self,
            lock_has_expired=self._has_expired,
            when_synced=self._note_synced,
            clock=lambda: self.seconds,
            incomplete=self.incomplete,
        )

    def _note_wake(self) -> None:
        self.wakes += 1

    def _note_synced(self) -> None:
        assert self.lock.is_held
        self.syncs += 1

    def _has_expired(self, path: str, checksum: bytes) -> bool:
        self.kinds_when_asked.append([change.kind for change, _ in self.changes])
        return (path, checksum) in self.expired

    def refresh(self) -> bool:
        assert not self.lock.is_held
        self.refreshes += 1
        return self.is_quorate

    def _on_change(self, change: Change, foreign: bool) -> None:
        assert self.lock.is_held
        self.changes.append((change, foreign))

    def post(self, *bodies: Sendable) -> Proposal:
        mutations = [body for body in bodies if not isinstance(body, UnlockRequest)]
        proposal = Proposal(Ticket(mutations[0]), bodies)
        self.outbox.put(proposal)
        return proposal

    def send(self, serial: int) -> Body:
        body = self.source.take(1.0)
        assert body is not None
        self.source.sent(serial)
        return body

    def deliver(self, *changes: Deliver) -> bool:
        return self.content.deliver(changes)


def of(sender: Member, body: Body, *, serial: int = 1, time: int = 1000) -> Deliver:
    return Deliver(sender, Normal(time, serial, body))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.stored.close()


# Delivery.


def test_a_change_of_this_node_finishes_its_ticket(world: World) -> None:
    proposal = world.post(Mkdir("a"))
    assert world.send(7) == Mkdir("a")
    assert world.deliver(of(ME, Mkdir("a"), serial=7))
    change = proposal.ticket.result()
    assert change.path == "a"
    assert world.changes == [(change, False)]
    assert (change.entry.writer, change.entry.mtime) == (ME.nodeid, 1000)


def test_the_same_serial_of_another_member_finishes_no_ticket(world: World) -> None:
    proposal = world.post(Mkdir("a"))
    world.send(7)
    reborn = Member(ME.nodeid, ME.pid + 1)
    world.deliver(of(PEER, Mkdir("b"), serial=7), of(reborn, Mkdir("c"), serial=7))
    assert not proposal.ticket.is_done
    assert [foreign for _, foreign in world.changes] == [True, True]
    world.deliver(of(ME, Mkdir("a"), serial=7))
    assert proposal.ticket.is_done


def test_a_change_whose_caller_gave_up_is_foreign(world: World) -> None:
    """The kernel got an error for the change, so it must be notified of the change."""
    proposal = world.post(Mkdir("a"))
    world.send(7)
    with world.lock:
        proposal.ticket.finish(Failed("given up"))
    world.deliver(of(ME, Mkdir("a"), serial=7))
    assert [foreign for _, foreign in world.changes] == [True]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_change_of_another_object_than_the_one_that_was_made_is_foreign(
    world: World, is_known: bool
) -> None:
    """The kernel knows a new file by the object that this mount has made for it."""
    world.deliver(of(PEER, Create("f")))
    theirs = world.replica.tree.find("f")
    made = theirs if is_known else new_file(world.replica.tree.root, "f", 1)
    write = Write("f", 0, b"ours", truncate=True)
    world.outbox.put(Proposal(Ticket(write, made=made), [write]))
    world.send(7)
    world.deliver(of(ME, write, serial=7))
    assert [foreign for _, foreign in world.changes] == [True, not is_known]


def test_a_message_of_an_earlier_membership_is_foreign(world: World) -> None:
    world.deliver(of(ME, Mkdir("a"), serial=99))
    assert [foreign for _, foreign in world.changes] == [True]


def test_an_error_finishes_its_ticket_and_the_rest_is_applied(world: World) -> None:
    proposal = world.post(Mkdir("a"))
    world.send(1)
    world.deliver(of(PEER, Mkdir("a")), of(ME, Mkdir("a")), of(PEER, Mkdir("b")))
    with pytest.raises(Exists):
        proposal.ticket.result()
    assert [change.path for change, _ in world.changes] == ["a", "b"]


def test_messages_delivered_together_are_one_write(world: World) -> None:
    world.deliver(*[of(PEER, Mkdir(f"{number}"), serial=number) for number in range(50)])
    with device() as below:
        world.replica.write_out()
        assert below.count("write") == 1
    assert len(world.changes) == len(world.stored.changes()) == 50


def test_the_quorum_is_refreshed_before_the_first_change(world: World) -> None:
    """libquorum may connect after the group; a change without quorum would cost a resync."""
    before = world.refreshes
    world.content.on_members([ME], me=ME)
    assert world.refreshes == before + 1
    world.content.on_members([], me=ME)
    assert world.refreshes == before + 1


@pytest.mark.expect_log("not known to be delivered")
def test_without_quorum_nothing_is_applied(world: World) -> None:
    proposal = world.post(Mkdir("a"))
    world.send(1)
    world.is_quorate = False
    assert not world.deliver(of(ME, Mkdir("a")))
    assert not world.changes
    assert not proposal.ticket.is_done
    world.content.on_left()
    with pytest.raises(Failed, match="unknown"):
        proposal.ticket.result()


def test_a_write_in_two_parts_is_done_with_the_second(world: World) -> None:
    parts = [Write("f", 0, b"a", truncate=True), Write("f", 1, b"b", truncate=False)]
    proposal = world.post(*parts)
    assert [world.send(1), world.send(2)] == parts
    world.deliver(of(PEER, Create("f")), of(ME, parts[0], serial=1))
    assert not proposal.ticket.is_done
    world.deliver(of(ME, parts[1], serial=2))
    assert proposal.ticket.result().entry.content == b"ab"


def test_the_first_error_of_two_parts_is_the_result(world: World) -> None:
    parts = [Write("f", 0, b"a", truncate=True), Write("f", 1, b"b", truncate=False)]
    proposal = world.post(*parts)
    world.send(1)
    world.send(2)
    world.deliver(of(ME, parts[0], serial=1), of(PEER, Create("f")), of(ME, parts[1], serial=2))
    with pytest.raises(Exception, match="no file"):
        proposal.ticket.result()


# Leaving.


@pytest.mark.expect_log("not known to be delivered")
def test_the_loss_of_the_group_finishes_only_sent_proposals(world: World) -> None:
    sent = world.post(Mkdir("a"))
    half = world.post(Write("f", 0, b"a", truncate=True), Write("f", 1, b"b", truncate=False))
    waiting = world.post(Mkdir("b"))
    world.send(1)
    world.send(2)
    world.content.on_left()
    for proposal in (sent, half):
        with pytest.raises(Failed, match="unknown"):
            proposal.ticket.result()
    assert not waiting.ticket.is_done
    assert world.source.take(1.0) == Mkdir("b")


# Sending.


@pytest.mark.expect_log(STUCK)
def test_a_proposal_withdrawn_while_corosync_is_busy_gets_busy(world: World) -> None:
    proposal, other = world.post(Mkdir("a")), world.post(Mkdir("b"))
    assert world.source.take(1.0) == Mkdir("a")
    assert not world.outbox.withdraw(proposal, Busy("too late"))
    world.source.not_sent()
    with pytest.raises(Busy, match="too late"):
        proposal.ticket.result()
    assert world.send(1) == Mkdir("b")
    assert not other.ticket.is_done


def test_a_signal_does_not_make_this_node_stuck(world: World) -> None:
    proposal = world.post(Mkdir("a"))
    assert world.source.take(1.0) == Mkdir("a")
    assert not world.outbox.withdraw(proposal, Signaled())
    world.source.not_sent()
    with pytest.raises(Signaled):
        proposal.ticket.result()
    assert not world.outbox.progress.is_stuck()


def test_after_a_withdrawal_the_next_proposal_is_sent_at_once(world: World) -> None:
    proposal = world.post(Mkdir("a"))
    world.post(Mkdir("b"))
    assert world.outbox.withdraw(proposal, Busy("too late"))
    assert world.source.take(1.0) == Mkdir("b")


def test_a_proposal_to_which_there_is_an_objection_is_not_sent(world: World) -> None:
    objection = IsADirectory("the name has become a directory")
    refused = Ticket(Delete("name"), objection=lambda: objection)
    world.outbox.put(Proposal(refused, [Delete("name")]))
    allowed = Ticket(Delete("other"), objection=lambda: None)
    world.outbox.put(Proposal(allowed, [Delete("other")]))
    assert world.source.take(1.0) == Delete("other")
    with pytest.raises(IsADirectory):
        refused.result()
    world.source.sent(1)
    assert world.source.take(1.0) is None
    assert not world.outbox.progress.is_stuck()


@pytest.mark.expect_log(STUCK)
def test_a_refused_proposal_gets_the_error_and_a_partly_sent_one_fails(world: World) -> None:
    whole = world.post(Mkdir("a"))
    half = world.post(Write("f", 0, b"a", truncate=True), Write("f", 1, b"b", truncate=False))
    assert world.source.take(1.0)
    world.source.refused(Busy("no room"))
    with pytest.raises(Busy, match="no room"):
        whole.ticket.result()
    world.send(1)
    assert world.source.take(1.0)
    world.source.refused(Busy("no room"))
    with pytest.raises(Failed, match="only a part"):
        half.ticket.result()
    assert world.outbox.progress.is_stuck()
    assert world.source.take(1.0) is None


def test_nothing_is_sent_behind_an_overdue_change_until_it_is_delivered(world: World) -> None:
    world.post(Mkdir("a"))
    world.post(Mkdir("b"))
    world.send(1)
    assert world.source.take(2.0 + OVERDUE) is None
    world.deliver(of(ME, Mkdir("a"), serial=1))
    assert world.source.take(2.0 + OVERDUE) == Mkdir("b")


@pytest.mark.expect_log(STUCK)
@pytest.mark.expect_log("not known to be delivered")
def test_a_stuck_node_recovers_by_a_delivery_or_a_synchronization(world: World) -> None:
    progress = world.outbox.progress
    world.content.on_synced(())
    world.post(Mkdir("a"))
    world.send(1)
    progress.failed(Busy("late"), now=1.0)
    world.deliver(of(PEER, Mkdir("b"), serial=1))
    assert progress.is_stuck(), "a message of another node tells nothing"
    world.deliver(of(ME, Mkdir("a"), serial=1))
    assert not progress.is_stuck()
    world.post(Mkdir("c"))
    world.send(2)
    progress.failed(Busy("late"), now=1.0)
    world.content.on_left()
    world.content.on_members([ME, PEER], me=ME)
    assert progress.refuses(1000.0)
    world.content.on_synced(())
    assert not progress.refuses(1000.0)


def test_a_held_outbox_sends_nothing(world: World) -> None:
    world.outbox.hold(on=True)
    world.post(Mkdir("a"))
    assert world.source.take(1.0) is None
    world.outbox.hold(on=False)
    assert world.source.take(1.0) == Mkdir("a")
    assert world.wakes == 3


# Locks.


def take_lock(world: World) -> bytes:
    for path in ("priv", "priv/lock", LOCK):
        world.deliver(of(PEER, Mkdir(path)))
    entry = world.replica.tree.find(LOCK)
    assert entry is not None
    return world.replica.tree.entry_checksum(entry)


def unsent(world: World) -> list[Sendable]:
    return [body for proposal in world.outbox.clear() for body in proposal.unsent]


@pytest.mark.parametrize(
    ("members", "has_expired", "is_sent"),
    [
        ([ME, PEER], True, True),
        ([ME, PEER], False, False),
        ([LOWEST, ME, PEER], True, False),
    ],
)
def test_the_lowest_member_removes_expired_locks(
    world: World, members: Sequence[Member], has_expired: bool, is_sent: bool
) -> None:
    checksum = take_lock(world)
    world.content.on_members(members, me=ME)
    world.expired = [(LOCK, checksum)] if has_expired else []
    world.deliver(of(PEER, UnlockRequest(LOCK, checksum)))
    assert unsent(world) == ([Unlock(LOCK, checksum)] if is_sent else [])
    assert world.replica.tree.find(LOCK) is not None


def test_an_unlock_request_is_decided_at_its_place_in_the_order(world: World) -> None:
    """Messages before the request are applied, those after it are not."""
    checksum = take_lock(world)
    world.deliver(
        of(PEER, Mtime(LOCK, 2000)),
        of(PEER, UnlockRequest(LOCK, checksum)),
        of(PEER, Mkdir("later")),
    )
    assert [kinds[3:] for kinds in world.kinds_when_asked] == [[Kind.MTIME]]
    assert [change.kind for change, _ in world.changes[3:]] == [Kind.MTIME, Kind.MKDIR]


def test_an_unlock_request_of_this_node_is_answered_by_its_mtime(world: World) -> None:
    checksum = take_lock(world)
    request, touch = UnlockRequest(LOCK, checksum), Mtime(LOCK, 0)
    proposal = world.post(request, touch)
    assert [world.send(1), world.send(2)] == [request, touch]
    world.deliver(of(ME, request, serial=1))
    assert not proposal.ticket.is_done
    world.deliver(of(LOWEST, Unlock(LOCK, checksum)), of(ME, touch, serial=2))
    with pytest.raises(Exception, match="no entry"):
        proposal.ticket.result()
    assert world.replica.tree.find(LOCK) is None


# The tree's lock.


def test_only_changes_that_other_threads_see_hold_the_lock(world: World) -> None:
    held: dict[str, bool] = {}

    def noted(name: str) -> Callable[..., object]:
        def call(*_: object, **__: object) -> object:
            held[name] = world.lock.is_held
            return b""

        return call

    names = ("state", "checksum", "adopt")
    replica = SimpleNamespace(**{name: noted(name) for name in names})
    replica.tree, replica.save_notes = world.replica.tree, noted("save_notes")
    replica.departures = SimpleNamespace(agree=noted("agree"), remember=noted("remember"))
    content = world.content_of(replica)
    content.state()
    content.checksum()
    content.commit(Commit(PEER, b"", cast("list[Record]", []), agreed=[PEER]))
    content.on_synced([ME, PEER])
    unlocked, locked = ("state", "checksum", "adopt"), ("agree", "remember", "save_notes")
    assert held == {**dict.fromkeys(unlocked, False), **dict.fromkeys(locked, True)}


# What other nodes miss


def noted(world: World) -> Mapping[int, Note]:
    """Return the last notes in the journal."""
    world.replica.write_out()
    return [record for record in world.stored.records() if isinstance(record, Notes)][-1].notes


def test_a_departure_is_noted_in_the_journal(world: World) -> None:
    world.replica.departures.set_nodes((ME.nodeid, PEER.nodeid), room=10.0)
    world.content.on_synced([ME, PEER])
    before = world.replica.tree.version
    world.seconds += 20
    world.content.on_tick(is_common=True)
    world.deliver(of(PEER, Mkdir("a")))
    world.content.on_members([ME], me=ME)
    assert noted(world) == {PEER.nodeid: Note(before, before + 1)}


def test_a_note_is_dropped_when_the_member_has_our_tree(world: World) -> None:
    world.replica.departures.set_nodes((ME.nodeid, PEER.nodeid))
    world.content.on_members([ME], me=ME)
    assert PEER.nodeid in noted(world)
    world.content.on_members([ME, PEER], me=ME)
    world.content.on_synced([ME])
    for is_common in (False, True, True):
        assert PEER.nodeid in noted(world)
        world.seconds += 20
        world.content.on_tick(is_common=is_common)
    assert noted(world) == {}


def test_the_end_of_each_synchronization_is_told(world: World) -> None:
    world.content.on_synced([ME])
    world.content.on_synced([ME, PEER])
    assert world.syncs == 2


# A tree that may lack entries


def test_an_incomplete_tree_is_announced_as_the_lowest(world: World) -> None:
    world.deliver(of(PEER, Mkdir("a")))
    real = parse(world.content.state())
    world.incomplete.is_set = True
    hidden = parse(world.content.state())
    assert (hidden.header.version, hidden.header.mtime) == (1, 0)
    assert real.header.version == world.replica.tree.version > 1
    assert hidden.digests == real.digests
    assert not world.content.may_lead()
    assert parse(world.content.state()) == real
    assert world.content.may_lead()


def test_a_complete_tree_may_lead(world: World) -> None:
    assert world.content.may_lead()


def test_a_tree_is_complete_when_another_one_was_adopted(world: World) -> None:
    world.incomplete.is_set = True
    replica = SimpleNamespace(adopt=lambda *_, **__: None)
    commit = Commit(PEER, b"", cast("list[Record]", []), agreed=[PEER])
    world.content_of(replica).commit(commit)
    assert not world.incomplete.is_set


@pytest.mark.parametrize(
    ("nodes", "members", "is_common", "is_set"),
    [
        ((2, 3), (ME, PEER), True, False),
        ((2,), (ME,), True, False),
        ((2, 3), (ME, PEER), False, True),
        ((2, 3, 4), (ME, PEER), True, True),
        ((), (ME, PEER), True, True),
    ],
    ids=["all", "a single node", "not in sync", "one is absent", "nodes unknown"],
)
def test_a_tree_counts_as_complete_when_all_nodes_have_it(
    world: World,
    nodes: Sequence[int],
    members: Sequence[Member],
    is_common: bool,
    is_set: bool,
) -> None:
    world.incomplete.is_set = True
    world.content.configure(nodes)
    world.content.on_members(members, me=ME)
    world.content.on_tick(is_common=is_common)
    assert world.incomplete.is_set == is_set
    version = parse_header(world.content.state()).version
    assert version == (1 if is_set else world.replica.tree.version)
