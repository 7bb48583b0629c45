"""The functions that a replica calls for what has changed, with the tree's lock held."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from pmxcfs._core import Entry
from pmxcfs.errors import StoreError
from pmxcfs.tree.adoption import Reload
from pmxcfs.tree.apply import Change


class Listener(Protocol):
    """A function that is called for each change after it was applied, and in local mode written."""

    def __call__(self, change: Change, foreign: bool) -> None:
        """Handle *change*; *foreign* means that it was not made through this node's mount."""


# Called after a rollback with each restored entry and its path before it, and with the error.
# Strings, as Cython 0.29 can't subscript a class.
UndoListener: TypeAlias = "Callable[[Mapping[Entry, str], StoreError], None]"
# Called after the tree of another node was adopted, with what differs from the tree before.
ReloadListener: TypeAlias = "Callable[[Reload], None]"
