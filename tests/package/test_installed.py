"""The installed package on a machine with systemd: service, ends, upgrade, removal."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import foreign
from tests.package import debs
from tests.package.machine import Machine, busy, machine
from tests.places import ROOT

pytestmark = [pytest.mark.needs_packaging, pytest.mark.long]

Report = Callable[[object], None]

STOP_DEADLINE = 3.0  # seconds, of the contract
GUESTS = 10_000
# Paths that the installation of any package changes.
BOOKKEEPING = re.compile(r"/(root|tmp)/|/var/(lib/dpkg|log|cache)/|/etc/ld.so.cache")


@pytest.fixture
def plain(tmp_path: Path, release: str) -> Iterator[Machine]:
    """A plain Debian that belongs to no cluster."""
    with machine(tmp_path, release) as booted:
        booted.shell("systemctl disable --now corosync 2>&1; mv /etc/corosync/corosync.conf /root/")
        yield booted


@pytest.fixture
def node(plain: Machine) -> Machine:
    """A machine with the package installed and the service running."""
    plain.install(debs.ours(plain.release))
    assert plain.is_active("pmxcfs")
    return plain


def report_metrics(node: Machine) -> None:
    """Send a node's statistics as Proxmox VE's tools do, and wait for the RRD file."""
    values = ":".join(["1000", "0", str(int(time.time())), *["1"] * 19])
    node.run("pmxcfs", "ipc", "set", "rrd/pve-node-9.0/node1", "-", given=values + "\0")
    node.wait_for((node.root / "var/lib/rrdcached/db/pve-node-9.0/node1").exists)


def files(node: Machine) -> set[str]:
    """Return all paths of a machine but for the package manager's own."""
    found = node.shell("find / -xdev; find /run/pve* /etc/pve 2>/dev/null || true").splitlines()
    return {path for path in found if not BOOKKEEPING.match(path)}


def test_the_mount_is_visible_to_all_processes_of_the_machine(node: Machine) -> None:
    """The sandbox options of the unit do not hide the mount in a namespace of the service."""
    node.shell("echo 'keyboard: de' >/etc/pve/datacenter.cfg")
    assert node.run("findmnt", "-rno", "FSTYPE,TARGET", "/etc/pve") == "fuse /etc/pve"
    assert node.run("stat", "-c%A:%U:%G", "/run/pve-cluster", "/var/lib/pve-cluster") == (
        "drwxr-x---:root:www-data\ndrwxr-x---:root:root"
    )
    status = "healthy; 1 entries, version"
    node.wait_for(lambda: node.property("pmxcfs", "StatusText").startswith(status))
    assert node.property("pmxcfs", "WatchdogUSec") == "1min"


def test_local_clients_are_served_by_their_permissions(node: Machine) -> None:
    """The sandbox options of the unit allow shared memory with clients, and RRD files."""
    node.shell("echo 'keyboard: de' >/etc/pve/datacenter.cfg")
    assert node.run("pmxcfs", "status").splitlines()[0].split() == ["state", "healthy"]
    reader = ["setpriv", "--reuid=www-data", "--regid=www-data", "--clear-groups"]
    assert node.run(*reader, "pmxcfs", "ipc", "config", "datacenter.cfg") == "keyboard: de"
    stranger = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    told = node.run(*stranger, "pmxcfs", "ipc", "config", "datacenter.cfg", check=False)
    assert "keyboard" not in told
    report_metrics(node)
    node.run("systemctl", "stop", "pmxcfs")
    flag = node.run("stat", "-c%A:%U:%G", "/run/pve-cluster/cfs-restart-flag")
    assert flag == "-rw-r-----:root:www-data"
    assert node.run("pmxcfs", "status", check=False) != ""
    assert node.run("ls", "/dev/shm") == ""


