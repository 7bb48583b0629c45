"""Copies of this node's database before a sync replaces changes that no other node has."""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pmxcfs._core import Tree
from pmxcfs.cli import offline
from pmxcfs.errors import NoCopy, StoreError
from pmxcfs.messages import Create, Delete, Mkdir, Mutation, Record, Rename, Write
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage.conflicts import keep_incomplete
from pmxcfs.storage.create import making
from pmxcfs.storage.database import Database, whole_batch
from pmxcfs.storage.divergence import Note, Removal
from pmxcfs.storage.kept_copies import FORK, INCOMPLETE, Description, find_copy, kept_copies
from pmxcfs.storage.saver import Saver
from pmxcfs.tree.adoption import Adoption
from tests.conftest import ExpectLog
from tests.fakes.data.trees import ROOT, directory, file, records_of, tree_of
from tests.fakes.doubles.departing import NODES, NOW, Node
from tests.fakes.doubles.store import contents_of, faulty_connections, query, stored

COMMON = (directory(2, "priv"), file(3, "f", b"common"), file(4, "g", b"g"))
KEPT = (
    r"the cluster's tree replaces entries that only this node has changed \(\d+\); a copy of this"
)
IMPORTED_ROOT = ROOT._replace(version=3)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node in sync with others."""
    node = Node(tmp_path)
    node.become(tree_of(*COMMON))
    node.meet(2, 3)
    node.settle()
    yield node
    node.close()


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
    node: Node, tmp_path: Path, expect_log: ExpectLog, capsys: pytest.CaptureFixture[str]
) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's version: f$")
    node.change_alone(write("f", b"ours"))
    before = node.tree.index()
    node.become(a_majority())
    (copy,) = node.copies()
    assert copy.name == f"{NOW}.db"
    assert find_copy(tmp_path, copy.name).description == Description(NOW, FORK, ["f"], [])
    assert stored(copy).index() == before
    assert contents_of(stored(copy))["f"] == b"ours"
    assert node.tree.index() == stored(node.path).index() == a_majority().index()
    assert offline.fsck(copy, repair=False) == 0
    assert "sound" in capsys.readouterr().out


def test_a_copy_is_readable_only_by_root(node: Node, expect_log: ExpectLog) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's")
    node.change_alone(write("f", b"ours"))
    old = os.umask(0)
    try:
        node.become(a_majority())
    finally:
        os.umask(old)
    assert len(node.copies()) == 1
    for path in node.conflicts.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(node.conflicts.stat().st_mode) == 0o700


def test_the_next_copy_does_not_replace_the_first(node: Node, expect_log: ExpectLog) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's")
    for number, leader in enumerate((a_majority(), a_majority(version=99))):
        node.change_alone(write("f", b"ours %d" % number))
        node.become(leader)
    first, second = node.copies()
    assert contents_of(stored(first))["f"] == b"ours 0"
    assert contents_of(stored(second))["f"] == b"ours 1"


def test_private_names_are_not_logged(
    node: Node, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's version: private entry 51$")
    node.change_alone(Create("priv/secret.key"))
    node.become(a_majority())
    assert "secret" not in caplog.text
    assert contents_of(stored(node.copies()[0]))["priv/secret.key"] == b""


def test_at_most_100_paths_are_logged(
    node: Node, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's")
    expect_log("replaced by another node's version: 20 more paths")
    node.meet()
    tickets = [Ticket(Create(f"file{n}"), writer=1, mtime=NOW) for n in range(120)]
    node.replica.deliver(tickets)
    node.become(a_majority(version=900))
    assert len(caplog.records) == 102


def test_the_divergence_survives_restarts(node: Node, expect_log: ExpectLog) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's")
    node.change_alone(write("f", b"ours"))
    node.restart()
    node.restart()
    assert node.notes() == {2: Note(50, 50), 3: Note(50, 50)}
    node.meet(2, 3)
    node.become(a_majority())
    assert len(node.copies()) == 1
    node.restart()
    assert node.notes() == {}


def test_a_divergence_that_only_the_journal_has_is_saved_after_a_restart(node: Node) -> None:
    node.change_alone(write("f", b"ours"))
    node.restart()
    node.save()
    assert query(node.path, "SELECT * FROM divergence_notes") == [(2, 50, 50), (3, 50, 50)]


def test_the_divergence_survives_a_kill(node: Node) -> None:
    node.change_alone(write("f", b"ours"))
    assert node.notes() == {2: Note(50, 50), 3: Note(50, 50)}


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
    node.meet()
    node.become(a_majority())
    assert node.copies() == []


def test_a_node_that_was_only_offline_keeps_nothing(node: Node) -> None:
    node.do(write("f", b"common"), Create("x"), Delete("g"))
    node.restart()
    node.become(a_majority())
    assert node.copies() == []


def test_changes_of_a_node_that_led_the_sync_are_not_lost(node: Node) -> None:
    node.change_alone(write("f", b"ours"))
    node.meet(2, 3)
    node.settle()
    assert node.notes() == {}
    node.restart()
    node.become(a_majority())
    assert node.copies() == []


def test_changes_that_the_leader_has_too_are_not_lost(node: Node) -> None:
    node.change_alone(write("f", b"ours"))
    ours = records_of(node.tree, [2, 3, 4])
    leader = tree_of(*ours, file(99, "z", version=99), root=ROOT._replace(version=99))
    node.become(leader)
    assert node.copies() == []


def test_entries_unchanged_since_the_divergence_are_not_lost(node: Node) -> None:
    """Only x was changed alone; the leader's version of f descends from ours."""
    node.change_alone(Mkdir("x"))
    node.do(Delete("x"))
    node.become(a_majority())
    assert node.copies() == []


