"""Databases that were not written by the node that they are started on, or not in a cluster.

A database has notes of what other nodes miss of it. They stay true on another node, as they are
about the database: only the note of the node that it is copied to is dropped.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.kept import copies, kept
from tests.cluster.lab import Member
from tests.cluster.together import Cluster
from tests.fakes.programs.mortal import Plan
from tests.harness import PROGRAM

pytestmark = [pytest.mark.needs_corosync, pytest.mark.long]

Report = Callable[[object], None]

CONTENT = b"content"
STOP = 3.0  # seconds
NEVER_SAVING = Plan(pause=3600.0, size=1 << 40).program()
MANY = 12  # changes of a status file


def stop(node: Member) -> None:
    assert node.daemon.stop(seconds=STOP) == 0, node.daemon.log_tail()


def back_up(node: Member, to: Path) -> Path:
    """Copy the database of *node*, whose daemon is stopped."""
    assert not node.daemon.is_running
    shutil.copy(node.database, to)
    return to


def lose(node: Member) -> None:
    """Kill the daemon; nothing stays in the state directory."""
    node.daemon.kill()
    for path in node.database.parent.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def put_in_place(backup: Path, node: Member) -> None:
    for name in ("config.db-wal", "config.db-shm"):  # of a daemon that was killed
        node.database.with_name(name).unlink(missing_ok=True)
    shutil.copy(backup, node.database)


def rewrite(cluster: Cluster, node: Member, path: str, count: int) -> None:
    (agent,) = cluster.agents(node)
    for number in range(count):
        agent("put", path, b"%d" % number)


@pytest.mark.parametrize("is_old", [False, True], ids=["new", "old"])
def test_a_node_is_installed_from_the_backup_of_another(
    idle_cluster: Cluster, tmp_path: Path, report: Report, is_old: bool
) -> None:
    """Node 2 is lost, so node 1 has a note of it, and removals that it misses."""
    cluster = idle_cluster
    cluster.start()
    one, two, three = cluster.nodes
    (agent,) = cluster.agents(one)
    agent.do(("create", "common", CONTENT), ("create", "gone", CONTENT))
    cluster.wait_for_agreement()
    lose(two)
    cluster.wait_for_agreement(one, three)
    rewrite(cluster, one, "status", MANY)
    agent("unlink", "gone")
    stop(one)
    backup = back_up(one, tmp_path / "backup.db")
    cluster.launch(one)
    cluster.wait_for_agreement(one, three)
    if is_old:
        rewrite(cluster, three, "status", MANY)
        cluster.agents(three)[0]("put", "common", b"changed")
    put_in_place(backup, two)
    cluster.launch(two)
    cluster.wait_for_agreement()
    for each in cluster.agents():
        assert each("get", "common") == (b"changed" if is_old else CONTENT)
        assert "gone" not in each("list", "")
    assert not copies(cluster.nodes)
    report(f"a backup of node1 on node2, {'old' if is_old else 'new'}: no copy kept")
    cluster.finish()


def test_a_copy_that_is_newer_than_the_others_replaces_them(
    idle_cluster: Cluster, tmp_path: Path
) -> None:
    """Nodes 1 and 3 get an old backup, node 2 a newer one of node 1."""
    cluster = idle_cluster
    cluster.start()
    one, two, three = cluster.nodes
    (agent,) = cluster.agents(one)
    agent("create", "common", CONTENT)
    cluster.wait_for_agreement()
    stop(one)
    old = back_up(one, tmp_path / "old.db")
    cluster.launch(one)
    cluster.wait_for_agreement()
    rewrite(cluster, one, "common", MANY)
    cluster.wait_for_agreement()
    for node in cluster.nodes:
        stop(node)
    put_in_place(one.database, two)
    for node in (one, three):
        put_in_place(old, node)
    cluster.launch(one, three)
    cluster.wait_for_agreement(one, three)
    cluster.launch(two)
    cluster.wait_for_agreement()
    for each in cluster.agents():
        assert each("get", "common") == b"%d" % (MANY - 1)
    # Only node 1 has its own database of an earlier time: its journal had what was changed since.
    assert kept([one], "common") == [b"%d" % (MANY - 1)]
    assert not copies([two, three])
    cluster.finish()


def test_what_only_the_journal_has_is_kept_beside_the_backup_of_another(
    idle_cluster: Cluster, tmp_path: Path, report: Report
) -> None:
    cluster = idle_cluster
    one, two, _ = cluster.nodes
    two.daemon.program = NEVER_SAVING
    cluster.start()
    (agent,) = cluster.agents(one)
    agent.do(("create", "common", CONTENT), ("mkdir", "priv"), ("create", "priv/key", CONTENT))
    cluster.wait_for_agreement()
    stop(one)
    backup = back_up(one, tmp_path / "backup.db")
    cluster.agents(two)[0]("create", "later", CONTENT)
    two.daemon.kill()
    put_in_place(backup, two)
    two.daemon.program = PROGRAM
    cluster.launch(one, two)
    cluster.wait_for_agreement()
    for path in ("common", "priv/key", "later"):
        assert kept([two], path) == [CONTENT]
    for each in cluster.agents():
        assert [each("get", path) for path in ("common", "later")] == [CONTENT] * 2
    assert not copies([one, cluster[3]])
    lines = two.daemon.log_lines("changed in the journal only: ")
    report(f"a backup of node1 on node2, whose journal was not saved: {lines}")
    assert len(lines) == 4
    assert not [line for line in lines if "key" in line]
    cluster.finish()


def test_a_copy_knows_what_a_third_node_misses(
    idle_cluster: Cluster, tmp_path: Path, report: Report
) -> None:
    """Node 3 was separated from node 1 and both were changed; node 2 gets a copy of node 1."""
    cluster = idle_cluster
    cluster.start()
    one, two, three = cluster.nodes
    (agent,) = cluster.agents(one)
    agent.do(("put", "status", b"common"), ("create", "gone", CONTENT))
    cluster.wait_for_agreement()
    lose(two)
    cluster.cut_off(three)
    cluster.wait_until(lambda: not three.daemon.info()["quorate"], 30, "the loss of quorum")
    three.run("corosync-quorumtool", "-e", "1")
    cluster.wait_for_agreement(one)
    cluster.wait_for_agreement(three)
    agent.do(("create", "ours", CONTENT), ("unlink", "gone"))
    rewrite(cluster, three, "status", MANY)
    stop(one)
    put_in_place(one.database, two)
    one.database.unlink()
    cluster.launch(two)
    cluster.heal()
    cluster.wait_for_members(*cluster.nodes)
    three.run("corosync-quorumtool", "-e", "3")
    cluster.wait_for_agreement(two, three)
    assert "ours" not in cluster.agents(two)[0]("list", "")
    assert kept([two], "ours") == [CONTENT]
    cluster.wait_until(
        lambda: bool(two.daemon.log_lines("another node's version: gone")), 30, "the removal's line"
    )
    assert not copies([three])
    report("a copy of node1 on node2 knows the fork of node3")
    cluster.launch(one)
    cluster.wait_for_agreement()
    assert not copies([one])
    cluster.finish()


@pytest.mark.parametrize("wins", [False, True], ids=["loses", "wins"])
def test_changes_in_local_mode_are_kept(idle_cluster: Cluster, report: Report, wins: bool) -> None:
    """Node 3 is changed alone with --local while the others go on, then it joins them again."""
    cluster = idle_cluster
    cluster.start()
    one, two, three = cluster.nodes
    (agent,) = cluster.agents(one)
    for name in ("a", "b", "gone"):
        agent("create", name, CONTENT)
    cluster.wait_for_agreement()
    stop(three)
    cluster.wait_for_agreement(one, two)
    three.daemon.start("--local")
    three.daemon.wait_until_mounted()
    (alone,) = cluster.agents(three)
    alone.do(("create", "mine", CONTENT), ("put", "a", b"mine"), ("unlink", "gone"))
    agent.do(("create", "ours", CONTENT), ("put", "b", b"ours"))
    rewrite(cluster, three if wins else one, "status", MANY)
    stop(three)
    cluster.launch(three)
    cluster.wait_for_agreement()
    losers = [one, two] if wins else [three]
    assert not copies([node for node in cluster.nodes if node not in losers])
    lost = {"ours": CONTENT, "b": b"ours"} if wins else {"mine": CONTENT, "a": b"mine"}
    for path, content in lost.items():
        assert kept(losers, path) == [content] * len(losers)
    if not wins:
        cluster.wait_until(
            lambda: bool(three.daemon.log_lines("another node's version: gone")), 30, "its line"
        )
    names = cluster.agents(two)[0]("list", "")
    assert ("mine" in names, "ours" in names, "gone" in names) == (wins, not wins, not wins)
    report(
        f"changed in local mode, then {'winner' if wins else 'loser'}: kept on {len(losers)} nodes"
    )
    cluster.finish()
