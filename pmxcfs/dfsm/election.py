"""Election of a round's leader, whose tree all members adopt.

Every member computes the same result, because all have the same STATE messages.
Contract: docs/spec/cluster.md, "STATE".
"""

from collections.abc import Mapping
from typing import NamedTuple

from pmxcfs.messages import Member
from pmxcfs.tree.index import parse_header


class Election(NamedTuple):
    """The result of an election."""

    leader: Member
    synced: frozenset[Member]  # the leader, and members whose index equals the leader's


def elect(states: Mapping[Member, bytes]) -> Election:
    """Elect the leader from *states*, the valid index of each member.

    *states* has at least one member. The highest version wins, then the highest mtime, then the
    lowest member; version and mtime are those of the root.
    """
    ranks = {member: _rank_of(state) for member, state in states.items()}
    best = max(ranks.values())
    leader = min(member for member, rank in ranks.items() if rank == best)
    copy = states[leader]
    return Election(leader, frozenset(m for m, state in states.items() if state == copy))


def _rank_of(state: bytes) -> tuple[int, int]:
    header = parse_header(state)
    return header.version, header.mtime