# A winner that has overwritten everything that it had changed right after the fork


def in_the_room(node: Node, *mutations: Mutation) -> None:
    """Make changes just before the others depart: they may have got them or not."""
    node.do(*mutations)
    node.meet()


def test_a_new_file_is_kept_if_the_winner_has_rewritten_all(
    node: Node, expect_log: ExpectLog
) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's version: 900.conf$")
    node.meet(2)
    node.do(Create("900.conf"), write("900.conf", b"x"))
    node.meet(2, 3)
    node.become(forked(node, file(4, "g", b"12", version=62)), 3)
    assert contents_of(stored(node.copies()[0]))["900.conf"] == b"x"


def test_a_file_that_both_sides_have_changed_is_kept(node: Node, expect_log: ExpectLog) -> None:
    expect_log(r"only this node has changed \(1\);")
    expect_log("replaced by another node's version: f$")
    node.meet(2)
    node.do(write("f", b"ours"))
    node.become(forked(node, file(3, "f", b"theirs", version=62)), 3)
    assert contents_of(stored(node.copies()[0]))["f"] == b"ours"


@pytest.mark.parametrize("theirs", [(), (file(3, "f", b"common"),)], ids=["nothing", "older"])
def test_a_change_before_the_departure_is_kept_if_the_leader_has_nothing_or_something_older(
    node: Node, expect_log: ExpectLog, theirs: tuple[Record, ...]
) -> None:
    expect_log(r"only this node has changed \(1\);")
    expect_log("replaced by another node's version: f$")
    in_the_room(node, write("f", b"ours"))
    assert node.notes()[2] == Note(50, 51)
    others = (*COMMON[:1], file(4, "g", b"9", version=90))
    node.become(tree_of(*others, *theirs, root=ROOT._replace(version=90)))
    assert len(node.copies()) == 1


def test_a_change_before_the_departure_is_not_lost_if_the_leader_has_something_newer(
    node: Node,
) -> None:
    in_the_room(node, write("f", b"shared"), write("g", b"shared"))
    theirs = file(3, "f", b"9", version=90), file(4, "g", b"9", version=91)
    node.become(tree_of(*COMMON[:1], *theirs, root=ROOT._replace(version=91)))
    assert node.copies() == []


def test_the_path_counts_and_not_the_inode(node: Node, expect_log: ExpectLog) -> None:
    """The leader has removed f and made a new one."""
    in_the_room(node, write("f", b"shared"))
    theirs = file(4, "g", b"9", version=90), file(85, "f", b"9", version=86)
    node.become(tree_of(*COMMON[:1], *theirs, root=ROOT._replace(version=90)))
    assert node.copies() == []


def test_an_equal_entry_shows_that_the_leader_had_all_before_it(node: Node) -> None:
    """The leader's node was separated for longer, but has met another one since."""
    node.meet(2)
    node.do(Create("x"), write("f", b"1"), write("g", b"both"))
    node.meet()
    both = file(4, "g", b"both", version=53)._replace(writer=1, mtime=NOW)
    theirs = both, file(3, "f", b"9", version=90)
    node.become(tree_of(*COMMON[:1], *theirs, root=ROOT._replace(version=90)), 2, 3)
    assert node.copies() == []


def test_an_entry_of_another_history_shows_that_a_note_is_wrong(
    node: Node, expect_log: ExpectLog
) -> None:
    """The leader's database was replaced by that of another cluster, or by a backup."""
    expect_log(KEPT)
    expect_log("replaced by another node's version: [fg]$")
    node.do(write("f", b"ours"), write("g", b"ours"), write("f", b"ours"))
    node.meet()
    node.meet(2, 3)
    leader = tree_of(*COMMON[:1], file(4, "g", b"x", version=51), root=ROOT._replace(version=99))
    node.become(leader)
    assert len(node.copies()) == 1


