"""The key/value store: keys of this node, keys of other nodes, and the special keys."""

import pytest

from pmxcfs.errors import NameTooLong, NoSpace, NotFound, TooBig
from pmxcfs.messages import SetKey
from pmxcfs.status.kvstore import MAX_KEY, MAX_VALUE, KeyValueStore
from pmxcfs.status.members import MAX_KEYS_SIZE, MAX_UNCONFIGURED, Members
from pmxcfs.status.metrics import Metrics
from tests.fakes.data.configs import config

METRIC = "rrd/pve2-node/b"


@pytest.fixture
def members() -> Members:
    made = Members("a")
    made.configure(config("a", "b"))
    return made


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def store(members: Members, metrics: Metrics) -> KeyValueStore:
    return KeyValueStore(members, metrics)


def receive(store: KeyValueStore, key: str, value: bytes, *, nodeid: int = 2) -> None:
    store.receive(nodeid, SetKey(key, value), now=0)


def test_an_own_key(store: KeyValueStore) -> None:
    revisions = [store.revision]
    for value in (b"one\0", b"two\0", b""):
        store.set("key", value, now=0)
        revisions.append(store.revision)
        if value:
            assert store.get("key") == store.get("key", "a") == value
    assert len(set(revisions)) == 4
    with pytest.raises(NotFound):
        store.get("key")
    store.set("key", b"", now=0)
    assert store.revision == revisions[-1]
    assert store.versions() == {"a": {}}


def test_limits_of_a_key(store: KeyValueStore) -> None:
    store.set("\xe4" * (MAX_KEY // 2), bytes(MAX_VALUE), now=0)
    with pytest.raises(NameTooLong):
        store.set("\xe4" * (MAX_KEY // 2 + 1), b"x", now=0)
    for key in ("key", "nodeip", METRIC):
        with pytest.raises(TooBig):
            store.set(key, bytes(MAX_VALUE + 1), now=0)
    assert len(store.own_messages()) == 1


def test_the_size_of_our_own_keys_is_limited(store: KeyValueStore) -> None:
    for number in range(MAX_KEYS_SIZE // MAX_VALUE - 2):
        store.set(str(number), bytes(MAX_VALUE), now=0)
    with pytest.raises(NoSpace):
        store.set("one more", bytes(MAX_VALUE), now=0)
    assert "one more" not in store.versions()["a"]


def test_the_keys_of_other_nodes(store: KeyValueStore) -> None:
    receive(store, "key", b"theirs")
    store.set("key", b"ours", now=0)
    assert store.get("key", "b") == b"theirs"
    assert store.get("key") == b"ours"
    for key, node in (("other", "b"), ("key", "c"), ("nodeip", "a"), (METRIC, "b")):
        with pytest.raises(NotFound):
            store.get(key, node)
    assert store.versions() == {"a": {"key": 0}, "b": {"key": 0}}
    receive(store, "key", b"")
    assert store.versions() == {"a": {"key": 0}, "b": {}}


def test_another_node_is_listed_once_it_has_sent_a_key(store: KeyValueStore) -> None:
    receive(store, "nodeip", b"10.0.0.2\0")
    receive(store, METRIC, b"1:2\0")
    receive(store, "key", b"")
    assert store.versions() == {"a": {}}
    receive(store, "key", b"x")
    assert store.versions() == {"a": {}, "b": {"key": 0}}


def test_our_own_messages_are_ignored(store: KeyValueStore) -> None:
    store.set("key", b"new", now=0)
    receive(store, "key", b"old", nodeid=1)
    assert store.get("key") == b"new"
    assert store.versions() == {"a": {"key": 0}}


def test_an_address(store: KeyValueStore, members: Members) -> None:
    before = members.clinfo
    receive(store, "nodeip", b"10.0.0.2\0")
    store.set("nodeip", b"fe80::1\0left over", now=0)
    assert members.addresses() == {"a": "fe80::1", "b": "10.0.0.2"}
    assert members.clinfo == before + 2
    receive(store, "nodeip", b"10.0.0.2\0")
    assert members.clinfo == before + 2


@pytest.mark.expect_log("the address from node b is not printable text that ends with NUL")
@pytest.mark.parametrize(
    "value", [b"", b"\0", b"10.0.0.2", b"a\nb\0", b"\xff\0", b"1" * 256 + b"\0"]
)
def test_an_invalid_address_is_dropped(
    store: KeyValueStore, members: Members, value: bytes
) -> None:
    receive(store, "nodeip", value)
    assert members.addresses() == {}


def test_metrics_are_not_stored_as_keys(store: KeyValueStore, metrics: Metrics) -> None:
    revision = store.revision
    receive(store, METRIC, b"1:2\0")
    store.set("rrd/pve2-node/a", b"3:4\0", now=1)
    assert metrics.render(1) == b"pve2-node/b:1:2\npve2-node/a:3:4\n"
    assert store.revision == revision


def test_own_messages_hold_all_keys_and_the_address(store: KeyValueStore, members: Members) -> None:
    members.set_resolved("10.0.0.1")
    for key, value in (("one", b"1"), ("rrd/pve2-node/a", b"x\0"), ("two", b"2"), ("one", b"3")):
        store.set(key, value, now=0)
    receive(store, "three", b"3")
    assert store.own_messages() == [
        SetKey("one", b"3"),
        SetKey("two", b"2"),
        SetKey("nodeip", b"10.0.0.1\0"),
    ]


def test_a_key_may_come_before_the_configuration() -> None:
    members = Members("a")
    store = KeyValueStore(members, Metrics())
    receive(store, "key", b"x")
    assert store.versions() == {"a": {}}
    members.configure(config("a", "b"))
    assert store.get("key", "b") == b"x"


@pytest.mark.expect_log("dropped a key of node 7777, which is not in the configuration")
@pytest.mark.expect_log("dropped a key of node 2: a value of 32769 bytes is too large")
@pytest.mark.expect_log("dropped a key of node 2: the keys of a node may together take")
def test_other_nodes_can_not_fill_the_memory(store: KeyValueStore) -> None:
    for nodeid in range(1000, 1000 + MAX_UNCONFIGURED):
        receive(store, "key", b"x", nodeid=nodeid)
    receive(store, "key", b"x", nodeid=7777)
    receive(store, "key", bytes(MAX_VALUE + 1))
    for number in range(MAX_KEYS_SIZE // MAX_VALUE):
        receive(store, str(number), bytes(MAX_VALUE))
    assert sum(len(keys) for keys in store.versions().values()) < MAX_KEYS_SIZE // MAX_VALUE
