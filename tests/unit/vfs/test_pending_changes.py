"""Pending files: what other nodes do meanwhile, reloads, and failures."""

from collections.abc import Callable

import pytest

from pmxcfs._core import Entry
from pmxcfs.errors import (
    Busy,
    Exists,
    Failed,
    GuestTaken,
    IsADirectory,
    NoQuorum,
    NoSpace,
    NotFound,
    PmxcfsError,
    Signaled,
    Stale,
    TooBig,
)
from pmxcfs.messages import (
    MAX_FILE_SIZE,
    Create,
    Delete,
    Mkdir,
    Mutation,
    Record,
    Rename,
    Write,
)
from pmxcfs.replica.tickets import Ticket
from pmxcfs.tree.adoption import plan
from tests.fakes.doubles.filesystem import World
from tests.fakes.doubles.new_files import begin, close, content, is_free_of_pending, looked_up

REMOVED = "the new file .* is removed"


@pytest.fixture
def world() -> World:
    made = World()
    made.issuer.is_cluster = True
    return made


# What other nodes do meanwhile


def test_another_node_s_creation_becomes_the_pending_file(world: World) -> None:
    handle = begin(world, truncate=False)
    node = handle.entry.node
    world.elsewhere(Create("f"))
    assert world.tree.find("f") is handle.entry
    assert handle.entry.node == node
    assert handle.entry.read(0, 9) == b"new"
    world.elsewhere(Write("f", 0, b"theirs", True))
    assert handle.entry.read(0, 9) == b"newirs"
    close(world, handle)
    assert world.issuer.issued == [Write("f", 0, b"new", False)]
    assert content(world, "f") == b"newirs"
    assert is_free_of_pending(world)


@pytest.mark.parametrize(("data", "result"), [(b"new", b"new"), (b"", b"")])
def test_a_creation_that_comes_during_the_wait_is_no_error(
    world: World, data: bytes, result: bytes
) -> None:
    handle = begin(world, content=data)
    node = handle.entry.node

    def create_elsewhere() -> None:
        world.issuer.on_submit = lambda: None
        world.elsewhere(Create("f"))
        world.elsewhere(Write("f", 0, b"theirs", True))

    world.issuer.on_submit = create_elsewhere
    close(world, handle)
    assert content(world, "f") == result
    assert world.tree.find("f") is handle.entry
    assert handle.entry.node == node
    assert is_free_of_pending(world)


def test_an_open_without_o_trunc_that_loses_the_race_changes_nothing(world: World) -> None:
    handle = begin(world, content=b"", truncate=False)

    def create_elsewhere() -> None:
        world.issuer.on_submit = lambda: None
        world.elsewhere(Create("f"))
        world.elsewhere(Write("f", 0, b"theirs", True))

    world.issuer.on_submit = create_elsewhere
    close(world, handle)
    assert content(world, "f") == b"theirs"


def test_another_node_renames_a_file_to_the_name(world: World) -> None:
    handle = begin(world)
    world.elsewhere(Create("f.tmp"))
    world.elsewhere(Write("f.tmp", 0, b"theirs", True))
    world.elsewhere(Rename("f.tmp", "f"))
    assert world.tree.find("f") is handle.entry
    assert world.displaced == [handle.entry]
    close(world, handle)
    assert content(world, "f") == b"new"
    assert world.issuer.issued == [Write("f", 0, b"new", True)]


@pytest.mark.expect_log(REMOVED)
def test_another_node_renames_a_file_to_the_name_that_the_kernel_knows(world: World) -> None:
    handle, other = begin(world), world.make("f.tmp", b"theirs")
    world.known.add(other)
    world.elsewhere(Rename("f.tmp", "f"))
    assert looked_up(world, "f") is other
    with pytest.raises(Stale):
        close(world, handle)
    assert content(world, "f") == b"theirs"
    assert world.issuer.issued == []
    assert is_free_of_pending(world)


