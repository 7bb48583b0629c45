"""Joins of a node with an empty, an older, a newer or a forked database."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pmxcfs._core import Tree
from pmxcfs.cli import offline
from pmxcfs.storage.database import inspect
from tests.cluster.kept import copies
from tests.cluster.lab import Member, corosync_conf
from tests.cluster.together import Cluster

pytestmark = pytest.mark.needs_corosync

Report = Callable[[object], None]

FILES, FILE_SIZE = 10_000, 3072  # 30 MB
BIG_JOIN = 60.0  # seconds; 3 on an idle machine
INDEX_ENTRY = 40  # bytes


def stop(*nodes: Member) -> None:
    for node in nodes:
        assert node.daemon.stop(seconds=3) == 0, node.daemon.log_tail()


def forget(node: Member) -> None:
    """Remove the database: a new node has none."""
    for path in node.database.parent.glob("config.db*"):
        path.unlink()


def test_a_node_with_an_older_database_gets_the_changes_since(
    cluster: Cluster, report: Report
) -> None:
    first, last = cluster.agents(cluster[1], cluster[3])
    first.do(("mkdir", "d"), ("create", "d/kept", b"1"), ("create", "gone", b"1"))
    cluster.wait_for_agreement()
    stop(cluster[3])
    cluster.wait_for_agreement(cluster[1], cluster[2])
    first.do(("put", "d/kept", b"22"), ("unlink", "gone"), ("create", "d/new", b"3"))
    before = cluster.bytes_sent(cluster[1], cluster[2])
    cluster.launch(cluster[3])
    seconds = cluster.wait_for_agreement()
    assert last("get", "d/kept") == b"22"
    assert last("list", "d") == ["kept", "new"]
    assert "gone" not in last("list")
    sent = cluster.bytes_sent() - before
    report(f"join of a node with an older database: {seconds:.2f} s, {sent} bytes sent")
    assert not copies([cluster[3]]), "it was only away"


def test_a_node_with_an_empty_database_gets_the_whole_tree(cluster: Cluster) -> None:
    (first,) = cluster.agents(cluster[1])
    first.do(("mkdir", "e"), ("create", "e/file", bytes(1 << 20)))
    stop(cluster[3])
    forget(cluster[3])
    cluster.launch(cluster[3])
    cluster.wait_for_agreement()
    (last,) = cluster.agents(cluster[3])
    assert last("get", "e/file") == bytes(1 << 20)
    assert not copies([cluster[3]])


def test_all_nodes_adopt_the_tree_of_a_node_with_a_newer_database(cluster: Cluster) -> None:
    agents = cluster.agents()
    stop(cluster[1], cluster[2])
    cluster.wait_for_agreement(cluster[3])
    agents[2].do(("create", "newer", b"1"), ("mkdir", "newerdir"))
    stop(cluster[3])
    cluster.launch(cluster[1], cluster[2])
    cluster.wait_for_agreement(cluster[1], cluster[2])
    agents = cluster.agents(cluster[1], cluster[2])
    for agent in agents:
        assert "newer" not in agent("list")
    cluster.launch(cluster[3])
    cluster.wait_for_agreement()
    for agent in agents:
        assert agent("get", "newer") == b"1"


def test_nodes_that_start_at_once_with_different_trees_get_one_tree(cluster: Cluster) -> None:
    (second,) = cluster.agents(cluster[2])
    stop(cluster[1])
    cluster.wait_for_agreement(cluster[2], cluster[3])
    second("create", "without1", b"1")
    stop(cluster[2], cluster[3])
    forget(cluster[3])
    cluster.launch()
    cluster.wait_for_agreement()
    for agent in cluster.agents():
        assert agent("get", "without1") == b"1"


def test_a_killed_node_joins_again(cluster: Cluster) -> None:
    (first,) = cluster.agents(cluster[1])
    cluster[3].daemon.kill()
    first("create", "while3", b"1")
    cluster.launch(cluster[3])
    cluster.wait_for_agreement()
    assert cluster.agents(cluster[3])[0]("get", "while3") == b"1"


def test_the_losing_side_of_a_fork_is_kept_as_a_conflict_copy(
    cluster: Cluster, report: Report
) -> None:
    alone, *majority = cluster.agents()
    for name in ("priv", "both"):
        alone("mkdir", name)
    alone.do(("create", "both/file", b"common"), ("create", "priv/key", b"common"))
    cluster.wait_for_agreement()
    loser = cluster[1]
    kept = copies([loser])
    cluster.cut_off(loser)
    cluster.wait_for_agreement(cluster[2], cluster[3])
    cluster.wait_until(lambda: not loser.daemon.info()["quorate"], 15, "the loss of quorum")
    loser.daemon.control("quorum", on=True)
    cluster.wait_until(lambda: loser.daemon.info()["mode"] == "synced", 15, "a cluster of one")
    alone.do(("put", "both/file", b"alone"), ("put", "priv/key", b"s3cret"))
    alone.do(("create", "both/alone", b"alone"))
    for number in range(10):
        majority[0]("put", "both/file", b"majority %d" % number)
    assert alone("get", "both/file") == b"alone"
    loser.daemon.control("quorum", on=None)
    cluster.heal()
    cluster.wait_for_agreement()
    for agent in (alone, *majority):
        assert agent("get", "both/file") == b"majority 9"
        assert agent("get", "priv/key") == b"common"
        assert agent("list", "both") == ["file"]
    (copy,) = [path for path in copies([loser]) if path not in kept]
    assert copy.stat().st_mode & 0o777 == 0o600
    tree = Tree()
    tree.load(inspect(copy).records)
    contents = {path: tree.find(path) for path in ("both/file", "both/alone", "priv/key")}
    found = {path: entry.content for path, entry in contents.items() if entry}
    assert found == {"both/file": b"alone", "both/alone": b"alone", "priv/key": b"s3cret"}

    def told() -> list[str]:
        return loser.daemon.log_lines("replaced by another node")

    for path in ("both/file", "both/alone"):
        cluster.wait_until(lambda p=path: any(p in line for line in told()), 30, path)  # type: ignore[misc]
    assert not any("priv/key" in line for line in told())
    assert not copies(cluster.nodes[1:])
    report(f"fork: the loser kept {copy.name} and told of {len(told())} paths")


def fill(cluster: Cluster, scratch: Path) -> Path:
    """Make a database of many files; return it."""
    source, database = scratch / "source", scratch / "config.db"
    for number in range(FILES // 100):
        (source / f"d{number}").mkdir(parents=True)
        for file in range(100):
            text = f"{number} {file} ".encode()
            (source / f"d{number}" / f"f{file}").write_bytes(text.ljust(FILE_SIZE, b"."))
    (source / "corosync.conf").write_text(corosync_conf(cluster.nodes))
    assert offline.import_(source, database) == 0
    return database


def test_a_node_joins_a_large_tree(idle_cluster: Cluster, tmp_path: Path, report: Report) -> None:
    cluster = idle_cluster
    full = fill(cluster, tmp_path / "scratch")
    for node in cluster.nodes[:2]:
        shutil.copyfile(full, node.database)
        node.database.chmod(0o600)
    cluster.start_corosync()
    cluster.launch(cluster[1], cluster[2])
    cluster.wait_for_agreement(cluster[1], cluster[2])
    before = cluster.bytes_sent(cluster[1], cluster[2])
    reader, size = cluster.agents(cluster[1])[0], FILES * FILE_SIZE
    start = time.monotonic()
    cluster.launch(cluster[3])
    cluster.wait_for_agreement(seconds=BIG_JOIN)
    seconds = time.monotonic() - start
    sent = cluster.bytes_sent() - before
    assert cluster.agents(cluster[3])[0]("stat", "d7/f7")[1] == FILE_SIZE
    assert size < sent < size + FILES * 400
    assert reader("stat", "d0/f0")[1] == FILE_SIZE
    stop(cluster[3])
    cluster.wait_for_agreement(cluster[1], cluster[2])
    before = cluster.bytes_sent(cluster[1], cluster[2])
    start = time.monotonic()
    cluster.launch(cluster[3])
    cluster.wait_for_agreement()
    again = time.monotonic() - start
    resent = cluster.bytes_sent() - before
    assert resent < 3 * INDEX_ENTRY * FILES * 1.2 + 10_000
    report(
        f"join of an empty node to {FILES} files, {size >> 20} MiB: {seconds:.1f} s from its "
        f"start, {sent >> 20} MiB sent"
    )
    report(f"rejoin without changes: {again:.1f} s, {resent >> 10} KiB sent")
    cluster.finish()
