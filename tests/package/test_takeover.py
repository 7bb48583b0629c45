"""The package replaces pve-cluster (a stand-in here), and its removal restores pve-cluster.

The stand-in has the lines of pve-cluster's own unit, which the package extends by a drop-in.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.package import debs
from tests.package.machine import Machine, busy, machine
from tests.places import ROOT

pytestmark = [pytest.mark.needs_packaging, pytest.mark.long]


@pytest.fixture
def node(tmp_path: Path, release: str) -> Iterator[Machine]:
    """A machine that belongs to no cluster."""
    with machine(tmp_path, release) as booted:
        # pve-cluster's unit would start it at boot.
        booted.shell("systemctl mask --now corosync 2>&1; rm /etc/corosync/corosync.conf")
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
    node.install(debs.original(tmp_path, node.release))
    assert server(node) == ORIGINAL
    node.install(debs.ours(node.release))
    assert server(node) == OURS_BY_THEIR_UNIT
    assert node.property("pmxcfs", "ConditionResult") == "no"
    assert node.run("create_pmxcfs_db", "--help").startswith("usage: create_pmxcfs_db")
    assert "the cluster file system of Proxmox VE" in node.run("man", "8", "pmxcfs")
    node.shell("echo saved >/etc/pve/file")
    node.install(debs.upgrade(tmp_path, node.release))
    assert server(node) == OURS_BY_THEIR_UNIT
    assert node.shell("cat /etc/pve/file") == "saved"
    node.run("dpkg", "--remove", "pmxcfs")
    assert server(node) == ORIGINAL
    assert_given_back(node)
    node.run("dpkg", "--purge", "pmxcfs")
    assert server(node) == ORIGINAL
    assert "config.db" in node.run("ls", "/var/lib/pve-cluster")


def test_a_removal_gives_back_what_a_crash_left_in_the_journal(
    node: Machine, tmp_path: Path
) -> None:
    node.install(debs.original(tmp_path, node.release))
    node.install(debs.ours(node.release))
    node.shell(
        "mkdir /etc/systemd/system/pve-cluster.service.d;"
        "printf '[Service]\\nExecStopPost=\\nRestart=no\\n'"
        "  >/etc/systemd/system/pve-cluster.service.d/override.conf;"
        "systemctl daemon-reload; systemctl restart pve-cluster"
    )
    node.shell("echo >/etc/pve/late.cfg; systemctl kill --signal=KILL pve-cluster")
    node.wait_for(lambda: not node.is_active("pve-cluster"))
    said = node.run("dpkg", "--remove", "pmxcfs")
    assert "changes of the journal were written to it" in said
    assert node.shell("grep -aq late.cfg /var/lib/pve-cluster/config.db && echo found") == "found"


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
    original = debs.original(tmp_path, node.release)
    node.install(original)
    node.install(debs.ours(node.release))
    node.install(original)  # again
    assert server(node) == OURS_BY_THEIR_UNIT


def test_a_stopped_unit_stays_stopped(node: Machine, tmp_path: Path) -> None:
    node.install(debs.original(tmp_path, node.release))
    node.run("systemctl", "stop", "pve-cluster")
    node.install(debs.ours(node.release))
    assert server(node) == "nothing by nobody"
    node.run("systemctl", "start", "pve-cluster")
    assert server(node) == OURS_BY_THEIR_UNIT


def test_the_original_can_be_installed_and_removed_later(node: Machine, tmp_path: Path) -> None:
    node.install(debs.ours(node.release))
    assert server(node) == OURS
    node.shell("echo saved >/etc/pve/file")
    node.install(debs.original(tmp_path, node.release))
    assert server(node) == OURS_BY_THEIR_UNIT
    node.run("dpkg", "--purge", "pve-cluster")
    assert server(node) == OURS
    assert node.shell("cat /etc/pve/file") == "saved"


def test_a_failed_installation_restores_the_original(node: Machine, tmp_path: Path) -> None:
    """The unpacking fails after the preinst, on a file that another package owns."""
    node.install(debs.original(tmp_path, node.release))
    clash = tmp_path / "clash"
    (clash / "DEBIAN").mkdir(parents=True)
    control = "Package: clash\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    (clash / "DEBIAN" / "control").write_text(control)
    units = clash / debs.units_of(node.release)
    units.mkdir(parents=True)
    (units / "pmxcfs.service").touch()
    node.install(debs.packed(clash, tmp_path / "clash.deb"))
    with pytest.raises(AssertionError, match="trying to overwrite"):
        node.install(debs.ours(node.release))
    assert server(node) == ORIGINAL
    assert_given_back(node)


def test_the_maintainer_scripts_may_run_twice(node: Machine, tmp_path: Path) -> None:
    node.install(debs.original(tmp_path, node.release))
    node.install(debs.ours(node.release))
    for arguments in ("preinst upgrade 0.1.0", "postinst configure 0.1.0"):
        script, *rest = arguments.split()
        node.run(f"/var/lib/dpkg/info/pmxcfs.{script}", *rest)
    assert server(node) == OURS_BY_THEIR_UNIT
    node.run("cp", "/var/lib/dpkg/info/pmxcfs.postrm", "/root/postrm")
    node.run("dpkg", "--remove", "pmxcfs")
    node.run("/root/postrm", "remove")
    assert server(node) == ORIGINAL
    assert_given_back(node)


HARDENING = re.findall(
    r"^(\w+)=", (ROOT / "debian" / "service").read_text().partition("# Hardening")[2], re.MULTILINE
)[:-1]  # WantedBy= is the last line of all


def settings(node: Machine, unit: str, names: list[str]) -> list[str]:
    """Return properties of a unit as NAME=VALUE."""
    shown = node.run("systemctl", "show", unit, f"--property={','.join(names)}")
    return sorted(shown.splitlines())


def runs_beside(node: Machine) -> list[str]:
    """Return what the unit's other commands have logged."""
    return node.run("cat", "/var/log/pvecm").splitlines()