def test_the_content_can_go_to_a_file_that_comes_during_the_wait(world: World) -> None:
    handle, other = begin(world), world.make("f.tmp", b"theirs")
    world.known.add(other)
    world.issuer.on_submit = lambda: world.elsewhere(Rename("f.tmp", "f"))
    world.files.writeback.flush(handle)
    assert content(world, "f") == b"new"
    assert world.tree.find("f") is other
    assert is_free_of_pending(world)


@pytest.mark.expect_log("last writes to f are lost")
def test_a_later_write_to_the_file_that_lost_its_name_is_stale(world: World) -> None:
    handle, other = begin(world), world.make("f.tmp", b"theirs")
    world.known.add(other)
    world.issuer.on_submit = lambda: world.elsewhere(Rename("f.tmp", "f"))
    world.files.writeback.flush(handle)
    world.issuer.on_submit = lambda: None
    world.files.write(handle, 0, b"more")
    with pytest.raises(Stale):
        close(world, handle)
    assert content(world, "f") == b"new"


def test_a_rename_that_must_not_replace_keeps_the_file_if_the_name_is_taken_meanwhile(
    world: World,
) -> None:
    handle = begin(world)

    def take_name() -> None:
        world.issuer.on_submit = lambda: None
        world.elsewhere(Create("g"))

    world.issuer.on_submit = take_name
    with pytest.raises(Exists):
        world.files.rename(handle.entry, world.tree.root, "g", exclusive=True)
    assert looked_up(world, "f") is handle.entry
    world.files.write(handle, 3, b" and more")
    close(world, handle)
    assert content(world, "f") == b"new and more"
    assert content(world, "g") == b""


