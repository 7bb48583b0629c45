"""A slow decoder of the tree's messages, to read recordings with. It trusts what it reads."""

import struct

from pmxcfs.messages import (
    Create,
    Delete,
    Epoch,
    Kind,
    Message,
    Mkdir,
    Mtime,
    Mutation,
    Normal,
    Record,
    Rename,
    State,
    SyncStart,
    Unlock,
    UnlockRequest,
    Update,
    UpdateComplete,
    Verify,
    VerifyRequest,
    Write,
    to_text,
)

_HEADER = 16
_EPOCH = 16


def decode(raw: bytes) -> Message:
    """Return the message that *raw* is."""
    type_, subtype, _, time, _ = struct.unpack_from("<HHIII", raw)
    body = raw[_HEADER:]
    if type_ == 0:
        (serial,) = struct.unpack_from("<Q", body)
        return Normal(time, serial, _change(Kind(subtype), body[8:]))
    epoch, payload = Epoch(*struct.unpack_from("<IIII", body)), body[_EPOCH:]
    match type_:
        case 1:
            return SyncStart(time, epoch)
        case 2:
            return State(time, epoch, payload)
        case 3:
            return Update(time, epoch, _record(payload))
        case 4:
            return UpdateComplete(time, epoch)
        case 5:
            return VerifyRequest(time, epoch, *struct.unpack("<Q", payload))
        case _:
            return Verify(time, epoch, *struct.unpack("<Q32s", payload))


def _change(kind: Kind, payload: bytes) -> Mutation | UnlockRequest:
    if kind in (Kind.UNLOCK, Kind.UNLOCK_REQUEST):
        path, checksum = to_text(payload[32:-1]), payload[:32]
        return Unlock(path, checksum) if kind is Kind.UNLOCK else UnlockRequest(path, checksum)
    size, offset, path_length, to_length, flags = struct.unpack_from("<IIIII", payload)
    strings = payload[20:]
    path = to_text(strings[: path_length - 1])
    match kind:
        case Kind.WRITE:
            data = strings[path_length : path_length + size]
            return Write(path, offset, data, flags != 0)
        case Kind.RENAME:
            return Rename(path, to_text(strings[path_length : path_length + to_length - 1]))
        case Kind.MTIME:
            return Mtime(path, offset)
        case Kind.MKDIR:
            return Mkdir(path)
        case Kind.DELETE:
            return Delete(path)
        case _:
            return Create(path)


def _record(payload: bytes) -> Record:
    layout = "<QQQIIIIB"
    values = struct.unpack_from(layout, payload)
    parent, inode, version, writer, mtime, size, name_length, type_ = values
    rest = payload[struct.calcsize(layout) :]
    name, data = rest[: name_length - 1], rest[name_length : name_length + size]
    return Record(inode, parent, version, writer, mtime, type_, name, data or None)
