"""Encoding and decoding: recorded messages, comparison with an oracle, and hostile bytes."""

import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmxcfs._cpg import decode, encode
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
    Rename,
    SetKey,
    State,
    StateMessage,
    SyncStart,
    Unlock,
    UnlockRequest,
    Update,
    Verify,
    VerifyRequest,
    Write,
)
from tests.fakes.data.recorded_order import events_of
from tests.fakes.data.samples import SAMPLES, messages, name_of
from tests.fakes.models import codec as oracle
from tests.places import VECTORS

FILES = {Group.TREE: "cpg_dcdb.jsonl", Group.STATUS: "cpg_kvstore.jsonl"}
KEY = slice(24, 24 + 256)  # the key in a message of the status group
# The largest length, and the values around the sign bit.
HUGE = (0xFFFFFFFF, 0x80000000, 0x7FFFFFFF)

# Offsets of the 32-bit lengths: behind header and counter, or header and epoch.
LENGTHS = {Write: (24, 32, 36), Rename: (24, 32, 36), Update: (64, 68), LogEntry: (64,)}


def recorded() -> Iterator[tuple[Group, bytes, dict[str, Any]]]:
    for group, name in FILES.items():
        for line in (VECTORS / name).read_text().splitlines():
            step = json.loads(line)
            raw = bytes.fromhex(step.get("hex") or step["header_hex"])
            if "payload_file" in step:
                raw += gzip.decompress((VECTORS / step["payload_file"]).read_bytes())
            yield group, raw, step["decoded"]


def without_padding(raw: bytes, key: str) -> bytes:
    """Return a SetKey message with zeros behind its key, where C nodes send stack bytes."""
    return raw[: KEY.start] + key.encode().ljust(256, b"\0") + raw[KEY.stop :]


def fields_of(message: Message) -> dict[str, Any]:
    """Return the fields of a message in the format of the recordings."""
    if isinstance(message, Normal):
        name, fields = body_fields(message.body)
        start = {"type": "NORMAL", "time": message.time, "count": message.serial}
        return start | {"subtype_name": name} | fields
    return {
        "type": re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(message).__name__).upper(),
        "time": message.time,
        "epoch": dict(zip(("epoch", "time", "nodeid", "pid"), message.epoch, strict=True)),
    } | state_fields(message)


def body_fields(body: object) -> tuple[str, dict[str, Any]]:
    match body:
        case SetKey(key, value):
            return "UPDATE", {"key": key, "value": value.decode()}
        case LogEntry() as entry:
            return "LOG", log_fields(entry)
        case Unlock(path, checksum) | UnlockRequest(path, checksum):
            return "UNLOCK_REQUEST", {"path": path, "csum": checksum.hex()}
        case Write(path, offset, data, truncate):
            changed = {"offset": offset, "size": len(data), "flags": int(truncate)}
            return "WRITE", {"path": path, "to": None} | changed
        case Rename(path, to):
            return "RENAME", {"path": path, "to": to}
        case Mkdir(path) | Delete(path) | Create(path) | Mtime(path):
            offset = getattr(body, "mtime", 0)
            fields = {"path": path, "to": None, "size": 0, "offset": offset}
            return type(body).__name__.upper(), fields
    raise AssertionError(f"no fields of {body}")


def log_fields(entry: LogEntry) -> dict[str, Any]:
    texts = {"node": entry.node, "ident": entry.ident, "tag": entry.tag}
    fields = {name: text.decode() + "\0" for name, text in texts.items()}
    fields["msg"] = (entry.message + b"\0" + entry.trailing).decode()
    numbers = {"uid": entry.uid, "etime": entry.time, "pid": entry.pid, "pri": entry.priority}
    digests = {"node_digest": entry.node_digest, "ident_digest": entry.ident_digest}
    return fields | numbers | {name: hex(value) for name, value in digests.items()}


def state_fields(message: StateMessage) -> dict[str, Any]:
    match message:
        case State(payload=payload):
            return {"payload_len": len(payload)}
        case Update(record=record):
            names = ("inode", "parent", "version", "writer", "mtime")
            stamps = {name: getattr(record, name) for name in names}
            size = len(record.data or b"")
            return stamps | {"itype": record.type, "name": record.name.decode(), "size": size}
        case Verify(number=number, checksum=checksum):
            return {"csum_id": number, "csum": checksum.hex()}
        case VerifyRequest(number=number):
            return {"csum_id": number}
    return {"payload_len": 0}


def test_every_recorded_message_decodes_to_the_recorded_fields() -> None:
    seen = 0
    for group, raw, expected in recorded():
        fields = fields_of(decode(raw, group=group))
        assert fields == {name: expected[name] for name in fields}
        seen += 1
    assert seen == 59 + 26


