"""A node whose state directory can't be written for a minute while the others make changes.

Meanwhile it leaves the cluster and comes back, so it adopts a tree that it can't save, and it may
crash, too. As soon as there is room again nothing is missing, in the tree and on the device.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from pmxcfs.replica.change_log import MAX_OWED
from pmxcfs.storage.kept_copies import kept_copies
from pmxcfs.storage.recovery import inspect
from tests.cluster.agent import Agent
from tests.cluster.lab import Member
from tests.cluster.together import AGREEMENT, STOP, Cluster
from tests.fakes.doubles.store import contents_of, stored
from tests.mount.devices import IMAGE_SIZE, filled, needs_loop

pytestmark = [pytest.mark.needs_corosync, pytest.mark.long, needs_loop]

Report = Callable[[object], None]

OUTAGE = 60.0  # seconds
AWAY = 10.0  # seconds that the node is separated from the others
DETECTION = 30.0  # seconds for corosync to notice; 2 on an idle machine
STATE = "/var/lib/pve-cluster"  # in a node
PACE = 0.1  # seconds between two changes of one node
FILES = 40  # that each node writes in turn
LITTLE, MUCH = 2 << 10, 100 << 10  # bytes of each: together less, or more, than may be owed
SOON = 15.0  # seconds until the device has what is in RAM


class Disk:
    """A small ext4 file system as the state directory of a node."""

    def __init__(self, node: Member) -> None:
        self._node = node
        self._image = node.directory / "state.img"
        with self._image.open("wb") as file:
            file.truncate(IMAGE_SIZE)
        subprocess.run(["mkfs.ext4", "-q", self._image], check=True)
        self._mount()

    @property
    def path(self) -> Path:
        """Where this process sees it."""
        return self._node.root / STATE.lstrip("/")

    @contextmanager
    def full(self) -> Iterator[int]:
        """Leave no room during the block; yields the errno of a change."""
        with filled(self.path):
            yield errno.ENOSPC

    @contextmanager
    def read_only(self) -> Iterator[int]:
        """Let ext4 find an error, and have the disk checked and mounted again after the block."""
        source = self._node.run("findmnt", "--noheadings", "--output", "SOURCE", STATE)
        (Path("/sys/fs/ext4") / Path(source.strip()).name / "trigger_fs_error").write_text("test")
        yield errno.EROFS
        # What the daemon has open keeps the first file system.
        self._node.run("umount", "--lazy", STATE)
        self._image = Path(shutil.copy(self._image, f"{self._image}.copy"))
        subprocess.run(["e2fsck", "-fy", self._image], check=False, capture_output=True)
        self._mount()

    def _mount(self) -> None:
        self._node.run("mount", "-o", "loop,errors=remount-ro", self._image, STATE)


class Load:
    """Changes on some nodes; *done* has what was acknowledged, by path."""

    def __init__(self, agents: list[Agent], size: int) -> None:
        self.done: dict[str, bytes] = {}
        self.refused: list[str] = []
        self.written = 0  # bytes
        self._size = size
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number, agent))
            for number, agent in enumerate(agents)
        ]

    def start(self) -> None:
        """Start to make changes."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Make no further changes."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int, agent: Agent) -> None:
        count = 0
        while not self._is_over.wait(PACE):
            path, content = f"{number}-{count % FILES}", os.urandom(self._size)
            (outcome,) = agent.do(("put", path, content))
            if outcome.error:
                self.refused.append(f"{path}: {errno.errorcode[outcome.error]}")
            else:
                self.done[path] = content
                self.written += self._size
            count += 1


def kept_on_device(disk: Disk, to: Path) -> str:
    """Return the checksum of the tree that database and journal give together, as after a crash."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(disk.path, to, ignore=shutil.ignore_patterns("filler", "lost+found"))
    return inspect(to / "config.db").tree.checksum().hex()


def in_database(disk: Disk, to: Path) -> str:
    """Return the checksum of the tree in a copy of config.db alone."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    shutil.copy(disk.path / "config.db", to)
    return inspect(to / "config.db").tree.checksum().hex()


def restart_after_crash(cluster: Cluster, node: Member) -> None:
    node.daemon.kill()
    cluster.launch(node)
    cluster.wait_for_agreement()


def findings(node: Member) -> list[str]:
    """Return the names of what ``pmxcfs status`` says is not well."""
    told = node.run(sys.executable, "-m", "pmxcfs", "status", "--json", check=False)
    return [finding["name"] for finding in json.loads(told)["findings"]]


def error_of_change(agent: Agent) -> int:
    """Return the errno of a change, 0 if it succeeds."""
    return agent.do(("put", "own", b"of the degraded node"))[0].error


def bring_back(cluster: Cluster, node: Member, agent: Agent) -> float:
    """Return the seconds until a change of a node with room succeeds; all agree then."""
    start = time.monotonic()
    cluster.wait_until(lambda: not error_of_change(agent), SOON, "a change")
    seconds = time.monotonic() - start
    cluster.wait_for_agreement()
    cluster.wait_until(lambda: not findings(node), AGREEMENT, "a healthy node", interval=0.3)
    return seconds


def assert_stored(cluster: Cluster, node: Member, disk: Disk) -> None:
    """Assert that the device has the tree: with the journal, after a request, and after a stop."""
    copy = cluster.directory / "copy"
    wanted = cluster[1].daemon.info()["checksum"]
    with_journal = "database and journal to give the tree"
    cluster.wait_until(lambda: kept_on_device(disk, copy) == wanted, SOON, with_journal)
    restart_after_crash(cluster, node)
    assert node.daemon.info()["checksum"] == wanted
    node.run(sys.executable, "-m", "pmxcfs", "checkpoint")
    assert in_database(disk, copy) == wanted
    assert not list(disk.path.glob("conflicts/*"))
    assert node.daemon.stop(seconds=STOP) == 0, node.daemon.log_tail()
    assert in_database(disk, copy) == wanted


