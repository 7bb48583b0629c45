"""Status files: their JSON, and snapshots whose content never changes."""

import gzip
import json
from collections.abc import Callable

import pytest

from pmxcfs.errors import Failed
from pmxcfs.messages import ClusterConfig, ClusterNode, Member, SetKey
from pmxcfs.status.counters import WATCHED, Status
from pmxcfs.status.files import Switch, links, status_files
from pmxcfs.tree.guests import GuestPath, Guests
from tests.places import VECTORS


class Source:
    """The status of a node and its status files."""

    def __init__(self, node: str = "node1") -> None:
        self.handed = 0
        self.guests = Guests()
        self.status = Status(node, self.guests, start_time=1234)
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
    source.status.on_change("user.cfg", sequence=0)
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
        source.status.on_change(f"nodes/node1/qemu-server/{vmid}.conf", sequence=0)
    assert json.loads(source.read(".vmlist")) == {
        "version": 3,
        "ids": {
            "100": {"node": "node1", "type": "qemu", "version": 1},
            "4294967295": {"node": "node1", "type": "qemu", "version": 2},
        },
    }


def test_rrd_and_cluster_log(source: Source) -> None:
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
    source.status.on_change("user.cfg", sequence=0)
    assert not file.is_current(first)
    second = file.snapshot(30)
    assert second is not first
    assert (first.content, first.made_ns) == (content, 20)
    assert second.content != content
    assert file.is_current(second)


def test_a_change_is_seen_after_its_invalidation(source: Source) -> None:
    file = source.files[".version"]
    before = file.snapshot(0)
    source.status.on_change("user.cfg", sequence=5)
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


# A cluster


def recorded_config() -> ClusterConfig:
    nodes = [ClusterNode(f"node{nodeid}", nodeid, f"10.99.0.{nodeid}", 1) for nodeid in (1, 2, 3)]
    return ClusterConfig("lab", 3, tuple(nodes))


def take_part(status: Status, *, nodeid: int, present: tuple[int, ...]) -> None:
    """Replay what the recorded daemons did: configure the nodes and set node2's keys."""
    members, keys = status.members, status.keys
    members.configure(recorded_config())
    members.set_quorate(True)
    members.set_present([Member(number, 100) for number in present])
    sent = [SetKey("tasklist", b"[]\0"), SetKey("rrd/pve2-node/node2", RRD.encode() + b"\0")]
    for number in present:
        for message in (*(sent if number == 2 else ()), address_of(number)):
            if number == nodeid:
                keys.set(*message, now=0)
            else:
                keys.receive(number, message, now=0)


def address_of(nodeid: int) -> SetKey:
    return SetKey("nodeip", f"10.99.0.{nodeid}\0".encode())


RRD = "5000:0:1795367000:0.5:4:0.01:0.001:8000000000:1000000000:0:0:100000000000:5000000000:100:200"
COUNTERS = {"starttime", "clinfo", "vmlist", *WATCHED}


@pytest.mark.parametrize("nodeid", [1, 2])
def test_the_recorded_status_files(nodeid: int) -> None:
    source = Source(f"node{nodeid}")
    take_part(source.status, nodeid=nodeid, present=(1, 2))

    def recorded(name: str) -> bytes:
        return (VECTORS / "status_files" / f"node{nodeid}{name}").read_bytes()

    members, version = json.loads(source.read(".members")), json.loads(source.read(".version"))
    assert version["clinfo"] == members.pop("version")
    expected = json.loads(recorded(".members"))
    assert members == {key: value for key, value in expected.items() if key != "version"}
    assert list(members["nodelist"]) == list(expected["nodelist"])
    assert version["kvstore"] == json.loads(recorded(".version"))["kvstore"]
    assert version.keys() == COUNTERS | {"kvstore"}
    assert source.read(".rrd") == recorded(".rrd")


def answers() -> dict[str, dict[str, str]]:
    lines = (VECTORS / "ipc.jsonl").read_text().splitlines()
    return {answer["note"]: answer for answer in map(json.loads, lines)}


