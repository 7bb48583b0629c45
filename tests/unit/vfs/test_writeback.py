"""Writebacks of a file that fail or are in flight: what other users of the file see."""

import threading
from collections.abc import Callable

import pytest

from pmxcfs.errors import Busy, Denied, NotFound, Signaled, StoreError
from pmxcfs.messages import Delete, Rename, Write
from pmxcfs.replica.tickets import Ticket, limit_for, timeout_for
from pmxcfs.tree.apply import Change
from tests.conftest import ExpectLog
from tests.fakes.doubles.filesystem import World

PATIENCE = 5.0  # seconds for another thread


@pytest.fixture
def world() -> World:
    return World()


def test_a_handle_refuses_writes_until_a_failure_of_the_timer_was_reported(
    world: World, expect_log: ExpectLog
) -> None:
    expect_log("the last writes to f are lost: EIO")
    entry = world.make("f", b"OLDOLD")
    handle = world.open(entry, truncate=True)
    world.files.write(handle, 0, b"new")
    world.issuer.failure = StoreError("the disk")
    world.pass_time()
    world.issuer.failure = None
    with pytest.raises(StoreError):
        world.files.write(handle, 3, b"new")
    with pytest.raises(StoreError):
        world.files.truncate(entry, 3, handle=handle)
    with pytest.raises(StoreError):
        world.files.writeback.flush(handle)
    assert entry.read(0, 100) == b"OLDOLD"
    world.files.write(handle, 0, b"new")
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Write("f", 0, b"new", False)]


def test_a_failed_publishing_is_reported_to_handles_that_wrote_meanwhile(
    world: World, expect_log: ExpectLog
) -> None:
    expect_log("the last writes to f are lost: EBUSY")
    entry = world.make("f")
    first, second = world.open(entry), world.open(entry)
    world.files.write(first, 0, b"1")
    world.issuer.failure = Busy("held")
    world.issuer.on_submit = lambda: world.files.write(second, 1, b"2")
    for handle in (first, second):
        with pytest.raises(Busy):
            world.files.writeback.flush(handle)
    assert entry.read(0, 100) == b"published"


def test_bytes_that_a_handle_writes_while_its_publishing_fails_fail_its_next_close(
    world: World, expect_log: ExpectLog
) -> None:
    expect_log("the last writes to f are lost: EBUSY")
    handle = world.open(world.make("f"))
    world.files.write(handle, 0, b"1")
    world.issuer.failure = Busy("held")
    world.issuer.on_submit = lambda: world.files.write(handle, 1, b"2")
    with pytest.raises(Busy):
        world.files.writeback.flush(handle)


def test_the_timer_skips_a_file_that_is_being_published(world: World) -> None:
    entry = world.make("f")
    first, second = world.open(entry), world.open(entry)
    world.files.write(first, 0, b"1")
    asked: list[int] = []

    def meanwhile() -> None:
        world.issuer.on_submit = lambda: None
        world.files.write(second, 1, b"2")
        asked.append(world.pass_time())

    world.issuer.on_submit = meanwhile
    world.files.writeback.flush(first)
    assert asked == [0]
    assert world.issuer.issued == [Write("f", 0, b"1", False)]
    world.files.writeback.flush(second)
    assert world.issuer.issued[1:] == [Write("f", 1, b"2", False)]


def test_a_truncation_that_is_refused_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = world.make("f", b"OLDOLD")
    handle = world.open(entry)
    world.files.write(handle, 0, b"mine")

    def refuse(flight: Ticket, seconds: float) -> None:
        raise Busy("an earlier change is on its way")

    def meanwhile() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(world.issuer, "wait", refuse)
            with pytest.raises(Busy):
                world.files.truncate(entry, 2, handle=None)
        assert entry.read(0, 100) == b"mineLD"

    world.issuer.on_submit = meanwhile
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Write("f", 0, b"mine", False)]


@pytest.mark.parametrize("target", ["g", "d"])
def test_a_file_is_not_renamed_onto_or_below_itself_after_another_node_moved_it(
    world: World, target: str
) -> None:
    """The original daemon uses freed memory on such a RENAME.

    Contract: docs/spec/cluster.md, "Delivery to the tree".
    """
    entry, directory = world.make("f"), world.make("d", directory=True)
    world.files.write(world.open(entry), 0, b"x")

    def meanwhile() -> None:
        world.issuer.on_submit = lambda: None
        if target == "d":
            world.elsewhere(Delete("d"))
        world.elsewhere(Rename("f", target))

    world.issuer.on_submit = meanwhile
    parent = directory if target == "d" else world.tree.root
    with pytest.raises(NotFound):
        world.files.rename(entry, parent, "g")
    assert world.issuer.issued == [Write(target, 0, b"x", False)]


