from pmxcfs._core import Entry, Tree
from pmxcfs.messages import Record

def differing(tree: Tree, digests: dict[int, bytes]) -> list[int]: ...
def lacking(tree: Tree, digests: dict[int, bytes]) -> list[Entry]: ...
def exchange(
    tree: Tree,
    leaving: list[Entry],
    arriving: list[Record],
    staying: list[tuple[Entry, Record]],
    hollow: set[int],
) -> None: ...
