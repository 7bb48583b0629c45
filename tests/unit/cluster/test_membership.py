"""The clustering of a node: which changes of corosync.conf make corosync reload it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.cluster.membership import COROSYNC_CONF, Clustering
from pmxcfs.messages import Create, Member, Mutation, Rename, Write
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.replica.tickets import Ticket
from pmxcfs.status.counters import Status
from pmxcfs.storage.incomplete import Incomplete
from tests.fakes.doubles.replicas import StoredReplica

ME = Member(1, 100)


class World:
    """A replica in a cluster; *asked* lists the updates that the host's file was given."""

    def __init__(self, directory: Path) -> None:
        self.stored = StoredReplica(directory)
        self.replica = self.stored.replica
        clustering = Clustering(
            self.replica,
            Status("node1", self.stored.guests, start_time=0),
            quorum=QuorumFlag(is_quorate=True),
            lock=contextlib.nullcontext(),
            lock_has_expired=lambda path, checksum: False,
            host_file=directory / "corosync.conf",
            rundir=directory,
            on_quorum=lambda quorate: None,
            incomplete=Incomplete(),
        )
        clustering.tree.dfsm.join(ME)
        clustering._host_file = self  # type: ignore[assignment]
        self.replica.subscribe(on_change=clustering.on_change)
        self.asked: list[tuple[bytes, bool]] = []

    def follow(self, content: bytes, *, reload: bool) -> None:
        self.asked.append((content, reload))

    def deliver(self, *mutations: Mutation, writer: int, foreign: bool) -> None:
        self.replica.deliver([Ticket(m, writer=writer, foreign=foreign) for m in mutations])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.stored.close()


@pytest.mark.parametrize(
    ("writer", "foreign", "reload"),
    [(ME.nodeid, False, True), (ME.nodeid, True, True), (2, True, False)],
    ids=["waited-for", "given-up", "of-another-node"],
)
def test_the_node_that_changed_the_configuration_asks_for_the_reload(
    world: World, writer: int, foreign: bool, reload: bool
) -> None:
    other = "corosync.conf.new"
    world.deliver(Create(other), Write(other, 0, b"x", True), writer=2, foreign=True)
    assert world.asked == []
    world.deliver(Rename(other, COROSYNC_CONF), writer=writer, foreign=foreign)
    world.deliver(Write(COROSYNC_CONF, 0, b"y", True), writer=writer, foreign=foreign)
    assert world.asked == [(b"x", reload), (b"y", reload)]