def test_the_recorded_answers_to_clients() -> None:
    source = Source("node2")
    take_part(source.status, nodeid=2, present=(1, 2, 3))
    recorded = {note: answer.get("text", "") for note, answer in answers().items()}
    assert source.files[".rrd"].content.decode() + "\0" == recorded["GET_RRD_DUMP"]
    kvstore = json.loads(recorded["GET_FS_VERSION"])["kvstore"]
    assert json.loads(source.files[".version"].content)["kvstore"] == kvstore
    members = json.loads(source.files[".members"].content)
    assert {**members, "version": 6} == json.loads(recorded["GET_CLUSTER_INFO"])


def test_the_recorded_log() -> None:
    source = Source("node2")
    packed = (VECTORS / "clusterlog_state_node2_1795368210.bin.gz").read_bytes()
    source.status.log.merge([gzip.decompress(packed)])
    recorded = {note: answer.get("text", "") for note, answer in answers().items()}
    for note, selection in {
        "GET_CLUSTER_LOG max 2": {"most": 2},
        "GET_CLUSTER_LOG of one user": {"user": "root@pam"},
    }.items():
        repaired = recorded[note].replace(r" \ ", r" \\ ")
        text = source.status.log.render(**selection)  # type: ignore[arg-type]
        assert json.loads(text) == json.loads(repaired)


def test_members_without_quorum_and_peers() -> None:
    source = Source("node1")
    source.status.members.configure(recorded_config())
    members = json.loads(source.read(".members"))
    assert members["cluster"] == {"name": "lab", "version": 3, "nodes": 3, "quorate": 0}
    assert members["nodelist"]["node1"] == {"id": 1, "online": 0}


def test_names_and_keys_are_json_whatever_they_are() -> None:
    name = '"\\\n\udcff\N{PILE OF POO}'
    shown = '"\\\n?\N{PILE OF POO}'
    source = Source(name)
    source.status.members.configure(
        ClusterConfig(name, 1, (ClusterNode(name, 1, "", 1), ClusterNode("b" + name, 2, "", 1)))
    )
    source.status.keys.set(name, b"x", now=0)
    source.status.keys.receive(2, SetKey(name, b"x"), now=0)
    source.status.keys.receive(2, SetKey("nodeip", b'"\\\0'), now=0)
    members = json.loads(source.read(".members"))
    assert members["nodename"] == members["cluster"]["name"] == shown
    assert members["nodelist"]["b" + shown]["ip"] == '"\\'
    kvstore = json.loads(source.read(".version"))["kvstore"]
    assert kvstore == {shown: {shown: 0}, "b" + shown: {shown: 0}}


def test_each_file_is_rendered_once_per_change(source: Source) -> None:
    take_part(source.status, nodeid=1, present=(1, 2))
    steps: list[tuple[Callable[[], object], set[str]]] = [
        (lambda: None, set()),
        (lambda: source.status.members.set_quorate(False), {".members"}),
        (lambda: source.status.members.set_present([]), {".members", ".version"}),
        (lambda: source.status.keys.set("key", b"x", now=0), {".version"}),
        (lambda: source.status.keys.set("nodeip", b"::1\0", now=0), {".members", ".version"}),
        (lambda: source.status.keys.set("rrd/pve2-node/a", b"1\0", now=9), {".rrd"}),
        (lambda: source.status.log.begin(pid=1, time=2), {".clusterlog"}),
        (lambda: source.status.on_change("user.cfg", sequence=0), {".version"}),
        (lambda: setattr(source, "now", 301.0), {".rrd"}),
    ]
    for step, expected in steps:
        before = {name: file.content for name, file in source.files.items()}
        step()
        after = {name: file.content for name, file in source.files.items()}
        assert {name for name in after if after[name] is not before[name]} == expected
    assert source.files[".rrd"].snapshot(0).content == b"pve2-node/a:1\n"


def test_content_and_snapshots_are_the_same_bytes(source: Source) -> None:
    file = source.files[".members"]
    assert file.content is file.content is file.snapshot(5).content
    source.status.members.set_quorate(True)
    assert file.snapshot(6).content is file.content
