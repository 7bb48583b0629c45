"""Hostile messages of a group member: no daemon fails, and the cluster stays synced."""

import json
import re
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from pmxcfs._cpg import encode
from pmxcfs.messages import (
    Body,
    Create,
    Delete,
    EntryType,
    Epoch,
    Group,
    LogEntry,
    Message,
    Mkdir,
    Mtime,
    Normal,
    Record,
    Rename,
    SetKey,
    State,
    SyncStart,
    Unlock,
    UnlockRequest,
    Update,
    UpdateComplete,
    Verify,
    VerifyRequest,
    Write,
)
from pmxcfs.status.log_ring import SIZE, LogRing
from tests.cluster.intruder import Intruder, intruding
from tests.cluster.lab import Member
from tests.cluster.together import STOP, Cluster, timed

pytestmark = pytest.mark.needs_corosync

PROMPT = 30.0  # seconds for steps of milliseconds on an idle machine
MEMBERS = [1, 2, 3, 3]  # by node: the intruder is the second one on node 3
STRANGE = Epoch(7, 7, 7, 7)  # an epoch of no round
NOW = 1_700_000_000
MAX = 0xFFFFFFFF
ENTRY = LogEntry(1, NOW, 77, 78, 1, 6, b"node3", b"root", b"tag", b"text")
RECORD = Record(99, 0, 99, 3, NOW, EntryType.FILE, b"name", b"data")
DROPPED = "dropped a message of member 3/"
FEW = 20  # lines of the log: one for each group at once, then one a minute
FLOOD = 100_000  # messages
FLOOD_TIME = 240.0  # seconds
COUNT = re.compile(r"\((\d+) times since the last such line\)")

CHANGES: Sequence[Body] = (
    Write("a/path", 0, b"data", truncate=True),
    Mkdir("a/path"),
    Delete("a/path"),
    Rename("a/path", "to/path"),
    Create("a/path"),
    Mtime("a/path", NOW),
)
UNLOCKS: Sequence[Body] = (
    UnlockRequest("priv/lock/x", bytes(32)),
    Unlock("priv/lock/x", bytes(32)),
)
ROUND: Sequence[Message] = (
    SyncStart(NOW, STRANGE),
    Update(NOW, STRANGE, RECORD),
    UpdateComplete(NOW, STRANGE),
    VerifyRequest(NOW, STRANGE, 1),
    Verify(NOW, STRANGE, 1, bytes(32)),
)


def normal(body: Body, serial: int = 1) -> bytes:
    group = Group.STATUS if isinstance(body, SetKey | LogEntry) else Group.TREE
    return encode(Normal(NOW, serial, body), group=group)


def tree(message: Message) -> bytes:
    return encode(message, group=Group.TREE)


def header(kind: int, subtype: int = 0, *, version: int = 1) -> bytes:
    return struct.pack("<HHIII", kind, subtype, version, NOW, 0)


def change(kind: int, *numbers: int, rest: bytes) -> bytes:
    """Encode a change with these header fields: size, offset, path lengths, flags."""
    return header(0, kind) + struct.pack("<Q5I", 1, *numbers) + rest


def cut(message: bytes, end: int | None = None) -> list[bytes]:
    """Return all truncations that are shorter than *end* bytes."""
    return [message[:size] for size in range(len(message) if end is None else end)]


def malformed_in_tree() -> Iterator[bytes]:
    whole = [*map(normal, CHANGES), *map(tree, ROUND)]
    for message in (*whole, *map(normal, UNLOCKS), tree(State(NOW, STRANGE, b""))):
        yield from cut(message)
    yield from (message + b"x" for message in whole)
    for kind in (0, 9, 255, 0xFFFF):
        yield change(kind, 0, 0, 2, 0, 0, rest=b"a\0")
    for kind in (7, 8, 255, 0xFFFF):
        yield header(kind) + bytes(64)
    for numbers in (
        (MAX, 0, 2, 0, 0),
        (0, 0, MAX, 0, 0),
        (MAX, 0, 2, MAX, 0),
        (MAX - 1, 0, 2, 2, 0),  # valid if it wraps around in 32 bits
        (0, 0, 0, 0, 0),  # a path without NUL
        (1, 0, 1, 0, 0),
    ):
        yield change(1, *numbers, rest=b"a\0")
        yield change(4, *numbers, rest=b"a\0")
    yield header(3) + struct.pack("<4I3Q4IB", *STRANGE, 0, 9, 9, 3, NOW, MAX, MAX, 8) + b"n\0"
    yield header(0xFFFF) + bytes(3 << 20)  # in fragments


