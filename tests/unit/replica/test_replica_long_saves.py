"""Long saves: the tree's lock is released meanwhile, and other changes wait for the end."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.messages import Create, Mkdir, Mutation, Write
from pmxcfs.replica.local_issuer import LocalIssuer
from pmxcfs.replica.replica import LARGE_SAVE, Replica
from pmxcfs.storage.divergence import Note, Removal
from pmxcfs.tree.apply import Change
from pmxcfs.tree.guests import Guests
from tests.fakes.doubles.yielding import Yielding

DEADLINE = 10.0  # seconds
LARGE = Write("file", 0, bytes(LARGE_SAVE + 1), truncate=True)


class SlowDatabase:
    """A database that saves at once while *is_prompt*, else only when the test lets it."""

    def __init__(self) -> None:
        self.saved: list[list[str]] = []  # the paths of each transaction
        self.is_prompt = self.is_sound = True
        self.degraded: StoreError | None = None
        self.notes: Mapping[int, Note] = {}
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def save(self, tree: Tree, removals: Sequence[Removal] = (), *, patient: bool = True) -> bool:
        if patient:
            self.has_begun.set()
            assert self.may_end.wait(DEADLINE)
        elif not self.is_prompt:
            return False
        if self.degraded is not None:
            raise self.degraded
        self.saved.append([entry.path for entry in tree.unsaved().values() if entry])
        return True


class World:
    """A replica, its issuer, and worker threads."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.database, self.yielding = SlowDatabase(), Yielding(room=0)
        self.tree = Tree()
        self.replica = Replica(self.tree, Guests(), self.database, yielding=self.yielding)  # type: ignore[arg-type]
        self.replica.departures.set_nodes(())
        self.issuer = LocalIssuer(self.replica, clock=lambda: 1, yielding=self.yielding)
        self._pool = pool
        self.submit(Create("file"))
        self.database.saved.clear()

    def submit(self, mutation: Mutation) -> Change:
        with self.yielding.lock:
            return self.issuer.submit(mutation)

    def begin(self, mutation: Mutation) -> Future[Change]:
        return self._pool.submit(self.submit, mutation)

    def begin_long(self, mutation: Mutation) -> Future[Change]:
        """Begin a mutation whose save runs from the return of this method until ``end``."""
        change = self.begin(mutation)
        assert self.database.has_begun.wait(DEADLINE)
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


def test_other_threads_read_during_a_large_save(world: World) -> None:
    change = world.begin_long(LARGE)
    with world.yielding.lock:
        assert size(world) == len(LARGE.data)
        assert not change.done()
    world.end()
    assert change.result(DEADLINE).path == "file"
    assert world.database.saved == [["file"]]


def test_other_threads_read_while_another_process_writes_to_the_database(world: World) -> None:
    world.database.is_prompt = False
    change = world.begin_long(Mkdir("d"))
    with world.yielding.lock:
        assert not change.done()
    world.end()
    assert change.result(DEADLINE).path == "d"
    assert world.database.saved == [["d"]]


def test_changes_wait_for_the_save_and_are_one_transaction(world: World) -> None:
    large = world.begin_long(LARGE)
    others = [world.begin(Mkdir("d")), world.begin(Mkdir("e"))]
    world.yielding.await_away(3)
    with world.yielding.lock:
        assert world.tree.find("d") is None
    world.end()
    assert [change.result(DEADLINE).path for change in (large, *others)] == ["file", "d", "e"]
    assert [sorted(paths) for paths in world.database.saved] == [["file"], ["d", "e"]]


def test_all_changes_of_the_tree_wait_for_the_save(world: World) -> None:
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
            call.result(DEADLINE)
    assert world.tree.find("foreign") is not None


def test_a_failed_save_is_rolled_back_before_the_next_change(world: World) -> None:
    large = world.begin_long(LARGE)
    other = world.begin(Create("new"))
    world.yielding.await_away(2)
    failure = StoreError("full", 28)
    world.database.degraded = failure
    world.end()
    for change in (large, other):
        with pytest.raises(StoreError, match="full"):
            change.result(DEADLINE)
    assert (size(world), world.tree.entry_count, world.database.saved) == (0, 1, [])
