"""A cluster's replica on a real database: changes of peers are kept when the disk fails.

Also recorded synchronizations, the import of corosync.conf and the removal of locks.
"""

import contextlib
import errno
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import Denied, NotFound, Stale, StoreError, TooBig
from pmxcfs.messages import MAX_FILE_SIZE, Create, Delete, Mkdir, Mutation, Record, Unlock, Write
from pmxcfs.replica.replica import Policy, Replica
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage.database import Database
from pmxcfs.tree import index
from pmxcfs.tree.guests import Guests
from pmxcfs.tree.locks import LockTable
from tests.conftest import ExpectLog
from tests.fakes.data.recorded_order import CONFIGURATION, events_of
from tests.fakes.data.trees import at, directory, file, tree_of, way_to
from tests.fakes.doubles.store import Faults, faulty_connections, query, stored

REFUSED = r"config.db can't be written: .*; reads go on, changes are refused"
IO_ERROR = sqlite3.SQLITE_IOERR_WRITE


@pytest.fixture
def faults() -> Iterator[Faults]:
    with faulty_connections() as faults:
        yield faults


@pytest.fixture
def replica(tmp_path: Path, faults: Faults) -> Iterator[Replica]:
    database = Database.open(tmp_path / "config.db", now=7)
    with contextlib.closing(database):
        replica = Replica(Tree(), Guests(), database, policy=Policy.KEEP)
        replica.departures.set_nodes(())
        yield replica


def deliver(replica: Replica, *mutations: Mutation) -> list[Ticket]:
    tickets = [Ticket(mutation, writer=2, mtime=5, foreign=True) for mutation in mutations]
    replica.deliver(tickets)
    return tickets


# Delivery


def test_changes_delivered_together_are_one_transaction(replica: Replica, tmp_path: Path) -> None:
    tickets = deliver(replica, Mkdir("d"), Create("d/f"), Write("d/f", 0, b"x", True), Mkdir("d"))
    assert replica.transactions == 1
    assert [ticket.error is None for ticket in tickets] == [True, True, True, False]
    assert (at(replica.tree, "d/f").writer, at(replica.tree, "d/f").mtime) == (2, 5)
    assert stored(tmp_path / "config.db").index() == replica.state()


def test_delivered_changes_do_not_mark_the_database_as_diverged(
    replica: Replica, tmp_path: Path
) -> None:
    deliver(replica, Mkdir("d"))
    tables = query(tmp_path / "config.db", "SELECT name FROM sqlite_master")
    assert tables == [(b"tree",)]


def test_a_delivered_change_that_can_not_be_saved_stays_in_the_tree_and_succeeds(
    replica: Replica, faults: Faults, tmp_path: Path, expect_log: ExpectLog
) -> None:
    expect_log(REFUSED)
    heard: list[str] = []
    replica.subscribe(on_change=lambda change, *, foreign: heard.append(change.path))
    faults.arm(sqlite3.SQLITE_FULL, at=0)
    (ticket,) = deliver(replica, Create("nodes.cfg"))
    assert ticket.result().path == "nodes.cfg"
    assert heard == ["nodes.cfg"]
    assert replica.is_degraded
    with pytest.raises(StoreError) as refused:
        replica.check_writable()
    assert refused.value.errno == errno.ENOSPC
    with pytest.raises(StoreError):
        replica.sync()
    replica.save()  # asked for when a new file is closed: succeeds, as peers have the file
    faults.disarm()
    assert replica.catch_up()
    assert stored(tmp_path / "config.db").index() == replica.state()
    replica.check_writable()
    replica.sync()


def test_a_degraded_node_does_not_retry_the_database_for_each_message(
    replica: Replica, faults: Faults, expect_log: ExpectLog
) -> None:
    expect_log(REFUSED)
    faults.arm(IO_ERROR)
    deliver(replica, Create("a"))
    faults.seen.clear()
    deliver(replica, Create("b"))
    deliver(replica, Delete("a"))
    assert faults.seen == []
    assert replica.catch_up()
    assert faults.seen != []


@pytest.mark.parametrize("nth", range(1, 25))
def test_a_catch_up_can_fail_at_any_statement_and_be_repeated(
    replica: Replica, faults: Faults, tmp_path: Path, nth: int, expect_log: ExpectLog
) -> None:
    expect_log(REFUSED)
    deliver(replica, Create("a"), Create("b"))
    faults.arm(IO_ERROR, matching="COMMIT", is_done=True)
    deliver(replica, Write("a", 0, b"x", True), Delete("b"), Mkdir("d"))
    faults.arm(IO_ERROR, at=nth)
    replica.catch_up()
    deliver(replica, Create("d/c"))
    faults.disarm()
    assert replica.catch_up()
    assert stored(tmp_path / "config.db").index() == replica.state()


def test_a_catch_up_without_unsaved_changes_runs_no_statement(
    replica: Replica, faults: Faults
) -> None:
    faults.seen.clear()
    assert replica.catch_up()
    assert faults.seen == []


def test_a_guest_stays_registered_when_it_can_not_be_saved(
    replica: Replica, faults: Faults, expect_log: ExpectLog
) -> None:
    expect_log(REFUSED)
    deliver(replica, Mkdir("nodes"), Mkdir("nodes/a"), Mkdir("nodes/a/lxc"))
    faults.arm(IO_ERROR)
    deliver(replica, Create("nodes/a/lxc/100.conf"))
    assert replica.guests.get(100)


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
        database = Database.open(tmp_path / f"{nodeid}.db", now=1)
        with contextlib.closing(database):
            replica = Replica(Tree(), Guests(), database, policy=Policy.KEEP)
            replica.import_configuration(configuration, now=header.mtime)
            assert replica.state() == state
            replica.adopt(leader, updates, side=(2,), now=1, lock=contextlib.nullcontext())
            assert replica.state() == leader == stored(tmp_path / f"{nodeid}.db").index()


# Import of the host's corosync.conf


def test_importing_corosync_conf_makes_version_3(replica: Replica, tmp_path: Path) -> None:
    replica.import_configuration(b"totem {}\n", now=99)
    (record,) = replica.records_for([2])
    assert record == Record(2, 0, 3, 0, 99, 8, b"corosync.conf", b"totem {}\n")
    assert replica.tree.version == 3
    assert replica.transactions == 1
    assert replica.departures.notes == {}
    assert replica.departures.is_due
    assert stored(tmp_path / "config.db").index() == replica.state()
    assert query(tmp_path / "config.db", "SELECT name FROM sqlite_master") == [(b"tree",)]


def test_a_configuration_that_is_too_large_is_refused(replica: Replica) -> None:
    with pytest.raises(TooBig):
        replica.import_configuration(bytes(MAX_FILE_SIZE + 1), now=99)


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
