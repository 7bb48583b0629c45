"""A round of many members with large trees, on the lowest of them: its processor time and memory.

The lowest member is real: its tree, the decoding of the messages, the state machine, and the
records that it collects as the leader. The others are their STATE messages, as on the wire.
"""

import contextlib
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from pmxcfs._core import Tree
from pmxcfs._cpg import decode, encode
from pmxcfs.cluster.tree_group import Proposals, TreeContent
from pmxcfs.dfsm.effects import Effect, Mode, SendState, SendUpdates
from pmxcfs.dfsm.machine import Dfsm
from pmxcfs.dfsm.timeouts import Moment
from pmxcfs.messages import EntryType, Group, Member, Record, State, SyncStart
from pmxcfs.replica.outbox import Outbox
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.tree.index import ENTRY, HEADER
from tests.fakes.doubles.replicas import StoredReplica

Report = Callable[[object], None]

OTHERS = 63  # members besides the lowest
FEW, MANY = 10_000, 100_000  # entries
FOLDER = 100  # entries in a directory, itself included
GAP = 1000  # of so many entries a member that is behind has one in an old version
NOW = Moment(1_800_000_000, 0.0)
MOST_SECONDS = 2.0  # of processor time, for all states and the decision; 0.5 on an idle machine
RECORD_SIZE = 500  # bytes of memory that a record takes, at most
SPARE = 5  # indexes that are in memory besides those that the round keeps


class Quorum(NamedTuple):
    """Quorum for ever."""

    is_quorate: bool = True

    def refresh(self) -> bool:
        return self.is_quorate


class Cost(NamedTuple):
    """What a round has cost on the lowest member, from its start to the leader's records."""

    seconds: float  # of processor time
    peak: int  # bytes of memory; 0 if they are not counted
    sent: list[int]  # the inodes that it sends as the leader


class Lowest:
    """The lowest member of a group."""

    def __init__(self, directory: Path, entries: int) -> None:
        self._stored = StoredReplica(directory)
        self._stored.tree.load(records(entries))
        self._content = TreeContent(
            self._stored.replica,
            Outbox(QuorumFlag(is_quorate=True), wake=lambda: None),
            Proposals(),
            lock=contextlib.nullcontext(),
            quorum=Quorum(),
            lock_has_expired=lambda path, checksum: False,
        )

    def close(self) -> None:
        """Close the database and the journal."""
        self._stored.storage.close()

    def decide(self, others: Sequence[bytes]) -> Cost:
        """Go through a round in which the *others* have these indexes."""
        members = [Member(number, 1) for number in range(1, len(others) + 2)]
        machine = Dfsm(Group.TREE)
        machine.join(members[0])
        machine.on_membership(members, joined=members, at=NOW)
        epoch = machine.epoch
        wire = [encode(State(NOW.wall, epoch, state), group=Group.TREE) for state in others]
        before, start = traced(), time.process_time()
        (send,) = machine.on_message(members[0], SyncStart(NOW.wall, epoch), at=NOW)
        assert isinstance(send, SendState)
        wire.insert(0, encode(State(NOW.wall, epoch, self._content.state()), group=Group.TREE))
        effects: list[Effect] = []
        for member, data in zip(members, wire, strict=True):
            effects += machine.on_message(member, decode(data, group=Group.TREE), at=NOW)
        (updates,) = [effect for effect in effects if isinstance(effect, SendUpdates)]
        sent = self._content.updates(updates)
        cost = Cost(time.process_time() - start, traced() - before, [each.inode for each in sent])
        assert machine.mode is Mode.SYNCED
        return cost


def traced_cost(lowest: Lowest, others: Sequence[bytes]) -> Cost:
    """Have *lowest* decide while its allocations are traced, which takes longer."""
    tracemalloc.start()
    try:
        return lowest.decide(others)
    finally:
        tracemalloc.stop()


