"""When a change is counted in ``.version`` and ``.vmlist``."""

import json

import pytest

from pmxcfs.status.counters import WATCHED, Status
from pmxcfs.tree.guests import GuestPath, Guests
from tests.places import VECTORS

GUEST = "nodes/a/lxc/100.conf"


@pytest.fixture
def guests() -> Guests:
    registry = Guests()
    registry.register(GuestPath(100, "a", "lxc"))
    return registry


@pytest.fixture
def status(guests: Guests) -> Status:
    return Status("a", guests, start_time=1234)


def shown(status: Status, vmid: int = 100) -> dict[str, object]:
    """Return the entry of one guest in ``.vmlist``."""
    found: dict[str, object] = json.loads(f"{{{status.guest_lines[vmid]}}}")[str(vmid)]
    return found


def test_the_watched_paths_are_those_of_the_original() -> None:
    recorded = json.loads((VECTORS / "status_files" / "node1.version").read_text())
    others = {"starttime", "clinfo", "vmlist", "kvstore"}
    assert set(WATCHED) == recorded.keys() - others


def test_all_counters_are_1_after_the_start(status: Status) -> None:
    assert set(status.counters.values()) == {1}
    assert (status.vmlist, status.members.clinfo) == (1, 1)
    assert shown(status) == {"node": "a", "type": "lxc", "version": 1}


def test_a_change_is_counted_after_its_invalidation(status: Status) -> None:
    revision = status.revision
    status.on_change("storage.cfg", sequence=7)
    status.on_change("user.cfg", sequence=9)
    status.absorb(6)
    assert (status.counters["storage.cfg"], status.revision) == (1, revision)
    status.absorb(8)
    assert (status.counters["storage.cfg"], status.counters["user.cfg"]) == (2, 1)
    assert status.revision > revision
    status.absorb(9)
    assert status.counters["user.cfg"] == 2


def test_a_change_that_needs_no_invalidation_is_counted_at_once(status: Status) -> None:
    status.on_change("storage.cfg", sequence=0)
    status.absorb(0)
    assert status.counters["storage.cfg"] == 2


def test_a_rename_is_counted_for_both_paths(status: Status) -> None:
    status.on_change("storage.cfg", "storage.cfg.tmp", sequence=0)
    status.on_change("user.cfg", "domains.cfg", sequence=0)
    status.absorb(0)
    changed = {path for path, count in status.counters.items() if count == 2}
    assert changed == {"storage.cfg", "user.cfg", "domains.cfg"}


def test_changes_of_other_paths_are_not_counted(status: Status) -> None:
    revision = status.revision
    for path in ("storage.cfg.tmp", "d/storage.cfg", "priv/tfa.cfg.new", "nodes/a/lxc"):
        status.on_change(path, sequence=0)
    status.absorb(10)
    assert status.revision == revision


def test_a_guest_gets_a_new_version_and_the_list_too(status: Status, guests: Guests) -> None:
    status.on_change(GUEST, sequence=0)
    status.absorb(0)
    assert (shown(status)["version"], status.vmlist) == (2, 2)
    guests.unregister(100)
    guests.register(GuestPath(100, "b", "qemu"))
    status.on_change("nodes/b/qemu-server/100.conf", GUEST, sequence=0)
    status.absorb(0)
    assert shown(status) == {"node": "b", "type": "qemu", "version": 3}
    assert status.vmlist == 3


def test_a_guest_that_is_gone_leaves_the_list(status: Status, guests: Guests) -> None:
    guests.unregister(100)
    status.on_change(GUEST, sequence=0)
    status.absorb(0)
    assert (status.guest_lines, status.vmlist) == ({}, 2)
    guests.register(GuestPath(101, "a", "lxc"))
    status.on_change("nodes/a/lxc/101.conf", sequence=0)
    status.absorb(0)
    assert shown(status, 101)["version"] == 2


def test_a_guest_is_listed_as_it_was_when_it_changed(status: Status, guests: Guests) -> None:
    status.on_change(GUEST, sequence=5)
    guests.unregister(100)
    status.on_change(GUEST, sequence=6)
    status.absorb(5)
    assert 100 in status.guest_lines
    status.absorb(6)
    assert 100 not in status.guest_lines


def test_a_reload_increments_every_counter_once(status: Status, guests: Guests) -> None:
    guests.register(GuestPath(7, "a", "qemu"))
    status.on_change("storage.cfg", sequence=99)
    status.on_reload(sequence=100)
    status.absorb(99)
    assert set(status.counters.values()) == {1}
    status.absorb(100)
    assert set(status.counters.values()) == {2}
    assert status.vmlist == 2
    assert sorted(status.guest_lines) == [7, 100]
    assert {shown(status, vmid)["version"] for vmid in (7, 100)} == {2, 3}
