"""What the journal's records say, and their bytes without the frame that ``_journal`` adds.

A record is a NamedTuple below; ``encode`` gives its *body*, a byte for the kind and the fields, and
``decode`` reads one. A body is untrusted: what can't be decoded in full, or has bytes left over,
raises BadRecord. Whether a record fits the tree is for others to say.

All integers are little endian. Times are seconds since 1970, or nanoseconds where the name says so.
Contract: docs/spec/storage.md, "Journal". Layouts: docs/formats.md, "The journal".
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

from pmxcfs._cpg import decode as decode_message
from pmxcfs.errors import BadMessage
from pmxcfs.messages import Group, Mutation, Normal, UnlockRequest
from pmxcfs.storage.changes import pack_change, unpack_change
from pmxcfs.storage.divergence import Note, Removal

ID_SIZE = 16  # bytes of a save's id and of a lineage
CHECKSUM_SIZE = 32  # bytes of a state checksum
MAX_PATHS = 1 << 20  # bytes of paths that one ADOPTED record lists, lengths included
MAX_LEFT_OUT = (1 << 32) - 1  # bytes that a CHANGE can say to be left out
_MAX_STRING = (1 << 16) - 1  # bytes of a name or path


class BadRecord(ValueError):
    """The bytes are no record; the text names the field."""


class Kind(IntEnum):
    """The first byte of a body."""

    CHANGE = 1
    BEFORE = 2
    CHECK = 3
    SAVING = 4
    SAVED = 5
    ADOPTED = 6
    GAP = 7
    NOTES = 8
    CHANGE_WITHOUT_DATA = 9  # a CHANGE whose data was left out, because it was private


class Change(NamedTuple):
    """A mutation that was applied, as on the wire.

    pid, uid, login_uid and process tell who asked this node for it; for a change of another node,
    and where that is unknown, they are 0, 0, UNSET and empty.
    """

    version: int  # of the tree after it
    writer: int  # id of the node that issued it
    mtime: int  # seconds, by the issuer's clock
    time_ns: int  # wall clock of this node, nanoseconds
    inode: int  # of the entry that it changed or made
    pid: int
    uid: int
    login_uid: int
    process: bytes  # its name, at most 255 bytes
    message: bytes  # NORMAL of the tree's group
    left_out: int = 0  # bytes of the mutation's data that are not in *message*


class Before(NamedTuple):
    """The row of an entry ahead of its first change in a segment, or ahead of an adoption.

    Of a large file only the bytes from *offset* on are there that are overwritten or cut.
    """

    is_private: bool
    inode: int
    parent: int
    version: int
    writer: int
    mtime: int
    type: int
    size: int  # of the whole file, bytes
    offset: int  # of *data* in the file
    name: bytes
    path: bytes
    data: bytes
    is_left_out: bool = False  # *data* is empty because it was private


class Check(NamedTuple):
    """The state checksum of the tree at a version."""

    version: int
    checksum: bytes


class Saving(NamedTuple):
    """The database is about to be saved with this id; version, writer and mtime are its row's."""

    save_id: bytes
    version: int
    writer: int
    mtime: int


class Saved(NamedTuple):
    """The save with this id is on the device."""

    save_id: bytes


class Adopted(NamedTuple):
    """Another node's tree has replaced this one; *paths* differ, if they were not too many."""

    before: int  # version of the tree that was replaced
    after: int
    paths: tuple[bytes, ...]
    is_short: bool = False  # paths were left out as too many


class Gap(NamedTuple):
    """Records before this one do not lead to those behind it; a save holds the tree between."""

    version: int  # of the tree that the next save holds


class Notes(NamedTuple):
    """What other nodes miss from now on, by node id, and removals that they may miss."""

    notes: Mapping[int, Note]
    removals: tuple[Removal, ...] = ()


Record = Change | Before | Check | Saving | Saved | Adopted | Gap | Notes

_LEFT_OUT = struct.Struct("<BI")
_BEFORE = struct.Struct("<BBQQQIIBII")
_CHECK = struct.Struct(f"<BQ{CHECKSUM_SIZE}s")
_SAVING = struct.Struct(f"<B{ID_SIZE}sQII")
_SAVED = struct.Struct(f"<B{ID_SIZE}s")
_ADOPTED = struct.Struct("<BQQBI")
_GAP = struct.Struct("<BQ")
_NOTES = struct.Struct("<BI")
_NOTE = struct.Struct("<IQQ")
_REMOVALS = struct.Struct("<I")
_REMOVAL = struct.Struct("<QQ")
_U16 = struct.Struct("<H")
_PRIVATE, _DATA_LEFT_OUT = 1, 2  # flags of BEFORE
_SHORT = 1  # flag of ADOPTED

encode_change = pack_change  # the body of a Change from its fields