def malformed_in_status() -> Iterator[bytes]:
    yield from cut(normal(SetKey("key", b"value")), 24 + 256)
    yield header(0, 1, version=0) + bytes(8) + b"k" * 256 + b"value"
    whole = normal(ENTRY)
    yield from cut(whole)
    yield whole + b"x"
    yield from (header(0, subtype, version=0) + bytes(300) for subtype in (0, 2, 4, 0xFFFF))
    yield from (header(kind, version=0) + bytes(64) for kind in (3, 4, 5, 6, 7, 0xFFFF))
    for length in (0, 1, MAX):  # of the message
        yield whole[:64] + struct.pack("<I", length) + whole[68:]


def mixed(malformed: Sequence[bytes], valid: Sequence[bytes]) -> list[bytes]:
    """Return *malformed* with *valid* in between."""
    share = -(-len(malformed) // len(valid))
    found: list[bytes] = []
    for number, message in enumerate(valid):
        found += [*malformed[number * share : (number + 1) * share], message]
    return found


class World:
    """The cluster, with an agent on each node."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nodes = cluster.nodes
        self.agents = cluster.agents()

    def infos(self) -> list[dict[str, Any]]:
        return [node.daemon.info() for node in self.nodes]

    def drops(self) -> list[int]:
        return [info["dropped"] for info in self.infos()]

    def is_whole(self) -> bool:
        """Tell whether all members are still synced, with one tree."""
        infos = self.infos()
        return len({info["checksum"] for info in infos}) == 1 and all(
            info["mode"] == info["status_mode"] == "synced"
            and info["members"] == info["status_members"] == MEMBERS
            for info in infos
        )

    def wait_until_whole(self) -> None:
        self.cluster.wait_until(self.is_whole, PROMPT, f"members {MEMBERS} with one tree")

    def wait_for_lines(self, node: Member, text: str, *, count: int = 1) -> None:
        """Wait until the node's log has *count* lines with *text*."""
        self.cluster.wait_until(
            lambda: len(node.daemon.log_lines(text)) >= count, PROMPT, f"{text!r} in the log"
        )

    def wait_for(self, path: str) -> None:
        """Wait until all nodes have *path*, which was sent last."""
        self.cluster.wait_until(
            lambda: not any(agent.do(("stat", path))[0].error for agent in self.agents),
            PROMPT,
            path,
        )

    def documents(self) -> list[dict[str, Any]]:
        """Return the status files of each node, parsed."""
        names = (".clusterlog", ".version", ".members", ".vmlist")
        return [{name: json.loads(agent("get", name)) for name in names} for agent in self.agents]


@pytest.fixture
def world(cluster: Cluster) -> World:
    return World(cluster)


@pytest.fixture
def intruder(world: World) -> Iterator[Intruder]:
    """An intruder in both groups; at the end the other members must be a synced cluster."""
    with intruding(world.cluster[3]) as intruder:
        world.wait_until_whole()
        yield intruder
        world.wait_until_whole()


def test_malformed_messages_are_dropped_and_counted(world: World, intruder: Intruder) -> None:
    before = world.drops()
    in_tree, in_status = list(malformed_in_tree()), list(malformed_in_status())
    count = len(in_tree) + len(in_status)
    bodies: list[Body] = [Mkdir("valid")]
    for number in range(20):
        path = f"valid/f{number}"
        bodies += [Create(path), Write(path, 0, b"%d" % number, truncate=True)]
    changes = [normal(body, serial) for serial, body in enumerate(bodies, 1)]
    keys = [normal(SetKey(f"k{number}", b"x"), number) for number in range(1, 20)]
    intruder.send(Group.TREE, *mixed(in_tree, changes))
    intruder.send(Group.STATUS, *mixed(in_status, keys))
    wanted = [number + count for number in before]
    world.cluster.wait_until(lambda: world.drops() == wanted, PROMPT, f"{count} drops")
    world.cluster.wait_until(
        lambda: all(agent.do(("get", "valid/f19"))[0].value == b"19" for agent in world.agents),
        PROMPT,
        "the last file",
    )
    for agent in world.agents:
        assert [agent("get", f"valid/f{n}") for n in range(20)] == [b"%d" % n for n in range(20)]
    for node in world.nodes:
        world.wait_for_lines(node, DROPPED, count=2)  # one of each group
        assert len(node.daemon.log_lines(DROPPED)) <= FEW
    wanted_keys = {f"k{number}" for number in range(1, 20)}
    world.cluster.wait_until(
        lambda: all(
            document[".version"]["kvstore"].get("node3", {}).keys() >= wanted_keys
            for document in world.documents()[:2]  # node 3 takes no keys of its own from others
        ),
        PROMPT,
        "all keys",
    )


@pytest.mark.long
def test_a_flood_of_malformed_messages_leaves_few_lines_and_an_exact_count(
    world: World, intruder: Intruder, report: Callable[[object], None]
) -> None:
    """Also while the flood lasts, the nodes are synced and take changes."""
    start, cpu = time.monotonic(), [node.daemon.cpu_seconds() for node in world.nodes]
    before = world.drops()
    samples = [b"", header(0, 77) + bytes(64), change(1, MAX, 0, 2, 0, 0, rest=b"a\0")]
    waits = []
    for part in range(10):
        intruder.send(Group.TREE, *(samples * FLOOD)[: FLOOD // 10])
        with timed() as took:
            world.agents[0]("create", f"flooded{part}", b"x")
        waits += took
    wanted = [number + FLOOD for number in before]
    world.cluster.wait_until(lambda: world.drops() == wanted, FLOOD_TIME, f"{FLOOD} drops")
    seconds = time.monotonic() - start
    spent = [node.daemon.cpu_seconds() - then for node, then in zip(world.nodes, cpu, strict=True)]
    world.wait_until_whole()
    lines = [len(node.daemon.log_lines(DROPPED)) for node in world.nodes]
    report(f"{FLOOD} messages in {seconds:.1f} s, CPU {spent}, lines {lines}, waits {waits}")
    assert max(lines) <= FEW
    node = world.nodes[0]
    assert node.daemon.stop(seconds=STOP) == 0
    logged = [COUNT.search(line) for line in node.daemon.log_lines(DROPPED)]
    assert sum(int(found[1]) if found else 1 for found in logged) == wanted[0]
    world.cluster.launch(node)


def test_messages_out_of_place_are_ignored(world: World, intruder: Intruder) -> None:
    before, epoch = world.drops(), intruder.epoch(Group.TREE)
    messages: Sequence[Message] = (
        *ROUND,
        State(NOW, STRANGE, b"no index"),
        Update(NOW, epoch, RECORD),
        UpdateComplete(NOW, epoch),
        Verify(NOW, epoch, MAX, bytes(32)),  # an unexpected message
        SyncStart(NOW, epoch),  # all are synced
    )
    older = normal(Mkdir("older")).replace(header(0, 2), header(0, 2, version=0))
    intruder.send(Group.TREE, *map(tree, messages), older, normal(Mkdir("placed")))
    strange: Sequence[Message] = (SyncStart(NOW, STRANGE), State(NOW, STRANGE, b"no ring"))
    intruder.send(Group.STATUS, *[encode(message, group=Group.STATUS) for message in strange])
    world.wait_for("placed")
    for agent in world.agents:
        assert not {"older", "name"} & set(agent("list"))
    assert world.drops() == before


def test_changes_that_no_daemon_sends_are_applied_or_refused_by_all_alike(
    world: World, intruder: Intruder
) -> None:
    bodies: Sequence[Body] = (
        Mkdir("odd"),
        Mkdir("odd/dir"),
        Create("odd/file"),
        Rename("odd/dir", "odd/dir"),
        Rename("odd/dir", "odd/dir/below"),
        Rename("odd", "odd/dir/below"),
        Rename("odd/file", "odd/file"),
        Rename("", "odd/root"),
        Rename("odd/file", ""),
        Rename("", ""),
        Delete(""),
        Mtime("", MAX),
        Mkdir(""),
        Mkdir("odd/.."),
        Create("odd/."),
        Create("../../etc/shadow"),
        Create("////"),
        Create("nowhere/at/all"),
        Write("odd/file", MAX, b"", truncate=True),
        Write("odd/file", 1 << 20, b"x", truncate=False),
        Write("odd/file", 0, bytes((1 << 20) + 1), truncate=False),
        Write("odd/file", 1000, b"", truncate=True),
        Mtime("odd/file", MAX),
        UnlockRequest("odd/file", bytes(32)),
        Unlock("odd/file", bytes(32)),
        Unlock("", bytes(32)),
        Create("odd/for-dot"),
        Rename("odd/for-dot", "odd/dir/."),
        Create("odd/for-dotdot"),
        Rename("odd/for-dotdot", "odd/dir/.."),
        Create("odd/\udcff\udcfe\n\x1b[31m"),
        Create("odd/" + "n" * 300),
        Create("odd/" + "n" * 2000),
        Create("odd/" + "n" * 5000),
        Create("odd/" + "d/" * 5000),
        Create("odd/end"),
    )
    intruder.send(Group.TREE, *[normal(body, (1 << 64) - 1) for body in bodies])
    world.wait_for("odd/end")
    world.wait_until_whole()
    listed = [agent("list", "odd") for agent in world.agents]
    assert listed[0] == listed[1] == listed[2]
    assert {"dir", "file", "end", "n" * 300} <= set(listed[0])
    assert max(map(len, listed[0])) == 300
    for agent in world.agents:
        assert agent("get", "odd/file") == bytes(1000)
        assert agent("list", "odd/dir") == []
    world.agents[0]("put", "odd/file", b"usable")
    assert world.agents[0]("get", "odd/file") == b"usable"
    world.wait_until_whole()


def test_hostile_keys_and_log_entries_leave_the_status_readable(
    world: World, intruder: Intruder
) -> None:
    keys = {
        "k" * 255: b"x",
        "": b"empty",
        'quote"back\\slash\n\x01': b"x",
        "\udcff\udcc0": b"x",
        "rrd/../../etc/passwd": b"1:2\0",
        "rrd/pve2-node/../../x": b"1:2\0",
        "rrd/pve2-node/node3": b'"\n\x00',
        "rrd/": b"",
        "too-big": bytes(32769),
        "enormous": bytes(1 << 20),
        "nodeip": b'1.2.3.4"\\\0',
    }
    texts = (b"\\", b'"', b'\\"\\', b"\\u12", b"\\ud800", b"\xff\x00\x01\n", b"x" * 3000, b"")
    entries = [
        ENTRY._replace(uid=uid, priority=255, message=text, node=text[:200], tag=text[:200])
        for uid, text in enumerate(texts, 100)
    ]
    big = ENTRY._replace(uid=200, message=b"x" * 100_000)
    last = ENTRY._replace(uid=300, message=b"the last one")
    bodies: Sequence[Body] = (*[SetKey(*pair) for pair in keys.items()], *entries, big, last)
    intruder.send(Group.STATUS, *map(normal, bodies))
    world.cluster.wait_until(
        lambda: all(b"the last one" in agent("get", ".clusterlog") for agent in world.agents),
        PROMPT,
        "the last entry",
    )
    documents = world.documents()
    logs = [document[".clusterlog"]["data"] for document in documents]
    assert logs[0] == logs[1] == logs[2]
    assert {entry["uid"] for entry in logs[0]} >= {*range(100, 100 + len(texts)), 300}
    for node in world.nodes:
        world.wait_for_lines(node, "dropped a cluster log entry of 100")
    for node, agent, document in list(zip(world.nodes, world.agents, documents, strict=True))[:2]:
        world.wait_for_lines(node, "dropped a key of node 3: a value of")
        assert len(node.daemon.log_lines("dropped a key of node 3: a value of")) == 1
        world.wait_for_lines(node, "../../etc/passwd")
        assert b"passwd" not in agent("get", ".rrd")
        assert document[".members"]["nodelist"]["node3"]["ip"] == '1.2.3.4"\\'
        assert "k" * 255 in document[".version"]["kvstore"]["node3"]


def ring(*entries: LogEntry, newest: int | None = None) -> bytes:
    raw = bytearray(bytes(LogRing.of(entries)))
    if newest is not None:
        raw[4:8] = struct.pack("<I", newest)
    return bytes(raw)


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(b"", id="empty"),
        pytest.param(ring()[:-1], id="short"),
        pytest.param(ring(ENTRY, newest=SIZE - 4), id="newest-at-the-end"),
        pytest.param(ring(ENTRY, newest=MAX), id="newest-outside"),
        pytest.param(struct.pack("<II", SIZE, 8) + b"\x08\0\0\0" * (SIZE // 4 - 2), id="circle"),
        pytest.param(struct.pack("<II", SIZE, 8) + b"\xff" * (SIZE - 8), id="ones"),
        pytest.param(ring(ENTRY._replace(message=b'\\"\n\\')), id="not-json"),
    ],
)
def test_a_hostile_ring_does_not_damage_the_cluster_log(world: World, hostile: bytes) -> None:
    with intruding(world.cluster[3], ring=hostile):
        world.wait_until_whole()
        logs = [document[".clusterlog"]["data"] for document in world.documents()]
        assert logs[0] == logs[1] == logs[2]
        assert {"node1", "node2", "node3"} <= {entry["node"] for entry in logs[0]}


def test_a_state_that_is_no_index_does_not_end_the_round(world: World) -> None:
    with intruding(world.cluster[3], indexes=[b"no index"]) as intruder:
        world.wait_until_whole()
        for node in world.nodes:
            world.wait_for_lines(node, "sent an invalid state")
        intruder.send(Group.TREE, normal(Mkdir("after-no-index")))
        world.wait_for("after-no-index")


def test_a_second_state_makes_all_members_synchronize_again(world: World) -> None:
    with intruding(world.cluster[3]) as intruder:
        world.wait_until_whole()
        intruder.send(Group.TREE, tree(State(NOW, intruder.epoch(Group.TREE), b"once more")))
    world.cluster.wait_for_agreement()
    for node in world.nodes:
        world.wait_for_lines(node, "unexpected state message")
    world.agents[0]("create", "after-rejoin", b"1")
    world.wait_for("after-rejoin")


def test_a_newer_protocol_ends_the_membership_for_good(world: World) -> None:
    def modes() -> set[str]:
        return {info[key] for info in world.infos() for key in ("mode", "status_mode")}

    with intruding(world.cluster[3]) as intruder:
        world.wait_until_whole()
        intruder.send(Group.TREE, header(0, 2, version=2))
        intruder.send(Group.STATUS, header(0, 1, version=1))
        world.cluster.wait_until(lambda: "synced" not in modes(), PROMPT, "all to leave")
    assert len(modes()) == 1
    for node, agent in zip(world.nodes, world.agents, strict=True):
        world.wait_for_lines(node, "update this node", count=2)
        assert len(node.daemon.log_lines("update this node")) == 2
        assert "corosync.conf" in agent("list")
        assert node.daemon.stop(seconds=3) == 0
    world.cluster.launch()
    world.cluster.wait_for_agreement()
