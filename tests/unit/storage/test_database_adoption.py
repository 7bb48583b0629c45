"""An adoption in the database: one transaction, read back before the commit, or no change."""

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import BadMessage, StoreError
from pmxcfs.messages import Create, Mkdir, Write
from pmxcfs.replica.replica import Policy, Replica
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage.database import CHECKPOINT_AFTER, Database, inspect
from pmxcfs.tree import index
from pmxcfs.tree.adoption import Reload
from pmxcfs.tree.guests import Guests
from tests.conftest import ExpectLog
from tests.fakes.data.trees import ROOT, at, directory, file, records_of, tree_of
from tests.fakes.doubles.store import Faults, contents_of, faulty_connections, query, stored

OURS = (directory(2, "d"), file(3, "same", b"s"), file(4, "f", b"old"), file(5, "gone", b"g"))
THEIRS = (
    directory(2, "d"),
    file(3, "same", b"s"),
    file(4, "f", b"new", version=60),
    file(9, "n", parent=2),
)
NEWER = ROOT._replace(version=60, mtime=2000)
REFUSED = r"config.db.*; reads go on, changes are refused"
IO_ERROR = sqlite3.SQLITE_IOERR_WRITE
# Begin, delete 5, write 4, 9 and the version, look for the divergence table, read 4, 9, the version
# and the count, check for other writers, commit.
STATEMENTS = 11


HELD = contextlib.nullcontext()  # stands for a lock that is held already


class World:
    """A replica with an open database, and the calls of its reload listener."""

    def __init__(self, path: Path, *, policy: Policy) -> None:
        self.path = path
        self.checkpoint_requests = 0
        self.database = Database.open(path, now=7, on_growth=self._request_checkpoint)
        self.tree = Tree()
        self.replica = Replica(self.tree, Guests(), self.database, policy=policy)
        self.replica.departures.set_nodes((1, 2))
        self.replica.departures.follow({1, 2}, me=1, version=self.tree.version, now=0.0)
        self.told: list[Reload] = []
        self.replica.subscribe(on_reload=self.told.append)
        self.leader = tree_of(*THEIRS, root=NEWER)

    def _request_checkpoint(self) -> None:
        self.checkpoint_requests += 1

    def start(self) -> None:
        """Adopt our tree, in sync with other nodes."""
        self.become(tree_of(*OURS))
        self.told.clear()

    def become(self, leader: Tree, lock: AbstractContextManager[object] = HELD) -> None:
        raw = leader.index()
        needed = index.records_needed(raw, [self.replica.state()])
        records = records_of(leader, needed)
        self.replica.adopt(raw, records, side=(2,), now=1234, lock=lock)

    def adopt(self) -> None:
        self.become(self.leader)

    def check_is_ours(self) -> None:
        """Check that neither the tree nor the file has changed."""
        ours = tree_of(*OURS)
        assert self.tree.index() == stored(self.path).index() == ours.index()
        assert self.tree.unsaved() == {}
        assert self.told == []

    def check_is_theirs(self) -> None:
        """Check that tree and file are the leader's."""
        assert self.tree.index() == stored(self.path).index() == self.leader.index()
        assert self.tree.unsaved() == {}
        assert len(self.told) == 1


@pytest.fixture
def faults() -> Iterator[Faults]:
    with faulty_connections() as faults:
        yield faults


@pytest.fixture
def policy() -> Policy:
    return Policy.KEEP


@pytest.fixture
def world(tmp_path: Path, faults: Faults, policy: Policy) -> Iterator[World]:
    world = World(tmp_path / "config.db", policy=policy)
    with contextlib.closing(world.database):
        world.start()
        faults.seen.clear()
        yield world


in_local_mode = pytest.mark.parametrize("policy", [Policy.ROLL_BACK])
every_statement = pytest.mark.parametrize("nth", range(1, STATEMENTS + 1))


def test_an_adoption_is_one_transaction(world: World, faults: Faults) -> None:
    before = world.replica.transactions
    world.adopt()
    assert len(faults.seen) == STATEMENTS
    assert (faults.seen[0], faults.seen[-1]) == ("BEGIN IMMEDIATE", "COMMIT")
    assert world.replica.transactions == before + 1
    world.check_is_theirs()


