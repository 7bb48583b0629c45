"""A member that sends what no member should: that is dropped, and all else is applied."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from pmxcfs._cpg import decode, encode
from pmxcfs.errors import BadMessage
from pmxcfs.messages import Create, Group, LogEntry, Mkdir, Normal, SetKey, Write
from tests.cluster.agent import Agent
from tests.cluster.node import Worker
from tests.cluster.together import Cluster
from tests.fakes.samples import SAMPLES

pytestmark = pytest.mark.needs_corosync

SEED = 20261125
PATIENCE = 20.0  # seconds; a moment on an idle machine
PROTOCOL = slice(4, 8)  # where a message states it; a newer one makes members leave, as it should
LENGTHS = (24, 28, 32, 36)  # where a change of the tree states how long its parts are
WRONG = (0, 0x7FFFFFFF, 0xFFFFFFFF)


@pytest.fixture
def stranger(cluster: Cluster) -> Iterator[Worker]:
    """A process in node 3 that is a member of both groups, beside the daemon."""
    with closing(cluster[3].start_worker("tests.cluster.stranger:join")) as worker:
        yield worker


def hostile() -> list[tuple[Group, bytes]]:
    """Return damaged messages of every kind: cut off, with wrong lengths, types and bytes."""
    damaged = []
    chance = random.Random(SEED)
    for group, sample in SAMPLES:
        whole = encode(sample, group=group)
        ends = {0, 1, 3, len(whole) - 1, *chance.sample(range(len(whole)), 5)}
        damaged += [(group, whole[:end]) for end in sorted(ends) if not 4 <= end < PROTOCOL.stop]
        damaged += [(group, kind.to_bytes(2, "little") + whole[2:]) for kind in (7, 255, 65535)]
        damaged.append((group, whole[:2] + b"\x63\0" + whole[4:]))
        for place in LENGTHS:
            damaged += [
                (group, whole[:place] + wrong.to_bytes(4, "little") + whole[place + 4 :])
                for wrong in WRONG
                if place + 4 <= len(whole)
            ]
    return [(group, data) for group, data in damaged if data and is_bad(group, data)]


def is_bad(group: Group, data: bytes) -> bool:
    """Tell whether no member can make anything of it; what damage left whole is not sent."""
    try:
        decode(data, group=group)
    except BadMessage:
        return True
    return False


def good(number: int) -> list[bytes]:
    """Return changes of the tree that every member must apply."""
    path = f"hostile/f{number}"
    made = Normal(1000, 2 * number + 1, Create(path))
    filled = Normal(1000, 2 * number + 2, Write(path, 0, b"%d" % number, truncate=True))
    return [encode(message, group=Group.TREE) for message in (made, filled)]


def send(stranger: Worker, group: Group, data: bytes) -> None:
    stranger.connection.send((group.name, data))
    assert stranger.receive() == len(data)


def wait_for_stranger(cluster: Cluster) -> None:
    """Wait until it is a member and the round that it made is over."""

    def is_whole() -> bool:
        infos = [node.daemon.info() for node in cluster.nodes]
        return all(
            info["members"] == info["status_members"] == [1, 2, 3, 3]
            and info["mode"] == info["status_mode"] == "synced"
            for info in infos
        )

    cluster.wait_until(is_whole, PATIENCE, "the stranger to be a member")


def wait_for_names(cluster: Cluster, agent: Agent, names: list[str]) -> None:
    cluster.wait_until(lambda: agent("list", "hostile") == names, PATIENCE, "all changes")


def wait_for_entry(cluster: Cluster, agent: Agent, time: int) -> None:
    """Wait until the newest entry of the cluster log is of this time; it must be JSON always."""
    cluster.wait_until(
        lambda: json.loads(agent("get", ".clusterlog"))["data"][0]["time"] == time,
        PATIENCE,
        "the entry",
    )


def test_what_is_no_message_is_dropped_and_the_rest_applied(
    cluster: Cluster, stranger: Worker, report: Callable[[object], None]
) -> None:
    wait_for_stranger(cluster)
    dropped = {node.name: node.daemon.info()["dropped"] for node in cluster.nodes}
    pids = [node.daemon.info()["pid"] for node in cluster.nodes]
    damaged = hostile()
    send(stranger, Group.TREE, encode(Normal(1000, 0, Mkdir("hostile")), group=Group.TREE))
    changes = 0
    for number, (group, data) in enumerate(damaged):
        send(stranger, group, data)
        if number % 10 == 0:
            for change in good(changes):
                send(stranger, Group.TREE, change)
            changes += 1
    names = sorted(f"f{number}" for number in range(changes))
    for agent in cluster.agents():
        wait_for_names(cluster, agent, names)
        assert [agent("get", f"hostile/f{n}") for n in range(changes)] == [
            b"%d" % n for n in range(changes)
        ]
    infos = [node.daemon.info() for node in cluster.nodes]
    assert len({info["checksum"] for info in infos}) == 1
    assert [info["pid"] for info in infos] == pids
    for node, info in zip(cluster.nodes, infos, strict=True):
        assert info["dropped"] - dropped[node.name] == len(damaged)
        assert info["mode"] == info["status_mode"] == "synced"
        told = [line for line in node.daemon.log_text().splitlines() if "dropped a message" in line]
        assert len(told) >= len(damaged)
    report(
        f"hostile member: {len(damaged)} damaged messages dropped on each node, {changes} files "
        "made in between are on all of them"
    )


def test_status_of_a_hostile_member_harms_nobody(cluster: Cluster, stranger: Worker) -> None:
    wait_for_stranger(cluster)
    keys = ("rrd/pve2-node/../../etc/x", "rrd/" + "a/" * 100, "x" * 255, "nodeip", 'a"b\\c\n')
    digest = 0x1234
    entry = LogEntry(
        1, 2_000_000_000, digest, digest, 1, 255, b"a\\", b'"}', b"\n", b"\\ \x01 \xff" * 40
    )
    for serial, key in enumerate(keys, start=1):
        for value in (b"", b"no NUL", bytes(40_000)):
            message = Normal(1000, serial, SetKey(key, value))
            send(stranger, Group.STATUS, encode(message, group=Group.STATUS))
    send(stranger, Group.STATUS, encode(Normal(1000, 99, entry), group=Group.STATUS))
    for agent in cluster.agents():
        wait_for_entry(cluster, agent, entry.time)
        json.loads(agent("get", ".version"))
        json.loads(agent("get", ".members"))
    assert all(node.daemon.info()["status_mode"] == "synced" for node in cluster.nodes)
