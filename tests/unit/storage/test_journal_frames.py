"""The frames of records: the checksum, numbers without a gap, and a search behind damage."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmxcfs.storage._journal import (
    FRAME_SIZE,
    MAX_BODY,
    crc32c,
    crc32c_by_table,
    frame,
    is_zero,
    search,
    split,
)

BODIES = st.lists(st.binary(min_size=1, max_size=60), max_size=6)
_POLYNOMIAL = 0x82F63B78


def plain_crc(data: bytes, crc: int = 0) -> int:
    """CRC-32C bit by bit."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("function", [crc32c, crc32c_by_table, plain_crc])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # this and the next ones are from RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_the_checksum_is_crc_32c(function: object, data: bytes, expected: int) -> None:
    assert callable(function)
    assert function(data) == expected


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 9))
def test_instruction_and_table_give_the_same(data: bytes, cut: int, start: int) -> None:
    whole = plain_crc(data)
    for function in (crc32c, crc32c_by_table):
        assert function(data) == whole
        assert function(data[cut:], function(data[:cut])) == whole
        assert function(memoryview(data)[start:]) == plain_crc(data[start:])


@given(BODIES, st.integers(0, 1 << 63))
def test_frames_are_split_into_the_same_bodies(bodies: list[bytes], first: int) -> None:
    data = frame(bodies, first)
    assert len(data) == sum(map(len, bodies)) + FRAME_SIZE * len(bodies)
    bounds, end = split(data, 0, first)
    assert [data[start:stop] for start, stop in bounds] == bodies
    assert end == len(data)


def test_the_layout_is_that_of_the_format() -> None:
    rest = (77).to_bytes(8, "little") + b"\x01body"
    head = len(rest).to_bytes(4, "little") + plain_crc(rest).to_bytes(4, "little")
    assert frame([b"\x01body"], 77) == head + rest


@pytest.mark.parametrize("body", [b"", bytes(MAX_BODY + 1)], ids=["empty", "large"])
def test_a_body_that_no_reader_accepts_is_not_framed(body: bytes) -> None:
    with pytest.raises(ValueError, match="a record has 1 to"):
        frame([b"x", body], 1)
    assert len(split(frame([bytes(MAX_BODY)], 1), 0, 1)[0]) == 1


def test_records_end_where_one_has_another_number() -> None:
    first, second, third = (frame([b"x"], number) for number in (5, 6, 7))
    size = len(first)
    for data, sound in (
        (first + second + third, 3),
        (first + third + second, 1),
        (first + first + second, 1),
        (second + first, 0),
        (first + second + bytes(40), 2),
        (first + second + third[:-1], 2),
    ):
        bounds, end = split(data, 0, 5)
        assert (len(bounds), end) == (sound, sound * size)


@given(st.integers(0, 100), st.integers(0, 7))
def test_a_flipped_bit_ends_the_records_there(byte: int, bit: int) -> None:
    data = bytearray(frame([b"first record", b"second record", b"third record"], 1))
    byte %= len(data)
    data[byte] ^= 1 << bit
    bounds, end = split(bytes(data), 0, 1)
    starts = [0, 28, 57, 85]
    assert end == max(start for start in starts[:-1] if start <= byte)
    assert len(bounds) == starts.index(end)


@pytest.mark.parametrize("length", [0, 1, 8, 9, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_length_is_compared_with_what_is_left(length: int) -> None:
    for size in range(40):
        assert split(length.to_bytes(4, "little") + bytes(size), 0, 0) == ([], 0)


def test_the_first_sound_record_behind_damage_is_found() -> None:
    data = b"junk" * 5 + frame([b"behind"], 9)
    assert search(data, 0, 1, 100) == (20, 9)
    assert search(data, 20, 9, 9) == (20, 9)
    assert search(data, 21, 1, 100) is None
    assert search(data, 0, 10, 100) is None
    assert search(data, 0, 1, 8) is None
    assert search(b"", 0, 0, 1) is None


def test_a_search_gives_up_on_bytes_that_are_made_to_take_long() -> None:
    """Each offset of a multiple of 16 claims a record up to nearly the end, with a wrong CRC."""
    size = 1 << 18
    data = b"".join(
        (size - 16 - at).to_bytes(4, "little") + bytes(4) + (5).to_bytes(8, "little")
        for at in range(0, size, 16)
    )
    late = data + frame([b"never reached"], 5)
    assert search(late, 0, 1, 100) is None
    assert search(late, len(data), 1, 100) == (len(data), 5)


@pytest.mark.parametrize("start", [-1, 5])
def test_an_offset_outside_of_the_data_is_refused(start: int) -> None:
    with pytest.raises(ValueError, match="is outside of 4 bytes"):
        split(b"data", start, 1)
    with pytest.raises(ValueError, match="is outside of 4 bytes"):
        search(b"data", start, 1, 2)


def test_zeros_are_told_from_other_bytes() -> None:
    assert is_zero(b"", 0)
    assert is_zero(b"x\0\0", 1)
    assert not is_zero(b"\0\0x", 1)


def test_random_bytes_hold_no_record() -> None:
    generator = random.Random(2)
    for _ in range(200):
        data = generator.randbytes(generator.randrange(2000))
        assert split(data, 0, 0) == ([], 0)
        assert search(data, 0, 0, (1 << 64) - 1) is None
