"""The records of a journal that tell of one path, the newest first.

A path is followed backwards through renames: what was called otherwise then is told under that
name. So is the temporary file of a replacement, until it was made. Only segments whose index may
tell of the names are decompressed, and only records that name one of them are decoded: 64 MiB of
history are searched in less than a second.

The files may hold any bytes, and a daemon may write to them and drop some meanwhile.
Contract: docs/spec/storage.md, "Journal".
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pmxcfs.messages import Create, Mkdir, Mutation, Rename
from pmxcfs.storage.changes import last_naming
from pmxcfs.storage.history_index import directories_above, plain, read_index
from pmxcfs.storage.records import (
    Adopted,
    BadRecord,
    Before,
    Change,
    Gap,
    Record,
    decode,
    mutation_of,
)
from pmxcfs.storage.segments import HEADER_SIZE, INDEXED, Place, read_bodies, scan
from pmxcfs.text import to_bytes


class Found(NamedTuple):
    """A record that tells of the path."""

    lineage: bytes
    sequence: int
    record: Record


def search_path(directory: Path, path: bytes) -> Iterator[Found]:
    """Yield the records in *directory* that tell of *path*, or of what is below it.

    A rename of a directory above is one, too.
    Those that may tell of any path (a gap, an adoption of unknown paths) are among them. An empty
    path is the root. Blocks. Raises StoreError if the directory can't be read.
    """
    names = _Names(plain(path))
    for place in reversed(scan(directory).segments):
        if place.header is not None and names.may_be_in(place):
            yield from _search(place, names)


def _search(place: Place, names: "_Names") -> Iterator[Found]:
    header, content, bounds = read_bodies(place.path)
    number = len(bounds)
    while header is not None:
        number = last_naming(content, bounds, number, names.exact, names.below)
        if number < 0:
            return
        start, end = bounds[number]
        try:
            record = decode(content[start:end])
            mutation = mutation_of(record) if isinstance(record, Change) else None
        except BadRecord:
            continue
        paths = _paths_of(record, mutation)
        if (
            paths is None
            or any(map(names.have, paths))
            or (isinstance(mutation, Rename) and any(map(names.are_below, paths)))
        ):
            names.follow(mutation)
            yield Found(header.lineage, header.first + number, record)


def _paths_of(record: Record, mutation: Mutation | None) -> Sequence[bytes] | None:
    """Return the paths that a record names; None for any."""
    if isinstance(record, Before):
        return [record.path]
    if isinstance(record, Adopted):
        return None if record.is_short else record.paths
    if mutation is None:
        return None if isinstance(record, Gap) else ()
    return [*map(to_bytes, mutation[:2] if isinstance(mutation, Rename) else mutation[:1])]


class _Names:
    """What the path was called: more names, the further back."""

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._earlier: set[bytes] = set()
        self._note()

    def may_be_in(self, place: Place) -> bool:
        """Tell whether the segment may have records of one of the names. Blocks."""
        assert place.header is not None
        if not place.header.flags & INDEXED:
            return True
        index = read_index(place.path, header_size=HEADER_SIZE)
        return index is None or any(map(index.may_tell_of, [self._path, *self._earlier]))

    def have(self, path: bytes) -> bool:
        """Tell whether *path* is one of the names, or below one."""
        return path.startswith(self.below) or path == self._path or path in self._earlier

    def are_below(self, path: bytes) -> bool:
        """Tell whether one of the names is below *path*."""
        return path in self.exact

    def follow(self, mutation: Mutation | None) -> None:
        """Note what the names were before *mutation*."""
        if isinstance(mutation, Rename):
            source, target = to_bytes(mutation.path), to_bytes(mutation.to)
            for name in [self._path, *self._earlier]:
                if name and (name == target or name.startswith(target + b"/")):
                    self._earlier.add(source + name[len(target) :])
            self._note()
        elif isinstance(mutation, Create | Mkdir) and self._earlier:
            self._earlier.discard(to_bytes(mutation.path))
            self._note()

    def _note(self) -> None:
        names = [self._path, *self._earlier]
        # How what is below one of them begins.
        self.below = tuple([name + b"/" for name in names]) if self._path else (b"",)
        above = [directory for name in names for directory in directories_above(name)]
        self.exact = frozenset([*names, *above])  # the names, and what is above them