def test_the_unit_of_the_original_gets_status_watchdog_and_hardening(
    node: Machine, tmp_path: Path
) -> None:
    node.install(debs.original(tmp_path, node.release))
    without = settings(node, "pve-cluster", ["Type", "ExecReload", "DropInPaths", *HARDENING])
    node.install(debs.ours(node.release))
    assert settings(node, "pve-cluster", ["Type", "NotifyAccess", "CanReload", "WatchdogUSec"]) == [
        "CanReload=no",
        "NotifyAccess=main",
        "Type=notify",
        "WatchdogUSec=1min",
    ]
    assert len(HARDENING) > 10
    assert settings(node, "pve-cluster", HARDENING) == settings(node, "pmxcfs", HARDENING)
    main = node.main_pid("pve-cluster")
    confined = node.run("grep", "-E", "^(NoNewPrivs|Seccomp|CapBnd):", f"/proc/{main}/status")
    assert [line.split()[1] for line in confined.splitlines()] == ["000000000020000b", "1", "2"]
    assert node.run("cat", "/run/pve-cluster.pid") == str(main)
    node.wait_for(lambda: node.property("pve-cluster", "StatusText").startswith("healthy; "))
    said = node.run("systemd-analyze", "verify", "--man=no", "pve-cluster.service")
    assert "pmxcfs" not in said
    node.run("dpkg", "--remove", "pmxcfs")
    assert without == settings(
        node, "pve-cluster", ["Type", "ExecReload", "DropInPaths", *HARDENING]
    )