def encode(record: Record) -> bytes:
    """Return the body of *record*.

    Raises struct.error or OverflowError if a number is too large for its field, ValueError if bytes
    have another length than their field.
    """
    return _ENCODERS[type(record)](record)


def decode(body: bytes) -> Record:
    """Return the record with this body. Raises BadRecord."""
    decoder = _DECODERS.get(body[0]) if body else None
    if decoder is None:
        raise BadRecord(f"kind: {body[0]} is unknown" if body else "kind: there is none")
    return decoder(body)


def mutation_of(change: Change) -> Mutation:
    """Return the mutation in *change*. Raises BadRecord."""
    try:
        message = decode_message(change.message, group=Group.TREE)
    except BadMessage as error:
        raise BadRecord(f"message: {error}") from None
    if not isinstance(message, Normal) or isinstance(message.body, UnlockRequest):
        raise BadRecord("message: it is not a change of the tree")
    body: Mutation = message.body  # type: ignore[assignment] # the tree's group has no others
    return body


def _encode_change(record: Change) -> bytes:
    body = pack_change(*record[:-1])
    if not record.left_out:
        return body
    return _LEFT_OUT.pack(Kind.CHANGE_WITHOUT_DATA, record.left_out) + body[1:]


def _encode_before(record: Before) -> bytes:
    flags = _PRIVATE * record.is_private | _DATA_LEFT_OUT * record.is_left_out
    head = _BEFORE.pack(
        Kind.BEFORE,
        flags,
        record.inode,
        record.parent,
        record.version,
        record.writer,
        record.mtime,
        record.type,
        record.size,
        record.offset,
    )
    return b"".join([head, _string(record.name), _path(record.path), record.data])


def _encode_check(record: Check) -> bytes:
    return _CHECK.pack(Kind.CHECK, record.version, _exactly(record.checksum, CHECKSUM_SIZE))


def _encode_saving(record: Saving) -> bytes:
    save_id = _exactly(record.save_id, ID_SIZE)
    return _SAVING.pack(Kind.SAVING, save_id, record.version, record.writer, record.mtime)


def _encode_saved(record: Saved) -> bytes:
    return _SAVED.pack(Kind.SAVED, _exactly(record.save_id, ID_SIZE))


def _encode_adopted(record: Adopted) -> bytes:
    """Encode the paths, or none of them if they have more than MAX_PATHS bytes."""
    paths, flags = [_path(path) for path in record.paths], _SHORT * record.is_short
    if sum(map(len, paths)) > MAX_PATHS:
        paths, flags = [], _SHORT
    head = _ADOPTED.pack(Kind.ADOPTED, record.before, record.after, flags, len(paths))
    return b"".join([head, *paths])


def _encode_gap(record: Gap) -> bytes:
    return _GAP.pack(Kind.GAP, record.version)


def _encode_notes(record: Notes) -> bytes:
    notes = [_NOTE.pack(node, *note) for node, note in record.notes.items()]
    removals = [
        _REMOVAL.pack(removal.inode, removal.version) + _path(removal.path)
        for removal in record.removals
    ]
    head = _NOTES.pack(Kind.NOTES, len(notes))
    return b"".join([head, *notes, _REMOVALS.pack(len(removals)), *removals])


def _path(path: bytes) -> bytes:
    """Encode *path*, of which the end is cut off if it has too many bytes."""
    return _string(path[:_MAX_STRING])


def _string(text: bytes) -> bytes:
    if len(text) > _MAX_STRING:
        raise ValueError(f"a name or path has at most {_MAX_STRING} bytes, not {len(text)}")
    return _U16.pack(len(text)) + text


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError(f"the field has {size} bytes, not {len(data)}")
    return data


