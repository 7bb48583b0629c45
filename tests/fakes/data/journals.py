"""Sample records of each kind, Hypothesis strategies for them, and small journals."""

from pathlib import Path

from hypothesis import strategies as st

from pmxcfs._cpg import encode as encode_message
from pmxcfs.host.callers import UNSET
from pmxcfs.messages import EntryType, Group, Mutation, Normal, Write
from pmxcfs.storage.divergence import Note, Removal
from pmxcfs.storage.journal import Journal
from pmxcfs.storage.records import (
    Adopted,
    Before,
    Change,
    Check,
    Gap,
    Notes,
    Record,
    Saved,
    Saving,
    encode,
)

LINEAGE = bytes(range(16))
SAVE_ID = b"save of 16 bytes"
NOW = 1_795_367_932
NOW_NS = NOW * 10**9 + 123_456_789


def message_of(mutation: Mutation) -> bytes:
    """Return a mutation as on the wire."""
    return encode_message(Normal(NOW, 0, mutation), group=Group.TREE)


def change(version: int, mutation: Mutation, *, inode: int = 7) -> Change:
    """Return the record of a change by a local process."""
    message = message_of(mutation)
    return Change(version, 1, NOW, NOW_NS, inode, 4711, 33, UNSET, b"pvedaemon", message)


def before(path: str, data: bytes, *, inode: int = 7, is_private: bool = False) -> Before:
    """Return the row of a file as it was."""
    raw = path.encode()
    name = raw.rpartition(b"/")[2]
    return Before(is_private, inode, 3, 6, 1, NOW, EntryType.FILE, len(data), 0, name, raw, data)


WRITE = change(8, Write("storage.cfg", 0, b"dir: local\n", truncate=True))
SAMPLES: tuple[Record, ...] = (
    WRITE,
    WRITE._replace(left_out=11, message=message_of(Write("storage.cfg", 0, b"", truncate=True))),
    before("nodes/a/priv/key", b"secret", is_private=True),
    before("priv/key", b"", is_private=True)._replace(is_left_out=True, size=6),
    Check(8, bytes(range(32))),
    Saving(SAVE_ID, 8, 1, NOW),
    Saved(SAVE_ID),
    Adopted(8, 20, (b"storage.cfg", b"\xff")),
    Adopted(8, 20, (), is_short=True),
    Gap(21),
    Notes({2: Note(5, 7), 0: Note(1, (1 << 63) - 1)}, (Removal(6, 8, b"a\xff"),)),
    Notes({}),
)

_U8, _U32, _U64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 32, 64))
_NAMES = st.binary(max_size=300)


def _fitting(row: Before) -> Before:
    """Return *row* with a size that its data fits into."""
    data = b"" if row.is_left_out else row.data
    offset = min(row.offset, (1 << 32) - 1 - len(data))
    return row._replace(data=data, offset=offset, size=max(row.size, offset + len(data)))


RECORDS = st.one_of(
    st.builds(
        Change,
        *(_U64, _U32, _U32, _U64, _U64, _U32, _U32, _U32),
        st.binary(max_size=255),
        st.binary(max_size=500),
        st.one_of(st.just(0), _U32),
    ),
    st.builds(
        Before,
        st.booleans(),
        *(_U64, _U64, _U64, _U32, _U32, _U8, _U32, _U32),
        _NAMES,
        _NAMES,
        st.binary(max_size=500),
        st.booleans(),
    ).map(_fitting),
    st.builds(Check, _U64, st.binary(min_size=32, max_size=32)),
    st.builds(Saving, st.binary(min_size=16, max_size=16), _U64, _U32, _U32),
    st.builds(Saved, st.binary(min_size=16, max_size=16)),
    st.builds(Adopted, _U64, _U64, st.lists(_NAMES, max_size=5).map(tuple), st.booleans()),
    st.builds(Gap, _U64),
    st.builds(
        Notes,
        st.dictionaries(_U32, st.builds(Note, _U64, _U64), max_size=4),
        st.lists(st.builds(Removal, _U64, _U64, _NAMES), max_size=3).map(tuple),
    ),
)


def written(directory: Path, *groups: list[Record], sequence: int = 1) -> None:
    """Write a journal that was closed, with a segment for each group of records."""
    journal = Journal.start(directory, lineage=LINEAGE, sequence=sequence, version=7)
    for number, records in enumerate(groups):
        if number:
            journal.begin_segment(version=7 + number)
        journal.append([encode(record) for record in records])
    journal.close()
