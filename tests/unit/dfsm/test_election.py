"""Who wins a synchronization."""

import pytest

from pmxcfs.dfsm.election import Election, elect
from pmxcfs.messages import (
    Member,
)
from tests.fakes.simulation.single_machine import (
    ONE,
    THREE,
    TWO,
    index,
)


@pytest.mark.parametrize(
    ("states", "leader", "synced"),
    [
        ({ONE: index(4), TWO: index(5), THREE: index(5)}, TWO, {TWO, THREE}),
        ({ONE: index(5, 8), TWO: index(5, 9), THREE: index(4, 10)}, TWO, {TWO}),
        ({THREE: index(5), TWO: index(5), ONE: index(5)}, ONE, {ONE, TWO, THREE}),
        ({ONE: index(5, 9, entries=1), TWO: index(5, 9)}, ONE, {ONE}),
        ({Member(1, 9): index(5), Member(1, 8): index(5, entries=1)}, Member(1, 8), {Member(1, 8)}),
    ],
    ids=["version", "mtime", "member", "equal rank, other content", "process"],
)
def test_the_leader_has_the_highest_version_then_mtime_then_is_the_earliest(
    states: dict[Member, bytes], leader: Member, synced: set[Member]
) -> None:
    assert elect(states) == Election(leader, frozenset(synced))
