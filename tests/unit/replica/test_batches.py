"""Batches: what the database lacks of the tree, at a version whose records are all written."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pmxcfs.errors import StoreError
from pmxcfs.messages import Create, Delete, Mkdir, Write
from pmxcfs.replica import batches
from pmxcfs.replica.local_issuer import LocalIssuer
from pmxcfs.replica.replica import Policy
from pmxcfs.storage.database import Batch
from pmxcfs.storage.mark import Position
from pmxcfs.storage.records import Change, Check
from pmxcfs.storage.saver import Source
from pmxcfs.storage.schedule import PAUSE
from pmxcfs.storage.schema import state_checksum, version_row
from pmxcfs.storage.segments import scan
from tests.conftest import ExpectLog
from tests.fakes.doubles.device import device
from tests.fakes.doubles.replicas import WAIT, StoredReplica, recovered_tree
from tests.fakes.doubles.store import stored
from tests.fakes.doubles.yielding import Yielding


@pytest.fixture
def node(tmp_path: Path) -> Iterator[StoredReplica]:
    with contextlib.closing(StoredReplica(tmp_path)) as made:
        made.replica.check_writable()
        yield made


def take(node: StoredReplica, *, whole: bool = False) -> tuple[Batch, Position | None]:
    taken = source(node).take_batch(whole=whole, with_state=True)
    assert taken is not None
    return taken


def source(node: StoredReplica) -> Source:
    return node.replica.saver._source


def inodes(batch: Batch) -> list[int]:
    return [row[0] for row in batch.rows]


def test_a_batch_has_what_changed_since_the_last_one(node: StoredReplica) -> None:
    assert source(node).take_batch(whole=False, with_state=False) is None
    node.deliver(Mkdir("d"), Create("f"), Create("gone"))
    batch, position = take(node)
    assert (inodes(batch), list(batch.gone), batch.is_whole) == ([2, 3, 4], [], False)
    assert batch.version_row == version_row(node.tree.root)
    assert position == node.journal.position  # the records were written first
    assert [version for version, _ in node.changes()] == [2, 3, 4]
    source(node).batch_saved()
    node.deliver(Delete("gone"), Write("f", 0, b"x", True))
    batch, _ = take(node)
    assert (inodes(batch), list(batch.gone)) == ([3], [4])
    source(node).batch_saved()
    assert source(node).take_batch(whole=False, with_state=False) is None


def test_what_could_not_be_saved_is_in_the_next_batch(node: StoredReplica) -> None:
    node.deliver(Mkdir("d"))
    take(node)
    node.deliver(Mkdir("e"))
    source(node).batch_failed()
    batch, _ = take(node)
    assert inodes(batch) == [2, 3]


def test_a_whole_batch_that_failed_is_whole_again(node: StoredReplica) -> None:
    node.deliver(Mkdir("d"))
    assert take(node, whole=True)[0].is_whole
    source(node).batch_failed()
    assert take(node)[0].is_whole
    source(node).batch_saved()
    node.deliver(Mkdir("e"))
    assert not take(node)[0].is_whole


def test_notes_alone_are_a_batch(node: StoredReplica) -> None:
    node.replica.departures.set_nodes((1, 2))
    node.deliver(Mkdir("d"))
    batch, _ = take(node)
    assert batch.notes == node.replica.departures.notes != {}
    source(node).batch_saved()
    node.replica.departures.set_nodes(())
    batch, _ = take(node)
    assert (batch.notes, batch.rows) == ({}, [])


def test_no_batch_is_taken_while_a_record_is_on_its_way(tmp_path: Path) -> None:
    """Else the position would be ahead of a change that the database has already."""
    yielding = Yielding(room=8)
    node = StoredReplica(tmp_path, lock=yielding.lock)
    with contextlib.closing(node), device() as below, ThreadPoolExecutor() as pool:
        node.replica.try_again()
        below.runs.clear()
        below.stands_still.clear()
        with yielding.lock:
            node.deliver(Mkdir("d"))
        writing = pool.submit(node.replica.write_out)
        assert below.stands_still.wait(WAIT)
        saving = pool.submit(node.replica.saver.save)
        with yielding.lock:
            assert not saving.done()
        below.runs.set()
        writing.result(WAIT)
        saving.result(WAIT)
        with yielding.lock:
            node.deliver(Mkdir("e"))
        node.replica.write_out()
        expected = node.tree.checksum()
        node.close()
        assert recovered_tree(tmp_path).checksum() == expected


def test_a_bridge_keeps_deferred_changes_and_their_guests(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    """What is in the batch can't be rolled back any more."""
    expect_log("can't be written")
    guest = "nodes/a/lxc/100.conf"
    node = StoredReplica(tmp_path, policy=Policy.ROLL_BACK)
    issuer = LocalIssuer(node.replica, clock=lambda: 1, yielding=node.yielding)
    with contextlib.closing(node):
        node.replica.check_writable()
        for path in ("nodes", "nodes/a", "nodes/a/lxc"):
            issuer.submit(Mkdir(path))
        issuer.create(Create(guest))
        with device() as below:
            below.failures["sync"] = errno.EIO
            with pytest.raises(StoreError):
                node.journal.sync()
        node.replica.saver.save()
        assert stored(node.path).index() == node.replica.state()
        with device() as below:
            below.failures["write"] = errno.EIO
            with pytest.raises(StoreError):
                issuer.submit(Mkdir("d"))
            below.failures.clear()
        assert node.tree.find(guest) is not None
        assert [found.vmid for found in node.guests] == [100]


