"""Whose copy of the tree wins a round: decided by every member alike from the same STATE messages.

Only the header of an index is read here. Contract: spec cluster.md, "STATE"; storage.md, "Index".
"""

import struct
from collections.abc import Mapping
from typing import NamedTuple

from pmxcfs.errors import BadMessage
from pmxcfs.messages import Member

_HEADER = struct.Struct("<QQIIII")  # version, last inode, writer, mtime, count, bytes in all
_ENTRY_SIZE = 40


class Election(NamedTuple):
    """What came out."""

    leader: Member
    synced: frozenset[Member]  # those who have what the leader has, byte for byte, and the leader


def rank_of(state: bytes) -> tuple[int, int]:
    """Return version and mtime of an index; the highest wins.

    Raises BadMessage if its length is not what its header says.
    """
    if len(state) < _HEADER.size:
        raise BadMessage(f"an index of {len(state)} bytes has no header")
    version, _, _, mtime, count, size = _HEADER.unpack_from(state)
    if size != len(state) or size - _HEADER.size != count * _ENTRY_SIZE:
        raise BadMessage(f"an index of {len(state)} bytes says {size} bytes, {count} entries")
    return version, mtime


def elect(states: Mapping[Member, bytes]) -> Election:
    """Choose among *states*, of which there is at least one and ``rank_of`` has accepted each."""
    best = max(map(rank_of, states.values()))
    leader = min(member for member, state in states.items() if rank_of(state) == best)
    copy = states[leader]
    return Election(leader, frozenset(m for m, state in states.items() if state == copy))