def test_a_fork_lowers_the_notes_of_absent_nodes(node: Node, expect_log: ExpectLog) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's")
    node.meet(2)
    node.do(write("f", b"ours"), write("g", b"ours"))
    node.meet()
    assert node.notes() == {2: Note(50, 52), 3: Note(50, 50)}
    node.meet(3)
    node.become(a_majority(), 3)
    assert node.notes() == {2: Note(50, 50)}


def test_the_note_of_all_other_nodes_by_an_earlier_version_is_read(
    node: Node, expect_log: ExpectLog
) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's")
    node.do(write("f", b"ours"))
    node.save()
    with contextlib.closing(sqlite3.connect(node.path)) as other, other:
        other.execute("CREATE TABLE divergence (version INTEGER NOT NULL)")
        other.execute("INSERT INTO divergence VALUES (50)")
    node.restart()
    assert node.replica.departures.notes == {n: Note(50, 50) for n in NODES}
    node.meet()
    assert node.notes() == {2: Note(50, 50), 3: Note(50, 50)}
    node.become(forked(node, file(4, "g", b"theirs", version=90)))
    assert len(node.copies()) == 1


# Removals


def test_a_removal_that_the_leader_undoes_is_logged(node: Node, expect_log: ExpectLog) -> None:
    expect_log(r"only this node has changed \(1\);")
    expect_log("removed here, and present again in another node's version: f$")
    node.change_alone(Delete("f"))
    node.restart()
    node.meet(2, 3)
    node.become(forked(node, file(4, "g", b"9", version=90)))
    (copy,) = node.copies()
    assert set(contents_of(stored(copy))) == {"priv", "g"}


