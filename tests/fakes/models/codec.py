"""Reference codec of the CPG messages, which ``_cpg`` is compared with.

Written from the contract with ``struct`` and slices: slow and plain. ``encode`` takes valid
messages only. Contract: docs/spec/cluster.md.
"""

import struct
from typing import NamedTuple

from pmxcfs.errors import BadMessage, OtherProtocol
from pmxcfs.messages import (
    Create,
    Delete,
    Epoch,
    Group,
    LogEntry,
    Message,
    Mkdir,
    Mtime,
    Normal,
    Record,
    Rename,
    SetKey,
    State,
    StateMessage,
    SyncStart,
    Unlock,
    UnlockRequest,
    Update,
    UpdateComplete,
    Verify,
    VerifyRequest,
    Write,
)
from pmxcfs.text import to_bytes, to_text

HEADER = "<HHIII"  # type, subtype, protocol version, time, reserved
CHANGE = "<IIIII"  # size, offset, path length, to length, flags
RECORD = "<QQQIIIIB"  # parent, inode, version, writer, mtime, size, name length, type
ENTRY = "<IIIIQQIBBBBI"  # prev, next, uid, time, digests, pid, priority, the four lengths


class Change(NamedTuple):
    """The fields of a change of the tree on the wire; UNLOCK and its request have others."""

    path: str
    to: str = ""
    offset: int = 0
    flags: int = 0
    data: bytes = b""


def encode(message: Message, *, group: Group) -> bytes:
    """Return the bytes of a message."""
    if isinstance(message, Normal):
        number, payload = normal_payload(message)
        header = struct.pack(HEADER, 0, number, group.protocol, message.time, 0)
        return header + struct.pack("<Q", message.serial) + payload
    types = (SyncStart, State, Update, UpdateComplete, VerifyRequest, Verify)
    number = 1 + types.index(type(message))
    header = struct.pack(HEADER, number, 0, group.protocol, message.time, 0)
    return header + struct.pack("<IIII", *message.epoch) + state_payload(message)


def normal_payload(message: Normal) -> tuple[int, bytes]:
    """Return the subtype and the bytes that follow the serial number."""
    match message.body:
        case SetKey(key, value):
            return 1, struct.pack("256s", to_bytes(key)) + value
        case LogEntry() as entry:
            return 3, log_entry(entry)
        case UnlockRequest(path, checksum):
            return 7, checksum + to_bytes(path) + b"\0"
        case Unlock(path, checksum):
            return 8, checksum + to_bytes(path) + b"\0"
        case body:
            number, fields = change_of(body)
            return number, change(fields)


def change_of(body: Write | Mkdir | Delete | Rename | Create | Mtime) -> tuple[int, Change]:
    match body:
        case Write(path, offset, data, truncate):
            return 1, Change(path, offset=offset, data=data, flags=int(truncate))
        case Mkdir(path):
            return 2, Change(path)
        case Delete(path):
            return 3, Change(path)
        case Rename(path, to):
            return 4, Change(path, to)
        case Create(path):
            return 5, Change(path)
        case Mtime(path, mtime):
            return 6, Change(path, offset=mtime)


def change(fields: Change) -> bytes:
    path = to_bytes(fields.path) + b"\0"
    to = to_bytes(fields.to) + b"\0" if fields.to else b""
    numbers = len(fields.data), fields.offset, len(path), len(to), fields.flags
    return struct.pack(CHANGE, *numbers) + path + to + fields.data


def log_entry(entry: LogEntry) -> bytes:
    strings = [text + b"\0" for text in (entry.node, entry.ident, entry.tag, entry.message)]
    digests = entry.node_digest, entry.ident_digest
    head = (0, 0, entry.uid, entry.time, *digests, entry.pid, entry.priority)
    return struct.pack(ENTRY, *head, *map(len, strings)) + b"".join(strings) + entry.trailing


def state_payload(message: StateMessage) -> bytes:
    """Return the bytes that follow the epoch."""
    match message:
        case State(payload=payload):
            return payload
        case Update(record=record):
            name, data = record.name + b"\0", record.data or b""
            stamps = record.parent, record.inode, record.version, record.writer, record.mtime
            return struct.pack(RECORD, *stamps, len(data), len(name), record.type) + name + data
        case VerifyRequest(number=number):
            return struct.pack("<Q", number)
        case Verify(number=number, checksum=checksum):
            return struct.pack("<Q", number) + checksum
        case _:
            return b""


