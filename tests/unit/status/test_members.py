"""The member list: which changes are counted, and the lifetime of a node's state."""

import pytest

from pmxcfs.errors import NoSpace
from pmxcfs.messages import Member
from pmxcfs.status.members import KEY_OVERHEAD, MAX_KEYS_SIZE, MAX_UNCONFIGURED, Keys, Members, Peer
from tests.fakes.data.configs import config


@pytest.fixture
def members() -> Members:
    made = Members("a")
    made.configure(config("a", "b", "c"))
    return made


def heard(members: Members, nodeid: int) -> Peer:
    peer = members.sender(nodeid)
    assert peer is not None
    return peer


def test_each_change_of_the_cluster_is_counted_once() -> None:
    members = Members("a")
    counts = [(members.clinfo, members.revision)]

    def note() -> None:
        counts.append((members.clinfo, members.revision))

    for _ in range(2):  # the second time changes nothing
        members.configure(config("a", "b"))
        note()
    for _ in range(2):
        members.set_present([Member(1, 300), Member(2, 90)])
        note()
    for _ in range(2):
        members.set_address(heard(members, 2), "10.0.0.2")
        note()
    for _ in range(2):
        members.set_quorate(True)
        note()
    assert [clinfo for clinfo, _ in counts] == [1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert [revision for _, revision in counts] == [0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_restarted_member_is_a_change(members: Members) -> None:
    members.set_present([Member(1, 300), Member(2, 90)])
    before = members.clinfo
    members.set_present([Member(1, 300), Member(2, 91)])
    assert members.clinfo == before + 1
    assert members.online == {1, 2}


def test_a_resolved_address_counts_until_one_is_set(members: Members) -> None:
    members.set_resolved("10.0.0.1")
    assert members.addresses() == {"a": "10.0.0.1"}
    members.set_address(members.own, "10.0.0.9")
    members.set_resolved("10.0.0.1")
    assert members.addresses() == {"a": "10.0.0.9"}


def test_the_sender_is_the_node_of_the_configuration(members: Members) -> None:
    assert heard(members, 1) is members.own
    assert heard(members, 2) is heard(members, 2)
    assert (heard(members, 3).name, heard(members, 2).name) == ("c", "b")
    assert [peer.name for peer in members] == ["a", "b", "c"]
    assert members.named("b") is heard(members, 2)
    assert members.named("x") is None
    assert members.named("") is None


def test_a_node_that_sent_nothing_is_not_found(members: Members) -> None:
    assert [peer.name for peer in members] == ["a"]
    assert members.named("b") is None


def test_a_node_outlives_a_new_configuration_but_not_its_entry(members: Members) -> None:
    b, c = heard(members, 2), heard(members, 3)
    members.set_present([])
    members.configure(config("a", "b", "c", "d", version=2))
    assert heard(members, 2) is b
    members.configure(config("a", "b", version=3))
    members.configure(config("a", "b", "c", version=4))
    assert heard(members, 2) is b
    assert heard(members, 3) is not c


def test_a_node_with_a_new_id_or_name_is_another_node(members: Members) -> None:
    b = heard(members, 2)
    members.configure(config("a", "c", "b", version=2))
    assert heard(members, 2) is not b
    assert heard(members, 3) is not b
    assert members.named("b") is heard(members, 3)


def test_a_node_may_send_before_it_is_configured() -> None:
    members = Members("a")
    own, b, other = (heard(members, nodeid) for nodeid in (1, 2, 9))
    assert [peer.name for peer in members] == ["a"]
    members.configure(config("a", "b"))
    assert heard(members, 2) is b
    assert [peer.name for peer in members] == ["a", "b"]
    assert heard(members, 1) is members.own is not own
    assert heard(members, 9) is not other


def test_the_number_of_unconfigured_nodes_is_limited(members: Members) -> None:
    ids = range(1000, 1000 + MAX_UNCONFIGURED)
    unconfigured = [heard(members, nodeid) for nodeid in ids]
    assert members.sender(7777) is None
    assert [members.sender(nodeid) for nodeid in ids] == unconfigured
    assert heard(members, 2).name == "b"


# The keys of one node


def test_the_version_of_a_key_counts_its_changes() -> None:
    keys = Keys()
    seen = []
    for content in (b"x", b"y", b"y"):
        keys.put("key", content)
        seen.append((keys.values["key"].version, keys.values["key"].content))
    assert seen == [(0, b"x"), (1, b"y"), (2, b"y")]
    assert keys.remove("key")
    assert not keys.remove("key")
    keys.put("key", b"z")
    assert keys.values["key"].version == 0


def test_the_size_of_a_nodes_keys_is_limited() -> None:
    keys = Keys()
    value = bytes(32768)
    count = MAX_KEYS_SIZE // (len(value) + KEY_OVERHEAD + len("100"))
    for number in range(100, 100 + count):
        keys.put(str(number), value)
    keys.put("100", value)  # not larger than before
    with pytest.raises(NoSpace):
        keys.put("new", value)
    assert "new" not in keys.values
    assert keys.remove("101")
    keys.put("new", value)
    keys.put("new", b"less")
    keys.put("102", value)
    for key in list(keys.values):
        keys.remove(key)
    assert keys._size == 0
