"""What ``pmxcfs status`` says in each state of a node that a test can cause, with real parts.

Of each state the report has the exit status, the lines of state and next step, and the JSON without
what is not about health. ``-s`` shows it, also if all tests pass.
"""

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pmxcfs.daemon.health import KINDS
from tests.cluster.lab import Lab, Member, corosync_conf
from tests.cluster.together import Cluster
from tests.mount.devices import IMAGE_SIZE, filled, make_immutable, needs_loop

pytestmark = [pytest.mark.needs_corosync, pytest.mark.long]

Report = Callable[[object], None]

SOON = 30.0  # seconds until a state is shown; corosync needs 2 to miss a node
HANG = 20.0  # seconds until a hang is shown without a change: the probe's interval, and 2
STOP = 3.0  # seconds that a stop may take
WAYS = {"healthy": 0, "degraded": 1, "failed": 2, "unknown": 3}
STATE = "/var/lib/pve-cluster"  # in a node
SMALL_DISK = 6 << 20  # bytes; more than the log grows to
MORE_THAN_FREE = 1 << 20  # bytes
SHOWN = ("running", "state", "node", "quorate")  # keys of the JSON that a report shows

# Runs the command as another user, who may be unable to read this checkout.
AS_USER = """
import os, pwd, sys
from pmxcfs.cli import main, query
account = pwd.getpwnam(sys.argv[1])
os.setgroups([])
os.setgid(account.pw_gid)
os.setuid(account.pw_uid)
sys.exit(main.main(sys.argv[2:]))
"""


class Told(NamedTuple):
    """What the command has said about one state, as text and as JSON."""

    status: int
    lines: list[str]
    data: dict[str, Any]

    @property
    def findings(self) -> list[dict[str, str]]:
        """What is not well, the worst first."""
        found: list[dict[str, str]] = self.data["findings"]
        return found

    @property
    def names(self) -> list[str]:
        """The names of what is not well."""
        return [finding["name"] for finding in self.findings]

    def check(self) -> None:
        """Assert that text, JSON and exit status tell the same."""
        state = self.data["state"]
        assert self.status == WAYS[state]
        first = self.findings[0] if self.findings else None
        reason = f"{state}: {first['reason']}" if first else state
        assert self.lines[0] == f"state     {reason}"
        text = "\n".join(self.lines)
        for finding in self.findings:
            assert finding["reason"] in text
            assert finding["step"] in text
            if finding["state"] != "unknown":
                kind = KINDS[finding["name"]]
                assert (finding["state"], finding["step"]) == (kind.state.value, kind.step)

    def __str__(self) -> str:
        """Return what a report shows."""
        head = next((n for n, line in enumerate(self.lines) if line.startswith("node")), None)
        data = {key: self.data[key] for key in SHOWN if key in self.data}
        data["findings"] = [
            {key: finding[key] for key in ("name", "state", "reason", "step")}
            for finding in self.findings
        ]
        words = [f"exit status {self.status}", *self.lines[:head], f"--json {json.dumps(data)}"]
        return "\n  ".join(words)


def run(node: Member, *flags: str, user: str) -> tuple[int, str]:
    """Return exit status and output of ``pmxcfs status``, which writes nothing to stderr."""
    program = ["-m", "pmxcfs"] if user == "root" else ["-c", AS_USER, user]
    script = '"$@"; s=$?; echo; echo $s'
    words = ["sh", "-c", script, "sh", sys.executable, *program, "status", *flags]
    output, _, status = node.run(*words, check=False).rstrip().rpartition("\n")
    return int(status), output.rstrip()


def ask(node: Member, *, user: str = "root") -> Told:
    """Ask for text and JSON until both are of one state; check that they tell the same."""
    deadline = time.monotonic() + SOON
    while True:
        before, _ = run(node, "--json", user=user)
        status, text = run(node, user=user)
        after, answer = run(node, "--json", user=user)
        told = Told(status, text.splitlines(), json.loads(answer))
        with contextlib.suppress(AssertionError):
            assert before == status == after
            told.check()
            return told
        if time.monotonic() > deadline:
            told.check()


def await_finding(
    lab: Lab,
    node: Member,
    name: str | None,
    report: Report,
    *,
    title: str,
    words: str = "",
    seconds: float = SOON,
) -> Told:
    """Wait until *name* is among the findings, None for a healthy node; report all.

    *words* are in its reason. Returns what was told.
    """

    def is_shown() -> bool:
        found = json.loads(run(node, "--json", user="root")[1])["findings"]
        return not found if name is None else name in [finding["name"] for finding in found]

    took = lab.wait_until(is_shown, seconds, f"the finding {name}", interval=0.3)
    told = ask(node)
    if name is None:
        assert not told.names
    else:
        assert words in told.findings[told.names.index(name)]["reason"]
    report(f"{title}, after {took:.1f} s: {told}")
    return told


