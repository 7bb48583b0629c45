"""The status group: the queue of unsent messages, and messages of peers."""

import threading

import pytest

from pmxcfs.cluster import status_group as module
from pmxcfs.cluster.status_group import StatusContent, StatusSource
from pmxcfs.dfsm.effects import Deliver
from pmxcfs.errors import Busy
from pmxcfs.messages import Body, LogEntry, Member, Normal, SetKey
from pmxcfs.status.cluster_log import ClusterLog
from pmxcfs.status.counters import Status
from pmxcfs.status.log_ring import in_order
from pmxcfs.tree.guests import Guests
from tests.fakes.data.configs import config

ME, PEER = Member(1, 100), Member(2, 200)


def entry(text: str, *, node: str = "node2", time: int = 1000) -> LogEntry:
    """Return a log entry of another node."""
    log = ClusterLog(node)
    return log.compose(text, ident="root", tag="test", priority=6, pid=1, time=time)


def drain(source: StatusSource) -> list[Body]:
    """Send all queued messages; return their bodies."""
    found: list[Body] = []
    while (body := source.take(1.0)) is not None:
        found.append(body)
        source.sent(len(found))
    return found


def test_only_the_newest_value_of_a_key_is_sent() -> None:
    wakes: list[None] = []
    source = StatusSource(wake=lambda: wakes.append(None))
    source.put(SetKey("a", b"1"), SetKey("b", b"1"))
    source.put(SetKey("a", b"2"))
    assert drain(source) == [SetKey("b", b"1"), SetKey("a", b"2")]
    assert len(wakes) == 2
    assert source.take(1.0) is None


def test_keys_are_sent_before_log_entries_which_keep_their_order() -> None:
    source = StatusSource(wake=lambda: None)
    first, second = entry("first"), entry("second")
    source.put(first, SetKey("a", b"1"), second)
    assert drain(source) == [SetKey("a", b"1"), first, second]


@pytest.mark.parametrize("gone", ["not_sent", "refused"])
def test_a_message_that_was_not_sent_is_the_next_again(gone: str) -> None:
    source = StatusSource(wake=lambda: None)
    line = entry("line")
    source.put(SetKey("a", b"1"), SetKey("b", b"1"), line)

    def fail() -> None:
        source.take(1.0)
        source.not_sent() if gone == "not_sent" else source.refused(Busy("no room"))

    fail()
    assert source.take(1.0) == SetKey("a", b"1")
    source.sent(1)
    source.take(1.0)
    source.sent(2)
    fail()
    assert drain(source) == [line]


def test_a_newer_value_replaces_one_that_was_not_sent() -> None:
    source = StatusSource(wake=lambda: None)
    source.put(SetKey("a", b"old"), SetKey("b", b"1"))
    source.take(1.0)
    source.put(SetKey("a", b"new"))
    source.not_sent()
    assert drain(source) == [SetKey("b", b"1"), SetKey("a", b"new")]


def test_a_long_outage_costs_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_UNSENT_BYTES", 10_000)
    source = StatusSource(wake=lambda: None)
    for number in range(100):
        source.put(SetKey(f"key{number}", bytes(1000)))
        source.take(1.0)
        source.not_sent()
    for number in range(2000):
        source.put(SetKey("same", bytes(number % 1000)))
    kept = drain(source)
    sizes = [module._cost(body.key, body.value) for body in kept if isinstance(body, SetKey)]
    assert 8_000 < sum(sizes) <= 10_000 + module._cost("same", bytes(999))
    assert kept[-1] == SetKey("same", bytes(999))
    assert [body.key for body in kept[:-1] if isinstance(body, SetKey)][-1] == "key99"


def test_the_newest_log_entries_are_kept() -> None:
    source = StatusSource(wake=lambda: None)
    lines = [entry(f"{number}") for number in range(module.MAX_UNSENT_ENTRIES + 5)]
    source.put(*lines[:-1])
    assert source.take(1.0) == lines[4]
    source.put(lines[-1])
    source.not_sent()
    assert drain(source) == lines[5:]


class World:
    """The status of node 1, and the content and the source of its status group."""

    def __init__(self) -> None:
        self.status = Status("node1", Guests(), start_time=0)
        self.status.members.configure(config("node1", "node2", "node3"))
        self.source = StatusSource(wake=lambda: None)
        self.echoes = 0
        self.content = StatusContent(
            self.status, self.source, lock=threading.Lock(), on_echo=self.on_echo
        )
        self.content.on_members([ME, PEER], me=ME)

    def on_echo(self) -> None:
        self.echoes += 1

    def deliver(self, sender: Member, *bodies: Body) -> None:
        messages = [Deliver(sender, Normal(0, n, body)) for n, body in enumerate(bodies, 1)]
        assert self.content.deliver(messages)


def test_peers_set_their_own_keys_and_echoes_set_none() -> None:
    world = World()
    world.status.keys.set("a", b"mine", now=1.0)
    world.deliver(PEER, SetKey("a", b"theirs"))
    assert world.echoes == 0
    world.deliver(ME, SetKey("a", b"older"))
    assert world.echoes == 1
    assert world.status.keys.get("a") == b"mine"
    assert world.status.keys.get("a", "node2") == b"theirs"


def test_an_echoed_log_entry_is_not_inserted_twice() -> None:
    world = World()
    line = world.status.log.compose("x", ident="root", tag="t", priority=6, pid=1, time=2000)
    world.status.log.insert(line)
    world.deliver(ME, line)
    world.deliver(PEER, entry("theirs"))
    assert [bytes(one.message) for one in world.status.log] == [b"theirs", b"x"]


def test_a_merge_joins_the_logs_and_queues_the_keys_of_this_node() -> None:
    world = World()
    world.status.keys.set("a", b"1", now=1.0)
    world.status.members.set_resolved("192.0.2.1")
    theirs = ClusterLog("node2")
    theirs.insert(entry("theirs"))
    mine = world.content.state()
    world.content.merge({ME: mine, PEER: in_order(theirs.share())})
    assert [bytes(one.message) for one in world.status.log] == [b"theirs"]
    assert drain(world.source) == [SetKey("a", b"1"), SetKey("nodeip", b"192.0.2.1\0")]


def test_members_of_the_group_are_online() -> None:
    world = World()
    assert world.status.members.online == {1, 2}
    world.content.on_members([], me=ME)
    assert world.status.members.online == frozenset()
