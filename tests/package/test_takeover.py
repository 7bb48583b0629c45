"""The package replaces pve-cluster (a stand-in here), and its removal restores pve-cluster."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.package import debs
from tests.package.machine import Machine, machine

pytestmark = [pytest.mark.needs_packaging, pytest.mark.long]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Machine]:
    """A machine that belongs to no cluster."""
    with machine(tmp_path) as booted:
        booted.shell("systemctl disable --now corosync 2>&1; rm /etc/corosync/corosync.conf")
        yield booted


def server(node: Machine) -> str:
    """Return the source of the mount on /etc/pve, and the active units."""
    units = [unit for unit in ("pmxcfs", "pve-cluster") if node.is_active(unit)]
    kind = node.run("findmnt", "-no", "SOURCE", "/etc/pve", check=False)
    return f"{kind or 'nothing'} by {' and '.join(units) or 'nobody'}"


OURS_BY_THEIR_UNIT = "/dev/fuse by pve-cluster"
OURS = "/dev/fuse by pmxcfs"
ORIGINAL = "original by pve-cluster"


def test_an_installation_takes_over_and_a_removal_gives_back(node: Machine, tmp_path: Path) -> None:
    node.install(debs.original(tmp_path))
    assert server(node) == ORIGINAL
    node.install(debs.ours())
    assert server(node) == OURS_BY_THEIR_UNIT
    assert node.property("pmxcfs", "ConditionResult") == "no"
    assert node.run("create_pmxcfs_db", "--help").startswith("usage: create_pmxcfs_db")
    assert "the original" not in node.run("man", "8", "pmxcfs")
    node.shell("echo saved >/etc/pve/file")
    node.install(debs.upgrade(tmp_path))
    assert server(node) == OURS_BY_THEIR_UNIT
    assert node.shell("cat /etc/pve/file") == "saved"
    node.run("dpkg", "--remove", "pmxcfs")
    assert server(node) == ORIGINAL
    assert_given_back(node)
    node.run("dpkg", "--purge", "pmxcfs")
    assert server(node) == ORIGINAL
    assert "config.db" in node.run("ls", "/var/lib/pve-cluster")


def assert_given_back(node: Machine) -> None:
    assert node.run("dpkg-divert", "--list", "*pmxcfs*") == ""
    assert node.run("dpkg", "--verify", "pve-cluster") == ""
    assert node.run("create_pmxcfs_db") == "the original"
    assert node.run("bash", "-c", "ls /usr/bin/*pmxcfs*") == (
        "/usr/bin/create_pmxcfs_db\n/usr/bin/pmxcfs"
    )


def test_an_upgrade_of_the_original_does_not_take_the_mount_back(
    node: Machine, tmp_path: Path
) -> None:
    original = debs.original(tmp_path)
    node.install(original)
    node.install(debs.ours())
    node.install(original)  # again
    assert server(node) == OURS_BY_THEIR_UNIT


def test_a_stopped_unit_stays_stopped(node: Machine, tmp_path: Path) -> None:
    node.install(debs.original(tmp_path))
    node.run("systemctl", "stop", "pve-cluster")
    node.install(debs.ours())
    assert server(node) == "nothing by nobody"
    node.run("systemctl", "start", "pve-cluster")
    assert server(node) == OURS_BY_THEIR_UNIT


def test_the_original_can_be_installed_and_removed_later(node: Machine, tmp_path: Path) -> None:
    node.install(debs.ours())
    assert server(node) == OURS
    node.shell("echo saved >/etc/pve/file")
    node.install(debs.original(tmp_path))
    assert server(node) == OURS_BY_THEIR_UNIT
    node.run("dpkg", "--purge", "pve-cluster")
    assert server(node) == OURS
    assert node.shell("cat /etc/pve/file") == "saved"


def test_a_failed_installation_restores_the_original(node: Machine, tmp_path: Path) -> None:
    """The unpacking fails after the preinst, on a file that another package owns."""
    node.install(debs.original(tmp_path))
    clash = tmp_path / "clash"
    (clash / "DEBIAN").mkdir(parents=True)
    control = "Package: clash\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    (clash / "DEBIAN" / "control").write_text(control)
    (clash / "lib" / "systemd" / "system").mkdir(parents=True)
    (clash / "lib" / "systemd" / "system" / "pmxcfs.service").touch()
    node.install(debs.packed(clash, tmp_path / "clash.deb"))
    with pytest.raises(AssertionError, match="trying to overwrite"):
        node.install(debs.ours())
    assert server(node) == ORIGINAL
    assert_given_back(node)


def test_the_maintainer_scripts_may_run_twice(node: Machine, tmp_path: Path) -> None:
    node.install(debs.original(tmp_path))
    node.install(debs.ours())
    for arguments in ("preinst upgrade 0.1.0", "postinst configure 0.1.0"):
        script, *rest = arguments.split()
        node.run(f"/var/lib/dpkg/info/pmxcfs.{script}", *rest)
    assert server(node) == OURS_BY_THEIR_UNIT
    node.run("cp", "/var/lib/dpkg/info/pmxcfs.postrm", "/root/postrm")
    node.run("dpkg", "--remove", "pmxcfs")
    node.run("/root/postrm", "remove")
    assert server(node) == ORIGINAL
    assert_given_back(node)
