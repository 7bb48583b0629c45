"""``_cpg.Cpg`` on a real corosync: membership, order, large messages, failures of corosync."""

import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmxcfs._cpg import Cpg
from pmxcfs.errors import ClusterError, Disconnected, TryAgain
from pmxcfs.messages import Group, Member
from tests.cluster.single import Corosync, own_network, started

pytestmark = pytest.mark.needs_corosync

PATIENCE = 30.0  # seconds for what corosync does at once unless the machine is busy
TREE = Group.TREE.cpg_name


class Recorder:
    """A sink that records its events."""

    def __init__(self) -> None:
        self.messages: list[tuple[Member, bytes]] = []
        self.members: list[Member] | None = None
        self.changes: list[tuple[list[Member], list[Member]]] = []

    def on_deliver(self, member: Member, data: bytes) -> None:
        self.messages.append((member, data))

    def on_confchg(self, members: list[Member], left: list[Member], joined: list[Member]) -> None:
        self.members = members
        self.changes.append((left, joined))


class Broken(Recorder):
    """A sink that records each message and then fails."""

    def on_deliver(self, member: Member, data: bytes) -> None:
        super().on_deliver(member, data)
        raise RuntimeError(data.decode())


@pytest.fixture
def corosync(tmp_path: Path) -> Iterator[Corosync]:
    with own_network(), started(tmp_path) as corosync:
        yield corosync


def connected(sink: Recorder) -> Cpg:
    cpg = Cpg(sink)
    cpg.connect()
    return cpg


def dispatch(cpg: Cpg) -> bool:
    """Wait for an event and dispatch it."""
    assert select.select([cpg], [], [], PATIENCE)[0], "no event"
    return cpg.dispatch_one()


def dispatch_until(cpg: Cpg, condition: Callable[[], object]) -> None:
    while not condition():
        dispatch(cpg)


def joined(sink: Recorder, name: str = TREE) -> Cpg:
    cpg = connected(sink)
    cpg.join(name)
    dispatch_until(cpg, lambda: sink.members)
    return cpg


@pytest.mark.usefixtures("corosync")
def test_a_member_gets_its_own_join_leave_and_messages() -> None:
    sink = Recorder()
    cpg = connected(sink)
    assert not cpg.dispatch_one()
    cpg.join(TREE)
    dispatch_until(cpg, lambda: sink.members)
    assert sink.members
    (me,) = sink.members
    assert me.nodeid == cpg.local_nodeid() == 1
    assert sink.changes == [([], [me])]
    for data in (b"one", b"two", b""):
        cpg.mcast(data)
    dispatch_until(cpg, lambda: len(sink.messages) == 3)
    assert sink.messages == [(me, b"one"), (me, b"two"), (me, b"")]
    cpg.leave(TREE)
    dispatch_until(cpg, lambda: sink.members == [])
    assert sink.changes[1:] == [([me], [])]
    cpg.close()


@pytest.mark.usefixtures("corosync")
def test_a_second_join_needs_a_new_connection() -> None:
    sink = Recorder()
    cpg = joined(sink)
    cpg.leave(TREE)
    dispatch_until(cpg, lambda: sink.members == [])
    with pytest.raises(ClusterError, match="cpg_join: CS_ERR_EXIST") as refused:
        cpg.join(TREE)
    assert refused.value.call == "cpg_join"
    cpg.close()
    again = joined(sink)
    assert len(sink.changes) == 3
    again.close()


@pytest.mark.usefixtures("corosync")
def test_a_group_gets_only_its_own_messages() -> None:
    tree, status = Recorder(), Recorder()
    tree_cpg, status_cpg = joined(tree), joined(status, Group.STATUS.cpg_name)
    tree_cpg.mcast(b"tree")
    status_cpg.mcast(b"status")
    dispatch_until(tree_cpg, lambda: tree.messages)
    dispatch_until(status_cpg, lambda: status.messages)
    assert [data for _, data in tree.messages] == [b"tree"]
    assert [data for _, data in status.messages] == [b"status"]
    tree_cpg.close()
    status_cpg.close()


@pytest.mark.usefixtures("corosync")
def test_a_fragmented_message_is_delivered_whole() -> None:
    sink = Recorder()
    cpg = joined(sink)
    assert cpg.max_message_size() == (1 << 20) - 1024
    data = bytes(range(256)) * (3 << 12)
    cpg.mcast(data)
    silent = 0  # dispatches that took a fragment and made no callback
    while not sink.messages:
        assert dispatch(cpg)
        silent += not sink.messages
    assert silent >= 2
    assert sink.messages[0][1] == data
    cpg.close()


