"""Locks below priv/lock: renewal, expiry and unlocking by users of the mount."""

import pytest

from pmxcfs.errors import Denied
from pmxcfs.messages import Mkdir, Mtime, Unlock
from pmxcfs.tree.locks import PRESENT
from tests.fakes.doubles.filesystem import World


@pytest.fixture
def world() -> World:
    return World()


def test_only_an_expired_lock_is_unlocked(world: World) -> None:
    home = world.make("priv/lock", directory=True)
    lock = world.files.mkdir(home, "ha")
    checksum = world.tree.entry_checksum(lock)
    world.now_ns += int(119.9e9)
    with pytest.raises(Denied):
        world.files.utime(lock, 0)
    world.now_ns += int(0.2e9)
    world.files.utime(lock, 0)
    assert world.issuer.issued == [Mkdir("priv/lock/ha"), Unlock("priv/lock/ha", checksum)]
    assert world.locks.ages(0) == {}


def test_a_renewal_restarts_the_age_of_a_lock(world: World) -> None:
    lock = world.files.mkdir(world.make("priv/lock", directory=True), "ha")
    world.now_ns += int(119e9)
    world.files.utime(lock, 2000)
    world.now_ns += int(119e9)
    with pytest.raises(Denied):
        world.files.utime(lock, 0)
    with pytest.raises(Denied):
        world.files.utime(lock, 1999)
    assert world.issuer.issued[1:] == [Mtime("priv/lock/ha", 2000)]


def test_a_removed_lock_is_forgotten(world: World) -> None:
    lock = world.files.mkdir(world.make("priv/lock", directory=True), "ha")
    assert list(world.locks.ages(0)) == ["priv/lock/ha"]
    world.files.rmdir(lock)
    assert world.locks.ages(0) == {}


def test_whether_a_lock_has_expired_does_not_depend_on_how_a_peer_writes_its_path(
    world: World,
) -> None:
    lock = world.files.mkdir(world.make("priv/lock", directory=True), "ha")
    checksum = world.tree.entry_checksum(lock)

    def has_expired(path: str, checksum: bytes) -> bool:
        return world.locks.may_unlock(world.tree, path, checksum, now=world.now_ns / 1e9)

    assert not has_expired("priv//lock/ha", checksum)
    world.now_ns += int(120e9)
    assert has_expired("priv//lock/ha", checksum)
    assert not has_expired("priv//lock/ha", bytes(32))


def test_a_lock_can_be_renewed_after_its_owner_s_clock_was_set_back(world: World) -> None:
    lock = world.files.mkdir(world.make("priv/lock", directory=True), "ha")
    world.files.utime(lock, world.wall)
    world.wall -= 3600
    world.now_ns += int(119e9)
    world.files.utime(lock, world.wall)
    world.now_ns += int(119e9)
    with pytest.raises(Denied):  # the renewal counts, so the lock has not expired
        world.files.utime(lock, 0)
    renewed = Mtime("priv/lock/ha", world.wall + 3600)
    assert world.issuer.issued[1:] == [renewed, renewed]
    assert lock.mtime == world.wall + 3600
    with pytest.raises(Denied, match="not backwards"):  # not the present: as any older time
        world.files.utime(lock, world.wall - PRESENT - 1)


def test_a_time_in_the_future_is_no_reason_to_keep_what_is_no_lock(world: World) -> None:
    below = world.files.mkdir(world.make("priv/lock/ha", directory=True), "below")
    file = world.make("file")
    for entry in (below, file):
        world.files.utime(entry, world.wall + 3600)
        world.files.utime(entry, world.wall)
        assert entry.mtime == world.wall
