"""A database whose saves always succeed and store nothing."""

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError


class FakeDatabase:
    """Counts the saves, which store nothing."""

    def __init__(self) -> None:
        self.degraded: StoreError | None = None
        self.diverged_at: int | None = None
        self.transactions = 0

    def save(self, tree: Tree, *, patient: bool = True) -> bool:
        self.transactions += 1
        return True

    def diverge(self, version: int) -> None:
        self.diverged_at = version

    def converge(self) -> None:
        self.diverged_at = None