def test_the_version_row_says_that_a_sync_wrote_it(world: World) -> None:
    world.adopt()
    rows = query(world.path, "SELECT version, writer, mtime, type, name FROM tree WHERE inode = 0")
    assert rows == [(60, 1, 2000, 4, b"__version__")]
    world.replica.deliver([Ticket(Mkdir("x"), writer=2, mtime=9)])
    assert query(world.path, "SELECT version, type FROM tree WHERE inode = 0") == [(61, 8)]


def test_equal_entries_are_not_written(world: World, faults: Faults) -> None:
    world.become(tree_of(*OURS, root=NEWER))
    assert len(faults.seen) == 6  # begin, version, divergence, read it, count, commit


def test_a_large_adoption_asks_for_a_checkpoint(world: World) -> None:
    count = CHECKPOINT_AFTER >> 20
    files = [file(10 + n, f"f{n}", bytes(1 << 20), version=60) for n in range(count)]
    world.become(tree_of(*files, root=NEWER))
    assert world.checkpoint_requests == 1


@in_local_mode
@every_statement
@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, IO_ERROR], ids=["full", "io"])
def test_in_local_mode_a_failure_at_any_statement_changes_nothing(
    world: World, faults: Faults, nth: int, code: int, expect_log: ExpectLog
) -> None:
    expect_log(REFUSED)
    faults.arm(code, at=nth)
    with pytest.raises(StoreError):
        world.adopt()
    world.check_is_ours()
    world.adopt()
    world.check_is_theirs()
    assert world.database.degraded is None


@every_statement
@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, IO_ERROR], ids=["full", "io"])
def test_in_a_cluster_an_adoption_stays_in_ram_until_it_can_be_saved(
    world: World, faults: Faults, nth: int, code: int, expect_log: ExpectLog
) -> None:
    expect_log(REFUSED)
    faults.arm(code, at=nth)
    world.adopt()
    assert world.tree.index() == world.leader.index()
    assert stored(world.path).index() == tree_of(*OURS).index()
    assert len(world.told) == 1
    assert world.replica.is_degraded
    assert world.replica.catch_up()
    world.check_is_theirs()
    assert not world.replica.is_degraded


@pytest.mark.parametrize("policy", list(Policy))
def test_a_commit_that_reports_a_failure_but_succeeded(
    world: World, faults: Faults, policy: Policy, expect_log: ExpectLog
) -> None:
    expect_log(REFUSED)
    faults.arm(IO_ERROR, matching="COMMIT", is_done=True)
    if policy is Policy.KEEP:
        world.adopt()
        assert world.replica.catch_up()
        world.check_is_theirs()
    else:
        with pytest.raises(StoreError):
            world.adopt()
        assert world.replica.catch_up()
        world.check_is_ours()


@in_local_mode
def test_rows_that_read_back_different_are_not_committed(
    world: World, expect_log: ExpectLog
) -> None:
    expect_log("entry 9 reads back different from what was written")
    # On our own connection: a write of another process would be detected in another way.
    world.database._connection.execute(
        "CREATE TEMP TRIGGER spoil AFTER INSERT ON main.tree WHEN new.inode = 9 "
        "BEGIN UPDATE tree SET mtime = 1 WHERE inode = 9; END"
    )
    with pytest.raises(StoreError):
        world.adopt()
    world.check_is_ours()


@in_local_mode
def test_unknown_rows_are_detected(world: World, expect_log: ExpectLog) -> None:
    expect_log("has 6 rows instead of 5")
    world.database._connection.execute("INSERT INTO tree VALUES (77, 0, 1, 1, 1, 8, 'x', NULL)")
    with pytest.raises(StoreError):
        world.adopt()
    assert world.replica.catch_up()
    world.check_is_ours()


