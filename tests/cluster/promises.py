"""What the nodes of a divided cluster were promised, and where it is after the sides have met.

Each path has one writer on each side, so what was acknowledged last on that side is known: it must
be in the common tree, or in a copy that a node of that side has kept. What the writer has replaced
or removed later does not count. After a failed operation its outcome is possible, too. A removal
is kept as well if the common tree has another entry there, which the other side has made since.

All functions are pure. Contract: docs/spec/cluster.md, "Forks".
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.cluster.agent import Operation, Outcome

Value = bytes | None  # of a path: the content of a file, DIRECTORY, or None: no entry
DIRECTORY = b"\0directory"


class Step(NamedTuple):
    """An operation, and the value that each path has after it."""

    operation: Operation
    values: Mapping[str, Value]


class Written:
    """What one node has written to one path."""

    def __init__(self) -> None:
        self.promised = 0  # operations that were acknowledged
        self.possible: set[Value] = set()  # values that the path may have on the node's side
        self.ever: set[Value] = set()  # values that it may have had
        self.names: set[str] = set()  # paths that were changed together with this one
        self.is_new = False  # the last operation has made an entry, and may have replaced one

    def add(self, value: Value, *, is_known: bool) -> None:
        """Note that an operation has set the path to *value*, or may have if not *is_known*."""
        if is_known:
            self.promised += 1
            self.possible = {value}
        else:
            self.possible.add(value)
            if value not in (None, DIRECTORY):
                self.possible.add(b"")  # a new file before its content is published
        self.ever |= self.possible


class Copy(NamedTuple):
    """A kept copy: its node, its file, and what it has at each path."""

    node: int
    file: Path
    content: Mapping[str, Value]


class Verdict(NamedTuple):
    """Where the promised values are."""

    in_tree: int
    in_copies: int
    names: Mapping[Path, list[set[str]]]  # by copy, for each value in it: one of them is logged
    lost: list[str]  # a line for each value that is nowhere
    needless: list[Copy]  # they have nothing of their side that the tree lacks


class Promises:
    """All that was written while a cluster was divided into *sides*, sets of node ids."""

    def __init__(self, sides: Iterable[Collection[int]]) -> None:
        self._sides = {number: side for side in map(frozenset, sides) for number in side}
        self._written: dict[tuple[int, str], Written] = {}

    @property
    def acknowledged(self) -> int:
        """The number of acknowledged changes of paths."""
        return sum(written.promised for written in self._written.values())

    def add(self, node: int, step: Step, outcome: Outcome) -> None:
        """Note the *outcome* of a step of *node*. The steps of one path come in their order."""
        for path, value in step.values.items():
            written = self._written.setdefault((node, path), Written())
            written.add(value, is_known=not outcome.error)
            written.names.update(step.values)
            written.is_new = step.operation[0] in ("create", "rename") and value is not None

    def judge(self, tree: Mapping[str, Value], copies: Collection[Copy]) -> Verdict:
        """Look for each promised value in *tree* and *copies*, which were made after the steps."""
        in_tree, in_copies = 0, 0
        names: dict[Path, list[set[str]]] = {copy.file: [] for copy in copies}
        lost = []
        for (node, path), written in sorted(self._written.items(), key=lambda item: item[0]):
            if not written.promised:
                continue
            if tree.get(path) in written.possible | self._remade(node, path):
                in_tree += 1
                continue
            own = (copy for copy in copies if copy.node in self._sides[node])
            found = [copy for copy in own if copy.content.get(path) in written.possible]
            for copy in found:
                names[copy.file].append(written.names)
            if found:
                in_copies += 1
            else:
                lost.append(_loss(node, path, written, tree))
        needless = [copy for copy in copies if not self._has_something(copy, tree)]
        return Verdict(in_tree, in_copies, names, lost, needless)

    def _remade(self, node: int, path: str) -> set[Value]:
        """Return the values that *path* may have in entries that the other side has made."""
        values: set[Value] = set()
        if None in self._written[node, path].possible:
            for (other, name), written in self._written.items():
                is_foreign = name == path and self._sides[other] != self._sides[node]
                values |= written.possible if is_foreign and written.is_new else set()
        return values

    def _has_something(self, copy: Copy, tree: Mapping[str, Value]) -> bool:
        """Tell whether *copy* has a value of its own side that *tree* lacks."""
        for (node, path), written in self._written.items():
            value = copy.content.get(path)
            is_own = copy.node in self._sides[node] and value in written.ever
            is_early = value is None and written.possible != {None}  # it was made again later
            if is_own and not is_early and value != tree.get(path):
                return True
        return False


def _loss(node: int, path: str, written: Written, tree: Mapping[str, Value]) -> str:
    wanted = " or ".join(map(repr, written.possible))
    return f"lost: {path} of node {node} is {tree.get(path)!r}, not {wanted}"
