"""The bodies of the journal's records: they come back as they were, and nothing else is read."""

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmxcfs._cpg import encode as encode_message
from pmxcfs.messages import Create, Group, Normal, UnlockRequest
from pmxcfs.storage.records import (
    MAX_PATHS,
    Adopted,
    BadRecord,
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
from tests.fakes.data.journals import RECORDS, SAMPLES, WRITE, before, change
from tests.fakes.data.samples import TREE_BODIES

MUTATIONS = [body for body in TREE_BODIES if not isinstance(body, UnlockRequest)]
REQUEST = encode_message(Normal(1, 1, UnlockRequest("a", bytes(32))), group=Group.TREE)


def kind_of(record: Record) -> str:
    return type(record).__name__


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
        Change: lambda r: number("<QIIQQIIIB", *r[:8], len(r.process)) + r.process + r.message,
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
    open_end = {Change: "message", type(before("a", b"")): "data"}.get(type(record))
    assert len(body) - shortest == (len(getattr(record, open_end)) if open_end else 0)


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


def test_a_long_process_name_is_cut() -> None:
    body = encode_change(*WRITE[:8], b"n" * 300, b"message")
    assert decode(body) == WRITE._replace(process=b"n" * 255, message=b"message")


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