class _Reader:
    """The remaining bytes of a body."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def unpack(self, layout: struct.Struct, what: str) -> tuple[int, ...]:
        """Take the numbers of *layout*."""
        self._check(layout.size, what)
        values = layout.unpack_from(self._body, self._at)
        self._at += layout.size
        return values

    def take(self, size: int, what: str) -> bytes:
        """Take *size* bytes."""
        self._check(size, what)
        data = self._body[self._at : self._at + size]
        self._at += size
        return data

    def string(self, what: str) -> bytes:
        """Take a name or path."""
        (size,) = self.unpack(_U16, what)
        return self.take(size, what)

    def rest(self) -> bytes:
        """Take what is left."""
        return self.take(self.left, "rest")

    def end(self) -> None:
        """Raise BadRecord if bytes are left over."""
        if self.left:
            raise BadRecord(f"{self.left} unexpected bytes at the end")

    @property
    def left(self) -> int:
        """The number of bytes that are left."""
        return len(self._body) - self._at

    def _check(self, size: int, what: str) -> None:
        if size > self.left:
            raise BadRecord(f"{what}: {size} bytes wanted, {self.left} left")


def _flags(value: int, known: int) -> int:
    if value & ~known:
        raise BadRecord(f"flags: {value} is unknown")
    return value


def _decode_change(body: bytes) -> Change:
    return _change(body, 0)


def _decode_change_without_data(body: bytes) -> Change:
    reader = _Reader(body)
    _, left_out = reader.unpack(_LEFT_OUT, "data left out")
    if not left_out:
        raise BadRecord("data left out: there was none")
    return _change(body[:1] + reader.rest(), left_out)


def _change(body: bytes, left_out: int) -> Change:
    try:
        return Change(*unpack_change(body), left_out)
    except ValueError as error:
        raise BadRecord(f"change: {error}") from None


def _decode_before(body: bytes) -> Before:
    reader = _Reader(body)
    _, flags, inode, parent, version, writer, mtime, type_, size, offset = reader.unpack(
        _BEFORE, "row"
    )
    _flags(flags, _PRIVATE | _DATA_LEFT_OUT)
    is_left_out = bool(flags & _DATA_LEFT_OUT)
    name, path, data = reader.string("name"), reader.string("path"), reader.rest()
    if offset > size or len(data) > size - offset or (is_left_out and data):
        raise BadRecord(f"data: {len(data)} bytes at {offset} in a file of {size}")
    return Before(
        bool(flags & _PRIVATE),
        inode,
        parent,
        version,
        writer,
        mtime,
        type_,
        size,
        offset,
        name,
        path,
        data,
        is_left_out,
    )


def _decode_check(body: bytes) -> Check:
    _, version, checksum = _unpack_all(_CHECK, body)
    return Check(version, checksum)


def _decode_saving(body: bytes) -> Saving:
    _, save_id, version, writer, mtime = _unpack_all(_SAVING, body)
    return Saving(save_id, version, writer, mtime)


def _decode_saved(body: bytes) -> Saved:
    return Saved(_unpack_all(_SAVED, body)[1])


def _decode_adopted(body: bytes) -> Adopted:
    reader = _Reader(body)
    _, before, after, flags, count = reader.unpack(_ADOPTED, "adoption")
    _flags(flags, _SHORT)
    if count > reader.left // _U16.size:
        raise BadRecord(f"paths: {count} of them do not fit into {reader.left} bytes")
    paths = tuple([reader.string("path") for _ in range(count)])
    reader.end()
    return Adopted(before, after, paths, bool(flags & _SHORT))


def _decode_gap(body: bytes) -> Gap:
    return Gap(_unpack_all(_GAP, body)[1])


def _decode_notes(body: bytes) -> Notes:
    reader = _Reader(body)
    _, count = reader.unpack(_NOTES, "notes")
    if count > reader.left // _NOTE.size:
        raise BadRecord(f"notes: {count} of them do not fit into {reader.left} bytes")
    notes = {}
    for _ in range(count):
        node, common, parted = reader.unpack(_NOTE, "note")
        notes[node] = Note(common, parted)
    if len(notes) != count:
        raise BadRecord("notes: a node is there twice")
    (count,) = reader.unpack(_REMOVALS, "removals")
    if count > reader.left // _REMOVAL.size:
        raise BadRecord(f"removals: {count} of them do not fit into {reader.left} bytes")
    removals = tuple([_removal(reader) for _ in range(count)])
    reader.end()
    return Notes(notes, removals)


def _removal(reader: _Reader) -> Removal:
    inode, version = reader.unpack(_REMOVAL, "removal")
    return Removal(inode, version, reader.string("path"))


def _unpack_all(layout: struct.Struct, body: bytes) -> Sequence:  # type: ignore[type-arg]
    if len(body) != layout.size:
        raise BadRecord(f"{layout.size} bytes wanted, {len(body)} are there")
    return layout.unpack(body)


_ENCODERS: Mapping[type, Callable[..., bytes]] = MappingProxyType(
    {
        Change: _encode_change,
        Before: _encode_before,
        Check: _encode_check,
        Saving: _encode_saving,
        Saved: _encode_saved,
        Adopted: _encode_adopted,
        Gap: _encode_gap,
        Notes: _encode_notes,
    }
)
_DECODERS: Mapping[int, Callable[[bytes], Record]] = MappingProxyType(
    {
        Kind.CHANGE: _decode_change,
        Kind.CHANGE_WITHOUT_DATA: _decode_change_without_data,
        Kind.BEFORE: _decode_before,
        Kind.CHECK: _decode_check,
        Kind.SAVING: _decode_saving,
        Kind.SAVED: _decode_saved,
        Kind.ADOPTED: _decode_adopted,
        Kind.GAP: _decode_gap,
        Kind.NOTES: _decode_notes,
    }
)
