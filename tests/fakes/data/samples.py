"""A sample message of each kind, and Hypothesis strategies for all kinds."""

from hypothesis import strategies as st

from pmxcfs.messages import (
    Create,
    Delete,
    EntryType,
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
    SyncStart,
    Unlock,
    UnlockRequest,
    Update,
    UpdateComplete,
    Verify,
    VerifyRequest,
    Write,
)
from pmxcfs.text import to_text

_EPOCH = Epoch(7, 1_795_367_932, 1, 300)
_FILE = Record(26, 5, 27, 1, 1_795_367_941, EntryType.FILE, b"\xffx.cfg", b"content")
_ENTRY = LogEntry(
    2, 1_795_367_941, 7, 9, 91, 6, b"node2", b"root@pam", b"pvedaemon", b"starting", b"tail"
)

TREE_BODIES = (
    Write("storage.cfg", 6, b"hello\n", True),
    Mkdir("nodes"),
    Delete("nodes/a"),
    Rename("a", to_text(b"b\xff")),
    Create("é.cfg"),
    Mtime("storage.cfg", 1_700_000_000),
    UnlockRequest("priv/lock/x", bytes(range(32))),
    Unlock("priv/lock/x", bytes(range(32))),
)
STATUS_BODIES = (SetKey("tasklist", b"[]\0"), _ENTRY)
IN_BOTH_GROUPS = (SyncStart(5, _EPOCH), State(5, _EPOCH, b"index or ring"))
IN_THE_TREE = (
    Update(5, _EPOCH, _FILE),
    UpdateComplete(5, _EPOCH),
    VerifyRequest(5, _EPOCH, 3),
    Verify(5, _EPOCH, 3, bytes(range(32))),
)
SAMPLES: list[tuple[Group, Message]] = [
    *((Group.TREE, Normal(4, 17, body)) for body in TREE_BODIES),
    *((Group.STATUS, Normal(4, 17, body)) for body in STATUS_BODIES),
    *((group, message) for group in Group for message in IN_BOTH_GROUPS),
    *((Group.TREE, message) for message in IN_THE_TREE),
]


def name_of(sample: tuple[Group, Message]) -> str:
    """Return the test id of a sample."""
    group, message = sample
    what = message.body if isinstance(message, Normal) else message
    return f"{group.name.lower()}-{type(what).__name__}"


_u8, _u32, _u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 32, 64))
_raw = st.binary(max_size=40)
_name = _raw.map(lambda raw: raw.replace(b"\0", b""))
_path = _name.map(to_text)
_checksum = st.binary(min_size=32, max_size=32)
_epoch = st.builds(Epoch, _u32, _u32, _u32, _u32)
_string = st.binary(max_size=254)

_records = st.one_of(
    st.builds(Record, _u64, _u64, _u64, _u32, _u32, st.just(4), _name, st.none()),
    st.builds(Record, _u64, _u64, _u64, _u32, _u32, st.just(8), _name, _raw),
)
_tree_bodies = st.one_of(
    st.builds(Write, _path, _u32, _raw, st.booleans()),
    st.builds(Mkdir, _path),
    st.builds(Delete, _path),
    st.builds(Rename, _path, _path.filter(bool)),
    st.builds(Create, _path),
    st.builds(Mtime, _path, _u32),
    st.builds(UnlockRequest, _path, _checksum),
    st.builds(Unlock, _path, _checksum),
)
_keys = st.binary(max_size=255).map(lambda raw: to_text(raw.replace(b"\0", b"")))
_log_entries = st.builds(
    LogEntry,
    *(_u32, _u32, _u64, _u64, _u32, _u8),
    *(_string, _string, _string, st.binary(max_size=600)),
    st.binary(min_size=4, max_size=4),
)
_status_bodies = st.one_of(st.builds(SetKey, _keys, _raw), _log_entries)


def _messages(group: Group) -> st.SearchStrategy[Message]:
    bodies = _tree_bodies if group is Group.TREE else _status_bodies
    everywhere: list[st.SearchStrategy[Message]] = [
        st.builds(Normal, _u32, _u64, bodies),
        st.builds(SyncStart, _u32, _epoch),
        st.builds(State, _u32, _epoch, _raw),
    ]
    if group is Group.STATUS:
        return st.one_of(everywhere)
    return st.one_of(
        *everywhere,
        st.builds(Update, _u32, _epoch, _records),
        st.builds(UpdateComplete, _u32, _epoch),
        st.builds(VerifyRequest, _u32, _epoch, _u64),
        st.builds(Verify, _u32, _epoch, _u64, _checksum),
    )


messages = st.sampled_from(Group).flatmap(lambda group: st.tuples(st.just(group), _messages(group)))