class Cursor:
    """Reads a message from the front; ``left`` is the rest."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def take(self, size: int) -> bytes:
        if size > len(self.left):
            raise BadMessage("too short")
        taken, self.left = self.left[:size], self.left[size:]
        return taken

    def numbers(self, layout: str) -> list[int]:
        return list(struct.unpack(layout, self.take(struct.calcsize(layout))))

    def text(self, size: int) -> bytes:
        before, nul, _ = self.take(size).partition(b"\0")
        if not nul:
            raise BadMessage("no NUL")
        return before


def decode(data: bytes, *, group: Group) -> Message:
    """Return the message; raise BadMessage or OtherProtocol as ``_cpg.decode`` does."""
    cursor = Cursor(data)
    number, subtype, protocol, time, _ = cursor.numbers(HEADER)
    if protocol != group.protocol:
        raise OtherProtocol("other", is_newer=protocol > group.protocol)
    if number == 0:
        serial = cursor.numbers("<Q")[0]
        read = tree_body if group is Group.TREE else status_body
        body = read(cursor, subtype)
        message: Message = Normal(time, serial, body)
    else:
        if number > 6 or (group is Group.STATUS and number > 2):
            raise BadMessage("type")
        message = state_message(cursor, number, time)
    if cursor.left:
        raise BadMessage("trailing bytes")
    return message


def tree_body(
    cursor: Cursor, kind: int
) -> Write | Mkdir | Delete | Rename | Create | Mtime | Unlock | UnlockRequest:
    if kind in (7, 8):
        checksum, path = cursor.take(32), to_text(cursor.text(len(cursor.left)))
        return UnlockRequest(path, checksum) if kind == 7 else Unlock(path, checksum)
    if not 1 <= kind <= 6:
        raise BadMessage("subtype")
    size, offset, path_size, to_size, flags = cursor.numbers(CHANGE)
    path = to_text(cursor.text(path_size))
    to = to_text(cursor.text(to_size)) if to_size or kind == 4 else ""
    data = cursor.take(size)
    return (
        Write(path, offset, data, flags != 0),
        Mkdir(path),
        Delete(path),
        Rename(path, to),
        Create(path),
        Mtime(path, offset),
    )[kind - 1]


def status_body(cursor: Cursor, subtype: int) -> SetKey | LogEntry:
    if subtype == 1:
        return SetKey(to_text(cursor.text(256)), cursor.take(len(cursor.left)))
    if subtype != 3:
        raise BadMessage("subtype")
    _, _, *numbers, node, ident, tag, message = cursor.numbers(ENTRY)
    strings = [cursor.take(size) for size in (node, ident, tag, message)]
    if not all(text.endswith(b"\0") for text in strings):
        raise BadMessage("no NUL")
    uid, time, node_digest, ident_digest, pid, priority = numbers
    texts = [text[:-1] for text in strings]
    texts.append(cursor.take(4))
    return LogEntry(uid, time, node_digest, ident_digest, pid, priority, *texts)


def state_message(cursor: Cursor, number: int, time: int) -> StateMessage:
    epoch = Epoch(*cursor.numbers("<IIII"))
    match number:
        case 1:
            return SyncStart(time, epoch)
        case 2:
            return State(time, epoch, cursor.take(len(cursor.left)))
        case 3:
            return Update(time, epoch, record(cursor))
        case 4:
            return UpdateComplete(time, epoch)
        case 5:
            return VerifyRequest(time, epoch, cursor.numbers("<Q")[0])
        case _:
            return Verify(time, epoch, cursor.numbers("<Q")[0], cursor.take(32))


def record(cursor: Cursor) -> Record:
    parent, inode, version, writer, mtime, size, name_size, kind = cursor.numbers(RECORD)
    name, data = cursor.text(name_size), cursor.take(size)
    content = None if kind == 4 and not data else data
    return Record(inode, parent, version, writer, mtime, kind, name, content)
