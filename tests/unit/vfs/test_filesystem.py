"""``FileSystem``: which changes it refuses, when it publishes writes, and in which messages."""

from collections.abc import Callable

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import (
    Busy,
    Denied,
    Exists,
    Invalid,
    IsADirectory,
    NameTooLong,
    NoQuorum,
    NoSpace,
    NotADirectory,
    NotEmpty,
    NotFound,
    PmxcfsError,
    Stale,
    StoreError,
    TooBig,
)
from pmxcfs.messages import (
    MAX_ENTRIES,
    MAX_FILE_SIZE,
    MAX_TIME,
    Create,
    Delete,
    EntryType,
    Mkdir,
    Mutation,
    Record,
    Rename,
    Write,
)
from pmxcfs.tree.locks import LockTable
from pmxcfs.vfs.filesystem import FileSystem
from pmxcfs.vfs.writeback import PUBLISH_AFTER_NS, OpenFile
from tests.conftest import ExpectLog
from tests.fakes.doubles.filesystem import World
from tests.fakes.doubles.issuer import FakeIssuer


@pytest.fixture
def world() -> World:
    return World()


# The content of a published message


def test_the_smallest_range_that_covers_the_writes_is_published(world: World) -> None:
    handle = world.open(world.make("f", b"0123456789"))
    world.files.write(handle, 6, b"g")
    world.files.write(handle, 2, b"cd")
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Write("f", 2, b"cd45g", False)]


def test_the_whole_content_is_published_only_after_a_truncation(world: World) -> None:
    entry = world.make("f", b"0123456789")
    handle = world.open(entry)
    world.files.truncate(entry, 4, handle=handle)
    world.files.write(handle, 4, b"!")
    world.files.writeback.flush(handle)
    world.files.write(handle, 0, b"x")
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Write("f", 0, b"0123!", True), Write("f", 0, b"x", False)]


def test_o_trunc_and_writes_are_one_change(world: World) -> None:
    handle = world.open(world.make("f"), truncate=True)
    for offset in range(2000):
        world.files.write(handle, 512 * offset, bytes(512))
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Write("f", 0, bytes(2000 * 512), True)]


def test_a_gap_is_published_as_zeros(world: World) -> None:
    entry = world.make("f", b"ab")
    handle = world.open(entry)
    world.files.write(handle, 4, b"e")
    world.files.writeback.flush(handle)
    assert entry.content == b"ab\0\0e"


def test_a_write_past_the_end_carries_only_the_extension(world: World) -> None:
    entry = world.make("f", b"ab")
    world.files.truncate(entry, 4, handle=None)
    assert world.issuer.issued == [Write("f", 2, b"\0\0", False)]


# The time of publishing


def test_a_flush_publishes_only_a_file_that_its_own_handle_wrote(world: World) -> None:
    entry = world.make("f")
    writer, other = world.open(entry), world.open(entry)
    world.files.write(writer, 0, b"P")
    world.files.writeback.flush(other)
    assert world.issuer.issued == []
    world.files.writeback.flush(writer)
    world.files.writeback.flush(writer)
    assert len(world.issuer.issued) == 1


def test_a_truncation_by_open_waits_for_the_release(world: World) -> None:
    handle = world.open(world.make("f"), truncate=True)
    world.files.writeback.flush(handle)
    assert world.issuer.issued == []
    world.files.writeback.release(handle)
    assert world.issuer.issued == [Write("f", 0, b"", True)]


def publish_by_fsync(world: World, handle: OpenFile) -> None:
    world.files.writeback.fsync(handle)
    assert world.issuer.syncs == 1


def publish_by_renaming(world: World, handle: OpenFile) -> None:
    world.files.rename(handle.entry, world.tree.root, "g")


def publish_by_touching(world: World, handle: OpenFile) -> None:
    world.files.utime(handle.entry, 7)


def publish_by_cutting(world: World, handle: OpenFile) -> None:
    world.files.truncate(handle.entry, 3, handle=None)


def publish_by_stopping(world: World, handle: OpenFile) -> None:
    world.files.writeback.publish_all()


def publish_by_time(world: World, handle: OpenFile) -> None:
    assert world.pass_time() == 0


@pytest.mark.parametrize(
    "publish",
    [
        publish_by_fsync,
        publish_by_renaming,
        publish_by_touching,
        publish_by_cutting,
        publish_by_stopping,
        publish_by_time,
    ],
)
def test_operations_that_need_the_bytes_publish_them_first(
    world: World, publish: Callable[[World, OpenFile], None]
) -> None:
    handle = world.open(world.make("f"))
    world.files.write(handle, 0, b"PUB")
    publish(world, handle)
    first = world.issuer.issued[0]
    assert isinstance(first, Write)
    assert first.data.startswith(b"PUB")
    count = len(world.issuer.issued)
    world.files.writeback.flush(handle)
    assert len(world.issuer.issued) == count


