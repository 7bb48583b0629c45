"""Three nodes, one of which has a damaged database and the highest version of all.

The others' tree must stay the cluster's, and the damaged side be in conflicts/ of its node.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster.kept import copies, kept
from tests.cluster.lab import Member
from tests.cluster.together import Cluster

pytestmark = pytest.mark.needs_corosync

Report = Callable[[object], None]
Damage = Callable[[Path], None]

STOP = 3.0  # seconds
AHEAD = 1_000_000  # versions
FILES = 60
PAGE = 1024


def stop(node: Member) -> None:
    assert node.daemon.stop(seconds=STOP) == 0, node.daemon.log_tail()


def go_ahead(path: Path) -> None:
    """Give the database the highest version of all, and a file that no other node has."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        ours = "INSERT INTO tree SELECT 900000, 0, version + ?, 3, 1, 8, 'ours', x'78' "
        connection.execute(ours + "FROM tree WHERE inode = 0", (AHEAD,))
        connection.execute("UPDATE tree SET version = version + ? WHERE inode = 0", (AHEAD,))
        connection.execute("UPDATE tree SET version = version + ? WHERE name = 'f7'", (AHEAD,))


def page_with(content: bytes | bytearray, wanted: bytes) -> int:
    """Return the offset of the page that has *wanted*, behind the first page."""
    return content.index(wanted, PAGE) // PAGE * PAGE


def zero_leaf(path: Path) -> None:
    content = bytearray(path.read_bytes())
    page = page_with(content, b"f30content of 30")
    content[page : page + PAGE] = bytes(PAGE)
    path.write_bytes(content)


def zero_root(path: Path) -> None:
    """Zero the second page, which is the root of the table."""
    content = bytearray(path.read_bytes())
    content[PAGE : 2 * PAGE] = bytes(PAGE)
    path.write_bytes(content)


def zero_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[:PAGE] = bytes(PAGE)
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: page_with(content, b"f50content of 50") + 700])


def flip_pointers(path: Path) -> None:
    """Damage the pointers of the table's root to its leaves."""
    content = bytearray(path.read_bytes())
    for at in (PAGE + 12, PAGE + 15):
        content[at] ^= 0x40
    path.write_bytes(content)


def lose_version_row(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM tree WHERE inode = 0")


def negate_version_row(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE tree SET version = -1 WHERE inode = 0")


def damage_log(path: Path) -> None:
    path.with_name("config.db-wal").write_bytes(b"\x37\x7f\x06\x82" + b"damage" * 500)


OFTEN: Sequence[Damage] = (zero_leaf, cut_off, lose_version_row, damage_log)
ALSO: Sequence[Damage] = (zero_root, zero_header, flip_pointers, negate_version_row)
DAMAGES = [*OFTEN, *(pytest.param(damage, marks=pytest.mark.long) for damage in ALSO)]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose tree has some files."""
    cluster = Cluster(tmp_path_factory.mktemp("damaged"))
    with contextlib.ExitStack() as undo:
        undo.enter_context(cluster)
        cluster.start()
        (agent,) = cluster.agents(cluster[1])
        for number in range(FILES):
            agent("create", f"f{number}", b"content of %d " % number * 20)
        cluster.wait_for_agreement()
        yield cluster
        cluster.finish()


def damage_and_start(cluster: Cluster, damage: Damage) -> Member:
    """Stop node 3, damage its database, which is ahead of all others, and start it again."""
    three = cluster[3]
    cluster.wait_for_agreement()
    stop(three)
    go_ahead(three.database)
    damage(three.database)
    cluster.launch(three)
    return three


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_database_never_leads(filled: Cluster, damage: Damage, report: Report) -> None:
    cluster = filled
    before = cluster[1].daemon.info()["checksum"]
    kept_before = len(copies([cluster[3]]))
    three = damage_and_start(cluster, damage)
    seconds = cluster.wait_for_agreement()
    after = cluster[1].daemon.info()["checksum"]
    for agent in cluster.agents():
        names = agent("list", "")
        assert "ours" not in names
        assert {f"f{number}" for number in range(FILES)} <= set(names)
        assert agent("get", "f30") == b"content of 30 " * 20
    assert after == before, "the tree of the intact members stays"
    assert len(copies([three])) > kept_before
    assert kept([three], "ours")[-1:] == [b"x"] or damage is cut_off
    assert not copies(cluster.nodes[:2])
    report(f"{damage.__name__}: in sync after {seconds:.1f} s, {three.database.name} kept")


def test_what_was_salvaged_leads_only_if_nobody_has_better(filled: Cluster) -> None:
    """All three are damaged: then one of them must lead, and nothing that could be read is lost."""
    cluster = filled
    cluster.wait_for_agreement()
    for node in cluster.nodes:
        stop(node)
    for node in cluster.nodes:
        zero_leaf(node.database)
    cluster.launch()
    cluster.wait_for_agreement()
    for agent in cluster.agents():
        names = set(agent("list", ""))
        assert "f30" not in names
        assert len({f"f{number}" for number in range(FILES)} - names) < 5
        agent("create", f"after{agent.__hash__()}", b"x")
    cluster.wait_for_agreement()
