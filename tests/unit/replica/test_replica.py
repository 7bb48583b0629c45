"""Replica and LocalIssuer: groups of mutations are applied, saved and announced, or rolled back."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import Busy, Exists, NotEmpty, NotFound, Stale, StoreError
from pmxcfs.messages import Create, Delete, EntryType, Kind, Mkdir, Mtime, Mutation, Rename, Write
from pmxcfs.replica import tickets
from pmxcfs.replica.local_issuer import LocalIssuer
from pmxcfs.replica.replica import Replica
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage.divergence import Note, Removal
from pmxcfs.tree.apply import Change
from pmxcfs.tree.guests import Guests

GUEST = "nodes/a/lxc/100.conf"


class FakeDatabase:
    """A database that records its calls and fails on demand."""

    def __init__(self) -> None:
        self.saved: list[list[str]] = []  # the paths of each transaction
        self.syncs = 0
        self.degraded: StoreError | None = None
        self.notes: Mapping[int, Note] = {}

    def save(self, tree: Tree, removals: Sequence[Removal] = (), *, patient: bool = True) -> bool:
        if self.degraded is not None:
            raise self.degraded
        self.saved.append([entry.path for entry in tree.unsaved().values() if entry])
        return True

    def write_notes(self, notes: Mapping[int, Note], removals: Sequence[Removal] = ()) -> None:
        self.notes = notes

    def sync(self) -> None:
        self.syncs += 1


class FakeYielding:
    """A Yielding that runs the actions of other workers while the lock is released."""

    def __init__(self) -> None:
        self.meanwhile: list[Callable[[], object]] = []
        self.released_count = self.waits = 0
        self.is_full = False

    def give_way(self) -> None:
        if self.meanwhile:
            self.meanwhile.pop(0)()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        self.released_count += 1
        yield

    def aside(self, work: Callable[[], object]) -> object:
        with self.released():
            return work()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        if self.is_full:
            raise Busy("too many wait")
        self.waits += 1
        if self.meanwhile:
            self.meanwhile.pop(0)()
        yield


class World:
    """A replica, its issuer, and the calls of its listeners."""

    def __init__(self) -> None:
        self.tree, self.guests = Tree(), Guests()
        self.database, self.yielding = FakeDatabase(), FakeYielding()
        self.replica = Replica(self.tree, self.guests, self.database, yielding=self.yielding)  # type: ignore[arg-type]
        self.issuer = LocalIssuer(self.replica, clock=lambda: 1234, yielding=self.yielding)
        self.heard: list[tuple[Kind, str, bool]] = []
        self.undone: list[str] = []
        self.replica.subscribe(on_change=self.hear, on_undone=self.hear_undone)

    def hear(self, change: Change, *, foreign: bool) -> None:
        self.heard.append((change.kind, change.path, foreign))

    def hear_undone(self, undone: Mapping[Entry, str], error: StoreError) -> None:
        self.undone += [entry.path for entry in undone]

    def make(self, *paths: str) -> None:
        """Make a file for each path with a dot in its name, a directory for any other path."""
        for path in paths:
            mutation = Create(path) if "." in path else Mkdir(path)
            self.issuer.submit(mutation)
        self.heard.clear()
        self.database.saved.clear()


@pytest.fixture
def world() -> World:
    return World()


# A group


def test_a_mutation_is_stamped_saved_and_announced(world: World) -> None:
    change = world.issuer.submit(Mkdir("d"))
    assert (change.kind, change.path) == (Kind.MKDIR, "d")
    assert (change.entry.mtime, change.entry.writer, change.entry.version) == (1234, 0, 2)
    assert world.database.saved == [["d"]]
    assert world.heard == [(Kind.MKDIR, "d", False)]
    assert world.tree.unsaved() == {}
    assert world.replica.transactions == 1


def test_a_group_is_one_transaction_in_order(world: World) -> None:
    tickets = [
        Ticket(mutation) for mutation in (Mkdir("d"), Create("d/f"), Write("d/f", 0, b"x", True))
    ]
    world.replica.deliver(tickets)
    assert [ticket.result().path for ticket in tickets] == ["d", "d/f", "d/f"]
    assert world.database.saved == [["d", "d/f"]]
    assert [kind for kind, *_ in world.heard] == [Kind.MKDIR, Kind.CREATE, Kind.WRITE]


def test_a_refused_mutation_does_not_affect_its_group(world: World) -> None:
    tickets = [Ticket(Mkdir("d")), Ticket(Mkdir("d")), Ticket(Create("f.x"))]
    world.replica.deliver(tickets)
    assert tickets[0].result().path == "d"
    with pytest.raises(Exists):
        tickets[1].result()
    assert tickets[2].result().path == "f.x"
    assert [path for _, path, _ in world.heard] == ["d", "f.x"]


def test_a_group_of_refusals_is_not_saved(world: World) -> None:
    with pytest.raises(NotFound):
        world.issuer.submit(Delete("missing"))
    assert world.database.saved == []
    assert world.heard == []


def test_a_half_done_rename_is_saved_and_announced(world: World) -> None:
    world.make("d", "d/f.x", "e")
    with pytest.raises(NotEmpty):
        world.issuer.submit(Rename("d", "e"))
    # Announced as foreign: the reply to the rename reports only the failure.
    assert world.heard == [(Kind.DELETE, "e", True)]
    assert len(world.database.saved) == 1
    assert world.tree.find("e") is None


def test_requests_that_arrive_meanwhile_join_the_group(world: World) -> None:
    done = []
    world.yielding.meanwhile = [lambda: done.append(world.issuer.submit(Mkdir("e")).path)]
    assert world.issuer.submit(Mkdir("d")).path == "d"
    assert done == ["e"]
    assert world.database.saved == [["d", "e"]]


# A group that can't be saved


def test_a_group_that_can_not_be_saved_is_rolled_back(world: World) -> None:
    world.make("d", "f.x", "nodes", "nodes/a", "nodes/a/lxc")
    before = world.tree.checksum()
    world.database.degraded = StoreError("full", 28)
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
        with pytest.raises(Exists if ticket.mutation == Mkdir("d") else StoreError):
            ticket.result()
    assert world.tree.checksum() == before
    assert list(world.guests) == []
    assert world.heard == []
    assert sorted(world.undone) == ["f.x", GUEST]
    assert world.replica.is_degraded
    assert world.tree.unsaved() == {}


def test_every_request_of_the_group_gets_the_errno(world: World) -> None:
    world.database.degraded = StoreError("full", 28)
    errors = []

    def submit() -> None:
        with pytest.raises(StoreError) as failure:
            world.issuer.submit(Mkdir("e"))
        errors.append(failure.value.errno)

    world.yielding.meanwhile = [submit]
    with pytest.raises(StoreError) as failure:
        world.issuer.submit(Mkdir("d"))
    assert [*errors, failure.value.errno] == [28, 28]
    assert world.tree.entry_count == 0


# Creations that wait for their content


def test_a_creation_is_saved_with_the_next_change(world: World) -> None:
    world.issuer.create(Create("f.x"))
    assert world.heard == [(Kind.CREATE, "f.x", False)]
    assert world.database.saved == []
    assert world.replica.has_unsaved
    world.issuer.submit(Write("f.x", 0, b"x", True))
    assert world.database.saved == [["f.x"]]
    world.issuer.save()
    assert len(world.database.saved) == 1


def test_a_creation_can_be_saved_alone(world: World) -> None:
    world.issuer.create(Create("f.x"))
    world.issuer.save()
    assert world.database.saved == [["f.x"]]
    assert not world.replica.has_unsaved


def test_a_creation_that_can_not_be_saved_is_rolled_back(world: World) -> None:
    entry = world.issuer.create(Create("f.x")).entry
    world.database.degraded = StoreError("full", 28)
    with pytest.raises(StoreError):
        world.issuer.save()
    assert not entry.is_attached
    assert world.undone == ["f.x"]
    with pytest.raises(StoreError):
        world.issuer.create(Create("g.x"))  # saved at once while the database is degraded
    assert world.tree.entry_count == 0


def test_a_refused_creation_raises_its_error(world: World) -> None:
    world.make("f.x")
    with pytest.raises(Exists):
        world.issuer.create(Create("f.x"))
    assert world.heard == []


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
    world.issuer.sync()
    assert (world.database.syncs, world.yielding.released_count) == (1, 1)


def test_a_held_mutation_is_carried_out_after_resume(world: World) -> None:
    world.issuer.hold()
    world.replica.inject(Mkdir("foreign"), writer=9, mtime=1)
    world.yielding.meanwhile = [world.issuer.resume]
    assert world.issuer.submit(Mkdir("d")).path == "d"
    assert world.yielding.waits == 1
    world.issuer.submit(Mkdir("e"))
    assert world.yielding.waits == 1


def test_a_creation_is_held_too(world: World) -> None:
    world.issuer.hold()
    world.yielding.meanwhile = [world.issuer.resume]
    world.issuer.create(Create("f.x"))
    assert world.yielding.waits == 1
    assert world.database.saved == [["f.x"]]


def test_a_held_mutation_is_refused_when_the_daemon_stops(world: World) -> None:
    world.issuer.hold()
    world.issuer.refuse()
    with pytest.raises(Busy):
        world.issuer.submit(Mkdir("d"))
    world.issuer.resume()
    world.issuer.submit(Mkdir("d"))


def test_the_number_of_waiting_mutations_is_limited(world: World) -> None:
    world.issuer.hold()
    world.yielding.is_full = True
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


def test_another_worker_waits_for_a_ticket(world: World) -> None:
    ticket = Ticket(Mkdir("d"))
    world.yielding.meanwhile = [lambda: world.issuer.wait(ticket, 0.0)]
    world.issuer.carry_out(ticket)
    assert len(world.database.saved) == 1
    assert world.issuer.wait(ticket, 0.0).path == "d"
    assert world.yielding.waits == 0


def test_a_ticket_that_is_never_done_is_busy(world: World) -> None:
    with pytest.raises(Busy):
        world.issuer.wait(Ticket(Mkdir("d")), 0.001)
    assert world.yielding.waits == 1


def test_files_and_directories_are_of_their_type(world: World) -> None:
    assert world.issuer.submit(Create("f")).entry.type == EntryType.FILE
    assert world.issuer.submit(Mkdir("d")).entry.type == EntryType.DIRECTORY
