"""Status that clients set on one node and read on the others, with ``pmxcfs`` commands."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from tests.cluster.node import Node
from tests.cluster.together import Cluster

pytestmark = pytest.mark.needs_corosync

SOON = 30.0  # seconds; milliseconds on an idle machine


def ask(node: Node, *words: str) -> str:
    """Return the output of ``pmxcfs ipc`` on a node, also that of a refusal."""
    return node.run(sys.executable, "-m", "pmxcfs", "ipc", *words, check=False)


def told(node: Node, *words: str) -> Any:
    return json.loads(ask(node, *words, "--json"))


def await_on(
    cluster: Cluster, nodes: Sequence[Node], is_seen: Callable[[Node], bool], what: str
) -> None:
    """Wait until a condition is true on each of the nodes."""
    for node in nodes:
        cluster.wait_until(partial(is_seen, node), SOON, f"{what} on {node.name}")


def test_a_key_is_read_on_all_nodes_until_it_is_removed(cluster: Cluster) -> None:
    first, *others = cluster.nodes

    def value(node: Node) -> str:
        return ask(node, "get", "color", "--node", first.name)

    def versions(node: Node) -> dict[str, int]:
        found: dict[str, int] = told(node, "version")["kvstore"].get(first.name, {})
        return found

    ask(first, "set", "color", "green")
    await_on(cluster, others, lambda node: value(node) == "green", "the key")
    assert [versions(node)["color"] for node in others] == [0, 0]
    ask(first, "set", "color", "")
    await_on(cluster, others, lambda node: "color" not in versions(node), "its end")


def test_the_cluster_log_is_the_same_on_all_nodes(cluster: Cluster) -> None:
    for node in cluster.nodes:
        ask(node, "log", f'"from" {node.name} \\ ä', "--user", "me@pve")

    def logs() -> list[list[dict[str, Any]]]:
        return [told(node, "clusterlog", "--user", "me@pve")["data"] for node in cluster.nodes]

    cluster.wait_until(lambda: [len(log) for log in logs()] == [3, 3, 3], SOON, "three entries")
    by_node = [sorted(log, key=lambda entry: str(entry["node"])) for log in logs()]
    assert by_node[0] == by_node[1] == by_node[2]
    expected = [f'"from" {node.name} \\ ä' for node in cluster.nodes]
    assert [entry["msg"] for entry in by_node[0]] == expected


def test_metrics_of_one_node_are_written_by_all(cluster: Cluster) -> None:
    first = cluster.nodes[0]
    call = f"IpcClient('pve2').set_key(*{metric()!r})"
    script = f"from pmxcfs.ipc.client import IpcClient; {call}"
    first.run(sys.executable, "-c", script)
    file = "/var/lib/rrdcached/db/pve-storage-9.0/n/s"

    def has_file(node: Node) -> bool:
        return node.run("ls", file, check=False).strip() == file

    await_on(cluster, cluster.nodes, lambda node: "pve2-storage/n/s:" in ask(node, "rrd"), "it")
    await_on(cluster, cluster.nodes, has_file, "its file")


def metric() -> tuple[str, bytes]:
    return "rrd/pve2-storage/n/s", b"%d:100:50\0" % time.time()


def test_status_shows_the_members_of_the_cluster(cluster: Cluster) -> None:
    for node in cluster.nodes:
        text = node.run(sys.executable, "-m", "pmxcfs", "status")
        assert text.startswith("state     healthy\n")
        assert "quorum    yes\n" in text
        assert "sync      synced\n" in text
        assert text.count(" online") == len(cluster.nodes)