def test_a_deferred_change_is_not_called_saved_before_its_bridge(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    expect_log("can't be (written|synced)")
    node = StoredReplica(tmp_path, policy=Policy.ROLL_BACK)
    issuer = LocalIssuer(node.replica, clock=lambda: 1, yielding=node.yielding)
    with contextlib.closing(node):
        node.replica.check_writable()
        issuer.create(Create("f.x"))
        with device() as below:
            below.failures["sync"] = errno.EIO
            with pytest.raises(StoreError):
                node.journal.sync()
            with pytest.raises(StoreError):  # the records of the new file are forgotten now
                node.replica.saver.save()
            node.replica.saver.start()
            with pytest.raises(StoreError):
                issuer.save()
            below.failures.clear()
            issuer.save()
        before = node.tree.checksum()
        assert node.tree.find("f.x") is not None
    assert recovered_tree(tmp_path).checksum() == before


def test_a_journal_without_room_fails_a_save_at_once(
    node: StoredReplica, expect_log: ExpectLog
) -> None:
    expect_log("can't be written")
    with device() as below:
        below.failures["reserve"] = errno.ENOSPC
        node.deliver(Create("f"), *[Write("f", 0, bytes(1 << 20), True)] * 6)
        node.replica.write_out()
        count = below.count("reserve")
        with pytest.raises(StoreError) as failure:
            node.replica.saver.save()
        assert failure.value.errno == errno.ENOSPC
        assert below.count("reserve") <= count + 4  # and not for each of ATTEMPTS
        below.failures.clear()
        node.replica.try_again()
        node.replica.saver.save()
    assert stored(node.path).index() == node.replica.state()


def test_what_was_replayed_is_saved_soon(tmp_path: Path) -> None:
    for is_restart in (False, True):
        with contextlib.closing(StoredReplica(tmp_path)) as node:
            saver = node.replica.saver
            assert (saver._due_at() < time.monotonic() + 2 * PAUSE) is is_restart
            node.replica.check_writable()
            node.deliver(Mkdir(f"d{is_restart}"))
            node.replica.write_out()


def test_records_that_a_bug_keeps_from_the_journal_are_replaced_by_a_save_of_the_tree(
    node: StoredReplica, tmp_path: Path, expect_log: ExpectLog
) -> None:
    expect_log("records could not be written, which is a bug: the tree is saved")

    def fail(*_: object) -> int:
        raise ValueError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        node.deliver(Mkdir("d"))
        node.replica.write_out()
    assert node.replica.is_degraded
    node.deliver(Mkdir("e"))
    node.replica.saver.save()
    assert not node.replica.is_degraded
    node.deliver(Mkdir("f"))
    node.replica.write_out()
    expected = node.tree.checksum()
    node.close()
    assert recovered_tree(tmp_path).checksum() == expected


@pytest.mark.parametrize("whole", [True, False])
def test_the_checksum_of_what_is_saved_is_that_of_the_tree(
    node: StoredReplica, *, whole: bool
) -> None:
    node.deliver(Mkdir("d"), Create("d/f"), Write("d/f", 0, b"content", True), Create("empty"))
    batch, _ = take(node, whole=whole)
    assert batch.state is not None
    assert state_checksum(batch.state, batch.version_row) == node.tree.checksum()


def test_a_tree_of_many_entries_is_not_copied_for_a_checksum(
    node: StoredReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tree's lock is held meanwhile."""
    monkeypatch.setattr(batches, "MAX_CHECKED", 1)
    node.deliver(Create("a"), Create("b"))
    batch, _ = take(node)
    assert batch.state is None


def test_a_node_writes_a_checksum_that_its_next_start_agrees_with(tmp_path: Path) -> None:
    StoredReplica(tmp_path).close()  # which has saved the empty tree
    with contextlib.closing(StoredReplica(tmp_path)) as node:
        node.deliver(Create("f"), Write("f", 0, b"content", True))
        node.replica.saver.save()
        *_, check = [record for record in node.records() if isinstance(record, Check)]
        assert check == Check(node.tree.version, node.tree.checksum())
        node.deliver(Mkdir("later"))
        node.replica.write_out()
        node.journal.sync()
    with contextlib.closing(StoredReplica(tmp_path)) as again:
        assert not again.storage.recovered.is_altered
        assert again.tree.find("later") is not None


def test_a_segment_says_which_version_the_tree_had_before_its_records(tmp_path: Path) -> None:
    large = Write("f.x", 0, bytes(1 << 20), truncate=True)
    with contextlib.closing(StoredReplica(tmp_path)) as node:
        node.deliver(Create("f.x"))
        for _ in range(5):
            node.deliver(large, large)
            node.replica.write_out()
        found = [place.read() for place in scan(node.directory).segments]
    assert len(found) > 1
    for segment in found:
        changes = [place.record for place in segment.records if isinstance(place.record, Change)]
        assert segment.header is not None
        assert segment.header.version == changes[0].version - 1
