"""A database that takes everything."""

from pmxcfs._core import Tree
from pmxcfs.errors import StoreError


class FakeDatabase:
    """Takes everything."""

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
