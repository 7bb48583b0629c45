"""Which changes of a replica are staged in memory, and that a killed daemon loses none of them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.messages import Create, Mkdir, Mtime, Mutation, Rename, Write
from pmxcfs.replica.local_issuer import LocalIssuer
from pmxcfs.replica.replica import Policy
from pmxcfs.storage import journal as journal_module
from pmxcfs.storage.recovery import inspect
from tests.fakes.doubles.device import Device, device
from tests.fakes.doubles.memory import file_for, in_memory
from tests.fakes.doubles.replicas import StoredReplica
from tests.fakes.doubles.yielding import SingleYielding

STATUS = "nodes/a/lrm_status"


class World(StoredReplica):
    """A replica in local mode with some directories, of which nothing is staged."""

    def __init__(self, directory: Path) -> None:
        single = SingleYielding()
        super().__init__(directory, policy=Policy.ROLL_BACK, yielding=single)
        self.issuer = LocalIssuer(self.replica, clock=lambda: 1234, yielding=single)
        self.replica.check_writable()
        self.make(Mkdir("nodes"), Mkdir("nodes/a"), Mkdir("priv"), Mkdir("priv/lock"))
        self.make(Mkdir("priv/lock/ha_agent_a_lock"))

    def make(self, *mutations: Mutation) -> None:
        for mutation in mutations:
            self.issuer.submit(mutation)

    def replace(self, path: str, data: bytes) -> None:
        """Write a file as Proxmox VE does."""
        temporary = f"{path}.tmp.1"
        self.issuer.create(Create(temporary))
        self.make(Write(temporary, 0, data, truncate=False), Rename(temporary, path))

    @property
    def unwritten(self) -> int:
        """The bytes of records that only memory has."""
        return self.journal.position.offset - self.segment_size

    @property
    def segment_size(self) -> int:
        return max(self.directory.glob("*.log")).stat().st_size


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with in_memory(tmp_path / "memory"), contextlib.closing(World(tmp_path)) as world:
        yield world


@pytest.fixture
def below(world: World) -> Iterator[Device]:
    with device() as below:
        yield below


def test_heartbeats_are_staged(world: World, below: Device) -> None:
    size = world.segment_size
    world.replace(STATUS, b"1")
    world.replace(STATUS, b"2")
    world.make(Mtime("priv/lock/ha_agent_a_lock", 2000))
    assert world.segment_size == size
    assert world.unwritten > 0
    assert {*below.names("write")} == {file_for(world.directory).name}
    assert inspect(world.path).tree.checksum() == world.tree.checksum()


@pytest.mark.parametrize(
    ("path", "is_staged"),
    [
        ("ha/manager_status", True),
        ("ha/manager_status.tmp.4711", True),
        ("priv/lock/storage", True),
        ("lrm_status", True),
        ("lrm_status.cfg", False),
        ("ha/crm_commands", False),
        ("ha/resources.cfg.tmp.4711", False),
        ("priv/locks", False),
        ("nodes/a/100.conf.tmp.1", False),
    ],
)
def test_only_what_ha_rewrites_all_the_time_is_staged(
    world: World, path: str, is_staged: bool
) -> None:
    world.make(Mkdir("ha"), Create(path))
    assert (world.unwritten > 0) is is_staged


def test_a_change_of_the_configuration_is_written_with_what_is_staged(
    world: World, below: Device
) -> None:
    world.replace(STATUS, b"1")
    below.seen.clear()
    world.make(Create("datacenter.cfg"))
    assert world.unwritten == 0
    assert len(below.names("write")) == 1


def test_a_replaced_configuration_is_not_staged(world: World, below: Device) -> None:
    world.replace("datacenter.cfg", b"x")
    assert below.names("write") == [max(world.directory.glob("*.log")).name] * 2


def test_what_is_staged_is_written_when_it_is_due(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.replace(STATUS, b"1")
    world.replica.sync_if_due()
    assert world.unwritten > 0
    world.replica.sync()
    monkeypatch.setattr(journal_module, "FLUSH_AFTER", 0.0)
    world.replace(STATUS, b"2")
    world.replica.sync_if_due()
    assert world.unwritten == 0


def test_a_save_writes_it_first(world: World) -> None:
    world.replace(STATUS, b"1")
    world.replica.saver.save()
    assert world.unwritten == 0
    assert inspect(world.path).tree.checksum() == world.tree.checksum()