def test_an_expired_lock_with_entries_is_not_removed(world: World) -> None:
    lock = world.make("priv/lock/a", directory=True)
    world.locks.reload(world.tree, now=0.0)
    world.make("priv/lock/a/f")
    with pytest.raises(Denied):
        world.files.utime(lock, 0)
    assert lock.is_attached


def test_bytes_that_another_request_could_not_publish_stay_dirty(world: World) -> None:
    """A utime or rename that fails with EBUSY must not drop the bytes that others have written."""
    entry = world.make("f", b"OLDOLD")
    handle = world.open(entry)
    world.files.write(handle, 0, b"mine")
    attempts: list[Callable[[], None]] = [
        lambda: world.files.utime(entry, 5),
        lambda: world.files.rename(entry, world.tree.root, "g"),
    ]
    for attempt in attempts:
        world.issuer.failure = Busy("held")
        with pytest.raises(Busy):
            attempt()
        assert entry.read(0, 100) == b"mineLD"
    world.issuer.failure = None
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Write("f", 0, b"mine", False)]


@pytest.mark.parametrize(("size", "sent"), [(6, b"1234AB"), (3, b"123"), (0, b"")])
def test_bytes_written_during_a_failed_writeback_are_published_with_the_redirtied_ones(
    world: World, size: int, sent: bytes
) -> None:
    entry = world.make("f", b"12")
    handle = world.open(entry)
    world.files.write(handle, 2, b"34")

    def meanwhile() -> None:
        world.files.write(handle, 4, b"AB")
        world.files.truncate(entry, size, handle=handle)

    world.issuer.on_submit, world.issuer.failure = meanwhile, Busy("held")
    with pytest.raises(Busy):
        world.files.utime(entry, 5)
    assert entry.read(0, 100) == sent
    world.issuer.on_submit, world.issuer.failure = lambda: None, None
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Write("f", 0, sent, True)]


def test_a_close_publishes_bytes_that_are_redirtied_while_it_waits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = world.make("f")
    handle = world.open(entry)
    world.files.write(handle, 0, b"mine")
    is_under_way, is_refused = threading.Event(), threading.Event()

    def touch() -> None:
        with pytest.raises(Busy):
            world.files.utime(entry, 5)

    def meanwhile() -> None:
        is_under_way.set()
        assert is_refused.wait(PATIENCE)

    def wait(flight: Ticket, seconds: float) -> Change:
        is_refused.set()
        touching.join(PATIENCE)
        world.issuer.on_submit, world.issuer.failure = lambda: None, None
        return flight.result()

    world.issuer.on_submit, world.issuer.failure = meanwhile, Busy("held")
    monkeypatch.setattr(world.issuer, "wait", wait)
    touching = threading.Thread(target=touch)
    touching.start()
    assert is_under_way.wait(PATIENCE)
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Write("f", 0, b"mine", False)]


@pytest.mark.parametrize("closer", ["the writer", "another writer", "the writer after more writes"])
def test_redirtied_bytes_are_dirty_for_the_first_thread_that_learns_of_the_failure(
    world: World, closer: str
) -> None:
    """Other threads may take the tree's lock before the thread whose writeback has failed."""
    entry = world.make("f", b"OLDOLD")
    first, second = world.open(entry), world.open(entry)
    world.files.write(first, 0, b"mi")

    def meanwhile() -> None:
        world.issuer.on_submit, world.issuer.failure = lambda: None, None
        if closer == "another writer":
            world.files.write(second, 4, b"ne")
        assert first.writeback is not None
        first.writeback.finish(Busy("no room"))
        if closer == "the writer after more writes":
            world.files.write(first, 4, b"ne")
        world.files.writeback.flush(second if closer == "another writer" else first)
        world.issuer.failure = Busy("no room")

    world.issuer.on_submit = meanwhile
    with pytest.raises(Busy):
        world.files.utime(entry, 5)
    world.issuer.failure = None
    world.files.writeback.flush(first)
    world.files.writeback.flush(second)
    sent = b"mi" if closer == "the writer" else b"miDOne"
    assert world.issuer.issued == [Write("f", 0, sent, False)]
    assert entry.read(0, 100) == entry.content == sent + b"OLDOLD"[len(sent) :]
    assert not entry.has_unpublished


def test_a_file_that_was_only_truncated_is_not_published_by_a_flush(world: World) -> None:
    """A shell closes a duplicate descriptor before it writes; readers would see an empty file."""
    entry = world.make("f", b"OLDOLD")
    handle = world.open(entry, truncate=True)
    world.issuer.failure = Busy("held")
    with pytest.raises(Busy):
        world.files.utime(entry, 5)
    world.issuer.failure = None
    world.files.writeback.flush(handle)
    assert world.issuer.issued == []
    world.files.write(handle, 0, b"new")
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Write("f", 0, b"new", True)]


