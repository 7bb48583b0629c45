"""The records of a journal in order, from a position on, without a write to any file.

Records are *in order* as long as each has the number after that of the one before, also across the
ends of segments. The first place where that fails is the *break*: the end of the journal, or
damage. Sound records behind damage are found, too, but must not be applied.

A segment counts only up to where the next one begins: a start begins a segment behind the last
record in order, so what damage has left behind that record never counts again.

The files may hold any bytes, and a daemon may write to them meanwhile.
Contract: docs/spec/storage.md, "Journal" and "Start".
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pmxcfs.messages import Mutation
from pmxcfs.storage import records, segments
from pmxcfs.storage._journal import FRAME_SIZE, search, split
from pmxcfs.storage.mark import Position
from pmxcfs.storage.segments import Place, Scan, Verdict
from pmxcfs.storage.sqlite_errors import translated

START = segments.HEADER_SIZE  # the offset of a segment's first record
_BEYOND = 1 << 64  # above all numbers


class Step(NamedTuple):
    """A sound record, and where it stands."""

    lineage: bytes  # of its segment; empty if the segment's header is damaged
    sequence: int
    body: bytes
    path: Path  # of its segment
    offset: int  # of its first byte in the segment

    @property
    def kind(self) -> int:
        """The number of the record's kind."""
        return self.body[0]

    @property
    def start(self) -> "Break":
        """The place of this record."""
        return Break(self.path, self.offset, self.sequence)

    @property
    def end(self) -> "Break":
        """The place behind this record."""
        return Break(self.path, self.offset + FRAME_SIZE + len(self.body), self.sequence + 1)

    def record(self) -> records.Record | None:
        """Return the record; None if only a later version of pmxcfs can read it."""
        try:
            return records.decode(self.body)
        except records.BadRecord:
            return None


class Break(NamedTuple):
    """A place in the journal behind which nothing is in order."""

    path: Path  # of the segment; all later ones are behind it, too
    offset: int
    sequence: int  # of the record that should be there


class Reading(NamedTuple):
    """What a journal holds from a position on."""

    in_order: Sequence[Step]
    behind: Sequence[Step]  # sound records behind the break
    end: Break


class _Segment(NamedTuple):
    """A segment's file, read as a whole."""

    path: Path
    first: int  # the number of its first record, by its name
    limit: int  # the first number of the next segment
    lineage: bytes  # empty if the header is damaged
    data: bytes

    def split(self, offset: int, sequence: int) -> list[Step]:
        """Return the records that follow one another from *offset* on, below the limit."""
        if offset > len(self.data):
            return []
        bounds, _ = split(self.data, offset, sequence)
        return [
            Step(self.lineage, number, self.data[start:end], self.path, start - FRAME_SIZE)
            for number, (start, end) in enumerate(bounds[: max(self.limit - sequence, 0)], sequence)
        ]

    def search(self, offset: int, lowest: int) -> Iterator[Step]:
        """Yield every sound record from *offset* on with a number from *lowest* to the limit."""
        while lowest < self.limit and offset < len(self.data):
            found = search(self.data, offset, lowest, self.limit - 1)
            if found is None:
                return
            steps = self.split(*found)
            yield from steps
            _, offset, lowest = steps[-1].end

    def all(self) -> Iterator[Step]:
        """Yield every sound record."""
        return self.search(START, self.first)


class JournalFiles:
    """The segments of the journal in *directory*; each is read once. Blocks.

    None or a missing directory has none. Raises StoreError, also from the methods, if a file can't
    be read.
    """

    def __init__(self, directory: Path | None) -> None:
        self._scan = Scan((), ()) if directory is None else segments.scan(directory)
        self._places = self._scan.segments
        firsts = [place.first for place in self._places]
        self._limits = [*(later for _, later in pairwise(firsts)), _BEYOND]
        self._segments: dict[int, _Segment] = {}

    @property
    def next_sequence(self) -> int:
        """A number above those of all records and segments. Blocks."""
        return self._scan.next_sequence()

    def paths_behind(self, path: Path) -> list[Path]:
        """Return the paths of the segments behind the one with this path."""
        paths = [place.path for place in self._places]
        return paths[paths.index(path) + 1 :] if path in paths else []

    def unsaved(self) -> Iterator[Step]:
        """Yield all sound records, of any lineage, but for segments that are only history."""
        for index, place in enumerate(self._places):
            if not _is_history(place):
                yield from self._read(index).all()

    def since(self, sequence: int, *, lineage: bytes) -> Iterator[Step] | None:
        """Return all sound records from *sequence* on, of any lineage and in history, too.

        If the journal begins later, these are all its records. None without this *lineage*.
        """
        for index, limit in enumerate(self._limits[: len(self._places)]):
            if sequence <= limit and self._lineage(index) == lineage:
                later = range(index, len(self._places))
                steps = (step for i in later for step in self._read(i).all())
                return (step for step in steps if step.sequence >= sequence)
        return None

    def read_from(self, position: Position, *, lineage: bytes) -> Reading | None:
        """Return what follows *position*; None if this journal does not have the position."""
        place = self._find(position)
        if place is None or any(p.verdict is Verdict.NEWER for p in self._places[place[0] :]):
            return None  # the format of a later version of pmxcfs is not ours to end
        index, offset = place
        segment = self._read(index)
        if segment.lineage not in (lineage, b"") or offset > len(segment.data):
            return None
        in_order = segment.split(offset, position.sequence)
        end = in_order[-1].end if in_order else Break(segment.path, offset, position.sequence)
        while end.sequence == segment.limit:
            following = self._read(index + 1)
            if following.lineage not in (lineage, b""):
                break
            index, segment = index + 1, following
            steps = segment.split(START, end.sequence)
            end = steps[-1].end if steps else end._replace(path=segment.path, offset=START)
            in_order += steps
        behind = list(segment.search(end.offset, end.sequence + 1))
        for later in range(index + 1, len(self._places)):
            behind += self._read(later).all()
        return Reading(in_order, behind, end)

    def _find(self, position: Position) -> tuple[int, int] | None:
        """Return the index of the segment that has *position*, and the offset in it."""
        found = None
        for index, place in enumerate(self._places):
            if _is_history(place):
                continue
            if place.first == position.sequence:
                return index, START
            if place.first == position.segment and position.sequence < self._limits[index]:
                found = index, position.offset
        return found

    def _lineage(self, index: int) -> bytes:
        header = self._places[index].header
        return b"" if header is None else header.lineage

    def _read(self, index: int) -> _Segment:
        place = self._places[index]
        segment = self._segments.get(index)
        if segment is None:
            data, path = b"", place.path
            if place.header is not None and place.header.is_compressed:
                data = segments.read(path).content
            elif place.verdict is not Verdict.UNREADABLE:
                with translated(path, "read"):
                    data = segments.content_of(path)
            lineage = self._lineage(index)
            segment = _Segment(path, place.first, self._limits[index], lineage, data)
            if not _is_history(place):
                self._segments[index] = segment
        return segment


def _is_history(place: Place) -> bool:
    return place.header is not None and place.header.is_history


def mutation_of(change: records.Change) -> Mutation | None:
    """Return the mutation of *change*; None if only a later version of pmxcfs can read it."""
    try:
        return records.mutation_of(change)
    except records.BadRecord:
        return None
