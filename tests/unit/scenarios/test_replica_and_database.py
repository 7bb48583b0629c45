"""A cluster's replica on a real database: changes of peers are kept when the disk fails.

Also recorded synchronizations, the import of corosync.conf and the removal of locks.
"""

import contextlib
import errno
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import Denied, NotFound, Stale, StoreError, TooBig
from pmxcfs.messages import MAX_FILE_SIZE, Create, Delete, Mkdir, Mutation, Record, Unlock, Write
from pmxcfs.replica.change_log import MAX_OWED
from pmxcfs.replica.replica import Replica
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage.create import making, tree_with
from pmxcfs.storage.database import Database, whole_batch
from pmxcfs.storage.records import Gap
from pmxcfs.tree import index
from pmxcfs.tree.locks import LockTable
from tests.conftest import ExpectLog
from tests.fakes.data.recorded_order import CONFIGURATION, events_of
from tests.fakes.data.trees import at, directory, file, tree_of, way_to
from tests.fakes.doubles.device import Device, device
from tests.fakes.doubles.replicas import StoredReplica, recovered_tree, replica_in
from tests.fakes.doubles.store import query, stored

FULL = r"can't be written.*; this node sends no changes"


@pytest.fixture
def stored_replica(tmp_path: Path) -> Iterator[StoredReplica]:
    with contextlib.closing(StoredReplica(tmp_path)) as made:
        made.replica.check_writable()
        yield made


@pytest.fixture
def replica(stored_replica: StoredReplica) -> Replica:
    return stored_replica.replica


@pytest.fixture
def below(replica: Replica) -> Iterator[Device]:
    """The device below the journal, which fails on demand."""
    with device() as below:
        yield below


def deliver(replica: Replica, *mutations: Mutation) -> list[Ticket]:
    tickets = [Ticket(mutation, writer=2, mtime=5, foreign=True) for mutation in mutations]
    replica.deliver(tickets)
    return tickets


def check_restart(stored_replica: StoredReplica) -> None:
    """Check that the next start has the tree of now, after a kill as well as after a save."""
    expected = stored_replica.replica.state()
    stored_replica.close()
    assert recovered_tree(stored_replica.path.parent).index() == expected


# Delivery


def test_changes_delivered_together_are_one_write(
    stored_replica: StoredReplica, below: Device
) -> None:
    replica = stored_replica.replica
    tickets = deliver(replica, Mkdir("d"), Create("d/f"), Write("d/f", 0, b"x", True), Mkdir("d"))
    assert [ticket.error is None for ticket in tickets] == [True, True, True, False]
    assert below.count("write") == 0  # delivery does not block
    assert stored_replica.notices == 1
    replica.write_out()
    assert below.count("write") == 1
    assert (at(replica.tree, "d/f").writer, at(replica.tree, "d/f").mtime) == (2, 5)
    assert [version for version, _ in stored_replica.changes()] == [2, 3, 4]
    check_restart(stored_replica)


def test_a_save_takes_records_that_wait_along(stored_replica: StoredReplica) -> None:
    replica = stored_replica.replica
    deliver(replica, Mkdir("d"))
    replica.saver.save()
    assert stored(stored_replica.path).index() == replica.state()
    deliver(replica, Mkdir("e"))
    replica.write_out()
    check_restart(stored_replica)


