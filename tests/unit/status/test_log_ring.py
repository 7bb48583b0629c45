"""The ring of the cluster log: recorded bytes, wrapping, merging, and invalid rings."""

import gzip
import itertools
import json
import struct
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pmxcfs.messages import LogEntry
from pmxcfs.status import log_ring
from pmxcfs.status.cluster_log import ClusterLog
from pmxcfs.status.log_ring import MAX_ENTRY, SIZE, LogRing, in_order, merged, occupied_size, walk
from tests.places import VECTORS

STATES = sorted(VECTORS.glob("clusterlog_state_*.bin.gz"))
LOG = 3  # subtype


def recorded_states(when: int) -> list[bytes]:
    return [gzip.decompress(path.read_bytes()) for path in STATES if str(when) in path.name]


def recorded_entries() -> list[tuple[int, LogEntry]]:
    """Return the entries that were sent, as (time, entry)."""
    messages = map(json.loads, (VECTORS / "cpg_kvstore.jsonl").read_text().splitlines())
    sent = [
        (message["decoded"]["time"], bytes.fromhex(message["hex"])[24:])
        for message in messages
        if (message["decoded"]["type"], message["decoded"]["subtype"]) == ("NORMAL", LOG)
    ]
    return [(time, entry) for time, raw in sent for entry in walk(ring_around(raw))]


def ring_around(raw: bytes) -> bytes:
    """Return a ring with one entry, given as its bytes."""
    return (struct.pack("<II", SIZE, 8) + raw).ljust(SIZE, b"\0")


def entry(uid: int, size: int = 80, *, time: int = 0) -> LogEntry:
    """Return an entry that takes *size* bytes, rounded up to 8."""
    return LogEntry(uid, time, 1, 2, 3, 6, b"n", b"i", b"t", bytes(b"m" * (size - 55)))


# The original's bytes


@pytest.mark.parametrize("path", STATES, ids=lambda path: path.name)
def test_recorded_rings_are_rebuilt_to_the_byte(path: Path) -> None:
    raw = gzip.decompress(path.read_bytes())
    entries = list(walk(raw))
    assert entries
    assert bytes(LogRing.of(reversed(entries))) == raw
    assert in_order(raw) == raw
    assert bytes(LogRing.of(merged([raw]))) == raw


def test_the_log_of_the_recorded_cluster_comes_out_the_same() -> None:
    log = ClusterLog("node1")
    times = (1795367932, 1795367968, 1795368210)
    states = {time: recorded_states(time) for time in times}
    sent = recorded_entries()
    assert [item.message for _, item in sent] == [
        rb"starting task UPID:node2:\u00e4 \"q\" \ back#009Tab",
        rb"a \"quoted\" message",
    ]
    for before, after in itertools.pairwise(times):
        log.merge(states[before])
        inserted = [log.insert(item) for time, item in sent if before <= time < after]
        assert inserted == [True]
        assert log.state() in states[after]
    log.merge(states[times[-1]])
    assert {log.state()} == set(states[times[-1]])


def test_an_entry_is_as_long_as_the_messages_say() -> None:
    sizes = [log_ring.nominal_size(item) for _, item in recorded_entries()]
    assert sizes == [48 + 6 + 9 + 10 + 52, 48 + 6 + 9 + 5 + 21]


# Wrapping, against the rules of status.md read literally


class Written(NamedTuple):
    offset: int
    entry: LogEntry


class Model:
    """A slow model of the ring: all entries ever written, with their offsets."""

    def __init__(self) -> None:
        self.history: list[Written] = []
        self._end = 8

    def append(self, item: LogEntry) -> None:
        size = occupied_size(item)
        if self._end + size >= SIZE:
            self._end = 8
        self.history.append(Written(self._end, item))
        self._end += size

    def walk(self) -> list[LogEntry]:
        found: list[LogEntry] = []
        newest = self.history[-1].offset if self.history else 0
        current = None
        for offset, item in reversed(self.history):
            if newest < offset <= newest + MAX_ENTRY:
                break
            if current is not None and current < offset <= newest:
                break
            found.append(item)
            current = offset
        return found


@given(
    st.lists(st.integers(56, MAX_ENTRY), max_size=120),
    st.integers(0, 60),
)
@example([MAX_ENTRY] * 40, 0)
@example([56] * 9, 40)
def test_what_is_left_after_wrapping(sizes: list[int], filling: int) -> None:
    model, real = Model(), LogRing()
    all_sizes = [MAX_ENTRY] * filling + sizes
    for uid, size in enumerate(all_sizes, 1):
        model.append(entry(uid, size))
        real.append(entry(uid, size))
        assert next(iter(real)).uid == uid
    kept = list(real)
    assert kept == model.walk()
    assert [item.uid for item in kept] == list(range(len(sizes) + filling, 0, -1))[: len(kept)]
    assert list(walk(in_order(bytes(real)))) == sorted(kept, key=log_ring.order, reverse=True)


def test_an_entry_may_not_end_where_the_ring_does() -> None:
    exact = [MAX_ENTRY] * 31 + [MAX_ENTRY - 8]
    real = LogRing.of(entry(uid, size) for uid, size in enumerate(exact, 1))
    assert sum(exact) == SIZE - 8
    assert struct.unpack_from("<II", bytes(real)) == (SIZE, 8)
    shorter = LogRing.of(entry(uid, size) for uid, size in enumerate([*exact[:-1], 4080], 1))
    assert len(list(shorter)) == len(exact)


