"""The hosts' corosync.conf, tested by a real corosync before it is replaced.

The report has what ``pmxcfs status`` says of each broken file.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.lab import Lab, Member, corosync_conf
from tests.cluster.together import Cluster

pytestmark = [pytest.mark.needs_corosync, pytest.mark.long]

Report = Callable[[object], None]

SOON = 60.0  # seconds
STOP = 3.0  # seconds that a stop may take

# What is broken, by the change to a good file; the version of each is higher than the one before.
BREAK: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "only a version": lambda text: text[text.index("config_version") :].split("\n")[0],
    "an open section": lambda text: text + "totem { garbage\n",
    "a cut": lambda text: text[: text.index("config_version") + 30],
    "no closing brace": lambda text: text.rstrip("}\n"),
    "one brace too many": lambda text: text + "}\n",
    "letters in the version": lambda text: text.replace("config_version: ", "config_version: x"),
    "letters behind the version": lambda text: text.replace("\n  interface", "x\n  interface"),
    "a version of 2^64": lambda text: text.replace(
        "config_version: ", f"config_version: {1 << 64}"
    ),
    "no version": lambda text: text.replace("config_version", "config_versjon"),
    "another transport": lambda text: text.replace("knet", "pigeon"),
    "a token too short": lambda text: text.replace(
        "token: 1000", "token: 5\n  token_coefficient: 0"
    ),
    "a token of letters": lambda text: text.replace("token: 1000", "token: soon"),
    "another totem": lambda text: text.replace("version: 2\n", "version: 3\n"),
    "a node id twice": lambda text: text.replace("nodeid: 2", "nodeid: 1"),
    "a node id of letters": lambda text: text.replace("nodeid: 2", "nodeid: two"),
    "a negative node id": lambda text: text.replace("nodeid: 2", "nodeid: -2"),
    "no nodes": lambda text: text.replace("nodelist", "nodelizt"),
    "an unknown address": lambda text: text.replace("ring0_addr: ", "ring0_addr: not.valid."),
    "random bytes": lambda text: text + "".join(map(chr, range(1, 32))) * 100,
    "a key without section": lambda text: "garbage\n" + text,
    "an unknown link mode": lambda text: text.replace("link_mode: passive", "link_mode: lazy"),
}


def host_file(node: Member, name: str = "corosync.conf") -> Path:
    return node.directory / "etc" / "corosync" / name


def status(node: Member, *flags: str) -> str:
    return node.run(sys.executable, "-m", "pmxcfs", "status", *flags, check=False)


def reasons(node: Member) -> dict[str, str]:
    """Return why the node is not well, by the names of the findings."""
    found = json.loads(status(node, "--json"))["findings"]
    return {finding["name"]: finding["reason"] for finding in found}


def is_shown(node: Member, name: str, text: str) -> bool:
    return text in reasons(node).get(name, "")


def first_line(node: Member) -> str:
    return status(node).strip().splitlines()[0]


def test_no_broken_file_reaches_a_host(cluster: Cluster, report: Report) -> None:
    (agent,) = cluster.agents(cluster[2])
    good = [corosync_conf(cluster.nodes, version=version) for version in (2, 3, 1000)]
    for text in good[:2]:
        agent("put", "corosync.conf", text.encode())
        cluster.wait_until(
            functools.partial(all_have, cluster, "corosync.conf", text), SOON, "the good file"
        )
    for version, (name, broken) in enumerate(BREAK.items(), start=4):
        text = broken(corosync_conf(cluster.nodes, version=version))
        assert text != corosync_conf(cluster.nodes, version=version), name
        agent("put", "corosync.conf", good[1].encode())
        cluster.wait_until(lambda: not any(map(reasons, cluster.nodes)), SOON, "healthy nodes")
        agent("put", "corosync.conf", text.encode("latin-1"))
        cluster.wait_until(lambda: all_refuse(cluster), SOON, f"the refusal of {name}")
        report(f"{name}: {first_line(cluster[1])}")
        assert all_have(cluster, "corosync.conf", good[1]), name
        assert all_have(cluster, "corosync.conf.previous", good[0]), name
    agent("put", "corosync.conf", good[2].encode())
    cluster.wait_until(
        lambda: all_have(cluster, "corosync.conf", good[2]), SOON, "the last good file"
    )
    assert all_have(cluster, "corosync.conf.previous", good[1])
    cluster.wait_until(lambda: not any(map(reasons, cluster.nodes)), SOON, "healthy nodes")
    cluster.wait_for_agreement()


def all_refuse(cluster: Cluster) -> bool:
    return all(is_shown(node, "host-file", "is not replaced") for node in cluster.nodes)


def all_have(cluster: Cluster, name: str, text: str) -> bool:
    return all(host_file(node, name).read_text() == text for node in cluster.nodes)


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Lab]:
    """One node on which nothing runs yet."""
    with Lab(tmp_path, nodes=1) as lab:
        yield lab


@pytest.mark.parametrize(
    ("content", "told"),
    [("", "is empty"), ("totem { garbage\n", "is refused by it: parser error: corosync.conf:1:")],
)
def test_a_host_file_that_corosync_can_not_read_is_named(
    single: Lab, content: str, told: str, report: Report
) -> None:
    """The tree's file is of no use either, so the node can't mend itself."""
    node = single[1]
    good = corosync_conf(single.nodes)
    make_database(node, "config_version: 1\n")
    host_file(node).write_text(content)
    node.daemon.start()
    node.daemon.wait_until_mounted()
    text = f"corosync can't start, because /etc/corosync/corosync.conf {told}"
    single.wait_until(lambda: is_shown(node, "no-corosync", text), SOON, text, interval=0.2)
    single.wait_until(lambda: bool(node.daemon.log_lines(text)), SOON, "the log line")
    report(f"{first_line(node)} | {node.daemon.log_lines(text)[0]}")
    host_file(node).write_text(good)
    single.wait_until(lambda: not is_shown(node, "no-corosync", text), SOON, "the end of it")
    assert len(node.daemon.log_lines(text)) == 1
    node.daemon.stop()


def test_garbage_on_the_host_is_replaced_by_the_good_file_of_the_tree(single: Lab) -> None:
    node = single[1]
    good, garbage = corosync_conf(single.nodes), "config_version: 9\ntotem { garbage\n"
    make_database(node, good)
    host_file(node).write_text(garbage)
    node.daemon.start()
    node.daemon.wait_until_mounted()
    assert host_file(node).read_text() == good
    assert host_file(node, "corosync.conf.previous").read_text() == garbage
    single.wait_until(lambda: is_shown(node, "host-file", "trying again"), SOON, "a failed reload")
    node.corosync.start()
    single.wait_until(lambda: not reasons(node), SOON, "a healthy node", interval=0.2)
    node.daemon.stop()


def test_a_reload_that_corosync_did_not_answer_is_not_forgotten_by_a_restart(
    single: Lab, report: Report
) -> None:
    node = single[1]
    node.corosync.start()
    single.wait_for_members(node)
    make_database(node, corosync_conf(single.nodes, version=2))
    node.corosync.freeze()
    try:
        node.daemon.start()
        node.daemon.wait_until_mounted()
        single.wait_until(
            lambda: is_shown(node, "host-file", "corosync does not answer"), SOON, "a hang"
        )
        report(reasons(node)["host-file"])
        assert host_file(node).read_text() == corosync_conf(single.nodes, version=2)
        assert node.daemon.stop(seconds=STOP) == 0
    finally:
        node.corosync.thaw()
    assert loaded_version(node) == 1
    node.daemon.start()
    node.daemon.wait_until_mounted()
    single.wait_until(lambda: loaded_version(node) == 2, SOON, "the reload", interval=0.1)
    single.wait_until(lambda: not reasons(node), SOON, "a healthy node", interval=0.2)
    assert node.daemon.stop(seconds=STOP) == 0


def loaded_version(node: Member) -> int:
    """Return the config_version that corosync has loaded."""
    return int(node.run("corosync-cmapctl", "-g", "totem.config_version").split()[-1])


def test_an_older_file_that_was_put_on_the_host_is_replaced_when_the_node_is_in_sync_again(
    single: Lab,
) -> None:
    """As after the guide's way out of a file with which corosync does not start."""
    node = single[1]
    older, good = (corosync_conf(single.nodes, version=version) for version in (1, 2))
    make_database(node, good)
    node.daemon.start()
    node.daemon.wait_until_mounted()
    host_file(node).write_text(older)
    node.corosync.start()
    single.wait_until(lambda: host_file(node).read_text() == good, SOON, "the tree's file")
    loaded = "totem.config_version (u64) = 2\n"
    single.wait_until(lambda: configured(node) == loaded, SOON, "a reload", interval=0.2)
    single.wait_until(lambda: not reasons(node), SOON, "a healthy node", interval=0.2)
    node.daemon.stop()


def configured(node: Member) -> str:
    return node.run("corosync-cmapctl", "totem.config_version")


def make_database(node: Member, text: str) -> None:
    """Make the node's database, whose only file is a corosync.conf."""
    source = node.directory / "source"
    source.mkdir()
    (source / "corosync.conf").write_text(text)
    node.run(
        sys.executable, "-m", "pmxcfs", "import", "--statedir", "/var/lib/pve-cluster", str(source)
    )