def test_the_journal_has_priorities_and_no_second_time_stamp(node: Machine) -> None:
    entry = ["--output=cat", "--output-fields=MESSAGE,PRIORITY,SYSLOG_IDENTIFIER"]
    lines = node.run("journalctl", "--identifier=pmxcfs", "--grep=serving", *entry).splitlines()
    # FUSE over io_uring is switched on for all machines of this kernel, or for none.
    told = re.compile(
        r"\[main\] info: serving /etc/pve for node node1, FUSE session (uring|native)"
    )
    priority, message, identifier = sorted(lines)
    assert (priority, identifier) == ("6", "pmxcfs")
    assert told.fullmatch(message)


def test_saved_files_survive_each_kind_of_end(node: Machine, report: Report) -> None:
    node.shell("echo saved >/etc/pve/file")
    before = time.monotonic()
    node.run("systemctl", "restart", "pmxcfs")
    report(f"restart of an empty file system: {time.monotonic() - before:.2f} s")
    assert node.shell("cat /etc/pve/file") == "saved"
    killed = node.main_pid("pmxcfs")
    node.run("kill", "-KILL", str(killed))
    node.wait_for(lambda: node.main_pid("pmxcfs") not in (0, killed) and node.is_active("pmxcfs"))
    assert node.shell("cat /etc/pve/file") == "saved"
    assert node.property("pmxcfs", "NRestarts") == "1"


def test_a_daemon_that_hangs_is_replaced(node: Machine) -> None:
    """A stopped process sends no heartbeats, so systemd kills and restarts it."""
    node.shell(
        "echo saved >/etc/pve/file; mkdir /run/systemd/system/pmxcfs.service.d;"
        "printf '[Service]\\nWatchdogSec=1\\nTimeoutStopSec=1\\n'"
        "  >/run/systemd/system/pmxcfs.service.d/impatient.conf;"
        "systemctl daemon-reload; systemctl restart pmxcfs"
    )
    hung = node.main_pid("pmxcfs")
    time_alive = time.monotonic() + 3
    node.wait_for(lambda: time.monotonic() > time_alive)
    assert node.main_pid("pmxcfs") == hung  # while the daemon runs, its heartbeats are in time
    node.run("kill", "-STOP", str(hung))
    node.wait_for(lambda: node.main_pid("pmxcfs") not in (0, hung) and node.is_active("pmxcfs"))
    assert node.shell("cat /etc/pve/file") == "saved"
    told = node.run(
        "journalctl", "--output=cat", "--unit=pmxcfs", "--grep=Watchdog timeout|Aborted"
    )
    assert "Watchdog timeout (limit 1s)!" in told
    assert "Fatal Python error: Aborted" in told  # and then the stacks of all threads