@pytest.mark.usefixtures("corosync")
def test_an_exception_of_the_sink_comes_before_the_next_message() -> None:
    sink = Broken()
    cpg = joined(sink)
    cpg.mcast(b"first")
    cpg.mcast(b"second")
    for seen, text in enumerate(["first", "second"]):
        assert len(sink.messages) == seen
        with pytest.raises(RuntimeError, match=text):
            dispatch(cpg)
    assert not cpg.dispatch_one()
    cpg.close()


def test_a_corosync_that_died_is_a_lost_connection(corosync: Corosync) -> None:
    sink = Recorder()
    cpg = joined(sink)
    corosync.kill()
    for call in (
        lambda: dispatch(cpg),  # the descriptor shows the end of the connection
        lambda: cpg.mcast(b"x"),
        lambda: cpg.join(TREE),
        lambda: cpg.leave(TREE),
        cpg.local_nodeid,
    ):
        with pytest.raises(Disconnected):
            call()
    cpg.close()
    with pytest.raises(Disconnected):
        connected(sink)


def test_other_threads_run_while_a_call_waits_for_corosync(corosync: Corosync) -> None:
    sink = Recorder()
    cpg = connected(sink)
    corosync.send(signal.SIGSTOP)
    thread = threading.Thread(target=cpg.join, args=(TREE,), daemon=True)
    thread.start()
    for _ in range(100):
        other = threading.Thread(target=int)
        other.start()
        other.join(PATIENCE)
        assert not other.is_alive()
    assert thread.is_alive()
    corosync.send(signal.SIGCONT)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    dispatch_until(cpg, lambda: sink.members)
    cpg.close()


def test_a_stopped_corosync_takes_messages_and_delivers_none(corosync: Corosync) -> None:
    sink = Recorder()
    cpg = joined(sink)
    corosync.send(signal.SIGSTOP)
    cpg.mcast(b"one")
    cpg.mcast(b"two")
    assert not cpg.dispatch_one()
    corosync.send(signal.SIGCONT)
    dispatch_until(cpg, lambda: len(sink.messages) == 2)
    assert [data for _, data in sink.messages] == [b"one", b"two"]
    cpg.close()


@pytest.mark.usefixtures("corosync")
def test_a_message_without_room_is_not_sent() -> None:
    sink = Recorder()
    cpg = joined(sink)
    sent: list[bytes] = []

    def send_for_ever() -> None:
        while True:
            data = len(sent).to_bytes(10_000, "little")
            cpg.mcast(data)
            sent.append(data)

    with pytest.raises(TryAgain):  # libqb has a buffer of 1 MiB
        send_for_ever()
    dispatch_until(cpg, lambda: len(sink.messages) == len(sent))
    cpg.mcast(b"last")
    dispatch_until(cpg, lambda: sink.messages[-1][1] == b"last")
    assert [data for _, data in sink.messages] == [*sent, b"last"]
    cpg.close()


AT_ONCE = """
import os, threading
from pmxcfs._cpg import Cpg

def connect(barrier):
    cpg = Cpg(object())
    barrier.wait()
    cpg.connect()
    barrier.wait()
    cpg.local_nodeid()
    cpg.close()
    done.append(cpg)

failed = 0
for _ in range(100):  # each in a process in which libcpg was never used
    pid = os.fork()
    if pid == 0:
        done, barrier = [], threading.Barrier(2, timeout=30)
        threads = [threading.Thread(target=connect, args=[barrier]) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os._exit(len(done) != 2)
    failed += os.waitpid(pid, 0)[1] != 0
print(failed, "failed")
"""


@pytest.mark.usefixtures("corosync")
def test_two_threads_can_connect_at_once() -> None:
    child = [sys.executable, "-c", AT_ONCE]
    result = subprocess.run(child, capture_output=True, text=True, timeout=120)
    assert (result.stdout, result.stderr) == ("0 failed\n", "")


DROPPED = f"""
from pmxcfs._cpg import Cpg
from pmxcfs.cluster._corosync import Cmap, Quorum

cpg = Cpg(object())
cpg.connect()
cpg.join({TREE!r})
quorum, cmap = Quorum(), Cmap()
quorum.connect()
cmap.connect()
cmap.track("totem.")
"""


@pytest.mark.parametrize("end", ["", "del cpg, quorum, cmap", "raise SystemExit"])
@pytest.mark.usefixtures("corosync")
def test_a_connection_that_was_never_closed_prints_nothing_at_exit(end: str) -> None:
    child = [sys.executable, "-X", "dev", "-c", DROPPED + end]
    result = subprocess.run(child, capture_output=True, text=True, timeout=PATIENCE)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
