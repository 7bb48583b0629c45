"""The index: recorded indexes, the records that a leader must send, and invalid bytes."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmxcfs._core import Tree
from pmxcfs.errors import BadMessage
from pmxcfs.messages import EntryType
from pmxcfs.storage.database import inspect
from pmxcfs.tree import index
from pmxcfs.tree._digests import mark_differing
from pmxcfs.tree.adoption import record_of
from tests.fakes.doubles.store import BY
from tests.places import VECTORS

HEADER = struct.Struct("<QQIIII")
FIELDS = ("version", "last inode", "writer", "mtime", "count", "total")


def a_tree(*names: str) -> Tree:
    tree = Tree()
    for name in names:
        entry = tree.create(tree.root, name, EntryType.FILE, **BY)
        tree.write(entry, 0, name.encode(), truncate=True, **BY)
    return tree


def recorded() -> tuple[Tree, bytes]:
    tree = Tree()
    tree.load(inspect(VECTORS / "config_node1.db").records)
    facts = json.loads((VECTORS / "config_node1.json").read_text())
    return tree, bytes.fromhex(facts["index_hex"])


def test_a_recorded_index_and_its_digests_are_reproduced() -> None:
    tree, raw = recorded()
    assert tree.index() == raw
    header, digests = index.parse(raw)
    assert header == index.Header(tree.version, tree.root.mtime, tree.root.writer)
    entries = {inode: tree.get(inode) for inode in digests}
    assert len(digests) == tree.entry_count + 1
    for inode, entry in entries.items():
        assert entry is not None
        assert index.digest_of(record_of(entry)) == digests[inode]


def test_the_index_follows_every_change() -> None:
    tree = a_tree("a", "b")
    first = tree.index()
    entry = tree.find("b")
    assert entry is not None
    tree.rename(entry, tree.root, "c", **BY)
    renamed = tree.index()
    assert len({first, renamed}) == 2
    tree.rollback()
    fresh = Tree()
    assert tree.index() == fresh.index()


def test_only_different_or_missing_records_are_needed() -> None:
    leader = a_tree("a", "b", "c")
    behind = a_tree("a", "b")
    assert index.records_needed(leader.index(), []) == []
    assert index.records_needed(leader.index(), [leader.index()] * 3) == []
    assert index.records_needed(leader.index(), [behind.index()]) == [0, 6]
    fresh = Tree()
    everything = [0, 2, 4, 6]
    assert index.records_needed(leader.index(), [behind.index(), fresh.index()]) == everything
    assert index.records_needed(behind.index(), [leader.index()]) == [0]


def raw_index(entries: dict[int, int]) -> bytes:
    """Return an index with these inodes, besides the root, and a digest of one number each."""
    body = b"".join(struct.pack("<Q32s", *each) for each in pairs_of(entries))
    last = max([0, *entries])
    return HEADER.pack(7, last, 1, 1, len(entries) + 1, HEADER.size + len(body)) + body


def pairs_of(entries: dict[int, int]) -> list[tuple[int, bytes]]:
    return [(inode, b"%32d" % digest) for inode, digest in sorted({0: 0, **entries}.items())]


INODES = st.integers(min_value=1, max_value=12) | st.integers(min_value=1, max_value=(1 << 64) - 1)
INDEXES = st.dictionaries(INODES, st.integers(min_value=0, max_value=2), max_size=12)


@given(INDEXES, st.lists(INDEXES, max_size=4))
def test_the_records_needed_are_those_that_a_comparison_of_sets_finds(
    leader: dict[int, int], others: list[dict[int, int]]
) -> None:
    mine = pairs_of(leader)
    wanted = {inode for other in others for inode, _ in set(mine) - set(pairs_of(other))}
    found = index.records_needed(raw_index(leader), [raw_index(other) for other in others])
    assert found == sorted(wanted)
    assert index.parse(raw_index(leader)).digests == dict(mine)


def test_only_a_mark_for_each_entry_is_accepted() -> None:
    raw = raw_index({2: 1})
    for size in (0, 1, 3):
        with pytest.raises(ValueError, match=f"{size} marks for 2 entries"):
            mark_differing(raw, raw, bytearray(size))


def test_a_truncated_index_is_refused() -> None:
    raw = a_tree("a", "b").index()
    for size in range(len(raw)):
        with pytest.raises(BadMessage):
            index.parse(raw[:size])
    with pytest.raises(BadMessage):
        index.parse(raw + b"\0")


@pytest.mark.parametrize("field", ["last inode", "count", "total"])
@pytest.mark.parametrize("value", [0, 1, 2, 4, 0x7FFFFFFF, 0xFFFFFFFF])
def test_the_header_must_match_the_entries(field: str, value: int) -> None:
    raw = a_tree("a", "b").index()
    fields = list(HEADER.unpack_from(raw))
    if fields[FIELDS.index(field)] == value:
        return
    fields[FIELDS.index(field)] = value
    with pytest.raises(BadMessage):
        index.parse(HEADER.pack(*fields) + raw[HEADER.size :])


@pytest.mark.parametrize("inodes", [(2, 4), (0, 4, 2), (0, 2, 2), (0, 0), (0, 2, 4, 4)])
def test_entries_out_of_order_are_refused(inodes: tuple[int, ...]) -> None:
    body = b"".join(struct.pack("<Q32s", inode, b"x") for inode in inodes)
    raw = HEADER.pack(5, max(inodes), 1, 1, len(inodes), HEADER.size + len(body)) + body
    with pytest.raises(BadMessage):
        index.parse(raw)


def test_the_header_can_be_read_alone() -> None:
    tree = a_tree("a")
    assert index.parse_header(tree.index()) == index.Header(3, 1234, 3)
