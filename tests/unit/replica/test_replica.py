"""Replica and LocalIssuer: groups are applied, written and announced, or rolled back."""

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import Busy, Exists, Failed, NotEmpty, NotFound, Stale, StoreError
from pmxcfs.messages import Create, Delete, EntryType, Kind, Mkdir, Mtime, Mutation, Rename, Write
from pmxcfs.replica import tickets
from pmxcfs.replica.local_issuer import LocalIssuer
from pmxcfs.replica.replica import Policy
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage import records, segment_file
from pmxcfs.storage.records import Before
from pmxcfs.tree.apply import Change
from tests.conftest import ExpectLog
from tests.fakes.data.trees import changed_in
from tests.fakes.doubles.device import Device, device
from tests.fakes.doubles.replicas import WAIT, StoredReplica, recovered_tree
from tests.fakes.doubles.yielding import SingleYielding, Yielding

GUEST = "nodes/a/lxc/100.conf"


class World(StoredReplica):
    """A replica in local mode, its issuer, and the calls of its listeners."""

    def __init__(self, directory: Path) -> None:
        self.single = SingleYielding()
        super().__init__(directory, policy=Policy.ROLL_BACK, yielding=self.single)
        self.issuer = LocalIssuer(self.replica, clock=lambda: 1234, yielding=self.single)
        self.heard: list[tuple[Kind, str, bool]] = []
        self.undone: list[str] = []
        self.replica.subscribe(on_change=self.hear, on_undone=self.hear_undone)
        self.replica.check_writable()  # makes room in the first segment
        self.single.waits = 0

    def hear(self, change: Change, foreign: bool) -> None:
        self.heard.append((change.kind, change.path, foreign))

    def hear_undone(self, undone: Mapping[Entry, str], error: StoreError) -> None:
        self.undone += [entry.path for entry in undone]

    def make(self, *paths: str) -> None:
        """Make a file for each path with a dot in its name, a directory for any other path."""
        for path in paths:
            self.issuer.submit(Create(path) if "." in path else Mkdir(path))
        self.heard.clear()

    def written(self) -> list[str]:
        """Return what the journal has, in order: kinds and paths."""
        return [f"{type(mutation).__name__} {mutation.path}" for _, mutation in self.changes()]

    def restart(self) -> Tree:
        """End without saving, as a killed daemon does; return the tree of the next start."""
        self.close()
        return recovered_tree(self.path.parent)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with contextlib.closing(World(tmp_path)) as made:
        yield made


@pytest.fixture
def below(world: World) -> Iterator[Device]:
    """The device below the journal, which fails on demand."""
    with device() as below:
        yield below


def is_undone(world: World, before: bytes) -> bool:
    """Tell whether the tree has the checksum *before*, also after a restart."""
    return world.tree.checksum() == before == world.restart().checksum()


# A group


def test_a_mutation_is_stamped_written_and_announced(world: World) -> None:
    change = world.issuer.submit(Mkdir("d"))
    assert (change.kind, change.path) == (Kind.MKDIR, "d")
    assert (change.entry.mtime, change.entry.writer, change.entry.version) == (1234, 0, 2)
    assert world.changes() == [(2, Mkdir("d"))]
    assert world.heard == [(Kind.MKDIR, "d", False)]
    assert changed_in(world.tree) == {}
    assert (world.replica.writes, world.single.writes, world.single.waits) == (1, 1, 0)


def test_a_group_is_one_write_in_order(world: World) -> None:
    tickets = [
        Ticket(mutation) for mutation in (Mkdir("d"), Create("d/f"), Write("d/f", 0, b"x", True))
    ]
    with device() as below:
        world.replica.deliver(tickets)
        assert below.count("write") == 1
    assert [ticket.result().path for ticket in tickets] == ["d", "d/f", "d/f"]
    assert world.written() == ["Mkdir d", "Create d/f", "Write d/f"]
    assert [version for version, _ in world.changes()] == [2, 3, 4]
    assert [kind for kind, *_ in world.heard] == [Kind.MKDIR, Kind.CREATE, Kind.WRITE]


def test_a_refused_mutation_does_not_affect_its_group(world: World) -> None:
    tickets = [Ticket(Mkdir("d")), Ticket(Mkdir("d")), Ticket(Create("f.x"))]
    world.replica.deliver(tickets)
    assert tickets[0].result().path == "d"
    with pytest.raises(Exists):
        tickets[1].result()
    assert tickets[2].result().path == "f.x"
    assert [path for _, path, _ in world.heard] == ["d", "f.x"]
    assert world.written() == ["Mkdir d", "Create f.x"]