# A member of a cluster


def test_each_state_of_a_member(cluster: Cluster, report: Report) -> None:
    node, other = cluster[3], cluster[2]
    await_finding(cluster, node, None, report, title="in sync")
    other.daemon.stop()
    await_finding(cluster, node, "offline", report, title="member offline", words="offline: node2")
    cluster.mend()
    await_finding(cluster, node, None, report, title="in sync again")
    cluster.cut_off(node)
    told = await_finding(cluster, node, "no-quorum", report, title="no quorum", words="no quorum")
    assert "offline" in told.names
    cluster.mend()
    node.corosync.kill()
    words = "no connection to corosync, so it is read-only"
    told = await_finding(cluster, node, "no-corosync", report, title="corosync gone", words=words)
    assert told.names == ["no-corosync"]  # whether other nodes are online is not known
    cluster.mend()
    await_finding(cluster, node, None, report, title="in sync again")


def test_a_hang_is_seen_without_a_change(cluster: Cluster, report: Report) -> None:
    node = cluster[3]
    await_finding(cluster, node, None, report, title="in sync")
    node.corosync.freeze()
    start = time.monotonic()
    try:
        words = "a message of this node has not come back for"
        await_finding(
            cluster, node, "no-echo", report, title="corosync frozen", words=words, seconds=HANG
        )
        assert time.monotonic() - start <= HANG
    finally:
        node.corosync.thaw()
    cluster.mend()
    await_finding(cluster, node, None, report, title="in sync again")


def test_a_kept_copy_is_shown_until_somebody_has_dealt_with_it(
    cluster: Cluster, report: Report
) -> None:
    node = cluster[3]
    winner, loser = cluster.agents(cluster[1], node)
    winner("put", "common", b"common")
    cluster.wait_for_agreement()
    cluster.cut_off(node)
    cluster.wait_until(lambda: not node.daemon.info()["quorate"], SOON, "the loss of quorum")
    node.daemon.control("quorum", on=True)  # as an administrator does with the expected votes
    cluster.wait_for_agreement(*cluster.nodes[:2])
    for number in range(5):
        winner("put", "common", b"%d" % number)
    loser("create", "of-node3", b"only here")
    cluster.mend()
    (copy,) = (node.database.parent / "conflicts").glob("*.db")
    told = await_finding(cluster, node, "conflict", report, title="conflict kept", words=copy.name)
    assert told.names == ["conflict"]
    shown = node.run(sys.executable, "-m", "pmxcfs", "conflicts", "show", copy.name)
    assert "of-node3: kept: 9 bytes of" in shown
    node.run(sys.executable, "-m", "pmxcfs", "conflicts", "done", copy.name)
    await_finding(cluster, node, None, report, title="conflict done")


# A node of its own


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Lab]:
    """One node on which nothing runs yet."""
    with Lab(tmp_path, nodes=1) as lab:
        yield lab


def serve(lab: Lab, *, is_local: bool = True) -> Member:
    """Start the node's daemon, without corosync if it *is_local*."""
    node = lab[1]
    if not is_local:
        lab.start_corosync()
    node.daemon.start(*(["--local"] if is_local else []))
    node.daemon.wait_until_mounted()
    if not is_local:
        lab.wait_until(lambda: node.daemon.info()["mode"] == "synced", SOON, "a synced node")
    return node