def test_no_installed_command_imports_modules_of_its_user(node: Machine) -> None:
    place = "/srv/foreign"
    version = node.run("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    foreign.lay_out(node.root / place[1:], version)
    programs = node.shell("dpkg --listfiles pmxcfs | grep -E '^/.*/s?bin/'").splitlines()
    assert {"/usr/bin/pmxcfs", "/usr/bin/create_pmxcfs_db"} <= set(programs)
    node.shell("echo 'keyboard: de' >/etc/pve/datacenter.cfg; mkdir /srv/files")
    uses = [[program, "--help"] for program in programs]
    uses += [["pmxcfs", "status"], ["pmxcfs", "ipc", "config", "datacenter.cfg"]]
    uses += [["pmxcfs", "export", "/srv/exported"], ["pmxcfs", "dump", "/srv/new.db"]]
    uses.insert(-1, ["create_pmxcfs_db", "/srv/files", "/srv/new.db"])

    def run(variables: dict[str, str], *words: str, check: bool = True) -> str:
        pairs = [f"{name}={value}" for name, value in variables.items()]
        return node.run("env", "-C", place, *pairs, *words, check=check)

    environments = foreign.environments(place)
    for variables in environments[:-1]:
        assert foreign.SAYS in run(variables, "python3", "-c", "")
    assert "No module named 'encodings'" in run(environments[-1], "python3", "-c", "", check=False)
    for variables in environments:
        for words in uses:
            assert foreign.SAYS not in run(variables, *words), words
        node.shell("rm -r /srv/exported /srv/new.db")


def test_the_service_imports_no_modules_of_the_manager_s_environment(node: Machine) -> None:
    foreign.lay_out(node.root / "srv" / "foreign", "3")
    for variables in foreign.environments("/srv/foreign"):
        pairs = [f"{name}={value}" for name, value in variables.items()]
        node.run("systemctl", "set-environment", *pairs)
    node.run("systemctl", "restart", "pmxcfs")
    environment = (node.root / f"proc/{node.main_pid('pmxcfs')}/environ").read_text().split("\0")
    assert {"PYTHONPATH=.:/srv/foreign", "PYTHONHOME=/srv/foreign"} <= set(environment)
    assert foreign.SAYS not in node.run("journalctl", "--unit=pmxcfs", "--output=cat")


def test_an_upgrade_works_while_the_mount_is_in_use(
    node: Machine, tmp_path: Path, report: Report
) -> None:
    node.shell("echo saved >/etc/pve/file")
    before = node.main_pid("pmxcfs")
    with busy(node) as user:
        node.install(debs.upgrade(tmp_path, node.release))
        assert node.is_active("pmxcfs")
        assert user.poll() is None
        stale = node.run(
            "bash", "-c", "ls /proc/*/cwd/ 2>&1 | grep -c 'not connected'", check=False
        )
        assert stale == "1"
    assert node.main_pid("pmxcfs") != before
    assert node.shell("cat /etc/pve/file") == "saved"
    assert node.shell("cat /etc/pve/in-use") == "unfinished"
    assert node.run("dpkg-query", "-Wf", "${Version}", "pmxcfs") == debs.HIGHER
    gap = gap_of_last_restart(node)
    report(f"gap in the service by an upgrade: {gap:.2f} s")
    assert gap < STOP_DEADLINE * 2


def gap_of_last_restart(node: Machine) -> float:
    """Return the seconds from the order to stop until the mount answered again."""
    ready = int(node.property("pmxcfs", "ActiveEnterTimestampMonotonic"))
    left = int(node.property("pmxcfs", "InactiveExitTimestampMonotonic"))
    stopping = node.run(
        "journalctl", "--output=short-monotonic", "--grep=Stopping pmxcfs", "--lines=1"
    )
    found = re.search(r"\[ *([\d.]+)\]", stopping)
    assert found
    assert left < ready
    return ready / 1e6 - float(found[1])


def test_a_crash_leaves_the_last_changes_in_the_database(node: Machine) -> None:
    """The unit writes them, before it starts the daemon again."""
    killed = node.main_pid("pmxcfs")
    # Not the control group: systemd 257 would kill the command of ExecStopPost= with it.
    node.shell("echo saved >/etc/pve/file; systemctl kill --kill-whom=main --signal=KILL pmxcfs")
    node.wait_for(lambda: node.main_pid("pmxcfs") not in (0, killed) and node.is_active("pmxcfs"))
    assert node.shell("cat /etc/pve/file") == "saved"
    log = ("journalctl", "--output=cat", "--unit=pmxcfs")
    node.wait_for(lambda: "changes of the journal were written to it" in node.run(*log))
    assert "conflicts" not in node.run("ls", "/var/lib/pve-cluster")


def test_an_upgrade_keeps_a_service_stopped_and_disabled(node: Machine, tmp_path: Path) -> None:
    node.run("systemctl", "disable", "--now", "pmxcfs")
    node.install(debs.upgrade(tmp_path, node.release))
    assert not node.is_active("pmxcfs")


def test_a_removal_keeps_only_the_database(plain: Machine) -> None:
    before = files(plain)
    plain.install(debs.ours(plain.release))
    report_metrics(plain)
    plain.shell("echo saved >/etc/pve/file")
    with busy(plain):
        plain.run("dpkg", "--remove", "pmxcfs")
    assert plain.run("findmnt", "/etc/pve", check=False) == ""
    said = plain.run("dpkg", "--purge", "pmxcfs")
    assert "the database and its journal are kept in /var/lib/pve-cluster" in said
    assert plain.run("dpkg-divert", "--list", "*pmxcfs*") == ""
    kept = {f"/var/lib/pve-cluster{name}" for name in ("", "/config.db", "/journal")}
    assert {path for path in files(plain) ^ before if not path.endswith(".log")} == kept
    plain.install(debs.ours(plain.release))
    assert plain.shell("cat /etc/pve/file") == "saved"


def test_a_purge_without_a_database_leaves_nothing(plain: Machine) -> None:
    before = files(plain)
    plain.install(debs.ours(plain.release))
    plain.run("systemctl", "stop", "pmxcfs")
    plain.shell("rm /var/lib/pve-cluster/config.db; dpkg --purge pmxcfs")
    assert files(plain) == before


def test_the_service_starts_at_boot_before_corosync(node: Machine) -> None:
    order = node.run("systemd-analyze", "dot", "pmxcfs.service")
    assert '"cron.service"->"pmxcfs.service" [color="green"]' in order
    node.shell("echo saved >/etc/pve/file; mv /root/corosync.conf /etc/corosync/")
    node.run("systemctl", "enable", "corosync")
    node.reboot()
    assert node.is_active("corosync")
    ready = int(node.property("pmxcfs", "ActiveEnterTimestampMonotonic"))
    assert ready <= int(node.property("corosync", "InactiveExitTimestampMonotonic"))
    assert node.shell("cat /etc/pve/file") == "saved"
    # The last shutdown was in order.
    said = node.run("journalctl", "--output=cat", "--identifier=pmxcfs").splitlines()
    assert "[main] info: stopping" in said
    assert not [line for line in said if "stale mount" in line]


def test_the_smoke_test_of_the_package_passes(node: Machine) -> None:
    """The smoke test runs as in autopkgtest, without access to the checkout."""
    node.run("install", "-m755", "/dev/stdin", "/root/smoke", given=smoke())
    said = node.run("env", "-C", "/", "AUTOPKGTEST_TMP=/tmp", "/root/smoke")
    assert "mounted, changed, checked, exported and mounted again" in said


def smoke() -> str:
    return (ROOT / "debian" / "tests" / "smoke").read_text()


def test_the_manual_pages_can_be_read(node: Machine) -> None:
    for page in ("pmxcfs.8", "pmxcfs.5", "create_pmxcfs_db"):
        assert "PMXCFS" in node.run("man", page)


def test_the_changelog_for_administrators_is_installed(node: Machine) -> None:
    installed = node.shell("zcat -f /usr/share/doc/pmxcfs/CHANGELOG.md*")
    assert installed.strip() == (ROOT / "CHANGELOG.md").read_text().strip()


def test_a_start_with_many_guests_is_quick(node: Machine, report: Report) -> None:
    node.shell("systemctl stop pmxcfs; rm /var/lib/pve-cluster/config.db")
    node.shell(
        "mkdir -p /tmp/tree/nodes/node1/qemu-server; cd /tmp/tree/nodes/node1/qemu-server;"
        f"for vmid in $(seq 100 {99 + GUESTS}); do"
        "  printf 'cores: 2\\nmemory: 2048\\nname: guest%d\\n%900s\\n' $vmid '' >$vmid.conf; done;"
        "pmxcfs import /tmp/tree"
    )
    times = []
    for _ in range(3):
        node.run("systemctl", "restart", "pmxcfs")
        started = int(node.property("pmxcfs", "ExecMainStartTimestampMonotonic"))
        ready = int(node.property("pmxcfs", "ActiveEnterTimestampMonotonic"))
        times.append((ready - started) / 1e6)
    gap = gap_of_last_restart(node)
    report(f"{GUESTS} guests: READY after {sorted(times)} s, gap of a restart {gap:.2f} s")
    assert node.shell("ls /etc/pve/qemu-server | wc -l") == str(GUESTS)
    assert min(times) < 10
