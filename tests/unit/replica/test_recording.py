"""Records of applied changes: what they hold, how large they are, and what was there before."""

import pytest

from pmxcfs._core import Tree
from pmxcfs.host.callers import Caller
from pmxcfs.messages import Create, Delete, Mkdir, Mtime, Mutation, Rename, Write
from pmxcfs.replica.recording import Applied, is_heartbeat, records_of, size_of
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage.records import Before, Change, Record, decode, mutation_of
from pmxcfs.tree.apply import apply
from pmxcfs.tree.guests import Guests

NOW_NS = 1_795_367_932_123_456_789


class World:
    """A tree, and the records of the changes that are made to it; each group is a segment."""

    def __init__(self) -> None:
        self.tree, self.guests = Tree(), Guests()
        self.segment = 1

    def records(
        self, *mutations: Mutation, writer: int = 3, is_same_segment: bool = False
    ) -> list[Record]:
        """Apply *mutations* as one group; return its records."""
        done = []
        for mutation in mutations:
            ticket = Ticket(mutation, writer=writer, mtime=99, caller=Caller(4711, 33, 5, b"vi"))
            change = apply(self.tree, self.guests, mutation, writer=writer, mtime=99)
            done.append(Applied(ticket, mutation, change, self.tree.version))
        self.segment += not is_same_segment
        bodies = records_of(done, self.tree, self.segment, NOW_NS)
        self.tree.mark_written()
        return [decode(body) for body in bodies]

    def make(self, path: str, data: bytes = b"") -> None:
        self.records(Create(path), Write(path, 0, data, truncate=True))


@pytest.fixture
def world() -> World:
    return World()


def before(records: list[Record]) -> list[Before]:
    return [record for record in records if isinstance(record, Before)]


def test_a_change_is_recorded_with_who_made_it_and_when(world: World) -> None:
    (record,) = world.records(Mkdir("d"))
    assert isinstance(record, Change)
    assert (record.version, record.writer, record.mtime, record.inode) == (2, 3, 99, 2)
    assert (record.time_ns, record.pid, record.uid) == (NOW_NS, 4711, 33)
    assert (record.login_uid, record.process) == (5, b"vi")
    assert mutation_of(record) == Mkdir("d")


def test_the_entry_of_a_rename_and_what_it_replaces_are_recorded(world: World) -> None:
    world.records(Mkdir("priv"))
    world.make("a", b"first")
    world.make("priv/b", b"second")
    records = world.records(Rename("a", "priv/b"))
    rows = {row.path: row for row in before(records)}
    assert {path: row.data for path, row in rows.items()} == {b"a": b"first", b"priv/b": b"second"}
    assert (rows[b"a"].is_private, rows[b"priv/b"].is_private) == (False, True)
    assert rows[b"priv/b"].name == b"b"
    assert isinstance(records[-1], Change)
    assert records[-1].inode == rows[b"a"].inode


def test_the_row_before_a_group_is_recorded_once_ahead_of_it(world: World) -> None:
    world.make("f", b"first")
    records = world.records(Write("f", 0, b"x", True), Mtime("f", 5), Delete("f"))
    assert [type(record) for record in records] == [Before, Change, Change, Change]
    (row,) = before(records)
    assert (row.data, row.size, row.offset, row.version) == (b"first", 5, 0, 3)


LARGE = bytes(range(256)) * 400  # 100 KiB


@pytest.mark.parametrize(
    ("mutations", "start", "end"),
    [
        ([Write("f", 1000, b"x" * 24, truncate=False)], 1000, 1024),
        ([Write("f", 1000, b"x" * 24, truncate=True)], 1000, len(LARGE)),
        ([Write("f", 10, b"x", False), Write("f", 2000, b"y", False)], 10, 2001),
        ([Write("f", len(LARGE), b"appended", truncate=False)], len(LARGE), len(LARGE)),
        ([Write("f", len(LARGE) + 9, b"beyond", truncate=False)], len(LARGE), len(LARGE)),
        ([Delete("f")], 0, len(LARGE)),
        ([Rename("other", "f")], 0, len(LARGE)),
        ([Mtime("f", 7)], 0, 0),
        ([Rename("f", "g")], 0, 0),
    ],
    ids=["write", "cut", "two", "append", "beyond", "delete", "replace", "utime", "rename"],
)
def test_of_a_large_file_only_the_changed_range_is_recorded(
    world: World, mutations: list[Mutation], start: int, end: int
) -> None:
    world.make("f", LARGE)
    world.make("other")
    rows = [row for row in before(world.records(*mutations)) if row.path == b"f"]
    (row,) = rows
    assert (row.offset, row.data, row.size) == (start, LARGE[start:end], len(LARGE))


def test_a_large_row_is_recorded_until_the_segment_tells_all_of_it(world: World) -> None:
    def rows(mutation: Mutation) -> list[tuple[int, bytes]]:
        records = world.records(mutation, is_same_segment=True)
        return [(row.offset, row.data) for row in before(records)]

    part, whole = Write("f", 1000, b"x", False), Write("f", 0, LARGE[::-1], True)
    world.make("f", LARGE)
    assert rows(part) == []  # the file was made in this segment
    world.records(Mkdir("d"))
    assert rows(part) == [(1000, b"x")]
    assert rows(Write("f", 1001, b"y", False)) == [(1001, LARGE[1001:1002])]
    assert rows(whole) == [(0, LARGE[:1000] + b"xy" + LARGE[1002:])]
    assert rows(whole) == rows(part) == rows(Delete("f")) == []


def test_the_row_of_a_small_file_that_grows_is_all_that_a_segment_needs(world: World) -> None:
    world.make("f", b"small")
    assert [row.data for row in before(world.records(Write("f", 0, LARGE, True)))] == [b"small"]
    assert before(world.records(Write("f", 0, b"x", True), is_same_segment=True)) == []


@pytest.mark.parametrize(
    "mutation",
    [
        Mkdir("d" * 200),
        Write("f", 0, bytes(5000), truncate=True),
        Write("large", 0, bytes(1 << 20), truncate=True),
        Delete("large"),
        Rename("large", "f"),
        Rename("f", "large"),
        Mtime("d/" + "n" * 200, 5),
    ],
    ids=lambda mutation: type(mutation).__name__,
)
def test_the_size_is_never_less_than_that_of_the_records(world: World, mutation: Mutation) -> None:
    world.make("f", b"x" * 3000)
    world.make("large", LARGE)
    world.records(Mkdir("d"))
    world.make("d/" + "n" * 200)
    around = 21  # bytes of a record's frame, and to spare
    size = size_of(mutation, world.tree)
    change = apply(world.tree, world.guests, mutation, writer=1, mtime=1)
    done = [Applied(Ticket(mutation), mutation, change, 9)]
    bodies = records_of(done, world.tree, 99, NOW_NS)
    assert sum(len(body) + around for body in bodies) <= size


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("nodes/a/lrm_status", True),
        ("nodes/a/lrm_status.tmp.77", True),
        ("ha/manager_status", True),
        ("priv/lock/ha_manager_lock", True),
        ("storage.cfg.tmp.1", True),
        ("storage.cfg", False),
        ("ha/resources.cfg", False),
        ("nodes/a/qemu-server/100.conf", False),
        ("priv/lock", False),
    ],
)
def test_files_that_change_all_the_time_are_no_configuration(path: str, expected: bool) -> None:
    assert is_heartbeat(path) is expected