def test_the_timer_publishes_each_file_when_it_is_due(world: World) -> None:
    first, second = world.open(world.make("f")), world.open(world.make("g"))
    world.files.write(first, 0, b"1")
    world.now_ns += 300
    world.files.write(second, 0, b"2")
    assert world.files.writeback.publish_due() == PUBLISH_AFTER_NS - 300
    world.now_ns += PUBLISH_AFTER_NS - 300
    assert world.files.writeback.publish_due() == 300
    assert world.issuer.issued == [Write("f", 0, b"1", False)]
    assert world.pass_time() == 0
    assert len(world.issuer.issued) == 2


def test_the_timer_saves_new_files(world: World) -> None:
    world.files.create(world.tree.root, "f", exclusive=True)
    assert world.files.writeback.publish_due() == PUBLISH_AFTER_NS
    assert world.issuer.saves == 0
    assert world.pass_time() == 0
    assert world.issuer.saves == 1


# Failures


def test_a_failed_publishing_drops_the_bytes_and_is_reported_once(
    world: World, expect_log: ExpectLog
) -> None:
    expect_log("the last writes to f are lost: EBUSY")
    entry = world.make("f")
    handle = world.open(entry)
    world.files.write(handle, 0, b"P")
    world.issuer.failure = Busy("no")
    with pytest.raises(Busy):
        world.files.writeback.flush(handle)
    assert entry.read(0, 100) == b"published"
    assert world.displaced == [entry]
    world.issuer.failure = None
    world.files.writeback.flush(handle)
    world.files.writeback.release(handle)
    assert world.issuer.issued == []


def test_a_failure_of_the_timer_is_reported_to_each_handle_that_wrote(
    world: World, expect_log: ExpectLog
) -> None:
    expect_log("the last writes to f are lost: EIO")
    entry = world.make("f")
    first, second, idle = (world.open(entry) for _ in range(3))
    world.files.write(first, 0, b"P")
    world.files.write(second, 1, b"U")
    world.issuer.failure = StoreError("broken")
    assert world.pass_time() == 0
    world.issuer.failure = None
    with pytest.raises(StoreError):
        world.files.writeback.fsync(first)
    with pytest.raises(StoreError):
        world.files.writeback.flush(second)
    for handle in (first, second, idle):
        world.files.writeback.flush(handle)


def test_the_log_does_not_name_private_files(world: World, expect_log: ExpectLog) -> None:
    expect_log(r"dcdb WARNING the last writes to a private file are lost: EBUSY$")
    handle = world.open(world.make("priv/shadow.cfg"))
    world.files.write(handle, 0, b"P")
    world.issuer.failure = Busy("priv/shadow.cfg can't be written")
    world.files.writeback.release(handle)


def test_stopping_survives_a_database_that_can_not_be_written(
    world: World, expect_log: ExpectLog
) -> None:
    expect_log("new files could not be saved")
    expect_log("the last writes to f are lost: EIO")
    handle = world.open(world.files.create(world.tree.root, "f", exclusive=True))
    world.files.write(handle, 0, b"P")
    world.issuer.failure = StoreError("broken")
    world.files.writeback.publish_all()


def test_stopping_without_new_files_tells_of_none(world: World) -> None:
    world.issuer.failure = StoreError("broken")
    world.files.writeback.publish_all()


@pytest.mark.parametrize(
    ("foreign", "error"),
    [
        ([Delete("f")], NotFound),
        ([Rename("g", "f")], Stale),
        ([Delete("f"), Create("f")], Stale),
    ],
)
def test_a_file_that_another_node_removed_is_not_written(
    world: World, expect_log: ExpectLog, foreign: list[Mutation], error: type[PmxcfsError]
) -> None:
    expect_log("the last writes to f are lost")
    handle = world.open(world.make("f"))
    world.make("g")
    world.files.write(handle, 0, b"P")
    for mutation in foreign:
        world.elsewhere(mutation)
    with pytest.raises(error):
        world.files.writeback.flush(handle)
    assert world.issuer.issued == []


def test_a_file_that_another_node_removed_is_not_changed(world: World) -> None:
    entry = world.make("f")
    world.elsewhere(Delete("f"))
    with pytest.raises(Stale):
        world.open(entry)
    with pytest.raises(Stale):
        world.files.open(entry, writing=False, truncate=True)
    with pytest.raises(Stale):
        world.files.utime(entry, 5)
    with pytest.raises(Stale):
        world.files.truncate(entry, 5, handle=None)
    world.files.open(entry, writing=False, truncate=False)


def test_a_file_removed_on_this_node_can_be_opened_again(world: World) -> None:
    entry = world.make("f")
    world.files.unlink(entry)
    assert world.open(entry).entry is entry


