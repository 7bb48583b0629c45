"""What takes long to save is saved while others have the lock, and changes wait for it."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.messages import Create, Mkdir, Mutation, Write
from pmxcfs.replica.local_issuer import LocalIssuer
from pmxcfs.replica.replica import LARGE_SAVE, Replica
from pmxcfs.tree.apply import Change
from pmxcfs.tree.guests import Guests
from tests.fakes.doubles.yielding import Yielding

PATIENCE = 10.0  # seconds
LARGE = Write("file", 0, bytes(LARGE_SAVE + 1), truncate=True)


class SlowDatabase:
    """Saves at once only while *is_prompt*, else when it is told to."""

    def __init__(self) -> None:
        self.saved: list[list[str]] = []  # the paths of each transaction
        self.is_prompt = self.is_sound = True
        self.degraded: StoreError | None = None
        self.diverged_at: int | None = None
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def save(self, tree: Tree, *, patient: bool = True) -> bool:
        if patient:
            self.has_begun.set()
            assert self.may_end.wait(PATIENCE)
        elif not self.is_prompt:
            return False
        if self.degraded is not None:
            raise self.degraded
        self.saved.append([entry.path for entry in tree.unsaved().values() if entry])
        return True


class World:
    """A replica, its issuer, and threads that change something."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.database, self.yielding = SlowDatabase(), Yielding(room=0)
        self.tree = Tree()
        self.replica = Replica(self.tree, Guests(), self.database)  # type: ignore[arg-type]
        self.replica.is_shared = True
        self.issuer = LocalIssuer(self.replica, clock=lambda: 1.0, yielding=self.yielding)
        self._pool = pool
        self.submit(Create("file"))
        self.database.saved.clear()

    def submit(self, mutation: Mutation) -> Change:
        with self.yielding.lock:
            return self.issuer.submit(mutation)

    def begin(self, mutation: Mutation) -> Future[Change]:
        return self._pool.submit(self.submit, mutation)

    def begin_long(self, mutation: Mutation) -> Future[Change]:
        """Begin one that is being saved when this returns, until ``end``."""
        change = self.begin(mutation)
        assert self.database.has_begun.wait(PATIENCE)
        return change

    def end(self) -> None:
        self.database.may_end.set()


@pytest.fixture
def world() -> Iterator[World]:
    with ThreadPoolExecutor() as pool:
        made = World(pool)
        yield made
        made.end()


def size(world: World) -> int:
    entry = world.tree.find("file")
    assert entry is not None
    return entry.size


def test_others_read_while_much_is_saved(world: World) -> None:
    change = world.begin_long(LARGE)
    with world.yielding.lock:
        assert size(world) == len(LARGE.data)
        assert not change.done()
    world.end()
    assert change.result(PATIENCE).path == "file"
    assert world.database.saved == [["file"]]


def test_others_read_while_somebody_else_writes_to_the_database(world: World) -> None:
    world.database.is_prompt = False
    change = world.begin_long(Mkdir("d"))
    with world.yielding.lock:
        assert not change.done()
    world.end()
    assert change.result(PATIENCE).path == "d"
    assert world.database.saved == [["d"]]


def test_changes_wait_and_are_one_transaction_then(world: World) -> None:
    large = world.begin_long(LARGE)
    others = [world.begin(Mkdir("d")), world.begin(Mkdir("e"))]
    world.yielding.await_away(3)
    with world.yielding.lock:
        assert world.tree.find("d") is None
    world.end()
    assert [change.result(PATIENCE).path for change in (large, *others)] == ["file", "d", "e"]
    assert [sorted(paths) for paths in world.database.saved] == [["file"], ["d", "e"]]


def test_everything_that_changes_the_tree_waits(world: World) -> None:
    world.begin_long(LARGE)

    def inject() -> Change:
        with world.yielding.lock:
            return world.replica.inject(Mkdir("foreign"), writer=9, mtime=1)

    def create() -> Change:
        with world.yielding.lock:
            return world.issuer.create(Create("new"))

    def save() -> None:
        with world.yielding.lock:
            world.issuer.save()

    def catch_up() -> bool:
        with world.yielding.lock:
            return world.replica.catch_up()

    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(call) for call in (inject, create, save, catch_up)]
        world.yielding.await_away(1 + len(calls))
        with world.yielding.lock:
            assert world.tree.find("foreign") is world.tree.find("new") is None
        world.end()
        for call in calls:
            call.result(PATIENCE)
    assert world.tree.find("foreign") is not None


def test_what_fails_is_taken_back_before_anything_else_changes(world: World) -> None:
    large = world.begin_long(LARGE)
    other = world.begin(Create("new"))
    world.yielding.await_away(2)
    failure = StoreError("full", 28)
    world.database.degraded = failure
    world.end()
    for change in (large, other):
        with pytest.raises(StoreError, match="full"):
            change.result(PATIENCE)
    assert (size(world), world.tree.entry_count, world.database.saved) == (0, 1, [])