def assert_no_bug(node: Member) -> None:
    for log in sorted(node.log.parent.glob("pmxcfs*.log")):
        text = log.read_text(errors="replace")
        assert "which is a bug" not in text, text[-4000:]
        assert "Traceback" not in text, text[-4000:]


@pytest.mark.parametrize("is_killed", [False, True], ids=["runs", "killed"])
@pytest.mark.parametrize("size", [LITTLE, MUCH], ids=["little", "much"])
@pytest.mark.parametrize("fault", [Disk.full, Disk.read_only], ids=["full", "read-only"])
def test_a_node_that_could_not_store_for_a_minute_has_everything(
    idle_cluster: Cluster,
    report: Report,
    request: pytest.FixtureRequest,
    fault: Callable[[Disk], AbstractContextManager[int]],
    size: int,
    *,
    is_killed: bool,
) -> None:
    cluster, node = idle_cluster, idle_cluster[3]
    disk = Disk(node)
    cluster.start()
    (own,) = cluster.agents(node)
    own("put", "own", b"before")
    cluster.wait_for_agreement()
    load = Load(cluster.agents(*cluster.nodes[:2]), size)
    with ExitStack() as outage:
        code = outage.enter_context(fault(disk))
        start = time.monotonic()
        refused = error_of_change(own)
        while not refused:  # there was some room left in the journal
            refused = own.do(("put", "own", os.urandom(MUCH)))[0].error
        assert refused in (code, errno.EIO)
        load.start()
        time.sleep(AWAY)
        cluster.cut_off(node)
        cluster.wait_until(lambda: not node.daemon.info()["quorate"], DETECTION, "the separation")
        time.sleep(AWAY)
        cluster.heal()
        cluster.wait_until(lambda: node.daemon.info()["mode"] == "synced", AGREEMENT, "an adoption")
        if is_killed:
            node.daemon.kill()
            cluster.launch(node)
            cluster.wait_until(lambda: node.daemon.info()["mode"] == "synced", AGREEMENT, "a sync")
            (own,) = cluster.agents(node)
        time.sleep(max(0, OUTAGE - (time.monotonic() - start)))
        assert error_of_change(own) == code
        told = findings(node)
        load.end()
    seconds = bring_back(cluster, node, own)
    report(
        f"{request.node.callspec.id}: degraded for {OUTAGE:.0f} s ({told}), meanwhile "
        f"{load.written >> 20} MiB in {len(load.done)} files, {len(load.refused)} refused; "
        f"the first change {seconds:.2f} s after there was room"
    )
    assert "not-stored" in told
    assert load.refused == []
    assert (load.written > MAX_OWED) == (size == MUCH)
    assert [own("get", path) for path in load.done] == list(load.done.values())
    assert_stored(cluster, node, disk)
    assert_no_bug(node)


@pytest.mark.parametrize("is_killed", [False, True], ids=["runs", "killed"])
def test_a_node_without_room_that_lost_a_fork_keeps_its_side_when_there_is_room(
    idle_cluster: Cluster, report: Report, *, is_killed: bool
) -> None:
    cluster, node = idle_cluster, idle_cluster[3]
    disk = Disk(node)
    cluster.start()
    winner, loser = cluster.agents(cluster[1], node)
    winner("put", "common", b"common")
    cluster.wait_for_agreement()
    cluster.cut_off(node)
    cluster.wait_until(lambda: not node.daemon.info()["quorate"], DETECTION, "the separation")
    node.daemon.control("quorum", on=True)  # as an administrator does with the expected votes
    cluster.wait_for_agreement(*cluster.nodes[:2])
    loser("create", "of-node3", b"only here")
    for number in range(10):
        winner("put", "common", b"%d" % number)
    with disk.full():
        cluster.heal()
        cluster.wait_for_members(*cluster.nodes)
        node.daemon.control("quorum", on=None)
        stays_out: Callable[[], bool] = lambda: bool(node.daemon.log_lines("staying out"))  # noqa: E731
        cluster.wait_until(stays_out, AGREEMENT, "a failed adoption")
        if is_killed:
            node.daemon.kill()
            cluster.launch(node)
            cluster.wait_until(stays_out, AGREEMENT, "a failed adoption")
            (loser,) = cluster.agents(node)
        winner("put", "meanwhile", b"x" * MUCH)
        assert loser("get", "of-node3") == b"only here"
        assert error_of_change(loser)
        told = findings(node)
    start = time.monotonic()
    cluster.wait_for_agreement()
    seconds = time.monotonic() - start
    copy = Path(shutil.copytree(disk.path, cluster.directory / "copy"))
    [kept] = kept_copies(copy)
    content = contents_of(stored(kept.path))
    report(f"{told}; in sync {seconds:.1f} s after there was room; kept: {content['of-node3']!r}")
    assert content["of-node3"] == b"only here"
    assert "of-node3" not in loser("list")
    assert loser("get", "common") == b"9"
    assert loser("get", "meanwhile") == b"x" * MUCH
    wanted = cluster[1].daemon.info()["checksum"]
    node.run(sys.executable, "-m", "pmxcfs", "conflicts", "done", kept.path.name)
    cluster.wait_until(lambda: not findings(node), AGREEMENT, "a healthy node", interval=0.3)
    assert node.daemon.stop(seconds=STOP) == 0, node.daemon.log_tail()
    assert in_database(disk, copy) == wanted
    assert_no_bug(node)
