"""The commands of docs/operations.md, run unchanged on machines with the installed package.

The machines have no network, so stand-ins replace apt (the packages are installed already) and scp.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.package import debs
from tests.package.guide import blocks
from tests.package.machine import Machine, machine, wire

pytestmark = [pytest.mark.needs_packaging, pytest.mark.long]

NODES = ("node1", "node2", "node3")
NETWORK = "10.0.0"  # of the guide
CLUSTER = "Form a cluster of three nodes"  # a chapter
# The effects of an installation of corosync on Debian: it runs, with a default configuration.
APT = """#!/bin/sh
[ "$*" = "install corosync" ] && cp /root/corosync.conf /etc/corosync/ && systemctl start corosync
"""
OUTBOX = "/srv/outbox"
SCP = f"""#!/bin/bash
set -e
to=${{*: -1}}
mkdir -p "{OUTBOX}/${{to%%:*}}/${{to#*:}}"
cp -p "${{@:1:$#-1}}" "{OUTBOX}/${{to%%:*}}/${{to#*:}}"
"""


def install_stand_in(node: Machine, name: str, text: str) -> None:
    node.run("install", "-D", "-m755", "/dev/stdin", f"/usr/local/bin/{name}", given=text)


def prepare(node: Machine) -> None:
    """Prepare a machine with pmxcfs, on which corosync was never installed."""
    node.shell("systemctl stop corosync; mv /etc/corosync/corosync.conf /root/")
    install_stand_in(node, "apt", APT)
    install_stand_in(node, "scp", SCP)
    node.install(debs.ours(node.release))


@pytest.fixture
def nodes(tmp_path: Path, release: str) -> Iterator[dict[str, Machine]]:
    with contextlib.ExitStack() as stack:
        machines = [stack.enter_context(machine(tmp_path, release, name)) for name in NODES]
        wire(machines, NETWORK)
        for each in machines:
            prepare(each)
        yield dict(zip(NODES, machines, strict=True))


def deliver(sender: Machine, nodes: dict[str, Machine]) -> None:
    """Copy the files of an scp command."""
    for name in NODES:
        if (parcel := sender.root / OUTBOX[1:] / name).exists():
            shutil.copytree(parcel, nodes[name].root, dirs_exist_ok=True)
            shutil.rmtree(parcel)


def follow(chapter: str, nodes: dict[str, Machine]) -> Iterator[list[str]]:
    """Run the blocks of a chapter; yield each block's output on its nodes."""
    for block in blocks(chapter):
        yield [nodes[name].shell(block.commands) for name in block.nodes]
        for name in block.nodes:
            deliver(nodes[name], nodes)


def members(node: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.shell("cat /etc/pve/.members"))
    return found


def is_complete(node: Machine) -> bool:
    known = members(node)
    online = [each["online"] for each in known.get("nodelist", {}).values()]
    return online == [1, 1, 1] and known["cluster"]["quorate"] == 1


def has(node: Machine, path: str, text: str) -> bool:
    return node.run("cat", f"/etc/pve/{path}", check=False) == text


def test_the_guide_makes_a_cluster_of_three_nodes(
    nodes: dict[str, Machine], report: Callable[[object], None]
) -> None:
    first, second, _ = nodes.values()
    first.shell("echo 'of node1' >/etc/pve/first.cfg")
    second.shell("echo 'of node2' >/etc/pve/second.cfg")
    steps = follow(CLUSTER, nodes)
    next(steps)
    next(steps)
    first.wait_for(lambda: members(first).get("cluster", {}).get("quorate") == 0)
    assert "Permission denied" in first.run("touch", "/etc/pve/alone", check=False)
    begun = time.monotonic()
    next(steps)
    for each in nodes.values():
        each.wait_for(partial(is_complete, each))
    report(f"three nodes joined after {time.monotonic() - begun:.1f} s")
    (told,) = next(steps)
    assert "Quorate:          Yes" in told
    assert "first.cfg" in told.splitlines()
    assert "second.cfg" not in told
    assert list(steps) == [[], []]  # for nodes whose corosync does not start

    check_that_changes_reach_all(nodes)
    check_that_the_configuration_is_spread(nodes)
    check_that_a_minority_is_read_only(nodes)
    check_that_corosync_starts_again(nodes)