def test_a_directory_that_moves_to_the_new_place_makes_no_rename_onto_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The existing implementation uses freed memory on such a RENAME."""
    world.make("d", directory=True)
    target = world.make("e", directory=True)
    entry = begin(world, "d/f").entry

    def rename_meanwhile() -> None:
        world.issuer.on_submit = lambda: None

        def wait(ticket: Ticket, seconds: float) -> None:
            if not ticket.is_done:
                world.elsewhere(Rename("d", "e"))
                ticket.finish(Busy("not sent in time"))
            ticket.check()

        monkeypatch.setattr(world.issuer, "wait", wait)
        with pytest.raises(NotFound, match="has moved e/f onto or above the new name"):
            world.files.rename(entry, target, "f")
        raise Busy("not sent in time")

    world.issuer.on_submit = rename_meanwhile
    world.pass_time()
    assert world.issuer.issued == []
    assert looked_up(world, "e/f") is entry


@pytest.mark.expect_log(REMOVED)
def test_another_node_makes_a_directory_of_that_name(world: World) -> None:
    handle = begin(world)
    world.elsewhere(Mkdir("f"))
    assert looked_up(world, "f") is world.tree.find("f")
    assert world.files.pending.children(world.tree.root) == []
    with pytest.raises(IsADirectory):
        close(world, handle)
    assert world.issuer.issued == []
    assert is_free_of_pending(world)


@pytest.mark.expect_log(REMOVED)
def test_another_node_makes_a_directory_of_that_name_during_the_wait(world: World) -> None:
    handle = begin(world)
    world.issuer.on_submit = lambda: world.elsewhere(Mkdir("f"))
    with pytest.raises(IsADirectory):
        close(world, handle)
    assert is_free_of_pending(world)


@pytest.mark.expect_log(REMOVED)
def test_another_node_removes_the_directory(world: World) -> None:
    world.make("d", directory=True)
    handle = begin(world, "d/f")
    world.elsewhere(Delete("d"))
    with pytest.raises(NotFound):
        close(world, handle)
    assert world.issuer.issued == []
    assert is_free_of_pending(world)


@pytest.mark.expect_log(REMOVED)
def test_another_node_removes_the_directory_during_the_wait(world: World) -> None:
    world.make("d", directory=True)
    handle = begin(world, "d/f")
    world.issuer.on_submit = lambda: world.elsewhere(Delete("d"))
    with pytest.raises(NotFound):
        close(world, handle)
    assert is_free_of_pending(world)


def test_the_directory_is_removed_and_made_anew_during_the_wait(world: World) -> None:
    """The message says a path, so the content is in the new directory; and so is this object."""
    world.make("d", directory=True)
    handle = begin(world, "d/f")
    node = handle.entry.node

    def make_anew() -> None:
        world.issuer.on_submit = lambda: None
        world.elsewhere(Delete("d"))
        world.elsewhere(Mkdir("d"))

    world.issuer.on_submit = make_anew
    close(world, handle)
    assert content(world, "d/f") == b"new"
    assert world.tree.find("d/f") is handle.entry
    assert handle.entry.node == node
    assert is_free_of_pending(world)


@pytest.mark.expect_log(REMOVED)
def test_a_file_left_behind_unannounced_is_not_that_of_another_program(world: World) -> None:
    world.make("d", directory=True)
    handle = begin(world, "d/f")
    world.elsewhere(Delete("d"))
    world.elsewhere(Mkdir("d"))
    directory = world.tree.find("d")
    assert directory is not None
    other = world.files.create(directory, "f", exclusive=True)
    assert other is not handle.entry
    assert other.visible_size == 0
    with pytest.raises(NotFound):
        close(world, handle)


@pytest.mark.expect_log(REMOVED)
def test_of_two_files_left_behind_the_announced_one_is_the_tree_s(world: World) -> None:
    def make_anew() -> None:
        world.issuer.on_submit = lambda: None
        world.elsewhere(Delete("d"))
        world.elsewhere(Mkdir("d"))

    world.make("d", directory=True)
    first = begin(world, "d/f", b"first")
    make_anew()
    second = begin(world, "d/f", b"second")
    world.issuer.on_submit = make_anew
    close(world, second)
    assert world.tree.find("d/f") is second.entry
    assert content(world, "d/f") == b"second"
    with pytest.raises(NotFound):
        close(world, first)


def test_another_node_renames_the_directory(world: World) -> None:
    world.make("priv", directory=True)
    world.make("d", directory=True)
    handle = begin(world, "d/f")
    assert handle.entry.path == "d/f"
    world.elsewhere(Rename("d", "priv/e"))
    assert handle.entry.private
    close(world, handle)
    assert world.issuer.issued == [Create("priv/e/f"), Write("priv/e/f", 0, b"new", True)]


def test_another_node_removes_the_file_after_its_announcement(world: World) -> None:
    handle = begin(world)
    world.files.writeback.flush(handle)
    world.elsewhere(Delete("f"))
    with pytest.raises(Stale):
        world.open(handle.entry)


# A reload


def reload(world: World, *records: Record) -> None:
    """Adopt the tree of another node that holds *records*."""
    other = World()
    other.tree.load(records)
    adoption = plan(world.tree, other.tree.index(), records)
    world.files.on_reload(adoption.apply())
    world.tree.mark_written()


def record(
    inode: int, name: str, data: bytes | None = b"theirs", *, parent: int = 0, version: int = 90
) -> Record:
    return Record(inode, parent, version, 9, 5, 4 if data is None else 8, name.encode(), data)


ROOT = Record(0, 0, 99, 9, 5, 4, b"", None)


def test_a_reload_brings_a_file_of_that_name(world: World) -> None:
    handle = begin(world, truncate=False)
    reload(world, ROOT, record(90, "f"))
    assert world.tree.find("f") is handle.entry
    assert handle.entry.read(0, 9) == b"newirs"
    assert world.displaced == [handle.entry]
    close(world, handle)
    assert world.issuer.issued == [Write("f", 0, b"new", False)]
    assert is_free_of_pending(world)


def test_a_reload_brings_another_directory_of_that_path(world: World) -> None:
    world.make("d", directory=True)
    handle = begin(world, "d/f")
    reload(world, ROOT, record(91, "d", None))
    assert looked_up(world, "d/f") is handle.entry
    close(world, handle)
    assert world.issuer.issued == [Create("d/f"), Write("d/f", 0, b"new", True)]


@pytest.mark.expect_log(REMOVED)
def test_a_reload_without_the_directory(world: World) -> None:
    world.make("d", directory=True)
    handle = begin(world, "d/f")
    reload(world, ROOT)
    with pytest.raises(NotFound):
        close(world, handle)
    assert is_free_of_pending(world)


# Failures


FAILURES = [Busy("not sent"), Failed("unknown"), NoQuorum("gone"), TooBig("too big")]


@pytest.mark.expect_log(REMOVED)
@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
def test_a_file_that_can_t_be_announced_is_removed_here(world: World, failure: PmxcfsError) -> None:
    world.make("d", directory=True)
    handle = begin(world, "d/f")
    world.issuer.failure = failure
    requests: list[Callable[[], None]] = [
        lambda: world.files.writeback.flush(handle),
        lambda: world.files.write(handle, 0, b"x"),
        lambda: world.files.writeback.fsync(handle),
        lambda: world.files.writeback.flush(handle),
    ]
    for request in requests:
        with pytest.raises(type(failure)):
            request()
    assert looked_up(world, "d/f") is None
    directory = world.tree.find("d")
    assert world.gone == [(directory, "f")]
    assert not handle.entry.is_attached
    world.issuer.failure = None
    for writing in (False, True):
        with pytest.raises(Stale):
            world.files.open(handle.entry, writing=writing, truncate=False)
    world.files.release(handle)
    assert is_free_of_pending(world)
    assert world.tree.find("d/f") is None
    assert world.files.space.usage().content_bytes == 0


@pytest.mark.expect_log(REMOVED)
def test_an_empty_file_that_can_t_be_announced_is_removed_here(world: World) -> None:
    handle = begin(world, content=b"", truncate=False)
    world.quorum.is_quorate = False
    for _ in range(2):
        with pytest.raises(NoQuorum):
            world.files.writeback.flush(handle)
    assert is_free_of_pending(world)


@pytest.mark.expect_log(REMOVED)
def test_a_refused_write_removes_the_file(world: World) -> None:
    handle = begin(world)
    world.issuer.refuses = NoSpace("full")
    with pytest.raises(NoSpace):
        world.files.write(handle, 3, b"er")
    world.issuer.refuses = None
    with pytest.raises(NoSpace):
        close(world, handle)
    assert world.issuer.issued == []
    assert looked_up(world, "f") is None
    assert is_free_of_pending(world)


def test_a_write_that_is_too_long_leaves_the_file(world: World) -> None:
    handle = begin(world)
    with pytest.raises(TooBig):
        world.files.write(handle, MAX_FILE_SIZE, b"x")
    close(world, handle)
    assert content(world, "f") == b"new"


def test_a_signal_leaves_the_file_pending(world: World) -> None:
    handle = begin(world)
    world.issuer.failure = Signaled()
    with pytest.raises(Signaled):
        world.files.writeback.flush(handle)
    assert looked_up(world, "f") is handle.entry
    world.issuer.failure = None
    world.files.release(handle)
    assert world.issuer.issued == [Create("f"), Write("f", 0, b"new", True)]


def test_an_empty_file_is_pending_after_a_signal_too(world: World) -> None:
    handle = begin(world, content=b"", truncate=False)
    world.issuer.failure = Signaled()
    with pytest.raises(Signaled):
        world.files.writeback.flush(handle)
    world.issuer.failure = None
    world.files.release(handle)
    assert world.issuer.issued == [Create("f")]


@pytest.mark.parametrize("change", ["rename", "utime"])
def test_a_change_that_waited_too_long_leaves_the_file_pending(world: World, change: str) -> None:
    handle = begin(world)
    world.issuer.failure = Busy("not in sync")
    changes: dict[str, Callable[[], None]] = {
        "rename": lambda: world.files.rename(handle.entry, world.tree.root, "g"),
        "utime": lambda: world.files.utime(handle.entry, 7),
    }
    with pytest.raises(Busy):
        changes[change]()
    assert looked_up(world, "f") is handle.entry
    world.issuer.failure = None
    close(world, handle)
    assert world.issuer.issued == [Create("f"), Write("f", 0, b"new", True)]


@pytest.mark.parametrize("has_quorum", [False, True])
def test_not_in_sync_after_a_second_it_waits_for_a_close(world: World, has_quorum: bool) -> None:
    handle = begin(world)
    world.issuer.is_cluster = False
    world.quorum.is_quorate = has_quorum
    assert world.pass_time() == 0
    world.issuer.is_cluster = world.quorum.is_quorate = True
    assert world.pass_time() == 0
    assert world.issuer.issued == []
    assert looked_up(world, "f") is handle.entry
    close(world, handle)
    assert content(world, "f") == b"new"


def test_the_timer_that_waited_too_long_leaves_the_file_to_the_close(world: World) -> None:
    handle = begin(world)
    world.issuer.failure = Busy("not in sync")
    assert world.pass_time() == 0
    world.issuer.failure = None
    assert looked_up(world, "f") is handle.entry
    close(world, handle)
    assert content(world, "f") == b"new"


@pytest.mark.expect_log(REMOVED)
def test_a_failure_of_the_timer_is_told_by_the_close(world: World) -> None:
    handle = begin(world)
    world.issuer.failure = Failed("unknown")
    assert world.pass_time() == 0
    world.issuer.failure = None
    assert looked_up(world, "f") is None
    for _ in range(2):
        with pytest.raises(Failed):
            world.files.writeback.flush(handle)


def test_a_rename_that_fails_leaves_the_file_announced(world: World) -> None:
    handle = begin(world, "f.tmp")
    target = "nodes/a/qemu-server/100.conf"
    world.make(target.rpartition("/")[0], directory=True)
    world.make("nodes/b/qemu-server", directory=True)
    world.elsewhere(Create("nodes/b/qemu-server/100.conf"))
    parent, name = world.tree.find_parent(target)
    assert parent is not None
    with pytest.raises(GuestTaken):
        world.files.rename(handle.entry, parent, name)
    assert content(world, "f.tmp") == b"new"
    close(world, handle)
    assert is_free_of_pending(world)


@pytest.mark.expect_log(REMOVED)
def test_a_rename_whose_announcement_fails_removes_the_file(world: World) -> None:
    world.make("d", directory=True)
    handle = begin(world, "d/f.tmp")
    issued: list[Mutation] = world.issuer.issued
    world.issuer.on_submit = lambda: world.elsewhere(Delete("d"))
    with pytest.raises(NotFound):
        world.files.rename(handle.entry, world.tree.root, "f")
    assert len(issued) == 3
    assert world.tree.find("f") is None
    with pytest.raises(NotFound):
        close(world, handle)


@pytest.mark.parametrize("makes", ["announced", "removed"])
def test_a_removal_waits_for_the_announcement(world: World, makes: str) -> None:
    """The issuer's wait lets another thread remove the file; here it is the same thread."""
    handle = begin(world)
    found: list[Entry | None] = []

    def look() -> None:
        world.issuer.on_submit = lambda: None
        found.append(looked_up(world, "f"))

    world.issuer.on_submit = look
    if makes == "announced":
        world.files.writeback.flush(handle)
        world.files.unlink(handle.entry)
        assert world.issuer.issued == [
            Create("f"),
            Write("f", 0, b"new", True),
            Delete("f"),
        ]
        assert found == [handle.entry]
    else:
        world.files.unlink(handle.entry)
        assert world.issuer.issued == []
    close(world, handle)
    assert world.tree.find("f") is None