def test_a_rename_and_the_writes_that_it_publishes_first_have_two_seconds_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile the kernel blocks all other requests in the directory."""
    entry = world.make("f")
    world.files.write(world.open(entry), 0, b"mine")
    timeouts: list[float] = []
    carry_out = world.issuer.carry_out

    def slowly(ticket: Ticket) -> Change:
        timeouts.append(timeout_for(ticket))
        world.now_ns += 1_500_000_000
        return carry_out(ticket)

    monkeypatch.setattr(world.issuer, "carry_out", slowly)
    world.files.rename(entry, world.tree.root, "g")
    assert timeouts == [2.0, 0.5]


def test_a_rename_whose_writeback_took_seconds_can_still_be_sent_and_is_answered_in_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new ring of corosync takes 8 s; the writeback was sent before, and delivered after that."""
    entry = world.make("f")
    world.files.write(world.open(entry), 0, b"mine")
    times: list[tuple[float, float]] = []
    carry_out = world.issuer.carry_out

    def slowly(ticket: Ticket) -> Change:
        times.append((timeout_for(ticket), limit_for(ticket)))
        world.now_ns += 8_000_000_000
        return carry_out(ticket)

    monkeypatch.setattr(world.issuer, "carry_out", slowly)
    world.files.rename(entry, world.tree.root, "g")
    assert times == [(2.0, 10.25), (0.5, 2.25)]


def test_the_bytes_of_an_interrupted_close_are_published_by_the_timer(world: World) -> None:
    entry = world.make("f")
    handle = world.open(entry)
    world.files.write(handle, 0, b"mine")
    world.issuer.failure = Signaled()
    with pytest.raises(Signaled):
        world.files.writeback.flush(handle)
    assert world.issuer.issued == []
    assert entry.read(0, 4) == b"mine"
    world.issuer.failure = None
    world.pass_time()
    assert world.issuer.issued == [Write("f", 0, b"mine", False)]
    world.files.writeback.flush(handle)
    assert len(world.issuer.issued) == 1


def test_the_bytes_of_an_interrupted_close_are_published_by_the_release(world: World) -> None:
    handle = world.open(world.make("f"))
    world.files.write(handle, 0, b"mine")
    world.issuer.failure = Signaled()
    with pytest.raises(Signaled):
        world.files.writeback.flush(handle)
    world.issuer.failure = None
    world.files.release(handle)
    assert world.issuer.issued == [Write("f", 0, b"mine", False)]


def test_another_handle_publishes_what_an_interrupted_close_has_left(world: World) -> None:
    entry = world.make("f")
    first, second = world.open(entry), world.open(entry)
    world.files.write(first, 0, b"1")
    world.files.write(second, 1, b"2")
    world.issuer.failure = Signaled()
    with pytest.raises(Signaled):
        world.files.writeback.flush(first)
    world.issuer.failure = None
    world.files.writeback.flush(second)
    assert world.issuer.issued == [Write("f", 0, b"12", False)]


def test_a_close_that_is_interrupted_while_it_waits_for_its_result_tells_it_later(
    world: World, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    expect_log("the last writes to f are lost: EIO")
    handle = world.open(world.make("f"))
    world.files.write(handle, 0, b"1")
    world.issuer.failure = StoreError("the disk")

    def interrupt(ticket: Ticket, seconds: float) -> None:
        raise Signaled

    with monkeypatch.context() as patch:
        patch.setattr(world.issuer, "wait", interrupt)
        with pytest.raises(Signaled):
            world.files.writeback.flush(handle)
    with pytest.raises(StoreError):
        world.files.writeback.flush(handle)


def test_a_write_that_is_interrupted_drops_nothing(world: World) -> None:
    entry = world.make("f")
    handle = world.open(entry)
    world.files.write(handle, 0, b"mine")
    world.issuer.refuses = Signaled()
    with pytest.raises(Signaled):
        world.files.write(handle, 4, b" and more")
    world.issuer.refuses = None
    world.files.write(handle, 4, b" and more")
    world.files.writeback.flush(handle)
    assert world.issuer.issued == [Write("f", 0, b"mine and more", False)]


def test_a_new_file_whose_close_is_interrupted_is_saved_by_the_timer(world: World) -> None:
    entry = world.files.create(world.tree.root, "new", exclusive=True)
    handle = world.files.open(entry, writing=True, truncate=False, has_created=True)
    world.issuer.failure = Signaled()
    with pytest.raises(Signaled):
        world.files.writeback.flush(handle)
    world.issuer.failure = None
    before = world.issuer.saves
    world.pass_time()
    assert world.issuer.saves == before + 1
