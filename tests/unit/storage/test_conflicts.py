"""Copies of this node's database before a sync replaces changes that no other node has."""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs._core import Tree
from pmxcfs.cli import offline
from pmxcfs.errors import StoreError
from pmxcfs.messages import Create, Delete, Mkdir, Mutation, Record, Write
from pmxcfs.replica.replica import Policy, Replica
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage.database import Database
from pmxcfs.tree import index
from pmxcfs.tree.guests import Guests
from tests.conftest import ExpectLog
from tests.fakes.data.trees import ROOT, directory, file, records_of, tree_of
from tests.fakes.doubles.store import contents_of, faulty_connections, stored

COMMON = (directory(2, "priv"), file(3, "f", b"common"), file(4, "g", b"g"))
KEPT = (
    r"the cluster's tree replaces entries that only this node has changed \(\d+\); a copy of this"
)
NOW = 1234


class Node:
    """A node with a database; ``restart`` closes it and loads it again."""

    def __init__(self, home: Path) -> None:
        self.path = home / "config.db"
        self.conflicts = home / "conflicts"
        self.start()

    def start(self) -> None:
        self.database = Database.open(self.path, now=7)
        self.tree = Tree()
        self.tree.load(self.database.load(now=7).records)
        self.replica = Replica(self.tree, Guests(), self.database, policy=Policy.KEEP)

    def restart(self) -> None:
        self.database.close()
        self.start()

    def do(self, *mutations: Mutation) -> None:
        """Deliver each mutation in a group of its own."""
        for mutation in mutations:
            ticket = Ticket(mutation, writer=1, mtime=NOW)
            self.replica.deliver([ticket])
            ticket.result()

    def become(self, leader: Tree) -> None:
        raw = leader.index()
        needed = index.records_needed(raw, [self.replica.state()])
        self.replica.adopt(raw, records_of(leader, needed), now=NOW, lock=contextlib.nullcontext())

    def copies(self) -> list[Path]:
        return sorted(self.conflicts.iterdir()) if self.conflicts.exists() else []


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node in sync with others."""
    node = Node(tmp_path)
    node.become(tree_of(*COMMON))
    node.replica.synced(with_others=True)
    yield node
    node.database.close()


def write(path: str, data: bytes) -> Write:
    return Write(path, 0, data, truncate=True)


def a_majority(*, version: int = 90) -> Tree:
    """Return the tree of the other nodes, which went on from the common state."""
    records = (
        directory(2, "priv"),
        file(3, "f", b"theirs", version=80),
        file(70, "new", version=70),
    )
    return tree_of(*records, root=ROOT._replace(version=version))


def test_what_was_changed_alone_is_kept(
    node: Node, expect_log: ExpectLog, capsys: pytest.CaptureFixture[str]
) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's version: f$")
    node.replica.synced(with_others=False)
    node.do(write("f", b"ours"))
    before = node.tree.index()
    node.become(a_majority())
    (copy,) = node.copies()
    assert copy.name == f"{NOW}.db"
    assert stored(copy).index() == before
    assert contents_of(stored(copy))["f"] == b"ours"
    assert node.tree.index() == stored(node.path).index() == a_majority().index()
    assert offline.fsck(copy, repair=False) == 0
    assert "sound" in capsys.readouterr().out


def test_a_copy_is_readable_only_by_root(node: Node, expect_log: ExpectLog) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's")
    node.replica.synced(with_others=False)
    node.do(write("f", b"ours"))
    old = os.umask(0)
    try:
        node.become(a_majority())
    finally:
        os.umask(old)
    (copy,) = node.copies()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert stat.S_IMODE(node.conflicts.stat().st_mode) == 0o700


def test_the_next_copy_does_not_replace_the_first(node: Node, expect_log: ExpectLog) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's")
    for number, leader in enumerate((a_majority(), a_majority(version=99))):
        node.replica.synced(with_others=False)
        node.do(write("f", b"ours %d" % number))
        node.become(leader)
    first, second = node.copies()
    assert contents_of(stored(first))["f"] == b"ours 0"
    assert contents_of(stored(second))["f"] == b"ours 1"


def test_private_names_are_not_logged(
    node: Node, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's version: private entry 51$")
    node.replica.synced(with_others=False)
    node.do(Create("priv/secret.key"))
    node.become(a_majority())
    assert "secret" not in caplog.text
    assert contents_of(stored(node.copies()[0]))["priv/secret.key"] == b""


def test_at_most_100_paths_are_logged(
    node: Node, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's")
    expect_log("20 more paths were replaced")
    node.replica.synced(with_others=False)
    tickets = [Ticket(Create(f"file{n}"), writer=1, mtime=NOW) for n in range(120)]
    node.replica.deliver(tickets)
    node.become(a_majority(version=900))
    assert len(caplog.records) == 102


def test_the_divergence_survives_restarts(node: Node, expect_log: ExpectLog) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's")
    node.replica.synced(with_others=False)
    node.do(write("f", b"ours"))
    node.restart()
    node.restart()
    assert node.database.diverged_at == 50
    node.become(a_majority())
    assert len(node.copies()) == 1
    node.restart()
    assert node.database.diverged_at is None


def test_the_divergence_survives_a_kill(node: Node) -> None:
    node.replica.synced(with_others=False)
    node.do(write("f", b"ours"))
    with contextlib.closing(sqlite3.connect(node.path)) as other:  # reads what a crash would leave
        assert other.execute("SELECT version FROM divergence").fetchall() == [(50,)]


def forked(node: Node, *theirs: Record) -> Tree:
    """Return a tree that shares the common state, but none of *node*'s later changes."""
    others = {record.inode: record for record in (*COMMON, *theirs)}
    return tree_of(*others.values(), root=ROOT._replace(version=node.tree.version + 40))


