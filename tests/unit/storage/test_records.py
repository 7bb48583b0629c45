"""The bodies of the journal's records: they come back as they were, and nothing else is read."""

import random
import struct
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmxcfs._cpg import encode as encode_message
from pmxcfs.messages import (
    Create,
    Delete,
    Group,
    Mkdir,
    Mtime,
    Mutation,
    Normal,
    Rename,
    Unlock,
    UnlockRequest,
    Write,
)
from pmxcfs.storage.changes import pack_mutation
from pmxcfs.storage.records import (
    MAX_PATHS,
    Adopted,
    BadRecord,
    Before,
    Change,
    Check,
    Gap,
    Kind,
    Record,
    Saved,
    Saving,
    decode,
    encode,
    encode_change,
    mutation_of,
)
from pmxcfs.text import to_text
from tests.fakes.data.journals import NOW, RECORDS, SAMPLES, WRITE, before, change, message_of
from tests.fakes.data.samples import TREE_BODIES

MUTATIONS = [body for body in TREE_BODIES if not isinstance(body, UnlockRequest)]
REQUEST = encode_message(Normal(1, 1, UnlockRequest("a", bytes(32))), group=Group.TREE)


def kind_of(record: Record) -> str:
    return type(record).__name__


def varint(value: int) -> bytes:
    """A number in bytes of 7 bits, as in docs/formats.md."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def difference(value: int) -> bytes:
    """A difference of numbers of 64 bits."""
    signed = (value + (1 << 63)) % (1 << 64) - (1 << 63)
    return varint(2 * signed if signed >= 0 else -2 * signed - 1)


def body_of(record: Change) -> bytes:
    """The bytes of a CHANGE behind its kind."""
    version, writer, mtime, time_ns, inode, pid, uid, login_uid, process, message, _ = record
    numbers = [varint(version), varint(writer), struct.pack("<Q", time_ns)]
    numbers += [difference(mtime - time_ns // 10**9), difference(version - inode)]
    numbers += [varint(pid), varint(uid), varint((login_uid + 1) % (1 << 32))]
    return b"".join([*numbers, bytes([len(process)]), process, message_body(message, mtime)])


def message_body(message: bytes, mtime: int) -> bytes:
    head = struct.pack("<HIIIQ", 0, 1, mtime, 0, 0)
    if len(message) >= 44 and message[:2] + message[4:24] == head and 1 <= message[2] <= 6:
        size, offset, path_size, to_size, flags = struct.unpack_from("<5I", message, 24)
        path, to = message[44:][:path_size], message[44 + path_size :][:to_size]
        data = message[44 + path_size + to_size :]
        if message[3] == 0 and path[-1:] == b"\0" and to[-1:] in (b"\0", b"") and len(data) == size:
            names = [varint(n) for n in (message[2], offset, flags, len(path) - 1, to_size)]
            both = zip(path[:-1], to[:-1], strict=False)
            shared = len([*takewhile(lambda pair: pair[0] == pair[1], both)])
            names += [varint(shared)] if to else []
            return b"".join([*names, path[:-1], to[shared:-1], data])
    return b"\0" + message


@given(RECORDS)
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    assert decode(encode(record)) == record


def test_there_is_a_sample_of_each_kind() -> None:
    assert {encode(record)[0] for record in SAMPLES} == set(Kind)


@pytest.mark.parametrize("record", SAMPLES, ids=kind_of)
def test_the_bytes_are_those_of_the_format(record: Record) -> None:
    """The layouts of docs/formats.md, written down once more."""
    number = struct.pack
    expected: dict[type, Callable[[Any], bytes]] = {
        Change: body_of,
        Saving: lambda r: r.save_id + number("<QII", r.version, r.writer, r.mtime),
        Saved: lambda r: r.save_id,
        Check: lambda r: number("<Q", r.version) + r.checksum,
        Gap: lambda r: number("<Q", r.version),
    }
    body = encode(record)
    if getattr(record, "left_out", 0):
        assert body[:5] == number("<BI", Kind.CHANGE_WITHOUT_DATA, 11)
        body = body[4:]
    if layout := expected.get(type(record)):
        assert body[1:] == layout(record)


@pytest.mark.parametrize("record", SAMPLES, ids=kind_of)
def test_a_record_that_is_cut_is_refused_or_another_record(record: Record) -> None:
    """What ends with bytes of any length can be cut there, and nowhere else."""
    body = encode(record)
    shortest = len(body)
    for size in range(len(body)):
        try:
            found = decode(body[:size])
        except BadRecord:
            continue
        shortest = min(shortest, size)
        assert encode(found) == body[:size]
    open_end = b""
    if isinstance(record, Change):
        open_end = getattr(mutation_of(record), "data", b"")
    elif isinstance(record, Before):
        open_end = record.data
    assert len(body) - shortest == len(open_end)


@pytest.mark.parametrize("record", SAMPLES, ids=kind_of)
def test_a_byte_more_is_refused(record: Record) -> None:
    if isinstance(record, Change):
        return  # a message has its own end
    with pytest.raises(BadRecord):
        decode(encode(record) + b"\0")


@given(st.binary(max_size=200))
def test_bytes_that_are_read_are_those_that_would_be_written(body: bytes) -> None:
    try:
        record = decode(body)
    except BadRecord:
        return
    assert encode(record) == body


def test_changed_bytes_are_refused_or_read_as_they_are() -> None:
    generator = random.Random(1)
    outcomes = set()
    for _ in range(3000):
        body = bytearray(encode(generator.choice(SAMPLES)))
        for _ in range(generator.randint(1, 3)):
            body[generator.randrange(len(body))] = generator.choice((0, 1, 0x7F, 0xFF))
        try:
            record = decode(bytes(body))
        except BadRecord:
            outcomes.add("refused")
        else:
            outcomes.add("read")
            assert encode(record) == body
    assert outcomes == {"refused", "read"}


@pytest.mark.parametrize(
    "mutation", [body for body in TREE_BODIES if not isinstance(body, UnlockRequest)]
)
def test_the_mutation_of_a_change_is_decoded(mutation: Create) -> None:
    assert mutation_of(change(8, mutation)) == mutation


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0" * 24,
        encode_message(Normal(1, 1, UnlockRequest("a", bytes(32))), group=Group.TREE),
    ],
    ids=["empty", "zeros", "request"],
)
def test_a_message_that_is_no_mutation_is_refused(message: bytes) -> None:
    with pytest.raises(BadRecord, match="message: "):
        mutation_of(WRITE._replace(message=message))


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_of_a_message_of_this_node_only_what_differs_is_kept(mutation: Create) -> None:
    record = change(8, mutation)
    assert encode(record)[1:] == body_of(record)
    if not isinstance(mutation, Unlock):
        assert len(encode(record)) < len(record.message)


@given(
    st.integers(0, 7),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, 2),
    st.sampled_from([b"", b"\0", b"a/b\0", b"a/c\0", b"a\0b\0", b"a/b"]),
    st.sampled_from([b"", b"\0", b"a/b\0", b"a/bc\0", b"c"]),
    st.binary(max_size=3),
    st.sampled_from([(0, 1, NOW, 0, 0), (1, 1, NOW, 0, 0), (0, 1, NOW + 1, 0, 0)]),
    st.integers(-1, 1),
)
def test_any_message_comes_back_as_it_was(
    subtype: int,
    offset: int,
    flags: int,
    path: bytes,
    to: bytes,
    data: bytes,
    head: tuple[int, ...],
    error: int,
) -> None:
    """Also one that nearly is the change of this node that it looks like."""
    fields = (max(len(data) + error, 0), offset, len(path), len(to), flags)
    message = struct.pack("<HHIIIQ", head[0], subtype, *head[1:]) + struct.pack("<5I", *fields)
    record = WRITE._replace(message=message + path + to + data)
    assert encode(record)[1:] == body_of(record)
    assert decode(encode(record)) == record


@pytest.mark.parametrize(
    ("longer", "reason"),
    [
        (lambda b: b[:1] + b"\x88\0" + b[2:], "longer than it need be"),
        (lambda b: b[:1] + b"\xff" * 9 + b"\x02" + b[2:], "more than 64 bits"),
        (lambda b: b[:1] + varint(8) + varint(1 << 32) + b[3:], "more than"),
        (lambda b: b[:11] + difference(-(1 << 40)) + b[12:], "mtime"),
        (lambda b: b.replace(b"storage.cfg", b"storage.cf"), "bytes wanted"),
        (lambda b: b[: -len(message_body(WRITE.message, NOW))] + b"\0" + WRITE.message, "longer"),
    ],
)
def test_a_change_that_could_be_written_otherwise_is_refused(
    longer: Callable[[bytes], bytes], reason: str
) -> None:
    body = longer(encode(WRITE._replace(message=message_of(Create("storage.cfg")))))
    if reason == "longer":
        body = longer(encode(WRITE))
    with pytest.raises(BadRecord, match=reason):
        decode(body)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b"\4\0\0\3\4\2" + b"a/b" + b"b", "repeats"),
        (b"\4\0\0\3\5\4" + b"a/b" + b"", "share"),
        (b"\4\0\0\3\5\5" + b"a/b", "more than"),
        (b"\4\0\0\3\x7f\2" + b"a/b" + b"c", "bytes wanted"),
    ],
)
def test_a_second_path_that_could_be_written_otherwise_is_refused(tail: bytes, reason: str) -> None:
    body = encode(WRITE)[: -len(message_body(WRITE.message, NOW))]
    sound = decode(body + b"\4\0\0\3\4\2" + b"a/b" + b"c")
    assert isinstance(sound, Change)
    assert mutation_of(sound) == Rename("a/b", "a/c")
    with pytest.raises(BadRecord, match=reason):
        decode(body + tail)


@pytest.mark.parametrize("field", range(8))
def test_a_number_that_is_too_large_is_refused(field: int) -> None:
    large: dict[str, Any] = {Change._fields[field]: 1 << 64}
    with pytest.raises(OverflowError):
        encode(WRITE._replace(**large))


def test_a_long_process_name_is_cut() -> None:
    body = encode_change(*WRITE[:8], b"n" * 300, b"message")
    assert decode(body) == WRITE._replace(process=b"n" * 255, message=b"message")


PATHS = st.binary(max_size=12).filter(lambda raw: b"\0" not in raw).map(to_text)
U32 = st.integers(0, (1 << 32) - 1)


@given(
    st.one_of(
        st.builds(Write, PATHS, U32, st.binary(max_size=9), st.booleans()),
        st.builds(Mkdir, PATHS),
        st.builds(Delete, PATHS),
        st.builds(Rename, PATHS, PATHS),
        st.builds(Create, PATHS),
        st.builds(Mtime, PATHS, U32),
        st.builds(Unlock, PATHS, st.binary(min_size=32, max_size=32)),
    ),
    U32,
    st.integers(0, (1 << 64) - 1),
    st.tuples(U32, U32, U32, st.binary(max_size=300)),
)
def test_a_mutation_is_packed_as_its_message_would_be(
    mutation: Mutation, mtime: int, version: int, caller: tuple[int, int, int, bytes]
) -> None:
    message = encode_message(Normal(mtime, 0, mutation), group=Group.TREE)
    numbers = version, 3, mtime, 1 << 60, version // 2
    assert pack_mutation(*numbers, caller, mutation) == encode_change(*numbers, *caller, message)


@pytest.mark.parametrize("mutation", [Mkdir("a\0b"), Rename("a", "b\0"), Write("\0", 0, b"", True)])
def test_a_path_with_a_nul_is_not_packed(mutation: Mutation) -> None:
    with pytest.raises(ValueError, match="can't contain a NUL"):
        pack_mutation(1, 3, 5, 7, 9, (0, 0, 0, b""), mutation)


def test_what_is_not_bytes_is_not_packed() -> None:
    caller: Any = (0, 0, 0, None)
    content: Any = None
    with pytest.raises(TypeError):
        pack_mutation(1, 3, 5, 7, 9, caller, Mkdir("d"))
    with pytest.raises(TypeError):
        pack_mutation(1, 3, 5, 7, 9, (0, 0, 0, b""), Write("f", 0, content, truncate=False))


def test_a_number_of_a_mutation_that_is_too_large_is_refused() -> None:
    with pytest.raises(OverflowError):
        pack_mutation(1, 3, 5, 7, 9, (0, 0, 0, b""), Write("f", 1 << 32, b"", truncate=False))


def test_too_many_paths_are_left_out() -> None:
    few, many = (b"x" * 1022,) * 1024, (b"x" * 1022,) * 1025
    assert sum(len(path) + 2 for path in few) == MAX_PATHS
    assert decode(encode(Adopted(1, 2, few))) == Adopted(1, 2, few)
    assert decode(encode(Adopted(1, 2, many))) == Adopted(1, 2, (), is_short=True)


@pytest.mark.parametrize(
    "record",
    [Saved(b"short"), Check(1, bytes(31)), before("a", b"")._replace(name=b"x" * 65536)],
    ids=kind_of,
)
def test_a_field_of_a_wrong_length_is_not_written(record: Record) -> None:
    with pytest.raises(ValueError, match=r"bytes, not \d+$"):
        encode(record)


def test_an_adoption_that_claims_too_many_paths_is_refused_before_they_are_read() -> None:
    body = bytearray(encode(Adopted(1, 2, (b"a",))))
    body[18:22] = b"\xff\xff\xff\xff"
    with pytest.raises(BadRecord, match="4294967295 of them do not fit"):
        decode(bytes(body))