def test_a_removal_under_a_private_path_is_not_logged_by_name(
    tmp_path: Path, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log(KEPT)
    expect_log("present again in another node's version: private entry 5$")
    node = Node(tmp_path)
    common = (*COMMON, file(5, "secret", b"", parent=2))
    node.become(tree_of(*common))
    node.change_alone(Delete("priv/secret"))
    node.become(tree_of(*common, root=ROOT._replace(version=90)))
    assert "secret" not in caplog.text
    node.close()


def test_a_removal_that_the_leader_has_too_is_not_lost(node: Node) -> None:
    node.change_alone(Delete("f"))
    node.become(tree_of(COMMON[0], file(4, "g", b"9", version=90), root=ROOT._replace(version=90)))
    assert node.copies() == []


@pytest.mark.parametrize(
    ("fate", "changes"),
    [
        ("removed here, and present again in", [Rename("f", "x"), Delete("x")]),
        ("removed here, and present again in", [Create("x"), Rename("x", "f"), Delete("f")]),
        ("replaced by", [Create("x"), Rename("x", "f")]),
    ],
)
def test_an_entry_that_was_moved_or_replaced_is_logged_once_with_the_leaders_path(
    node: Node, expect_log: ExpectLog, fate: str, changes: Sequence[Mutation]
) -> None:
    expect_log(r"only this node has changed \(1\);")
    expect_log(f"{fate} another node's version: f$")
    node.change_alone(*changes)
    node.become(forked(node, file(4, "g", b"9", version=90)))
    assert len(node.copies()) == 1


def test_removals_are_remembered_only_while_a_node_may_miss_them(node: Node) -> None:
    node.do(Delete("f"))
    assert node.removals() == []
    node.meet(2)
    node.do(Delete("g"))
    assert node.removals() == [Removal(3, 51, b"f"), Removal(4, 52, b"g")]
    node.meet(2, 3)
    node.settle()
    assert node.removals() == []


def test_the_removal_of_an_entry_that_no_absent_node_has_is_not_remembered(node: Node) -> None:
    """HA takes and frees locks for as long as a node is away."""
    node.meet(2)
    node.do(Mkdir("x"), Delete("x"))
    assert node.removals() == []


def test_a_removal_that_could_not_be_saved_is_remembered_later(
    node: Node, expect_log: ExpectLog
) -> None:
    expect_log("can't be written")
    node.meet(2)
    node.database._connection.execute("PRAGMA query_only = ON")
    node.do(Delete("f"))
    with pytest.raises(StoreError):
        node.save()
    assert node.removals() == [Removal(3, 51, b"f")]
    node.save()
    assert node.database.read_removals() == node.removals() == [Removal(3, 51, b"f")]
    assert stored(node.path).index() == node.tree.index()


# Older versions


def test_an_older_version_without_a_note_is_kept_but_is_no_fork(
    node: Node, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    expect_log(r"has older versions of entries than this node \(1\), although no node was")
    expect_log("replaced by an older version: f$")
    node.do(write("f", b"ours"), write("g", b"both"))
    both = file(4, "g", b"both", version=52)._replace(writer=1, mtime=NOW)
    node.become(tree_of(*COMMON[:2], both, root=ROOT._replace(version=90)))
    assert contents_of(stored(node.copies()[0]))["f"] == b"ours"
    assert "only this node" not in caplog.text


def test_a_fresh_node_of_a_cluster_keeps_nothing(tmp_path: Path) -> None:
    with making(tmp_path / "config.db", now=NOW) as database:
        tree = tree_of(file(2, "corosync.conf", b"totem {}", version=3), root=IMPORTED_ROOT)
        database.save(whole_batch(tree), None)
    node = Node(tmp_path)
    node.become(a_majority())
    assert node.copies() == []
    node.close()


def test_a_node_that_never_was_in_a_cluster_keeps_its_whole_tree(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    expect_log(KEPT)
    expect_log("replaced by another node's")
    node = Node(tmp_path)
    node.do(Create("storage.cfg"))
    node.become(a_majority())
    assert len(node.copies()) == 1
    node.close()


def test_without_a_copy_nothing_is_replaced(node: Node) -> None:
    node.change_alone(write("f", b"ours"))
    node.conflicts.write_bytes(b"a file where the directory should be")
    before = node.tree.index()
    with pytest.raises(NoCopy, match="conflicts"):
        node.become(a_majority())
    node.save()
    assert node.tree.index() == stored(node.path).index() == before
    assert not node.replica.can_keep_copy()
    node.conflicts.unlink()
    assert node.replica.can_keep_copy()
    assert node.copies() == []


def test_a_copy_that_fails_leaves_no_partial_file(tmp_path: Path) -> None:
    with faulty_connections() as faults:
        node = Node(tmp_path)
        node.do(Create("f"))
        faults.arm(sqlite3.SQLITE_FULL, matching="BACKUP")
        with pytest.raises(StoreError):
            node.become(a_majority())
        assert node.copies() == []
        assert node.tree.find("f")
        node.close()


def test_changes_that_the_database_lacks_are_not_replaced_without_a_copy(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    expect_log("can't be written")
    with faulty_connections() as faults:
        node = Node(tmp_path)
        node.do(Create("f"))
        faults.arm(sqlite3.SQLITE_IOERR_WRITE, at=0)
        with pytest.raises(NoCopy):
            node.become(a_majority())
        assert node.tree.find("f")
        faults.disarm()
        node.save()
        assert stored(node.path).index() == node.tree.index()
        node.close()


def test_the_divergence_ends_when_an_adoption_is_saved_later(
    node: Node, expect_log: ExpectLog
) -> None:
    expect_log("can't be written")
    expect_log(KEPT)
    expect_log("replaced by another node's")
    node.change_alone(write("f", b"ours"))
    node.meet(2, 3)
    node.save()
    node.database._connection.execute("PRAGMA query_only = ON")
    node.become(a_majority())
    assert node.notes() == {2: Note(50, 50), 3: Note(50, 50)}
    node.save()
    assert node.notes() == {}
    node.restart()
    assert node.tree.index() == a_majority().index()


def test_no_save_comes_between_the_leaders_tree_in_the_database_and_in_ram(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would write our tree over the leader's, and the next saves would not know."""
    real = Saver.save_adoption
    others: list[bool] = []

    def save_adoption(saver: Saver, adoption: Adoption, *, notes: Mapping[int, Note]) -> None:
        real(saver, adoption, notes=notes)
        with ThreadPoolExecutor() as pool:
            others.append(pool.submit(saver._mutex.acquire, blocking=False).result())

    monkeypatch.setattr(Saver, "save_adoption", save_adoption)
    node.become(a_majority())
    assert others == [False]
    node.replica.saver.save(whole=True)
    assert stored(node.path).index() == node.tree.index() == a_majority().index()


# A tree that may lack entries


def test_an_incomplete_tree_is_kept_once(tmp_path: Path, expect_log: ExpectLog) -> None:
    """Before it joins, and again only if it has changed."""
    expect_log("was damaged and may lack entries: the tree of the other nodes replaces it")
    trees = [tree_of(directory(2, "d"), file(3, "f", data, parent=2)) for data in (b"x", b"y")]
    path = tmp_path / "config.db"
    with contextlib.closing(Database.open(path, now=1)) as database:
        for number, tree in enumerate(trees, 1):
            database.save(whole_batch(tree), None)
            for now in (NOW, NOW + 7):
                keep_incomplete(database, now=now + 100 * number)
            names = [copy.name for copy in kept_copies(tmp_path)]
            assert names == [f"{NOW + 100 * n}.db" for n in range(1, number + 1)]
    copy = find_copy(tmp_path, names[0])
    assert copy.description == Description(NOW + 100, INCOMPLETE, [], [])
    assert contents_of(stored(copy.path)) == {"d": None, "d/f": b"x"}
