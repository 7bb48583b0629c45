"""Histories of operations on a cluster, and the check that the final state fits them.

Writers record an ``Effect`` for each path that an operation may change. A successful answer is a
promise: the change is in the total order before any operation that begins later. So an effect that
ended before a promised effect of the same path began can't be the last one. ``doubts`` are the
exception: totem delivers a message to its sender as soon as it is ordered, even if no other node
has received it. An answer that a node gets while a fault separates it can be lost.

All functions are pure. Times are seconds on one monotonic clock that all nodes share.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

Value = str | None  # of a path: a token that is unique to a change, DIRECTORY, or None: no entry
DIRECTORY = "directory"
HOLE = "\0"  # in place of a lost line in doubt, if the next line was written behind it; allowed
EMPTY = ""  # a file without content, as it is between its creation and its first publishing


class Effect(NamedTuple):
    """The *value* of a path after an operation of *node*; a possible value unless *is_known*."""

    path: str
    value: Value
    node: int
    start: float  # the effect comes after this time
    end: float  # and before this time; infinite if the operation has returned no outcome
    is_known: bool = True  # the operation has returned success


class Contest(NamedTuple):
    """An attempt to create *path* exclusively; contested paths are never removed."""

    path: str
    node: int
    start: float
    end: float
    outcome: str  # WON, LOST (another node has won), or UNKNOWN


WON, LOST, UNKNOWN = "won", "lost", "unknown"


class Line(NamedTuple):
    """A line appended to *path* by its only writer; a possible line unless *is_known*."""

    path: str
    text: str
    node: int
    end: float
    is_known: bool = True


class Refusal(NamedTuple):
    """An error that says that nothing was changed at *path*."""

    path: str
    error: str  # name of the errno
    node: int
    start: float
    end: float


Event = Effect | Contest | Line | Refusal


class Doubts:
    """The spans of time in which the answers of each node are no promises."""

    def __init__(self) -> None:
        self._spans: dict[int, list[tuple[float, float]]] = defaultdict(list)

    def add(self, node: int, start: float, end: float = math.inf) -> None:
        """Doubt the answers that *node* got from *start* to *end*."""
        self._spans[node].append((start, end))

    def covers(self, node: int, moment: float) -> bool:
        """Tell whether an answer that came at *moment* is no promise."""
        return self.overlaps(node, moment, moment)

    def overlaps(self, node: int, start: float, end: float) -> bool:
        """Tell whether there is doubt at any time from *start* to *end*."""
        return any(start <= last and first <= end for first, last in self._spans[node])


class History:
    """All recorded operations, and the check of the final state."""

    def __init__(self) -> None:
        self.doubts = Doubts()
        self._effects: dict[str, list[Effect]] = defaultdict(list)
        self._contests: dict[str, list[Contest]] = defaultdict(list)
        self._lines: dict[str, list[Line]] = defaultdict(list)
        self._refusals: dict[str, list[Refusal]] = defaultdict(list)

    def add(self, event: Event) -> None:
        """Record an event of a writer. The lines of one file come in their order."""
        if isinstance(event, Effect):
            self._effects[event.path].append(event)
        elif isinstance(event, Contest):
            self._contests[event.path].append(event)
        elif isinstance(event, Refusal):
            self._refusals[event.path].append(event)
        else:
            self._lines[event.path].append(event)

    def is_promised(self, event: Effect | Line) -> bool:
        """Tell whether the answer to an operation is a promise."""
        return event.is_known and not self.doubts.covers(event.node, event.end)

    def allowed(self, path: str) -> set[Value]:
        """Return the values that *path* may have in the end."""
        effects = self._effects[path]
        promised = [effect.start for effect in effects if self.is_promised(effect)]
        if not promised:
            return {None, *(effect.value for effect in effects)}
        last = max(promised)
        return {effect.value for effect in effects if effect.end >= last}

    def violations(self, found: Mapping[str, str]) -> list[str]:
        """Compare with the final state: all paths, with the tokens of files.

        Returns a line for each violation.
        """
        return [
            *self._lost(found),
            *self._unasked(found),
            *self._shared_victories(),
            *self._lost_lines(found),
        ]

    def doubtful_victories(self) -> list[str]:
        """Return the paths of contests with several winners, in doubt or not."""
        return [path for path in self._contests if len(self._winners(path)) > 1]

    def counts(self) -> dict[str, int]:
        """Return the numbers of promised, doubtful and unknown outcomes, and of contests."""
        events = [*_chain(self._effects), *_chain(self._lines)]
        promised = sum(self.is_promised(event) for event in events)
        known = sum(event.is_known for event in events)
        return {
            "promised": promised,
            "doubtful": known - promised,
            "unknown": sum(not event.is_known and event.end == math.inf for event in events),
            "contests": len(self._contests),
        }

    def _lost(self, found: Mapping[str, str]) -> Iterator[str]:
        for path in sorted(self._effects):
            allowed, value = self.allowed(path), found.get(path)
            if value not in allowed:
                wanted = ", ".join(sorted(map(_name, allowed)))
                yield f"{path} is {_name(value)}, not {wanted}; {self._story(path, value)}"

    def _story(self, path: str, value: Value) -> str:
        """Return the effects that made *value*, and the promise that should have replaced it."""
        effects = self._effects[path]
        made = [effect for effect in effects if effect.value == value][-3:]
        promised = [effect for effect in effects if self.is_promised(effect)]
        promised.sort(key=lambda effect: effect.start)
        refusals = self._refusals[path][-3:]
        return f"last promise: {promised[-1:]}; made by: {made}; refused: {refusals}"

    def _unasked(self, found: Mapping[str, str]) -> Iterator[str]:
        known = self._effects.keys() | self._lines.keys()
        for path in sorted(found.keys() - known):
            refusals = self._refusals[path]
            yield f"{path} is {_name(found[path])}, which nobody has made; refused: {refusals}"

    def _winners(self, path: str) -> list[Contest]:
        return [contest for contest in self._contests[path] if contest.outcome == WON]

    def _shared_victories(self) -> Iterator[str]:
        for path, contests in sorted(self._contests.items()):
            winners = self._winners(path)
            sure = [c for c in winners if not self.doubts.covers(c.node, c.end)]
            if len(sure) > 1:
                yield f"{path} was won more than once: {sure}"
            if not any(contest.outcome != LOST for contest in contests):
                yield f"{path} was won by nobody, but lost: {contests}"

    def _lost_lines(self, found: Mapping[str, str]) -> Iterator[str]:
        for path, lines in sorted(self._lines.items()):
            left = found.get(path, "").replace(HOLE, "").splitlines()
            place = {line.text: number for number, line in enumerate(lines)}
            missing = [
                line.text for line in lines if self.is_promised(line) and line.text not in left
            ]
            if missing:
                yield f"{path} has lost {len(missing)} lines, the first of them {missing[0]!r}"
            strange = [text for text in left if text not in place]
            if strange:
                yield f"{path} has {len(strange)} strange lines, the first of them {strange[0]!r}"
            numbers = [place[text] for text in left if text in place]
            if any(later <= earlier for earlier, later in pairwise(numbers)):
                yield f"{path} has its lines in another order, or twice"


def _name(value: Value) -> str:
    return {None: "not there", EMPTY: "an empty file"}.get(value, str(value))


def _chain(events: Mapping[str, Sequence[Effect] | Sequence[Line]]) -> Iterator[Effect | Line]:
    for some in events.values():
        yield from some