def test_a_file_that_another_node_moved_is_written_at_its_new_path(world: World) -> None:
    handle = world.open(world.make("f"))
    world.files.write(handle, 0, b"P")
    world.elsewhere(Rename("f", "g"))
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Write("g", 0, b"P", False)]


def test_a_file_moved_while_its_publishing_waits_is_written_at_its_new_path(world: World) -> None:
    handle = world.open(world.make("f"))
    world.files.write(handle, 0, b"P")
    world.issuer.on_submit = lambda: world.elsewhere(Rename("f", "g"))
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Write("g", 0, b"P", False)]


def test_unpublished_bytes_of_a_file_removed_on_this_node_are_dropped_silently(
    world: World,
) -> None:
    entry = world.make("f")
    handle = world.open(entry)
    world.files.write(handle, 0, b"P")
    world.files.unlink(entry)
    world.files.write(handle, 1, b"U")
    world.files.writeback.flush(handle)
    world.files.writeback.release(handle)
    assert world.issuer.issued == [Delete("f")]
    assert entry.read(0, 100) == b"PUblished"


def test_a_file_removed_while_its_publishing_waits_is_closed_without_an_error(world: World) -> None:
    entry = world.make("f")
    handle = world.open(entry)
    world.files.write(handle, 0, b"P")

    def remove() -> None:
        world.issuer.on_submit = lambda: None
        world.files.unlink(entry)

    world.issuer.on_submit = remove
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Delete("f")]


def test_a_creation_that_was_rolled_back_is_reported_to_its_handle(world: World) -> None:
    entry = world.files.create(world.tree.root, "f", exclusive=True)
    handle = world.open(entry)
    world.tree.rollback()
    world.files.on_undone({entry: entry.path}, StoreError("broken"))
    with pytest.raises(StoreError):
        world.files.writeback.flush(handle)
    world.files.writeback.release(handle)


# Limits


def test_sizes_and_space_are_checked_when_writing(world: World) -> None:
    handle = world.open(world.make("f", b""))
    world.files.write(handle, MAX_FILE_SIZE - 1, b"x")
    refusals: list[Callable[[], object]] = [
        lambda: world.files.write(handle, MAX_FILE_SIZE, b"x"),
        lambda: world.files.truncate(handle.entry, MAX_FILE_SIZE + 1, handle=handle),
        lambda: world.files.truncate(handle.entry, MAX_FILE_SIZE + 1, handle=None),
    ]
    for refused in refusals:
        with pytest.raises(TooBig):
            refused()
    assert handle.entry.visible_size == MAX_FILE_SIZE


def test_the_tree_holds_262144_entries(world: World) -> None:
    tree = Tree()
    tree.load(
        Record(number, 0, number, 0, 1, EntryType.FILE, b"%d" % number, None)
        for number in range(1, MAX_ENTRIES + 1)
    )
    issuer = FakeIssuer(tree)
    files = FileSystem(
        tree,
        issuer,
        quorum=world.quorum,
        locks=LockTable(),
        monotonic_ns=lambda: world.now_ns,
        wall_clock=lambda: world.wall,
        on_unpublished=lambda: None,
        on_displaced=world.displaced.append,
        on_name_gone=lambda directory, name: None,
        is_known=lambda entry: False,
    )
    assert files.space.usage().entries == MAX_ENTRIES
    attempts: list[Callable[[], object]] = [
        lambda: files.mkdir(tree.root, "d"),
        lambda: files.create(tree.root, "f", exclusive=False),
    ]
    for make in attempts:
        with pytest.raises(NoSpace):
            make()
    assert issuer.issued == []


@pytest.mark.parametrize("name", [".", ".."])
def test_one_and_two_dots_are_refused_as_names(world: World, name: str) -> None:
    with pytest.raises(Denied):
        world.files.mkdir(world.tree.root, name)
    with pytest.raises(Denied):
        world.files.rename(world.make("f"), world.tree.root, name)


@pytest.mark.parametrize("name", ["n" * 256, "\N{EURO SIGN}" * 86])
def test_new_names_have_at_most_255_bytes(world: World, name: str) -> None:
    with pytest.raises(NameTooLong):
        world.files.create(world.tree.root, name, exclusive=True)
    world.files.create(world.tree.root, name[:85], exclusive=True)