def test_changes_of_a_group_that_lost_the_quorum_are_kept(
    node: Node, expect_log: ExpectLog
) -> None:
    """A partition into two and two nodes with a forced quorum: no node was ever alone."""
    expect_log(KEPT)
    expect_log("replaced by another node's version: [fx]$")
    node.do(Mkdir("x"), write("f", b"ours"))
    before = node.tree.index()
    node.restart()
    node.become(forked(node, directory(51, "y", version=51), file(3, "f", b"theirs", version=60)))
    (copy,) = node.copies()
    assert stored(copy).index() == before


def test_a_change_that_no_other_node_received_is_kept(node: Node, expect_log: ExpectLog) -> None:
    """The last message before a partition can be delivered to its sender only."""
    expect_log(KEPT)
    expect_log("replaced by another node's version: f$")
    node.do(write("f", b"ours"))
    node.become(forked(node, file(4, "g", b"theirs", version=51)))
    assert contents_of(stored(node.copies()[0]))["f"] == b"ours"


def test_entries_equal_in_both_trees_are_not_lost(node: Node, expect_log: ExpectLog) -> None:
    """Only the changes after them are lost."""
    expect_log(r"only this node has changed \(1\);")
    expect_log("replaced by another node's version: f$")
    node.do(Create("both"), write("f", b"ours"))
    (both,) = node.replica.records_for([51])
    node.become(forked(node, both, file(4, "g", b"theirs", version=52)))
    assert len(node.copies()) == 1


def test_an_ancestor_of_the_leaders_tree_is_not_copied(node: Node) -> None:
    """As on a node that was offline while HA wrote its status every few seconds."""
    node.do(Mkdir("x"), write("f", b"1"), write("g", b"1"), write("f", b"2"), Delete("x"))
    leader = forked(node, file(3, "f", b"9", version=90), file(4, "g", b"9", version=91))
    node.become(leader)
    assert node.copies() == []


def test_a_node_that_changed_nothing_while_alone_keeps_nothing(node: Node) -> None:
    node.replica.synced(with_others=False)
    node.become(a_majority())
    assert node.copies() == []


def test_a_node_that_was_only_offline_keeps_nothing(node: Node) -> None:
    node.do(write("f", b"common"), Create("x"), Delete("g"))
    node.restart()
    node.become(a_majority())
    assert node.copies() == []


def test_changes_of_a_node_that_led_the_sync_are_not_lost(node: Node) -> None:
    node.replica.synced(with_others=False)
    node.do(write("f", b"ours"))
    node.replica.synced(with_others=True)
    assert node.database.diverged_at is None
    node.restart()
    node.become(a_majority())
    assert node.copies() == []


def test_changes_that_the_leader_has_too_are_not_lost(node: Node) -> None:
    node.replica.synced(with_others=False)
    node.do(write("f", b"ours"))
    ours = records_of(node.tree, [2, 3, 4])
    leader = tree_of(*ours, file(99, "z", version=99), root=ROOT._replace(version=99))
    node.become(leader)
    assert node.copies() == []


def test_entries_unchanged_since_the_divergence_are_not_lost(node: Node) -> None:
    """Only x was changed alone; the leader's version of f descends from ours."""
    node.replica.synced(with_others=False)
    node.do(Mkdir("x"))
    node.do(Delete("x"))
    node.become(a_majority())
    assert node.copies() == []


def test_a_fresh_node_of_a_cluster_keeps_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.replica.import_configuration(b"totem {}", now=NOW)
    node.restart()
    node.become(a_majority())
    assert node.copies() == []
    node.database.close()


def test_a_node_that_never_was_in_a_cluster_keeps_its_whole_tree(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's")
    node = Node(tmp_path)
    node.do(Create("storage.cfg"))
    node.become(a_majority())
    assert len(node.copies()) == 1
    node.database.close()


def test_without_a_copy_nothing_is_replaced(node: Node) -> None:
    node.replica.synced(with_others=False)
    node.do(write("f", b"ours"))
    node.conflicts.write_bytes(b"a file where the directory should be")
    before = node.tree.index()
    with pytest.raises(StoreError, match="conflicts"):
        node.become(a_majority())
    assert node.tree.index() == stored(node.path).index() == before
    node.conflicts.unlink()


def test_a_copy_that_fails_leaves_no_partial_file(tmp_path: Path) -> None:
    with faulty_connections() as faults:
        node = Node(tmp_path)
        node.do(Create("f"))
        faults.arm(sqlite3.SQLITE_FULL, matching="BACKUP")
        with pytest.raises(StoreError):
            node.become(a_majority())
        assert node.copies() == []
        assert node.tree.find("f")
        node.database.close()


def test_changes_in_ram_only_are_not_replaced_without_a_copy(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    expect_log("can't be written")
    with faulty_connections() as faults:
        node = Node(tmp_path)
        faults.arm(sqlite3.SQLITE_IOERR_WRITE, at=0)
        node.do(Create("f"))
        assert node.replica.is_degraded
        with pytest.raises(StoreError):
            node.become(a_majority())
        assert node.tree.find("f")
        faults.disarm()
        assert node.replica.catch_up()
        node.database.close()


def test_the_divergence_ends_when_a_degraded_node_catches_up(
    node: Node, expect_log: ExpectLog
) -> None:
    expect_log("can't be written")
    expect_log(KEPT)
    expect_log("replaced by another node's")
    node.replica.synced(with_others=False)
    node.do(write("f", b"ours"))
    node.database._connection.execute("PRAGMA query_only = ON")
    node.become(a_majority())
    assert node.replica.is_degraded
    assert node.database.diverged_at == 50
    assert node.replica.catch_up()
    assert node.database.diverged_at is None
    node.restart()
    assert node.tree.index() == a_majority().index()
