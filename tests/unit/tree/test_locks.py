"""The age and expiry of locks, by this node's clock."""

import pytest

from pmxcfs._core import Entry, Tree
from pmxcfs.messages import EntryType
from pmxcfs.tree.locks import LIFETIME, LockTable, is_below_locks

PATH = "priv/lock/ha"
ONE, OTHER = b"1" * 32, b"2" * 32


def tree_with(*paths: str) -> Tree:
    """Return a tree with these paths; a name with a dot is a file, any other a directory."""
    tree = Tree()
    for path in paths:
        parent, name = tree.find_parent(path)
        assert parent is not None
        kind = EntryType.FILE if "." in name else EntryType.DIRECTORY
        tree.create(parent, name, kind, writer=1, mtime=1)
    return tree


def at(tree: Tree, path: str) -> Entry:
    """Return the entry at *path*."""
    entry = tree.find(path)
    assert entry is not None
    return entry


@pytest.mark.parametrize(
    ("path", "expected"),
    [(PATH, True), ("priv/lock/ha/below", True), ("priv/lock/file.x", False), ("priv/lock", False)],
)
def test_locks_are_directories_below_their_home(path: str, expected: bool) -> None:
    tree = tree_with("priv", "priv/lock", PATH, "priv/lock/ha/below", "priv/lock/file.x")
    assert is_below_locks(at(tree, path)) is expected


def test_a_lock_lives_for_two_minutes() -> None:
    assert LIFETIME == 120
    table = LockTable()
    table.note(PATH, ONE, now=1000)
    assert not table.has_expired(PATH, ONE, now=1119.9)
    assert table.has_expired(PATH, ONE, now=1120)
    assert table.ages(1007) == {PATH: 7}


def test_only_a_new_version_resets_the_age() -> None:
    table = LockTable()
    table.note(PATH, ONE, now=0)
    table.note(PATH, ONE, now=100)
    assert table.ages(110) == {PATH: 110}
    table.note(PATH, OTHER, now=110)
    assert not table.has_expired(PATH, OTHER, now=229)
    assert table.has_expired(PATH, OTHER, now=230)


def test_an_unknown_version_has_not_expired() -> None:
    table = LockTable()
    assert not table.has_expired(PATH, ONE, now=10**6)
    table.note(PATH, ONE, now=0)
    assert not table.has_expired(PATH, OTHER, now=10**6)
    table.forget(PATH)
    table.forget(PATH)
    assert not table.has_expired(PATH, ONE, now=10**6)


def test_the_lifetime_can_be_configured() -> None:
    table = LockTable(lifetime=5)
    table.note(PATH, ONE, now=0)
    assert table.has_expired(PATH, ONE, now=5)


def test_a_reload_keeps_the_age_of_unchanged_locks() -> None:
    tree = tree_with("priv", "priv/lock", PATH, "priv/lock/ha/below", "priv/lock/file.x", "d")
    table = LockTable()
    table.note(PATH, tree.entry_checksum(at(tree, PATH)), now=10)
    table.note("priv/lock/gone", ONE, now=10)
    table.reload(tree, now=50)
    assert table.ages(60) == {PATH: 50, "priv/lock/ha/below": 10}
    tree.touch(at(tree, PATH), writer=1, mtime=2)
    table.reload(tree, now=70)
    assert table.ages(70) == {PATH: 0, "priv/lock/ha/below": 20}


def test_a_tree_without_locks_has_none() -> None:
    table = LockTable()
    table.note(PATH, ONE, now=0)
    table.reload(Tree(), now=1)
    assert table.ages(1) == {}
