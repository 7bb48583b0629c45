"""Copies of their databases, and parts of their journals, that nodes have kept."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pmxcfs._core import Tree
from pmxcfs.storage.database import inspect
from pmxcfs.storage.kept_copies import kept_copies
from pmxcfs.storage.kept_journals import read_kept_tree
from tests.cluster.node import Node


def copies(nodes: Sequence[Node]) -> list[Path]:
    """Return the copies that *nodes* have kept, by node and time."""
    return [copy.path for node in nodes for copy in kept_copies(node.database.parent)]


def trees(nodes: Sequence[Node]) -> Iterator[Tree]:
    """Yield the tree of each kept copy; that of a journal has only what was changed."""
    for copy in copies(nodes):
        if ".journal" in copy.name:
            yield read_kept_tree(copy).tree
        else:
            tree = Tree()
            tree.load(inspect(copy).records)
            yield tree


def kept(nodes: Sequence[Node], path: str) -> list[bytes]:
    """Return the content of *path* in each kept copy that has it."""
    found = [tree.find(path) for tree in trees(nodes)]
    return [entry.content for entry in found if entry]