def test_a_delivered_change_that_can_not_be_written_stays_in_the_tree_and_succeeds(
    stored_replica: StoredReplica, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    replica = stored_replica.replica
    heard: list[str] = []
    replica.subscribe(on_change=lambda change, foreign: heard.append(change.path))
    below.failures["write"] = errno.ENOSPC
    (ticket,) = deliver(replica, Create("nodes.cfg"))
    assert ticket.result().path == "nodes.cfg"
    assert heard == ["nodes.cfg"]
    replica.write_out()
    assert replica.is_degraded
    replica.saver.start()
    with pytest.raises(StoreError) as refused:
        replica.check_writable()
    assert refused.value.errno == errno.ENOSPC
    with pytest.raises(StoreError):
        replica.sync()
    replica.flush()  # asked for when a new file is closed: succeeds, as peers have the file
    below.failures.clear()
    assert replica.try_again()
    replica.check_writable()
    replica.sync()
    assert not replica.is_degraded
    deliver(replica, Mkdir("d"))
    replica.write_out()
    check_restart(stored_replica)


def test_what_is_owed_is_written_in_order_once_there_is_room(
    stored_replica: StoredReplica, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    replica = stored_replica.replica
    below.failures["reserve"] = errno.ENOSPC
    deliver(replica, Create("large"), *[Write("large", 0, bytes(1 << 20), True)] * 6)
    replica.write_out()
    assert replica.is_degraded
    deliver(replica, Mkdir("d"), Mkdir("e"))
    below.failures.clear()
    assert replica.try_again()
    assert [version for version, _ in stored_replica.changes()] == [*range(2, 11)]
    assert not [record for record in stored_replica.records() if isinstance(record, Gap)][1:]
    check_restart(stored_replica)


def test_too_much_owed_is_replaced_by_a_save_of_the_tree(
    stored_replica: StoredReplica, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    replica = stored_replica.replica
    below.failures["reserve"] = errno.ENOSPC
    deliver(replica, Create("large"), *[Write("large", 0, bytes(1 << 20), True)] * 6)
    replica.write_out()
    for _ in range(MAX_OWED >> 20):
        deliver(replica, Write("large", 0, bytes(1 << 20), True))
    replica.saver.start()
    below.failures.clear()
    assert replica.try_again()
    assert not replica.is_degraded
    assert stored(stored_replica.path).index() == replica.state()
    deliver(replica, Mkdir("d"))
    replica.write_out()
    check_restart(stored_replica)


def test_a_degraded_node_does_not_try_the_journal_for_each_message(
    replica: Replica, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    below.failures["write"] = errno.EIO
    deliver(replica, Create("a"))
    replica.write_out()
    below.seen.clear()
    deliver(replica, Create("b"))
    deliver(replica, Delete("a"))
    replica.write_out()
    assert below.seen == []
    below.failures.clear()


@pytest.mark.expect_log("could not be recorded, which is a bug")
def test_a_change_that_can_not_be_recorded_stays_and_the_tree_is_saved(
    stored_replica: StoredReplica,
) -> None:
    replica = stored_replica.replica

    def fail() -> int:
        raise KeyError

    stored_replica.wall_clock_ns = fail
    (ticket,) = deliver(replica, Create("f"))
    stored_replica.wall_clock_ns = time.time_ns
    assert ticket.result().entry.is_attached
    replica.saver.start()
    assert replica.try_again()
    deliver(replica, Mkdir("d"))
    replica.write_out()
    check_restart(stored_replica)


def test_a_guest_stays_registered_when_it_can_not_be_written(
    replica: Replica, below: Device, expect_log: ExpectLog
) -> None:
    expect_log(FULL)
    deliver(replica, Mkdir("nodes"), Mkdir("nodes/a"), Mkdir("nodes/a/lxc"))
    below.failures["write"] = errno.EIO
    deliver(replica, Create("nodes/a/lxc/100.conf"))
    replica.write_out()
    assert replica.guests.get(100)
    below.failures.clear()


# Synchronization


def test_records_for_a_peer_match_the_digests_of_its_index(replica: Replica) -> None:
    deliver(replica, Mkdir("d"), Create("d/f"), Write("d/f", 0, b"x", True))
    root, directory_, file_ = replica.records_for([0, 2, 3])
    assert root == Record(0, 0, 4, 2, 5, 4, b"", None)
    assert directory_ == Record(2, 0, 2, 2, 5, 4, b"d", None)
    assert file_ == Record(3, 2, 4, 2, 5, 8, b"f", b"x")
    with pytest.raises(ValueError, match="99"):
        replica.records_for([99])


def test_an_adopted_tree_replaces_the_registered_guests(replica: Replica) -> None:
    deliver(replica, Mkdir("nodes"), Mkdir("nodes/a"), Mkdir("nodes/a/lxc"))
    deliver(replica, Create("nodes/a/lxc/100.conf"))
    records = (
        directory(2, "nodes"),
        directory(3, "b", parent=2),
        directory(4, "qemu-server", parent=3),
        file(5, "200.conf", parent=4),
    )
    leader = tree_of(*records)
    needed = index.records_needed(leader.index(), [replica.state()])
    sent = [way_to(Tree(), leader).written[inode] for inode in needed]
    replica.adopt(leader.index(), sent, side=(2,), now=1, lock=contextlib.nullcontext())
    assert [(guest.vmid, guest.node, guest.type) for guest in replica.guests] == [
        (200, "b", "qemu")
    ]
    deliver(replica, Mkdir("nodes/b/lxc"))
    (moved,) = deliver(replica, Create("nodes/b/lxc/200.conf"))
    assert moved.error is not None


class Killed(BaseException):
    """The daemon ends here."""


def test_notes_of_before_an_adoption_are_there_after_a_crash_ahead_of_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """Whatever is recorded while it is saved."""
    expect_log("the cluster's tree replaces entries")
    expect_log("replaced by another node's version: d")
    leader = tree_of(file(2, "f"))
    with contextlib.closing(StoredReplica(tmp_path, nodes=(2, 3))) as node:
        replica = node.replica
        node.deliver(Mkdir("d"))  # while no other node is there
        replica.departures.follow((1, 2), me=1, version=replica.tree.version, now=1.0)
        before = dict(replica.departures.notes)
        assert set(before) == {2, 3}

        def crash(*args: object, **kwargs: object) -> None:
            replica.save_notes()
            replica.write_out()
            raise Killed

        monkeypatch.setattr(Database, "adopt", crash)
        needed = index.records_needed(leader.index(), [replica.state()])
        sent = [way_to(Tree(), leader).written[inode] for inode in needed]
        with pytest.raises(Killed):
            replica.adopt(leader.index(), sent, side=(2,), now=1, lock=contextlib.nullcontext())
    with contextlib.closing(StoredReplica(tmp_path, nodes=(2, 3))) as again:
        assert again.tree.find("d") is not None
        assert again.replica.departures.notes == before


class Delivered(NamedTuple):
    """The type, the payload and the sender of a recorded message."""

    type: int
    payload: bytes
    nodeid: int


UPDATE_HEAD = struct.Struct("<QQQIIIIB")


def recorded(node: int) -> list[Delivered]:
    """Return STATE, UPDATE and UPDATE_COMPLETE that a node of the original saw, without epochs."""
    events = [event for event in events_of(node) if "hex" in event]
    messages = [(bytes.fromhex(event["hex"]), event["nodeid"]) for event in events]
    return [Delivered(raw[0], raw[32:], nodeid) for raw, nodeid in messages if raw[0] in (2, 3, 4)]


def update_of(payload: bytes) -> Record:
    fields = UPDATE_HEAD.unpack_from(payload)
    parent, inode, version, writer, mtime, size, length, kind = fields
    name = payload[UPDATE_HEAD.size : UPDATE_HEAD.size + length - 1]
    data = payload[UPDATE_HEAD.size + length :]
    assert len(data) == size
    return Record(inode, parent, version, writer, mtime, kind, name, data or None)


@pytest.mark.parametrize("node", [1, 2, 3])
def test_a_recorded_synchronization_ends_with_the_leaders_tree(tmp_path: Path, node: int) -> None:
    """In the first recorded round fresh databases get the UPDATEs of the leader."""
    messages = recorded(node)
    end = next(n for n, message in enumerate(messages) if message.type == 4)
    states = {m.nodeid: m.payload for m in messages[:end] if m.type == 2}
    updates = [update_of(m.payload) for m in messages[:end] if m.type == 3]
    leader = max(states.values(), key=index.parse_header)
    others = [state for state in states.values() if state != leader]
    assert sorted(record.inode for record in updates) == index.records_needed(leader, others)
    configuration = CONFIGURATION.read_bytes()
    for nodeid, state in states.items():
        header = index.parse_header(state)
        if header.version > 3:
            continue  # this node had more than a fresh database
        directory_ = tmp_path / str(nodeid)
        directory_.mkdir()
        path = directory_ / "config.db"
        with making(path, now=header.mtime) as database:
            fresh = tree_with("corosync.conf", configuration, now=header.mtime)
            database.save(whole_batch(fresh), None)
        with replica_in(directory_) as replica:
            assert replica.state() == state
            replica.adopt(leader, updates, side=(2,), now=1, lock=contextlib.nullcontext())
            assert replica.state() == leader == stored(path).index()


# Import of the host's corosync.conf


def test_importing_corosync_conf_makes_version_3(tmp_path: Path) -> None:
    path = tmp_path / "config.db"
    with making(path, now=1) as database:
        database.save(whole_batch(tree_with("corosync.conf", b"totem {}\n", now=99)), None)
    assert query(path, "SELECT name FROM sqlite_master") == [(b"tree",)]
    with replica_in(tmp_path) as replica:
        (record,) = replica.records_for([2])
        assert record == Record(2, 0, 3, 0, 99, 8, b"corosync.conf", b"totem {}\n")
        assert replica.tree.version == 3
        assert replica.departures.notes == {}
        assert stored(path).index() == replica.state()


def test_a_configuration_that_is_too_large_is_refused() -> None:
    with pytest.raises(TooBig):
        tree_with("corosync.conf", bytes(MAX_FILE_SIZE + 1), now=99)


# Locks


def test_a_lock_is_removed_only_if_the_expired_version_is_unchanged(replica: Replica) -> None:
    deliver(replica, Mkdir("priv"), Mkdir("priv/lock"), Mkdir("priv/lock/a"))
    tree, table = replica.tree, LockTable()
    checksum = tree.entry_checksum(at(tree, "priv/lock/a"))
    table.reload(tree, now=0)
    may_unlock = table.may_unlock
    assert not may_unlock(tree, "priv/lock/a", checksum, now=119)
    assert may_unlock(tree, "priv/lock/a", checksum, now=120)
    assert may_unlock(tree, "/priv//lock/a", checksum, now=120)
    assert not may_unlock(tree, "priv/lock/a", bytes(32), now=120)
    assert not may_unlock(tree, "priv/lock/b", checksum, now=120)
    other = tree.entry_checksum(at(tree, "priv"))
    assert not may_unlock(tree, "priv", other, now=120)
    deliver(replica, Create("priv/lock/a/x"))
    assert not may_unlock(tree, "priv/lock/a", checksum, now=120)


def test_an_unlock_needs_the_checksum_of_the_lock(replica: Replica) -> None:
    deliver(replica, Mkdir("priv"), Mkdir("priv/lock"), Mkdir("priv/lock/a"))
    checksum = replica.tree.entry_checksum(at(replica.tree, "priv/lock/a"))
    results = deliver(
        replica,
        Unlock("priv/lock/a", bytes(32)),
        Unlock("priv", checksum),
        Unlock("priv/lock/a", checksum),
        Unlock("priv/lock/a", checksum),
    )
    assert [type(ticket.error) for ticket in results] == [Stale, Denied, type(None), NotFound]