def traced() -> int:
    """Return the most bytes that were allocated since the last call."""
    peak = tracemalloc.get_traced_memory()[1]
    if tracemalloc.is_tracing():
        tracemalloc.reset_peak()
    return peak


def records(entries: int) -> Iterator[Record]:
    """Yield the root and *entries* small files and directories."""
    yield Record(0, 0, entries + 1, 1, NOW.wall, EntryType.DIRECTORY, b"", None)
    for number in range(entries):
        inode, (folder, file) = number + 2, divmod(number, FOLDER)
        stamp = inode, 1, NOW.wall
        if file == 0:
            yield Record(inode, 0, *stamp, EntryType.DIRECTORY, b"d%d" % folder, None)
        else:
            parent = inode - file
            yield Record(inode, parent, *stamp, EntryType.FILE, b"f%d" % file, b"%d" % number)


def index_of(entries: int) -> bytes:
    """Return the index of the lowest member."""
    tree = Tree()
    tree.load(records(entries))
    return tree.index()


def behind(state: bytes, missing: int) -> bytes:
    """Return the index of a member that lacks the last entries and has others in old versions."""
    version, _, writer, mtime, count, total = HEADER.unpack_from(state)
    body = bytearray(state[HEADER.size : total - missing * ENTRY.size])
    for place in range(missing % GAP, count - missing, GAP):
        body[(place + 1) * ENTRY.size - 1] ^= 0xFF
    last_inode = ENTRY.unpack_from(body, len(body) - ENTRY.size)[0]
    size = HEADER.size + len(body)
    head = HEADER.pack(version - missing, last_inode, writer, mtime, count - missing, size)
    return head + body


def empty() -> bytes:
    """Return the index of a new node."""
    return HEADER.pack(1, 0, 0, 0, 1, HEADER.size + ENTRY.size) + ENTRY.pack(0, bytes(32))


def needed(state: bytes, others: Sequence[bytes]) -> list[int]:
    """Return the inodes that are to be sent, as slowly as it can be done."""
    body = memoryview(state)[HEADER.size :]
    found: set[int] = set()
    for other in set(others):
        theirs = set(ENTRY.iter_unpack(memoryview(other)[HEADER.size :]))
        found |= {entry[0] for entry in ENTRY.iter_unpack(body) if entry not in theirs}
    return sorted(found)


SITUATIONS: dict[str, Callable[[bytes], Sequence[bytes]]] = {
    "all are equal": lambda state: [state] * OTHERS,
    "one is new": lambda state: [*[state] * (OTHERS - 1), empty()],
    "two sides": lambda state: [*[state] * 31, *[behind(state, 500)] * 32],
    "all are different": lambda state: [behind(state, 1 + number) for number in range(OTHERS)],
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_equal_states_are_kept_once_and_nothing_is_made_of_different_ones(
    tmp_path: Path, situation: str
) -> None:
    state = index_of(FEW)
    others = SITUATIONS[situation](state)
    with contextlib.closing(Lowest(tmp_path, FEW)) as lowest:
        assert lowest.decide(others).sent == needed(state, others)
        cost = traced_cost(lowest, others)
    kept = len({state, *others})
    assert cost.peak < (kept + SPARE) * len(state) + len(cost.sent) * RECORD_SIZE


@pytest.mark.long
@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_lowest_of_many_members_decides_soon(
    tmp_path: Path, report: Report, situation: str
) -> None:
    others = SITUATIONS[situation](index_of(MANY))
    with contextlib.closing(Lowest(tmp_path, MANY)) as lowest:
        first = lowest.decide(others)  # all entries are hashed
        again = lowest.decide(others)
        traced_one = traced_cost(lowest, others)
    report(
        f"{OTHERS + 1} members with {MANY} entries, {situation}: decision in {again.seconds:.2f} s "
        f"of processor time, in {first.seconds:.2f} s after a start; "
        f"{traced_one.peak >> 20} MiB, {len(first.sent)} records to send"
    )
    assert first.seconds < MOST_SECONDS
    assert again.seconds < MOST_SECONDS