def test_a_write_of_another_process_is_detected_and_undone(
    world: World, expect_log: ExpectLog
) -> None:
    expect_log("was written by another process")
    with contextlib.closing(sqlite3.connect(world.path)) as other:
        other.execute("UPDATE tree SET data = 'tampered' WHERE inode = 3")
        other.commit()
    world.adopt()
    assert world.replica.is_degraded
    assert contents_of(stored(world.path))["same"] == b"tampered"
    assert world.replica.catch_up()
    world.check_is_theirs()


def test_readers_and_checkpoints_are_not_writers(world: World) -> None:
    inspect(world.path)
    world.database.checkpoint()
    world.adopt()
    world.check_is_theirs()


@pytest.mark.parametrize("policy", list(Policy))
def test_a_bad_message_changes_nothing(world: World, policy: Policy, faults: Faults) -> None:
    with pytest.raises(BadMessage):
        world.replica.adopt(world.leader.index(), [], side=(2,), now=1, lock=HELD)
    assert faults.seen == []
    world.check_is_ours()


# Unsaved changes


def test_a_creation_that_waits_to_be_saved_is_part_of_our_tree(world: World) -> None:
    world.replica.defer(Ticket(Create("waits"), writer=1, mtime=7))
    kept = at(world.tree, "waits")
    leader = tree_of(*OURS, file(kept.inode, "waits", version=kept.version)._replace(mtime=7))
    root = NEWER._replace(version=51)
    world.leader = tree_of(*records_of(leader, [2, 3, 4, 5, kept.inode]), root=root)
    world.adopt()
    assert at(world.tree, "waits") is kept
    world.check_is_theirs()


def test_one_adoption_after_the_other_while_nothing_can_be_written(
    world: World, faults: Faults, expect_log: ExpectLog
) -> None:
    expect_log(REFUSED)
    faults.arm(IO_ERROR, at=0)
    world.adopt()
    world.replica.deliver([Ticket(Mkdir("x"), writer=2, mtime=9)])
    second = (*OURS[:2], file(4, "f", b"2nd", version=69), *OURS[3:])
    world.become(tree_of(*second, root=NEWER._replace(version=70)))
    world.replica.deliver([Ticket(Write("f", 0, b"later", truncate=True), writer=2, mtime=9)])
    last = (directory(90, "z", version=90), file(4, "f", b"q", parent=90, version=91))
    world.become(tree_of(*last, root=NEWER._replace(version=91)))
    assert not world.replica.catch_up()
    faults.disarm()
    assert world.replica.catch_up()
    assert stored(world.path).index() == world.tree.index()


def test_an_adopted_tree_is_loaded_after_a_restart(world: World) -> None:
    world.adopt()
    world.database.close()
    with contextlib.closing(Database.open(world.path, now=9)) as database:
        loaded = database.load(now=9)
        assert loaded.repairs == []
        assert database.notes == {}
    tree = Tree()
    tree.load(loaded.records)
    assert tree.index() == world.leader.index()


def test_a_successful_adoption_is_not_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.adopt()
    assert caplog.records == []


# The lock


class Lock:
    """The tree's lock; *on_enter* stands for what another thread does before it is taken."""

    def __init__(self, on_enter: Callable[[], object]) -> None:
        self.is_held = False
        self._on_enter = on_enter

    def __enter__(self) -> None:
        self._on_enter()
        self.is_held = True

    def __exit__(self, *exc_info: object) -> None:
        self.is_held = False


def test_the_lock_is_not_held_while_an_adoption_is_saved(world: World, faults: Faults) -> None:
    before: list[int] = []  # statements before the lock was taken
    lock = Lock(lambda: before.append(len(faults.seen)))
    world.replica.subscribe(on_reload=lambda _: before.append(-1 if lock.is_held else 0))
    world.become(world.leader, lock)
    assert before == [0, 0, STATEMENTS, -1]  # for the notes, for the plan's end, for the swap


def test_a_timer_that_comes_between_saving_and_swapping(
    world: World, faults: Faults, expect_log: ExpectLog
) -> None:
    """The timer saves the tree that is about to be replaced."""
    expect_log(REFUSED)
    faults.arm(IO_ERROR, matching="COMMIT")
    world.become(world.leader, Lock(world.replica.catch_up))
    world.check_is_theirs()
    assert not world.replica.is_degraded