def test_every_recorded_message_encodes_to_the_recorded_bytes() -> None:
    for group, raw, fields in recorded():
        expected = without_padding(raw, fields["key"]) if "key" in fields else raw
        assert encode(decode(raw, group=group), group=group) == expected


@pytest.mark.parametrize("node", [1, 2, 3])
def test_every_delivered_message_is_encoded_to_the_same_bytes(node: int) -> None:
    seen = 0
    for event in events_of(node):
        if event["event"] == "deliver":
            raw = bytes.fromhex(event["hex"])
            assert encode(decode(raw, group=Group.TREE), group=Group.TREE) == raw
            seen += 1
    assert seen > 1000


@given(messages)
def test_a_message_encodes_like_the_oracle_and_decodes_again(sample: tuple[Group, Message]) -> None:
    group, message = sample
    raw = encode(message, group=group)
    assert raw == oracle.encode(message, group=group)
    assert decode(raw, group=group) == message


def outcome(decoder: Any, raw: bytes, group: Group) -> object:
    try:
        return decoder(raw, group=group)
    except BadMessage as error:
        return type(error), getattr(error, "is_newer", None)


@given(messages, st.data())
def test_damaged_bytes_decode_like_the_oracle(
    sample: tuple[Group, Message], data: st.DataObject
) -> None:
    group, message = sample
    raw = bytearray(encode(message, group=group))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(raw[: data.draw(st.integers(0, len(raw)))]) + data.draw(st.binary(max_size=4))
    assert outcome(decode, damaged, group) == outcome(oracle.decode, damaged, group)


@given(st.binary(max_size=200), st.sampled_from(Group))
def test_any_bytes_decode_like_the_oracle(raw: bytes, group: Group) -> None:
    assert outcome(decode, raw, group) == outcome(oracle.decode, raw, group)


def has_free_end(message: Message) -> bool:
    """Tell whether the last field has no length and extends to the end of the message."""
    last = message.body if isinstance(message, Normal) else message
    return isinstance(last, State | SetKey)


@pytest.mark.parametrize("sample", SAMPLES, ids=name_of)
def test_a_message_cut_anywhere_is_bad(sample: tuple[Group, Message]) -> None:
    group, message = sample
    raw = encode(message, group=group)
    whole_without_end = KEY.stop if isinstance(message, Normal) else 32
    end = whole_without_end if has_free_end(message) else len(raw)
    for size in range(end):
        with pytest.raises(BadMessage):
            decode(raw[:size], group=group)
    assert decode(raw, group=group) == message


@pytest.mark.parametrize(
    "sample", [sample for sample in SAMPLES if not has_free_end(sample[1])], ids=name_of
)
def test_bytes_behind_the_end_are_bad(sample: tuple[Group, Message]) -> None:
    group, message = sample
    unlocks = isinstance(message, Normal) and isinstance(message.body, Unlock | UnlockRequest)
    raw = encode(message, group=group)
    if unlocks:  # the path is the rest; bytes behind its NUL are ignored
        assert decode(raw + b"x", group=group) == message
    else:
        with pytest.raises(BadMessage, match=r"unexpected bytes|wanted"):
            decode(raw + b"x", group=group)


def lengths() -> list[tuple[Group, Message, int]]:
    """Return the samples with the offset of each of their lengths."""
    return [
        (group, message, at)
        for group, message in SAMPLES
        for at in LENGTHS.get(type(getattr(message, "body", message)), ())
    ]


@pytest.mark.parametrize(("group", "message", "at"), lengths())
def test_a_length_of_zero_does_not_add_up(group: Group, message: Message, at: int) -> None:
    raw = bytearray(encode(message, group=group))
    is_zero = raw[at : at + 4] == bytes(4)
    raw[at : at + 4] = bytes(4)
    if is_zero:
        assert decode(bytes(raw), group=group) == message
    else:
        with pytest.raises(BadMessage):
            decode(bytes(raw), group=group)


@pytest.mark.parametrize(("group", "message", "at"), lengths())
@pytest.mark.parametrize("value", HUGE)
def test_a_huge_length_is_bad(group: Group, message: Message, at: int, value: int) -> None:
    raw = bytearray(encode(message, group=group))
    raw[at : at + 4] = value.to_bytes(4, "little")
    with pytest.raises(BadMessage):
        decode(bytes(raw), group=group)


def test_lengths_that_only_add_up_modulo_the_field_are_bad() -> None:
    raw = bytearray(encode(Normal(4, 17, Write("ab", 0, b"data", False)), group=Group.TREE))
    raw[24:28] = (0xFFFFFFFF - 2).to_bytes(4, "little")  # size
    raw[32:36] = (3 + 4 + 3).to_bytes(4, "little")  # path length
    with pytest.raises(BadMessage):
        decode(bytes(raw), group=Group.TREE)