def test_the_other_commands_of_the_original_unit_run_beside_the_daemon(
    node: Machine, tmp_path: Path
) -> None:
    """Before the start, and once the mount answers; the hardening does not disturb them."""
    node.install(debs.original(tmp_path, node.release))
    assert runs_beside(node) == ["prepare on nothing", "updatecerts on original"]
    node.install(debs.ours(node.release))
    assert runs_beside(node)[2:] == ["prepare on nothing", "updatecerts on /dev/fuse"]
    assert "PRIVATE KEY" in node.run("cat", "/etc/pve/priv/authkey.key")
    node.run("dpkg", "--remove", "pmxcfs")
    assert runs_beside(node)[4:] == ["prepare on nothing", "updatecerts on original"]


def test_the_watchdog_replaces_a_daemon_that_hangs_under_the_original_unit(
    node: Machine, tmp_path: Path
) -> None:
    """An administrator's drop-in, as `systemctl edit` names it, overrides the package's."""
    node.install(debs.original(tmp_path, node.release))
    node.install(debs.ours(node.release))
    node.shell(
        "echo saved >/etc/pve/file; mkdir /etc/systemd/system/pve-cluster.service.d;"
        "printf '[Service]\\nWatchdogSec=1\\n'"
        "  >/etc/systemd/system/pve-cluster.service.d/override.conf;"
        "systemctl daemon-reload; systemctl restart pve-cluster"
    )
    assert node.property("pve-cluster", "WatchdogUSec") == "1s"
    hung = node.main_pid("pve-cluster")
    node.run("kill", "-STOP", str(hung))
    node.wait_for(
        lambda: node.main_pid("pve-cluster") not in (0, hung) and node.is_active("pve-cluster")
    )
    assert server(node) == OURS_BY_THEIR_UNIT
    assert node.shell("cat /etc/pve/file") == "saved"


def test_the_original_unit_starts_the_daemon_at_boot(node: Machine, tmp_path: Path) -> None:
    node.install(debs.original(tmp_path, node.release))
    node.install(debs.ours(node.release))
    node.shell("echo saved >/etc/pve/file")
    node.reboot()
    assert server(node) == OURS_BY_THEIR_UNIT
    assert node.shell("cat /etc/pve/file") == "saved"
    said = node.run("journalctl", "--output=cat", "--identifier=pmxcfs").splitlines()
    assert "[main] info: stopping" in said
    assert not [line for line in said if "stale mount" in line]


def test_an_upgrade_under_the_original_unit_works_while_the_mount_is_in_use(
    node: Machine, tmp_path: Path
) -> None:
    node.install(debs.original(tmp_path, node.release))
    node.install(debs.ours(node.release))
    node.shell("echo saved >/etc/pve/file")
    before = node.main_pid("pve-cluster")
    with busy(node) as user:
        node.install(debs.upgrade(tmp_path, node.release))
        assert server(node) == OURS_BY_THEIR_UNIT
        assert user.poll() is None
    assert node.main_pid("pve-cluster") != before
    assert node.shell("cat /etc/pve/file /etc/pve/in-use") == "saved\nunfinished"


def test_an_unpacked_package_does_not_disturb_the_running_original(
    node: Machine, tmp_path: Path
) -> None:
    """The original sends no heartbeats; the watchdog of the drop-in does not count for it."""
    node.install(debs.original(tmp_path, node.release))
    main = node.main_pid("pve-cluster")
    ours = debs.ours(node.release)
    (node.root / "root" / ours.name).write_bytes(ours.read_bytes())
    node.run("dpkg", "--unpack", f"/root/{ours.name}")
    node.shell(
        "sed -i s/^WatchdogSec=.*/WatchdogSec=1/"
        " /usr/lib/systemd/system/pve-cluster.service.d/10-pmxcfs.conf; systemctl daemon-reload"
    )
    later = time.monotonic() + 3
    node.wait_for(lambda: time.monotonic() > later)
    assert (node.main_pid("pve-cluster"), server(node)) == (main, ORIGINAL)
    node.run("dpkg", "--configure", "pmxcfs")
    assert server(node) == OURS_BY_THEIR_UNIT
