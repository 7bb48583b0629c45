"""Making records of applied changes: what they were, and what the entries held before.

Contract: docs/spec/storage.md, "Writing".
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from pmxcfs._core import Entry, Tree
from pmxcfs.messages import Create, Kind, Mkdir, Mutation, Rename, Write
from pmxcfs.replica.departures import Departures
from pmxcfs.replica.tickets import Ticket
from pmxcfs.storage.changes import pack_mutation
from pmxcfs.storage.records import Adopted, Before, Notes, encode
from pmxcfs.text import to_bytes
from pmxcfs.tree.adoption import Adoption
from pmxcfs.tree.apply import Change
from pmxcfs.tree.index import ROOT

LARGE = 64 << 10  # bytes of a file of which only the changed range is recorded
# Parent, name, (version, writer, mtime), content (empty if only its size is known), size, private.
# A string, as Cython 0.29 can't subscript a class.
StateBefore: TypeAlias = "tuple[Entry, str, tuple[int, int, int], bytes, int, bool]"
MAX_REPLACED = 16 << 20  # bytes of what an adoption replaces, to be recorded
_AROUND = 256  # bytes of a record beside paths and content, rounded up
_HEARTBEATS = ("lrm_status", "manager_status")  # files that HA rewrites every few seconds


class Applied:
    """A mutation that was applied."""

    def __init__(self, ticket: Ticket, mutation: Mutation, change: Change, version: int) -> None:
        self.ticket = ticket
        self.mutation = mutation  # with the path that it was applied to
        self.change = change
        self.version = version  # of the tree afterwards


def size_of(mutation: Mutation, tree: Tree) -> int:
    """Return the bytes that the records of *mutation* can have: itself and the rows before it."""
    size, path = _AROUND, mutation.path
    size += 8 * len(path)  # in steps, so that C adds
    if type(mutation) is Mkdir or type(mutation) is Create:
        return size  # there is no row at its path, or it is refused
    if type(mutation) is Write:
        size += len(mutation.data)
    elif type(mutation) is Rename:
        size += 8 * len(mutation.to) + _size_at(mutation.to, tree)
    return size + _size_at(path, tree)


def _size_at(path: str, tree: Tree) -> int:
    entry = tree.find(path)
    return 0 if entry is None else entry.size + _AROUND


def records_of(done: Sequence[Applied], tree: Tree, segment: int, now_ns: int) -> list[bytes]:
    """Return the records of one group: of the entries in *tree* before *done*, then of *done*.

    The rows of entries of which the journal's *segment* tells all already are left out. *now_ns* is
    this node's time, in ns since 1970.
    """
    bodies = [_row(entry, state, done) for entry, state in tree.rows_before(segment, LARGE)]
    for applied in done:
        ticket, entry = applied.ticket, applied.change.entry
        bodies.append(
            pack_mutation(
                applied.version,
                ticket.writer,
                ticket.mtime,
                now_ns,
                entry.inode,
                ticket.caller,
                applied.mutation,
            )
        )
    return bodies


def records_of_adoption(adoption: Adoption, tree: Tree) -> list[bytes]:
    """Return the records of *adoption*, which has not changed *tree* yet: what it replaces, and it.

    What is replaced is left out if it is too much.
    """
    replaced = [*adoption.deleted, *adoption.overwritten()]
    paths = {to_bytes(entry.path) for entry in replaced}
    paths |= {to_bytes(adoption.path_of(inode)) for inode in adoption.written if inode != ROOT}
    bodies: list[bytes] = []
    if sum([entry.size + _AROUND for entry in replaced]) <= MAX_REPLACED:
        bodies += [_row_of(entry) for entry in replaced]
    bodies.append(encode(Adopted(tree.version, adoption.root.version, tuple(sorted(paths)))))
    return bodies


def record_notes(departures: Departures) -> bytes:
    """Return the record of what other nodes miss."""
    return encode(Notes(departures.notes, tuple(departures.removals)))


def is_heartbeat(path: str) -> bool:
    """Tell whether *path* is a file that is rewritten every few seconds, or a step of a rewrite.

    A change of such files can wait longer for being saved.
    """
    if path.startswith("priv/lock/"):
        return True
    if path.rfind(".tmp.") > path.rfind("/"):
        return True
    return "_status" in path and path.rpartition("/")[2] in _HEARTBEATS


def is_configuration(done: Sequence[Applied]) -> bool:
    """Tell whether one of *done* is not of a file that is rewritten every few seconds."""
    for applied in done:
        change = applied.change
        if not is_heartbeat(change.path):
            return True
    return False


def can_be_staged(done: Sequence[Applied]) -> bool:
    """Tell whether all of *done* are of files that HA rewrites every few seconds, or of locks.

    The file that is written first and then renamed over such a file is one, too. The temporary
    files of others are not: their renames follow at once.
    """
    for applied in done:
        path = applied.change.path
        if path.startswith("priv/lock/"):
            continue
        if "_status" not in path:  # a quick first test
            return False
        if path.rpartition("/")[2].partition(".tmp.")[0] not in _HEARTBEATS:
            return False
    return True


def _row_of(entry: Entry) -> bytes:
    """Return the record of the whole row of an attached *entry* as it is."""
    assert entry.parent is not None, "the root is never replaced"
    stamp, content = (entry.version, entry.writer, entry.mtime), entry.stored or b""
    state = entry.parent, entry.name, stamp, content, entry.size, entry.private
    return _encode_row(entry, state, 0, len(content))


def _row(entry: Entry, state: StateBefore, done: Sequence[Applied]) -> bytes:
    """Return the record of the row of *entry* before *done*."""
    start, stop = 0, len(state[3])
    if stop > LARGE:
        start, stop = _changed_range(entry, done, size=stop)
        entry.has_row = stop - start == len(state[3])
    return _encode_row(entry, state, start, stop)


def _encode_row(entry: Entry, state: StateBefore, start: int, stop: int) -> bytes:
    """Return the record of *entry* in this *state*, with its content from *start* to *stop*."""
    parent, name, (version, writer, mtime), content, size, is_private = state
    path = f"{parent.path}/{name}" if parent.inode else name
    return encode(
        Before(
            is_private=is_private,
            inode=entry.inode,
            parent=parent.inode,
            version=version,
            writer=writer,
            mtime=mtime,
            type=entry.type,
            size=size,
            offset=start,
            name=to_bytes(name),
            path=to_bytes(path),
            data=content[start:stop],
        )
    )


def _changed_range(entry: Entry, done: Sequence[Applied], *, size: int) -> tuple[int, int]:
    """Return the first byte and the end of what *done* overwrote or cut of a file of *size*."""
    ranges = list(_ranges(entry, done, size=size))
    return min([start for start, _ in ranges], default=0), max(
        [end for _, end in ranges], default=0
    )


def _ranges(entry: Entry, done: Sequence[Applied], *, size: int) -> Iterator[tuple[int, int]]:
    for applied in done:
        change, mutation = applied.change, applied.mutation
        if change.replaced is entry or (
            change.entry is entry and change.kind in (Kind.DELETE, Kind.UNLOCK)
        ):
            yield 0, size
        elif change.entry is entry and isinstance(mutation, Write):
            end = size if mutation.truncate else mutation.offset + len(mutation.data)
            yield min(mutation.offset, size), min(end, size)