def test_changes_at_a_path_that_is_longer_than_a_record_can_tell_are_stored(
    world: World, tmp_path: Path
) -> None:
    """Relative paths can lead as deep as that."""
    name = "n" * 250
    paths = ["/".join([name] * depth) for depth in range(1, 270)]
    world.make(*paths, f"{paths[-1]}/f.x", f"{paths[-1]}/g.x")
    assert len(paths[-1]) > 65_535
    world.close()
    with contextlib.closing(World(tmp_path)) as later:  # the next segment needs the rows before
        later.issuer.submit(Write(f"{paths[-1]}/f.x", 0, b"content", True))
        later.issuer.submit(Rename(f"{paths[-1]}/f.x", f"{paths[-1]}/g.x"))
        later.issuer.submit(Delete(f"{paths[-1]}/g.x"))
        later.issuer.submit(Rename(paths[-1], "d"))
        rows = [record for record in later.records() if isinstance(record, Before)]
        assert max(len(row.path) for row in rows) == 65_535
        assert not later.replica.is_degraded
        tree = later.tree.checksum()
        assert later.restart().checksum() == tree


def test_a_group_of_refusals_is_not_written(world: World) -> None:
    with pytest.raises(NotFound):
        world.issuer.submit(Delete("missing"))
    assert (world.changes(), world.heard, world.single.writes) == ([], [], 0)


def test_a_half_done_rename_is_written_and_announced(world: World) -> None:
    world.make("d", "d/f.x", "e")
    with pytest.raises(NotEmpty):
        world.issuer.submit(Rename("d", "e"))
    # Announced as foreign: the reply to the rename reports only the failure.
    assert world.heard == [(Kind.DELETE, "e", True)]
    assert world.changes()[-2:] == [(4, Mkdir("e")), (4, Rename("d", "e"))]
    assert world.tree.find("e") is None
    assert world.restart().find("e") is None


def test_what_an_entry_was_is_recorded_ahead_of_its_first_change_in_a_segment(
    world: World, tmp_path: Path
) -> None:
    world.make("f.x")
    world.issuer.submit(Write("f.x", 0, b"one", True))
    assert not [record for record in world.records() if isinstance(record, Before)]
    world.close()
    with contextlib.closing(World(tmp_path)) as again:
        for data in (b"two", b"three"):
            again.issuer.submit(Write("f.x", 0, data, True))
        *_, before, first, second = again.records()
        assert isinstance(before, Before)
        assert (before.path, before.data, before.version) == (b"f.x", b"one", 3)
        assert type(first) is type(second) is records.Change


def test_requests_that_arrive_during_a_write_are_the_next_group(tmp_path: Path) -> None:
    yielding = Yielding(room=8)
    stored = StoredReplica(tmp_path, policy=Policy.ROLL_BACK, yielding=yielding, lock=yielding.lock)
    issuer = LocalIssuer(stored.replica, clock=lambda: 1, yielding=yielding)
    with yielding.lock:
        stored.replica.check_writable()  # makes room in the first segment

    def submit(path: str) -> str:
        with yielding.lock:
            return issuer.submit(Mkdir(path)).path

    with contextlib.closing(stored), device() as below, ThreadPoolExecutor() as pool:
        below.runs.clear()
        futures = [pool.submit(submit, "a")]
        assert below.stands_still.wait(WAIT)
        futures += [pool.submit(submit, path) for path in ("b", "c")]
        yielding.await_away(3)
        with yielding.lock:  # which is free while the device stands still
            assert not stored.replica.is_ready([])
            assert [entry.name for entry in stored.tree.root.children()] == ["a"]
            assert not any(future.done() for future in futures)
        below.runs.set()
        assert [future.result(WAIT) for future in futures] == ["a", "b", "c"]
        assert below.count("write") == 2
        assert [version for version, _ in stored.changes()] == [2, 3, 4]


# A group that can't be written

FULL = r"can't be written.*changes are refused"


