"""Status files: their JSON, and snapshots that never change."""

import json

import pytest

from pmxcfs.errors import Failed
from pmxcfs.guests import GuestPath, Guests
from pmxcfs.status import WATCHED, Status
from pmxcfs.statusfiles import Switch, links, status_files


class Source:
    """What the files are made from."""

    def __init__(self) -> None:
        self.handed = 0
        self.guests = Guests()
        self.status = Status("node1", self.guests, start_time=1234)
        self.now = 0.0
        self.files = status_files(
            self.status, handed=lambda: self.handed, monotonic=lambda: self.now
        )

    def read(self, name: str) -> bytes:
        return self.files[name].snapshot(0).content


@pytest.fixture
def source() -> Source:
    return Source()


def test_links_lead_to_the_nodes_own_directories() -> None:
    assert {link.name: link.target for link in links("n")} == {
        "local": b"nodes/n",
        "qemu-server": b"nodes/n/qemu-server",
        "openvz": b"nodes/n/openvz",
        "lxc": b"nodes/n/lxc",
    }


def test_version(source: Source) -> None:
    source.status.on_change("user.cfg", ticket=0)
    assert json.loads(source.read(".version")) == {
        "starttime": 1234,
        "clinfo": 1,
        "vmlist": 1,
        **{path: 2 if path == "user.cfg" else 1 for path in WATCHED},
        "kvstore": {"node1": {}},
    }


def test_members(source: Source) -> None:
    assert json.loads(source.read(".members")) == {"nodename": "node1", "version": 1}


def test_guest_list(source: Source) -> None:
    assert json.loads(source.read(".vmlist")) == {"version": 1}
    for vmid in (100, 4294967295):
        source.guests.register(GuestPath(vmid, "node1", "qemu"))
        source.status.on_change(f"nodes/node1/qemu-server/{vmid}.conf", ticket=0)
    assert json.loads(source.read(".vmlist")) == {
        "version": 3,
        "ids": {
            "100": {"node": "node1", "type": "qemu", "version": 1},
            "4294967295": {"node": "node1", "type": "qemu", "version": 2},
        },
    }


def test_the_others(source: Source) -> None:
    assert source.read(".rrd") == b""
    assert json.loads(source.read(".clusterlog")) == {"data": []}
    source.status.log.begin(pid=1, time=2)
    assert len(json.loads(source.read(".clusterlog"))["data"]) == 1


def test_a_snapshot_stays_and_is_reused_while_nothing_changes(source: Source) -> None:
    file = source.files[".version"]
    first = file.snapshot(10)
    content = first.content
    assert file.snapshot(20) is first
    assert first.made_ns == 20
    source.status.on_change("user.cfg", ticket=0)
    assert not file.is_current(first)
    second = file.snapshot(30)
    assert second is not first
    assert (first.content, first.made_ns) == (content, 20)
    assert second.content != content
    assert file.is_current(second)


def test_a_change_is_seen_when_the_kernel_has_been_told(source: Source) -> None:
    file = source.files[".version"]
    before = file.snapshot(0)
    source.status.on_change("user.cfg", ticket=5)
    assert file.snapshot(0) is before
    source.handed = 5
    assert file.snapshot(0) is not before


def test_the_switch() -> None:
    turns: list[bool] = []
    switch = Switch(".debug", is_on=lambda: bool(turns and turns[-1]), turn=turns.append)
    assert switch.content == b"0\n"
    assert switch.write(b"1\n") == 2
    assert switch.content == b"1\n"
    assert switch.write(b"0\nand more") == 2
    for refused in (b"", b"1", b"2\n", b"01\n", b"\n"):
        with pytest.raises(Failed):
            switch.write(refused)
    assert turns == [True, False]