# Merging

entries_strategy = st.builds(
    entry, st.integers(1, 4), st.integers(56, 2000), time=st.integers(0, 3)
).flatmap(
    lambda item: st.builds(
        item._replace, node_digest=st.integers(1, 2), trailing=st.binary(min_size=4, max_size=4)
    )
)
rings_strategy = st.lists(st.lists(entries_strategy, max_size=30).map(LogRing.of).map(bytes))


@given(rings_strategy, st.randoms())
def test_merging_depends_on_content_only(rings: list[bytes], chance: object) -> None:
    once = merged(rings)
    shuffled = list(rings)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert merged(shuffled + rings) == once
    assert merged([bytes(LogRing.of(once))]) == once
    keys = [log_ring.order(item) for item in once]
    assert keys == sorted(set(keys))


def test_a_merge_takes_the_newest_until_the_ring_is_full() -> None:
    step = 3976
    items = [entry(uid, step, time=uid) for uid in range(1, 61)]
    kept = merged([bytes(LogRing.of(items[:30])), bytes(LogRing.of(items[30:]))])
    room = SIZE - 8 - MAX_ENTRY
    assert kept == items[-(room // step + 1) :]
    assert len(list(LogRing.of(kept))) == len(kept)


# Invalid rings


def test_bytes_that_are_not_a_ring_have_no_entries() -> None:
    whole = bytes(LogRing.of([entry(1)]))
    for raw in (
        b"",
        whole[:-1],
        whole + b"\0",
        bytes(SIZE),
        struct.pack("<II", SIZE - 1, 8) + whole[8:],
        struct.pack("<II", SIZE, 0) + whole[8:],
    ):
        assert list(walk(raw)) == []
    assert merged([b"", whole]) == [entry(1)]


@pytest.mark.parametrize("newest", [1, 4, 7, 9, 12, SIZE - 40, SIZE, SIZE + 8, 0xFFFFFFF8])
def test_an_entry_begins_inside_the_ring(newest: int) -> None:
    raw = struct.pack("<II", SIZE, newest) + bytes(LogRing.of([entry(1)]))[8:]
    assert list(walk(raw)) == []


FIELDS = "older end uid time node_digest ident_digest pid priority node ident tag message"
HEADER = struct.Struct("<IIIIQQIBBBBI")


def patched(raw: bytes, offset: int, **fields: int) -> bytes:
    """Return the ring with other numbers in the header at *offset*."""
    header = dict(zip(FIELDS.split(), HEADER.unpack_from(raw, offset), strict=True))
    changed = bytearray(raw)
    HEADER.pack_into(changed, offset, *{**header, **fields}.values())
    return bytes(changed)


THREE = bytes(LogRing.of([entry(1), entry(2), entry(3)]))


@pytest.mark.parametrize(
    "fields",
    [
        {"message": 0xFFFFFFFF},
        {"message": MAX_ENTRY},
        {"message": 0},
        {"node": 0},
        {"ident": 0},
        {"tag": 0},
        {"node": 20},
        {"tag": 3},
    ],
    ids=str,
)
def test_the_walk_ends_at_a_broken_entry(fields: dict[str, int]) -> None:
    assert [item.uid for item in walk(patched(THREE, 88, **fields))] == [3]
    assert list(walk(patched(THREE, 168, **fields))) == []


@pytest.mark.parametrize("older", [168, 88 + 8, 176, 4096, 168 + MAX_ENTRY, 9, SIZE, 0xFFFFFFFF])
def test_the_walk_ends_if_the_next_offset_is_not_older(older: int) -> None:
    assert [item.uid for item in walk(patched(THREE, 168, older=older))] == [3]


def test_a_walk_over_a_cycle_ends() -> None:
    raw = patched(THREE, 8, older=100_000)
    high = bytearray(raw)
    one = bytes(LogRing.of([entry(9)]))[8:88]
    for offset, older in ((100_000, 100_080), (100_080, 100_000)):
        high[offset : offset + 80] = one
        struct.pack_into("<I", high, offset, older)
    assert [item.uid for item in walk(high)] == [3, 2, 1, 9]
    struct.pack_into("<I", high, 100_000, 168)
    assert [item.uid for item in walk(high)] == [3, 2, 1, 9]


changes = st.lists(st.tuples(st.integers(0, SIZE - 8), st.binary(min_size=1, max_size=8)))
headers = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 11), st.integers(0, SIZE + 100)))


@given(changes, headers, st.integers(0, 3000))
def test_any_bytes_can_be_walked(
    patches: list[tuple[int, bytes]], numbers: list[tuple[int, int, int]], newest: int
) -> None:
    full = bytearray(bytes(LogRing.of(entry(uid, 3000 + uid) for uid in range(50))))
    for number, field, value in numbers:
        offset = 8 + number * 3008
        header = list(HEADER.unpack_from(full, offset))
        header[field] = value % (256 if field in (7, 8, 9, 10) else SIZE + 100)
        HEADER.pack_into(full, offset, *header)
    for offset, patch in patches:
        full[offset : offset + len(patch)] = patch
    struct.pack_into("<II", full, 0, SIZE, newest * 8)
    found = list(walk(full))
    assert sum(map(occupied_size, found)) <= SIZE
    assert all(map(log_ring.fits, found))
    log = ClusterLog("node1")
    log.begin(pid=1, time=1)
    log.merge([log.state(), bytes(full)])
    json.loads(log.render(most=100)).keys()
    assert list(walk(log.state()))
