"""Node ids: the negative entries of the kernel."""

import pytest

from pmxcfs._core import Tree
from pmxcfs.fuse import node_ids as module
from pmxcfs.fuse.node_ids import ROOT, NodeIds
from pmxcfs.messages import EntryType


def test_an_object_is_known_until_its_last_reference_is_forgotten() -> None:
    tree = Tree()
    nodes = NodeIds(tree.root)
    entry = tree.create(tree.root, "a", EntryType.FILE, writer=1, mtime=1)
    number = nodes.number(entry)
    assert not nodes.is_known(entry)
    nodes.reference(entry)
    nodes.reference(entry)
    nodes.forget(number, 1)
    assert nodes.is_known(entry)
    nodes.forget(number, 1)
    assert not nodes.is_known(entry)


def test_a_noted_name_may_be_a_negative_entry() -> None:
    nodes = NodeIds(Tree().root)
    assert not nodes.may_be_absent(ROOT, b"a")
    nodes.note_absent(ROOT, b"a")
    assert nodes.may_be_absent(ROOT, b"a")
    assert not nodes.may_be_absent(ROOT, b"b")
    assert not nodes.may_be_absent(2, b"a")


def test_a_forgotten_directory_has_no_negative_entries() -> None:
    tree = Tree()
    nodes = NodeIds(tree.root)
    directory = tree.create(tree.root, "d", EntryType.DIRECTORY, writer=1, mtime=1)
    number = nodes.reference(directory)
    nodes.note_absent(number, b"a")
    nodes.forget(number, 1)
    assert not nodes.may_be_absent(number, b"a")


def test_beyond_the_limit_every_name_of_the_directory_may_be_a_negative_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_NEGATIVE_ENTRIES", 2)
    nodes = NodeIds(Tree().root)
    for name in (b"a", b"b", b"c"):
        nodes.note_absent(ROOT, name)
    assert nodes.may_be_absent(ROOT, b"never asked for")
    nodes.note_absent(2, b"a")  # the root's names no longer count
    assert nodes.may_be_absent(2, b"a")
    assert not nodes.may_be_absent(2, b"b")