def test_a_group_that_can_not_be_written_is_rolled_back(
    world: World, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    world.make("d", "f.x", "nodes", "nodes/a", "nodes/a/lxc")
    before = world.tree.checksum()
    below.failures["write"] = errno.ENOSPC
    tickets = [
        Ticket(mutation)
        for mutation in (
            Write("f.x", 0, b"x", True),
            Create(GUEST),
            Mkdir("d"),
            Rename("f.x", "d/f.x"),
            Delete("d/f.x"),
        )
    ]
    world.replica.deliver(tickets)
    for ticket in tickets:
        with pytest.raises(Exists if ticket.mutation == Mkdir("d") else StoreError) as failure:
            ticket.result()
        assert failure.value.errno in (errno.ENOSPC, errno.EEXIST)
    assert list(world.guests) == []
    assert world.heard == []
    assert sorted(world.undone) == ["f.x", GUEST]
    assert world.replica.is_degraded
    assert changed_in(world.tree) == {}
    del below.failures["write"]
    assert is_undone(world, before)


def test_every_request_of_the_group_gets_the_errno(
    world: World, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    below.failures["write"] = errno.ENOSPC
    tickets = [Ticket(Mkdir("d")), Ticket(Mkdir("e"))]
    world.replica.deliver(tickets)
    assert [ticket.error and ticket.error.errno for ticket in tickets] == [errno.ENOSPC] * 2
    assert world.tree.entry_count == 0
    del below.failures["write"]


def test_the_first_change_after_a_failure_succeeds(
    world: World, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    world.replica.saver.start()  # saves the tree, as the segment can't be trusted any more
    world.make("a")
    below.failures["write"] = errno.EIO
    with pytest.raises(StoreError):
        world.issuer.submit(Mkdir("lost"))
    del below.failures["write"]
    assert world.issuer.submit(Mkdir("d")).entry.version == 3
    assert not world.replica.is_degraded
    world.issuer.submit(Mkdir("e"))
    tree = world.tree.checksum()
    assert world.restart().checksum() == tree


def test_without_room_nothing_is_applied(
    world: World, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    world.make("f.x")
    below.failures["reserve"] = errno.ENOSPC
    large = Write("f.x", 0, bytes(1 << 20), True)
    errors = []
    for _ in range(8):  # until what is reserved is used up
        try:
            world.issuer.submit(large)
        except StoreError as error:
            errors.append(error.errno)
            break
    assert errors == [errno.ENOSPC]
    assert world.undone == []
    below.failures.clear()
    world.issuer.submit(large)
    assert not world.replica.is_degraded


def test_a_change_without_room_does_not_undo_one_that_is_being_written(
    tmp_path: Path, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_log(FULL)
    yielding = Yielding(room=8)
    stored = StoredReplica(tmp_path, policy=Policy.ROLL_BACK, yielding=yielding, lock=yielding.lock)
    issuer = LocalIssuer(stored.replica, clock=lambda: 1, yielding=yielding)
    is_asked, may_fail = threading.Event(), threading.Event()

    def full(descriptor: int, offset: int, length: int) -> None:
        is_asked.set()
        assert may_fail.wait(WAIT)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def submit(mutation: Mutation) -> str:
        with yielding.lock:
            return issuer.submit(mutation).path

    with contextlib.closing(stored), device() as below, ThreadPoolExecutor() as pool:
        with yielding.lock:
            stored.replica.check_writable()
            issuer.submit(Create("f.x"))
        monkeypatch.setattr(segment_file, "reserve", full)
        large = pool.submit(submit, Write("f.x", 0, bytes(1 << 20), True))
        assert is_asked.wait(WAIT)  # by the thread that makes room
        small = pool.submit(submit, Mkdir("d"))
        yielding.await_away(2)
        below.runs.clear()
        may_fail.set()
        with pytest.raises(StoreError):
            large.result(WAIT)
        assert below.stands_still.wait(WAIT)
        below.runs.set()
        assert small.result(WAIT) == "d"
        assert stored.tree.find("d") is not None
        assert [version for version, _ in stored.changes()] == [2, 3]
    assert recovered_tree(tmp_path).find("d") is not None


def test_a_replayed_change_is_not_undone_by_a_later_failure(
    world: World, expect_log: ExpectLog, tmp_path: Path
) -> None:
    expect_log(FULL)
    world.make("kept.x")
    world.close()
    with contextlib.closing(World(tmp_path)) as again, device() as below:
        below.failures["write"] = errno.ENOSPC
        with pytest.raises(StoreError):
            again.issuer.submit(Mkdir("d"))
        assert again.tree.find("kept.x") is not None
        del below.failures["write"]


# A bug


class Bug(Exception):
    """What no code expects."""


def fail(*_: object, **__: object) -> None:
    raise Bug


def check_changes_work(world: World, before: bytes) -> None:
    """Check that the tree is *before*, and that later changes are made and survive a restart."""
    assert world.tree.checksum() == before
    assert (changed_in(world.tree), list(world.guests)) == ({}, [])
    world.replica.saver.start()
    world.issuer.submit(Create(GUEST))
    world.issuer.submit(Write(GUEST, 0, b"memory: 1", True))
    assert [guest.vmid for guest in world.guests] == [100]
    tree = world.tree.checksum()
    assert world.restart().checksum() == tree


@pytest.mark.parametrize("where", ["write", "note_change", "remove", "record"])
def test_an_unexpected_exception_gives_the_whole_group_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    world.make("nodes", "nodes/a", "nodes/a/lxc", "f.x")
    before = world.tree.checksum()
    with monkeypatch.context() as patch:
        if where == "note_change":  # all has been written then
            patch.setattr(world.replica.saver, where, fail)
        elif where == "remove":  # all has been applied then
            patch.setattr(world.replica.departures, where, fail)
        elif where == "record":
            patch.setattr(world, "wall_clock_ns", fail)
        else:
            patch.setattr(os, "pwrite", fail)
        mutations = (Create(GUEST), Write("f.x", 0, b"new", True), Delete("f.x"), Mkdir("f.x"))
        tickets = [Ticket(mutation) for mutation in mutations]
        with pytest.raises(Bug):
            world.replica.deliver(tickets)
    for ticket in tickets:
        assert ticket.is_done
        with pytest.raises(Failed, match="by a bug"):
            ticket.result()
    assert world.heard == []
    check_changes_work(world, before)


def test_an_exception_of_a_listener_of_rollbacks_leaves_no_ticket_open(
    world: World, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    world.replica.subscribe(on_undone=fail)
    below.failures["write"] = errno.EIO
    ticket = Ticket(Mkdir("d"))
    with pytest.raises(Bug):
        world.replica.deliver([ticket])
    assert isinstance(ticket.error, StoreError)
    assert world.tree.entry_count == 0
    del below.failures["write"]


# Creations that wait for their content


def test_a_creation_is_written_with_the_next_change(world: World) -> None:
    world.issuer.create(Create("f.x"))
    assert world.heard == [(Kind.CREATE, "f.x", False)]
    assert world.changes() == []
    with device() as below:
        world.issuer.submit(Write("f.x", 0, b"x", True))
        world.issuer.save()
        assert below.count("write") == 1
    assert world.changes() == [(2, Create("f.x")), (3, Write("f.x", 0, b"x", True))]


def test_a_creation_can_be_written_alone(world: World) -> None:
    world.issuer.create(Create("f.x"))
    world.issuer.save()
    assert world.changes() == [(2, Create("f.x"))]
    assert changed_in(world.tree) == {}


@pytest.mark.parametrize(
    ("path", "is_configuration"), [("storage.cfg", True), ("storage.cfg.tmp.7", False)]
)
def test_a_creation_that_is_written_alone_is_saved_as_soon_as_any_change(
    world: World, monkeypatch: pytest.MonkeyPatch, path: str, is_configuration: bool
) -> None:
    noted: list[bool] = []
    monkeypatch.setattr(
        world.replica.saver,
        "note_change",
        lambda is_configuration: noted.append(is_configuration),
    )
    world.issuer.create(Create(path))
    world.issuer.save()
    world.issuer.submit(Mkdir("priv"))
    assert noted == [is_configuration, True]


def test_a_creation_that_can_not_be_written_is_rolled_back(
    world: World, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    entry = world.issuer.create(Create("f.x")).entry
    below.failures["write"] = errno.ENOSPC
    with pytest.raises(StoreError):
        world.issuer.save()
    assert not entry.is_attached
    assert world.undone == ["f.x"]
    world.replica.saver.start()
    with pytest.raises(StoreError):
        world.issuer.create(Create("g.x"))  # written at once while the journal fails
    assert world.tree.entry_count == 0
    del below.failures["write"]


def test_a_refused_creation_raises_its_error(world: World) -> None:
    world.make("f.x")
    with pytest.raises(Exists):
        world.issuer.create(Create("f.x"))
    assert world.heard == []


def test_a_creation_that_can_not_be_recorded_is_rolled_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.tree.checksum()
    with monkeypatch.context() as patch:
        assert world.replica.is_ready([Ticket(Create("f.x"))])
        patch.setattr(world, "wall_clock_ns", fail)
        with pytest.raises(Bug):
            world.issuer.create(Create("f.x"))
    assert is_undone(world, before)


# Targets


@pytest.mark.parametrize(
    ("first", "outcome"),
    [
        (Rename("f.x", "g.x"), "g.x"),
        (Delete("f.x"), NotFound),
        (Rename("h.x", "f.x"), Stale),
    ],
)
def test_a_mutation_with_a_target_never_changes_another_entry(
    world: World, first: Mutation, outcome: str | type[Exception]
) -> None:
    world.make("f.x", "h.x")
    ticket = Ticket(Write("f.x", 0, b"mine", True), target=world.tree.find("f.x"))
    world.replica.deliver([Ticket(first), ticket])
    if isinstance(outcome, str):
        assert ticket.result().path == outcome
        assert ticket.result().entry.content == b"mine"
    else:
        with pytest.raises(outcome):
            ticket.result()
        found = world.tree.find("f.x")
        assert found is None or found.content == b""


# Foreign changes, waiting, syncing


def test_an_injected_mutation_is_announced_as_foreign(world: World) -> None:
    change = world.replica.inject(Create("f.x"), writer=9, mtime=77)
    assert (change.entry.writer, change.entry.mtime) == (9, 77)
    assert world.heard == [(Kind.CREATE, "f.x", True)]
    with pytest.raises(NotFound):
        world.replica.inject(Mtime("missing", 1), writer=9, mtime=77)


def test_sync_releases_the_lock(world: World) -> None:
    world.make("f.x")
    with device() as below:
        world.issuer.sync()
        assert below.count("sync") == 1
    assert world.single.waits == 1


def test_a_held_mutation_is_carried_out_after_resume(world: World) -> None:
    world.issuer.hold()
    world.replica.inject(Mkdir("foreign"), writer=9, mtime=1)
    world.single.during_waits = [world.issuer.resume]
    assert world.issuer.submit(Mkdir("d")).path == "d"
    assert world.single.waits == 1
    world.issuer.submit(Mkdir("e"))
    assert world.single.waits == 1


def test_a_creation_is_held_too(world: World) -> None:
    world.issuer.hold()
    world.single.during_waits = [world.issuer.resume]
    world.issuer.create(Create("f.x"))
    assert world.single.waits == 1
    assert world.written() == ["Create f.x"]


def test_a_held_mutation_is_refused_when_the_daemon_stops(world: World) -> None:
    world.issuer.hold()
    world.issuer.refuse()
    with pytest.raises(Busy):
        world.issuer.submit(Mkdir("d"))
    world.issuer.resume()
    world.issuer.submit(Mkdir("d"))


def test_the_number_of_waiting_mutations_is_limited(world: World) -> None:
    world.issuer.hold()
    world.single.is_full = True
    with pytest.raises(Busy):
        world.issuer.submit(Mkdir("d"))
    assert world.tree.entry_count == 0


@pytest.mark.parametrize(
    ("mutation", "shortened"),
    [
        (Mkdir("d"), "NAME_TIMEOUT"),
        (Create("f"), "NAME_TIMEOUT"),
        (Delete("f"), "NAME_TIMEOUT"),
        (Rename("f", "g"), "NAME_TIMEOUT"),
        (Write("f", 0, b"", True), "CONTENT_TIMEOUT"),
        (Mtime("f", 1), "CONTENT_TIMEOUT"),
    ],
)
def test_changes_of_names_have_a_shorter_timeout(
    world: World, monkeypatch: pytest.MonkeyPatch, mutation: Mutation, shortened: str
) -> None:
    assert (tickets.NAME_TIMEOUT, tickets.CONTENT_TIMEOUT) == (2, 10)
    monkeypatch.setattr(tickets, "NAME_TIMEOUT", 1000.0)
    monkeypatch.setattr(tickets, "CONTENT_TIMEOUT", 1000.0)
    monkeypatch.setattr(tickets, shortened, 0.001)
    world.issuer.hold()
    with pytest.raises(Busy):
        world.issuer.submit(mutation)


def test_another_worker_waits_for_a_ticket_and_is_busy_in_the_end(world: World) -> None:
    ticket = Ticket(Mkdir("d"))
    with pytest.raises(Busy):
        world.issuer.wait(ticket, 0.001)
    assert world.single.waits == 1
    world.single.waits = 0
    assert world.issuer.carry_out(ticket).path == "d"
    world.issuer.wait(ticket, 0.0)
    assert world.single.waits == 0


def test_files_and_directories_are_of_their_type(world: World) -> None:
    assert world.issuer.submit(Create("f")).entry.type == EntryType.FILE
    assert world.issuer.submit(Mkdir("d")).entry.type == EntryType.DIRECTORY
