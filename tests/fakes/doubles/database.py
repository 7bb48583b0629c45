"""A database whose saves always succeed and store nothing."""

from collections.abc import Mapping, Sequence

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError
from pmxcfs.storage.divergence import Note, Removal


class FakeDatabase:
    """Counts the saves, which store nothing."""

    def __init__(self) -> None:
        self.degraded: StoreError | None = None
        self.notes: Mapping[int, Note] = {}
        self.transactions = 0

    def save(self, tree: Tree, removals: Sequence[Removal] = (), *, patient: bool = True) -> bool:
        self.transactions += 1
        return True

    def write_notes(self, notes: Mapping[int, Note], removals: Sequence[Removal] = ()) -> None:
        self.notes = notes
