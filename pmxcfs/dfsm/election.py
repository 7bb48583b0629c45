"""Whose copy of the tree wins a round: decided by every member alike from the same STATE messages.

Contract: docs/spec/cluster.md, "STATE".
"""

from collections.abc import Mapping
from typing import NamedTuple

from pmxcfs.messages import Member
from pmxcfs.tree.index import parse_header


class Election(NamedTuple):
    """What came out."""

    leader: Member
    synced: frozenset[Member]  # those who have what the leader has, byte for byte, and the leader


def elect(states: Mapping[Member, bytes]) -> Election:
    """Choose among *states*, which are valid indexes, at least one."""
    ranks = {member: _rank_of(state) for member, state in states.items()}
    best = max(ranks.values())
    leader = min(member for member, rank in ranks.items() if rank == best)
    copy = states[leader]
    return Election(leader, frozenset(m for m, state in states.items() if state == copy))


def _rank_of(state: bytes) -> tuple[int, int]:
    header = parse_header(state)
    return header.version, header.mtime
