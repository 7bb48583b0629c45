"""Decoding of requests: each kind whole, cut off at each byte, too long, and with random bytes."""

import os
import random
import struct
import time
from collections.abc import Callable

import pytest

from pmxcfs.fuse._decode import decoded
from tests.fakes.data.kernel_requests import (
    BATCH_FORGET,
    HEADER,
    LOOKUP,
    READ,
    RENAME,
    SAMPLES,
    UNKNOWN,
    WRITE,
    request,
    structure_size,
)

OPCODES = [opcode for opcode, _, _ in SAMPLES]


@pytest.mark.parametrize(("opcode", "body", "fields"), SAMPLES, ids=map(str, OPCODES))
def test_a_request_is_decoded(opcode: int, body: bytes, fields: dict[str, object]) -> None:
    found = decoded(request(opcode, body))
    assert found is not None
    if opcode == BATCH_FORGET:
        assert found.pop("data") == body[8:]
    given = {key: value for key, value in found.items() if value}
    assert given == {"opcode": opcode, "unique": 99, "node": 77, "pid": 1234, "uid": 1000, **fields}


@pytest.mark.parametrize(("opcode", "body", "_"), SAMPLES, ids=map(str, OPCODES))
def test_a_request_that_is_cut_off_is_refused(opcode: int, body: bytes, _: object) -> None:
    whole = request(opcode, body)
    for size in range(len(whole)):
        assert decoded(whole[:size]) is None
        if size >= HEADER.size:
            assert decoded(request(opcode, whole[HEADER.size : size])) is None


@pytest.mark.parametrize(("opcode", "body", "_"), SAMPLES, ids=map(str, OPCODES))
def test_a_request_with_bytes_too_many_is_refused(opcode: int, body: bytes, _: object) -> None:
    assert decoded(request(opcode, body + b"\0")) is None
    assert decoded(request(opcode, body) + b"\0") is None


BY_URING = [
    (opcode, body, fields) for opcode, body, fields in SAMPLES if opcode != BATCH_FORGET
]  # that one always comes through /dev/fuse


@pytest.mark.parametrize(("opcode", "body", "fields"), BY_URING)
def test_a_request_in_parts_is_decoded_alike(
    opcode: int, body: bytes, fields: dict[str, object]
) -> None:
    """As by io_uring, where the structure has a place of its own."""
    size = structure_size(body, fields)
    whole = request(opcode, body)
    assert decoded(whole, size) == decoded(whole) is not None
    for wrong in {0, size // 2, size - 1, size + 1, len(body)} - {size}:
        if 0 <= wrong <= len(body):
            assert decoded(whole, wrong) is None


@pytest.mark.parametrize(("opcode", "body", "fields"), BY_URING)
@pytest.mark.parametrize("length", [0, 39, 40, 1 << 16, (1 << 32) - 1])
def test_a_request_in_parts_with_a_wrong_length_is_refused(
    opcode: int, body: bytes, fields: dict[str, object], length: int
) -> None:
    size = structure_size(body, fields)
    if length != HEADER.size + len(body):
        assert decoded(request(opcode, body, length=length), size) is None


def test_a_name_is_not_empty() -> None:
    assert decoded(request(LOOKUP, b"\0")) is None
    assert decoded(request(RENAME, struct.pack("<Q", 3) + b"old\0\0")) is None


@pytest.mark.parametrize("count", [0, 1, 3, 1 << 28, (1 << 32) - 1])
def test_a_wrong_number_of_references_is_refused(count: int) -> None:
    assert decoded(request(BATCH_FORGET, struct.pack("<II4Q", count, 0, 5, 1, 6, 3))) is None


@pytest.mark.parametrize("size", [0, 2, 4, (1 << 32) - 1])
def test_a_wrong_size_of_a_write_is_refused(size: int) -> None:
    assert decoded(request(WRITE, struct.pack("<QQIIQII", 4, 8, size, 0, 0, 0, 0) + b"abc")) is None


def test_a_negative_offset_is_refused() -> None:
    assert decoded(request(READ, struct.pack("<QqIIQII", 4, -1, 16, 0, 0, 0, 0))) is None


def test_of_an_unknown_request_the_header_is_decoded() -> None:
    found = decoded(request(UNKNOWN, b"anything"))
    assert found is not None
    assert (found["opcode"], found["unique"]) == (UNKNOWN, 99)


def fuzzed(chance: random.Random) -> bytes:
    """Return a sample with changed, missing and added bytes."""
    opcode, body, _fields = chance.choice(SAMPLES)
    raw = bytearray(request(chance.choice([opcode, *OPCODES]), body))
    for _ in range(chance.randrange(4)):
        raw[chance.randrange(len(raw))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
    if chance.random() < 0.3:
        del raw[chance.randrange(len(raw)) :]
    if chance.random() < 0.1:
        raw += chance.randbytes(chance.randrange(64))
    if chance.random() < 0.5 and len(raw) >= 4:
        raw[:4] = struct.pack("<I", len(raw))
    return bytes(raw)


def test_random_requests_are_decoded_or_refused(
    seed: int, report: Callable[[object], None]
) -> None:
    """For a second; for PMXCFS_FUZZ_SECONDS, if that is set."""
    seconds = float(os.environ.get("PMXCFS_FUZZ_SECONDS") or 1)
    chance, until = random.Random(seed), time.monotonic() + seconds
    count = accepted = 0
    while time.monotonic() < until:
        count += 1
        raw = fuzzed(chance)
        parts = chance.randrange(len(raw) - HEADER.size + 1) if len(raw) >= HEADER.size else None
        for size in (None, parts):
            found = decoded(raw, size)
            if found is not None:
                accepted += 1
                assert found["opcode"] == struct.unpack_from("<I", raw, 4)[0], (seed, count)
    if seconds > 1:
        report(f"seed {seed}: {count} random requests in {seconds:.0f} s, {accepted} decoded")
    assert 0 < accepted < 2 * count