def refusal(node: Member) -> int:
    """Make new files until one is refused; return the errno."""
    for number in range(2 * SMALL_DISK // MORE_THAN_FREE):
        try:
            (node.path / f"new{number}").write_bytes(os.urandom(MORE_THAN_FREE))
        except OSError as error:
            return error.errno or 0
    raise AssertionError("no change was refused")


def test_a_node_alone_and_without_its_daemon(alone: Lab, report: Report) -> None:
    node = serve(alone)
    told = await_finding(alone, node, None, report, title="alone")
    assert told.data["cluster"] is None
    assert node.daemon.stop(seconds=STOP) == 0
    told = ask(node)
    report(f"daemon stopped: {told}")
    assert (told.status, told.data["running"], told.names) == (3, False, ["not-running"])
    assert told.lines[0] == "state     unknown: no pmxcfs listens as 'pve2': is it running?"
    assert told.lines[1].startswith("to do     start it: systemctl start pmxcfs")


@pytest.mark.parametrize(
    ("user", "status", "names"), [("www-data", 0, []), ("nobody", 3, ["not-allowed"])]
)
def test_a_node_as_others_than_root_see_it(
    alone: Lab, user: str, status: int, names: list[str], report: Report
) -> None:
    node = serve(alone)
    (node.path / "priv" / "lock" / "held").mkdir(parents=True)
    told = ask(node, user=user)
    report(f"as {user}: {told}")
    assert (told.status, told.names) == (status, names)
    assert "held" not in str(told.data)
    if names:
        assert told.data["running"] is None  # nobody can't know it
        assert told.lines[1] == "to do     ask as root"
    assert node.daemon.stop(seconds=STOP) == 0


@pytest.mark.parametrize("is_local", [True, False], ids=["local", "cluster"])
def test_a_full_disk(alone: Lab, report: Report, *, is_local: bool) -> None:
    alone[1].run("mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK},mode=0750", "tmpfs", STATE)
    node = serve(alone, is_local=is_local)
    (node.path / "file").write_text("as it was\n")
    await_finding(alone, node, None, report, title="with room")
    with filled(node.root / STATE.lstrip("/")):
        words = "free on the device of the state directory: "
        await_finding(alone, node, "little-space", report, title="no room", words=words)
        assert refusal(node) == errno.ENOSPC
        words = "changes are refused: /var/lib/pve-cluster/journal"
        title = f"disk full, {'alone' if is_local else 'in a cluster'}"
        await_finding(alone, node, "not-stored", report, title=title, words=words)
        assert (node.path / "file").read_text() == "as it was\n"
    if is_local:  # in a cluster the daemon tries it once a second
        (node.path / "file").write_text("there is room again\n")
    await_finding(alone, node, None, report, title="with room again")
    (node.path / "file").write_text("there is room\n")
    assert node.daemon.stop(seconds=STOP) == 0


@pytest.fixture
def ext4(alone: Lab) -> Path:
    """A file system as state directory of the node, read-only after an error; returns its image."""
    image = alone.directory / "state.img"
    with image.open("wb") as file:
        file.truncate(IMAGE_SIZE)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    alone[1].run("mount", "-o", "loop,errors=remount-ro", image, STATE)
    return image


def let_fail(node: Member) -> None:
    """Let ext4 find an error, after which it is read-only."""
    device = Path(node.run("findmnt", "--noheadings", "--output", "SOURCE", STATE).strip())
    (Path("/sys/fs/ext4") / device.name / "trigger_fs_error").write_text("of a test")


@needs_loop
@pytest.mark.usefixtures("ext4")
def test_a_file_system_that_has_become_read_only(alone: Lab, report: Report) -> None:
    node = serve(alone)
    (node.path / "file").write_text("as it was\n")
    let_fail(node)
    assert refusal(node) in (errno.EROFS, errno.EIO)
    words = "changes are refused: /var/lib/pve-cluster/journal"
    await_finding(alone, node, "not-stored", report, title="read-only device", words=words)
    assert (node.path / "file").read_text() == "as it was\n"
    assert node.daemon.stop(seconds=STOP) == 1  # the database lacks what is in the journal


@needs_loop
@pytest.mark.usefixtures("ext4")
def test_a_database_that_is_read_only_from_the_start(alone: Lab, report: Report) -> None:
    node = serve(alone)
    (node.path / "file").write_text("as it was\n")
    assert node.daemon.stop(seconds=STOP) == 0
    make_immutable(node.root / STATE.lstrip("/") / "config.db")
    serve(alone)
    words = "the database is not up to date: /var/lib/pve-cluster/config.db"
    await_finding(alone, node, "not-saved", report, title="read-only from the start", words=words)
    (node.path / "file").write_text("kept in the journal\n")
    assert (node.path / "file").read_text() == "kept in the journal\n"
    assert node.daemon.stop(seconds=STOP) == 1  # the database lacks what is in the journal


def test_a_configuration_that_corosync_does_not_reload(alone: Lab, report: Report) -> None:
    """Corosync can start with the file, but not change to it."""
    node = serve(alone, is_local=False)
    good = [corosync_conf(alone.nodes, version=version) for version in (1, 2, 4)]
    for text in good[:2]:
        (node.path / "corosync.conf").write_text(text)
        await_finding(alone, node, None, report, title="in sync")
    moved = corosync_conf(alone.nodes, version=3).replace(node.address, "127.0.0.1")
    (node.path / "corosync.conf").write_text(moved)
    words = "can't ask corosync to reload its configuration: corosync_cfg_reload_config: "
    await_finding(alone, node, "host-file", report, title="reload failed", words=words)
    (node.path / "corosync.conf").write_text(good[2])
    await_finding(alone, node, None, report, title="reloaded")
    assert node.daemon.stop(seconds=STOP) == 0