def test_nothing_changes_without_quorum(world: World) -> None:
    entry, directory = world.make("f"), world.make("d", directory=True)
    handle = world.open(entry)
    world.quorum.is_quorate = False
    root = world.tree.root
    attempts: list[Callable[[], object]] = [
        lambda: world.files.create(root, "g", exclusive=False),
        lambda: world.files.mkdir(root, "g"),
        lambda: world.files.rmdir(directory),
        lambda: world.files.rename(entry, root, "g"),
        lambda: world.files.utime(entry, 1),
        lambda: world.files.open(entry, writing=True, truncate=False),
        lambda: world.files.open(entry, writing=False, truncate=True),
        lambda: world.files.write(handle, 0, b"x"),
        lambda: world.files.truncate(entry, 0, handle=None),
    ]
    for attempt in attempts:
        with pytest.raises(NoQuorum):
            attempt()
    assert world.issuer.issued == []
    assert entry.read(0, 100) == b"published"
    world.files.writeback.release(world.files.open(entry, writing=False, truncate=False))


def test_a_file_created_while_the_quorum_is_lost_can_be_opened(world: World) -> None:
    world.issuer.on_submit = lambda: setattr(world.quorum, "is_quorate", False)
    entry = world.files.create(world.tree.root, "f", exclusive=True)
    handle = world.files.open(entry, writing=True, truncate=False, has_created=True)
    with pytest.raises(NoQuorum):
        world.files.write(handle, 0, b"x")
    with pytest.raises(NoQuorum):
        world.files.open(entry, writing=True, truncate=True, has_created=True)
    world.files.writeback.release(handle)
    assert world.issuer.issued == [Create("f")]


# Names


def test_a_create_that_loses_a_race_opens_the_winners_file_unless_exclusive(world: World) -> None:
    winner = world.make("f")
    assert world.files.create(world.tree.root, "f", exclusive=False) is winner
    with pytest.raises(Exists):
        world.files.create(world.tree.root, "f", exclusive=True)


def test_a_vmid_in_use_is_refused_even_without_exclusive(world: World) -> None:
    lxc = world.make("nodes/a/lxc", directory=True)
    qemu = world.make("nodes/a/qemu-server", directory=True)
    world.files.create(lxc, "100.conf", exclusive=False)
    with pytest.raises(Exists):
        world.files.create(qemu, "100.conf", exclusive=False)


def test_a_directory_can_not_have_the_name_of_a_guest(world: World) -> None:
    lxc = world.make("nodes/a/lxc", directory=True)
    with pytest.raises(Exists):
        world.files.mkdir(lxc, "100.conf")
    with pytest.raises(Exists):
        world.files.rename(world.make("d", directory=True), lxc, "100.conf")
    assert world.issuer.issued == []


def test_a_rename_that_is_refused_leaves_the_target(world: World) -> None:
    world.make("d/f")
    target = world.make("e", directory=True)
    source = world.tree.find("d")
    assert source is not None
    with pytest.raises(NotEmpty):
        world.files.rename(source, world.tree.root, "e")
    assert world.tree.find("e") is target
    with pytest.raises(NotEmpty):
        world.files.rename(target, world.tree.root, "d")
    assert world.tree.find("d") is source
    assert world.issuer.issued == []


def test_a_directory_with_entries_is_not_removed(world: World) -> None:
    world.make("d/f")
    directory = world.tree.find("d")
    assert directory is not None
    with pytest.raises(NotEmpty):
        world.files.rmdir(directory)
    assert world.issuer.issued == []


def test_a_removal_is_for_the_type_that_its_caller_saw(world: World) -> None:
    file, directory = world.make("f"), world.make("d", directory=True)
    with pytest.raises(NotADirectory):
        world.files.rmdir(file)
    with pytest.raises(IsADirectory):
        world.files.unlink(directory)
    assert world.issuer.issued == []


@pytest.mark.parametrize("is_directory", [False, True])
def test_a_removal_is_refused_if_the_name_changes_its_type_while_it_waits(
    world: World, is_directory: bool
) -> None:
    entry = world.make("name", directory=is_directory)

    def exchange() -> None:
        world.elsewhere(Delete("name"))
        world.elsewhere(Create("name") if is_directory else Mkdir("name"))

    world.issuer.on_submit = exchange
    with pytest.raises(NotADirectory if is_directory else IsADirectory):
        (world.files.rmdir if is_directory else world.files.unlink)(entry)
    assert world.issuer.issued == []
    assert world.tree.find("name") is not None


def test_a_removed_directory_takes_no_new_entries(world: World) -> None:
    directory = world.make("d", directory=True)
    world.elsewhere(Delete("d"))
    with pytest.raises(NotFound):
        world.files.mkdir(directory, "e")
    with pytest.raises(NotFound):
        world.files.rmdir(directory)


# Attributes


@pytest.mark.parametrize("seconds", [-1, MAX_TIME + 1])
def test_a_time_must_fit_into_32_bits(world: World, seconds: int) -> None:
    with pytest.raises(Invalid):
        world.files.utime(world.make("f"), seconds)
    world.files.utime(world.make("g"), MAX_TIME)