@pytest.mark.parametrize("at", [41 + 24, 42 + 24, 43 + 24])
@pytest.mark.parametrize("value", [0, 255])
def test_a_wrong_length_in_a_log_entry_is_bad(at: int, value: int) -> None:
    (entry,) = [m for _, m in SAMPLES if isinstance(getattr(m, "body", None), LogEntry)]
    raw = bytearray(encode(entry, group=Group.STATUS))
    raw[at - 4] = value  # node, ident and tag have one byte each
    with pytest.raises(BadMessage):
        decode(bytes(raw), group=Group.STATUS)


def test_an_unknown_type_or_subtype_is_bad() -> None:
    raw = encode(Normal(4, 17, Mkdir("a")), group=Group.TREE)
    for subtype in (0, 9, 0xFFFF):
        with pytest.raises(BadMessage, match="subtype"):
            decode(raw[:2] + subtype.to_bytes(2, "little") + raw[4:], group=Group.TREE)
    with pytest.raises(BadMessage, match="type 7"):
        decode(b"\7\0" + raw[2:], group=Group.TREE)
    status = encode(Normal(4, 17, SetKey("a", b"")), group=Group.STATUS)
    for subtype in (0, 2, 4):
        with pytest.raises(BadMessage, match="subtype"):
            decode(status[:2] + subtype.to_bytes(2, "little") + status[4:], group=Group.STATUS)
    for kind in (3, 4, 5, 6):
        with pytest.raises(BadMessage, match="does not exist"):
            decode(bytes([kind]) + status[1:], group=Group.STATUS)


@pytest.mark.parametrize("group", Group)
def test_another_protocol_version_says_which_node_needs_an_update(group: Group) -> None:
    raw = bytearray(encode(SyncStart(5, Epoch(1, 2, 3, 4)), group=group))
    raw[4] = group.protocol + 1
    with pytest.raises(OtherProtocol, match=group.cpg_name) as newer:
        decode(bytes(raw), group=group)
    assert newer.value.is_newer
    # The version is checked first: a newer message can have any layout.
    with pytest.raises(OtherProtocol):
        decode(bytes(raw[:16]), group=group)


def test_an_older_protocol_version_is_not_newer() -> None:
    raw = encode(SyncStart(5, Epoch(1, 2, 3, 4)), group=Group.STATUS)
    with pytest.raises(OtherProtocol) as older:
        decode(raw, group=Group.TREE)
    assert not older.value.is_newer


def test_a_path_ends_at_its_first_nul_and_needs_one() -> None:
    raw = encode(Normal(4, 17, Delete("abc")), group=Group.TREE)
    assert decode(raw.replace(b"abc\0", b"a\0c\0"), group=Group.TREE) == Normal(4, 17, Delete("a"))
    with pytest.raises(BadMessage, match="path without NUL"):
        decode(raw.replace(b"abc\0", b"abcd"), group=Group.TREE)
    key = encode(Normal(4, 17, SetKey("k" * 255, b"")), group=Group.STATUS)
    with pytest.raises(BadMessage, match="key without NUL"):
        decode(key[: KEY.start] + b"k" * 256, group=Group.STATUS)


def test_any_flag_counts_as_one() -> None:
    raw = bytearray(encode(Normal(4, 17, Write("a", 0, b"x", False)), group=Group.TREE))
    raw[43] = 0x80
    assert decode(bytes(raw), group=Group.TREE) == Normal(4, 17, Write("a", 0, b"x", True))


@pytest.mark.parametrize(
    ("group", "message", "error"),
    [
        (Group.TREE, Normal(1 << 32, 1, Mkdir("a")), OverflowError),
        (Group.TREE, Normal(-1, 1, Mkdir("a")), OverflowError),
        (Group.TREE, Normal(1, 1, Mkdir("a\0b")), ValueError),
        (Group.TREE, Normal(1, 1, Unlock("a", b"short")), ValueError),
        (Group.TREE, Normal(1, 1, SetKey("a", b"")), ValueError),
        (Group.TREE, Normal(1, 1, Write("a", 1 << 32, b"", False)), OverflowError),
        (Group.STATUS, Normal(1, 1, Mkdir("a")), ValueError),
        (Group.STATUS, Normal(1, 1, SetKey("k" * 256, b"")), ValueError),
        (Group.STATUS, VerifyRequest(1, Epoch(1, 2, 3, 4), 1), ValueError),
    ],
)
def test_an_invalid_message_is_not_encoded(
    group: Group, message: Message, error: type[Exception]
) -> None:
    with pytest.raises(error):
        encode(message, group=group)