def check_that_changes_reach_all(nodes: dict[str, Machine]) -> None:
    for name, node in nodes.items():
        node.shell(f"echo {name} >/etc/pve/from-{name}")
    for node in nodes.values():
        for name in NODES:
            node.wait_for(partial(has, node, f"from-{name}", name))


def check_that_the_configuration_is_spread(nodes: dict[str, Machine]) -> None:
    nodes["node2"].shell(
        "sed 's/config_version: 1/config_version: 2/' /etc/pve/corosync.conf >/etc/pve/new;"
        "mv /etc/pve/new /etc/pve/corosync.conf"
    )
    for node in nodes.values():
        node.wait_for(partial(has_configuration, node, 2))


def has_configuration(node: Machine, version: int) -> bool:
    """Tell whether corosync runs with this version of the host's corosync.conf."""
    file = node.shell("cat /etc/corosync/corosync.conf")
    return f"config_version: {version}\n" in file and members(node)["cluster"]["version"] == version


def check_that_a_minority_is_read_only(nodes: dict[str, Machine]) -> None:
    first, second, third = nodes.values()
    for each in (second, third):
        each.run("systemctl", "stop", "corosync")
    first.wait_for(lambda: members(first)["cluster"]["quorate"] == 0)
    assert "Permission denied" in first.run("touch", "/etc/pve/alone", check=False)
    assert first.property("pmxcfs", "ActiveState") == "active"
    for each in (second, third):
        each.run("systemctl", "start", "corosync")
    first.wait_for(lambda: is_complete(first))
    first.wait_for(lambda: first.run("touch", "/etc/pve/again", check=False) == "")
    third.wait_for(lambda: has(third, "again", ""))


def check_that_corosync_starts_again(nodes: dict[str, Machine]) -> None:
    """Follow the guide with a bad file on one node, and with a bad file of the cluster."""
    one, each = (block.commands for block in blocks(CLUSTER) if not block.nodes)
    first, _, third = nodes.values()
    break_corosync(third)
    third.shell(one)
    for node in nodes.values():
        node.wait_for(partial(is_complete, node))

    change = "sed {} /etc/pve/corosync.conf >/etc/pve/new; mv /etc/pve/new /etc/pve/corosync.conf"
    first.shell(change.format("-e 's/config_version: 2/config_version: 3/' -e '$ano'"))
    for node in nodes.values():
        node.wait_for(partial(has_line, node, "config_version: 3"))
    for node in nodes.values():
        break_corosync(node)
    for node in nodes.values():
        node.shell(each)
    for node in nodes.values():
        node.wait_for(partial(is_complete, node))
    first.wait_for(lambda: first.run("touch", "/etc/pve/again", check=False) == "")
    first.shell(change.format("-e 's/config_version: 3/config_version: 4/' -e '/^no$/d'"))
    for node in nodes.values():
        node.wait_for(partial(has_configuration, node, 4))


def has_line(node: Machine, line: str) -> bool:
    """Tell whether the cluster's corosync.conf has a line."""
    return line in map(str.strip, node.shell("cat /etc/pve/corosync.conf").splitlines())


def break_corosync(node: Machine) -> None:
    node.shell("systemctl stop corosync; echo no >/etc/corosync/corosync.conf")
    assert "Line is not" in node.run("corosync", "-t", check=False)


def test_the_guide_makes_and_restores_a_backup(tmp_path: Path, release: str) -> None:
    with machine(tmp_path, release) as node:
        prepare(node)
        node.shell("mkdir -p /etc/pve/priv /etc/pve/nodes/node1/qemu-server")
        node.shell("echo secret >/etc/pve/priv/key; echo 'cores: 1' >/etc/pve/qemu-server/100.conf")
        steps = follow("Back up and restore", {"node1": node})
        next(steps)
        assert "sound" in next(steps)[0]
        kept, live = (node.shell(f"pmxcfs dump {file}") for file in ("/root/config.db.backup", ""))
        assert kept == live
        assert node.shell("stat -c %a /root/config.db.backup") == "600"
        node.shell("rm -r /etc/pve/priv; echo later >/etc/pve/later")
        next(steps)
        assert node.shell("cat /etc/pve/priv/key") == "secret"
        assert node.shell("cat /etc/pve/qemu-server/100.conf") == "cores: 1"
        assert node.run("ls", "/etc/pve") == "local\nlxc\nnodes\nopenvz\npriv\nqemu-server"
        assert not list(steps)
