"""The commands that work on a database file, with changes that only the journal has."""

import contextlib
import os
from pathlib import Path

import pytest

from pmxcfs.cli import checkpoint, offline
from pmxcfs.cli.main import main
from pmxcfs.host.process import StateLock
from pmxcfs.messages import Create, Delete, Mkdir
from pmxcfs.settings import LOCKFILE_NAME
from pmxcfs.storage import recovery
from pmxcfs.storage.database import Database
from pmxcfs.storage.fold import fold
from pmxcfs.storage.journal_reader import JournalFiles
from pmxcfs.storage.kept_copies import kept_copies
from pmxcfs.storage.records import Change
from pmxcfs.storage.recovery import inspect
from pmxcfs.storage.segments import scan
from tests.conftest import ExpectLog
from tests.fakes.doubles.journals import JournalingNode, content, write
from tests.fakes.doubles.store import contents_of, query, stored

NOW = 1_795_000_000
Output = pytest.CaptureFixture[str]
OTHER = r"the database is not the one that the journal goes on from, .*; they are kept as .*"
REPAIRS = [r"repaired .*", r"a copy of .* before the repair is kept as .*"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "config.db"


@pytest.fixture
def node(path: Path) -> JournalingNode:
    """A node that was killed: its last changes are in the journal only."""
    path.parent.mkdir()
    node = JournalingNode(path.parent / "journal")
    node.change(
        Mkdir("d"), Create("d/saved"), write("d/saved", b"old"), Create("removed"), Create("spare")
    )
    node.save_into(path)
    node.change(write("d/saved", b"new"), Delete("removed"), Create("late"))
    return node


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(found.relative_to(directory)): found.read_bytes()
        for found in directory.rglob("*")
        if found.is_file()
    }


# Reading


def test_dump_has_the_changes_of_the_journal(
    node: JournalingNode, path: Path, capsys: Output
) -> None:
    before = files_of(path.parent)
    assert offline.dump(path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"version {node.tree.version}, writer 1, mtime 5"
    assert lines[2] == f"checksum {node.tree.checksum().hex()}"
    assert [line.split()[-1] for line in lines[4:]] == ["d/", "d/saved", "late", "spare"]
    assert files_of(path.parent) == before


def test_export_has_the_changes_of_the_journal(
    node: JournalingNode, path: Path, tmp_path: Path
) -> None:
    before = files_of(path.parent)
    assert offline.export(path, tmp_path / "out") == 0
    assert files_of(tmp_path / "out") == {"d/saved": b"new", "late": b"", "spare": b""}
    assert files_of(path.parent) == before


@pytest.mark.usefixtures("node")
def test_a_copy_of_the_database_alone_is_as_of_the_last_save(path: Path, tmp_path: Path) -> None:
    for copy in (tmp_path / "config.db", path.with_name("copy.db")):
        copy.write_bytes(path.read_bytes())
        assert contents_of(inspect(copy).tree)["d/saved"] == b"old"


def test_fsck_counts_the_changes_of_the_journal(
    node: JournalingNode, path: Path, capsys: Output
) -> None:
    before = files_of(path.parent)
    assert offline.fsck(path, repair=False) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{node.directory}: 3 changes since the last save of config.db",
        f"{path}: sound, version {node.tree.version}, 4 entries",
    ]
    assert files_of(path.parent) == before


def test_fsck_reports_changes_that_follow_another_database(
    node: JournalingNode, path: Path, tmp_path: Path, capsys: Output
) -> None:
    other = JournalingNode(tmp_path / "other", lineage=b"o" * 16)
    other.change(Create("theirs"))
    other.save_into(path)
    node.change(Create("later"))
    before = files_of(path.parent)
    assert offline.fsck(path, repair=False) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{node.directory}: to repair: 4 changes can't be applied, as they follow another "
        "database: kept in conflicts"
    ]
    assert offline.dump(path) == 0
    assert "theirs" in capsys.readouterr().out
    assert files_of(path.parent) == before


def test_reading_while_a_daemon_saves_gives_its_last_state(
    node: JournalingNode, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = iter(range(2))

    def read_late(directory: Path | None) -> JournalFiles:
        if (number := next(saves, None)) is not None:
            node.change(Create(f"before save {number}"))
            node.save_into(path)
            node.change(Create(f"after save {number}"))
        return JournalFiles(directory)

    monkeypatch.setattr(recovery, "JournalFiles", read_late)
    assert content(inspect(path).tree) == content(node.tree)
    assert next(saves, None) is None


# Writing


def test_checkpoint_folds_the_journal_into_the_database(
    node: JournalingNode, path: Path, capsys: Output
) -> None:
    assert main(["checkpoint", "--statedir", str(path.parent)]) == 0
    assert capsys.readouterr().out == f"{path}: 3 changes of the journal were written to it\n"
    assert stored(path).index() == node.tree.index()
    assert [p for p in os.listdir(path.parent) if p.startswith("config.db")] == ["config.db"]
    assert inspect(path).replayed == 0
    assert inspect(path).lineage == node.lineage
    before = files_of(path.parent)
    assert main(["checkpoint", "--statedir", str(path.parent)]) == 0
    assert capsys.readouterr().out == f"{path}: has all changes of the journal\n"
    assert files_of(path.parent) == before


def test_changes_after_a_fold_are_replayed(node: JournalingNode, path: Path) -> None:
    fold(path, now=NOW)
    recovered = inspect(path)
    node = JournalingNode(
        node.directory, sequence=recovered.sequence, tree=recovered.tree, lineage=recovered.lineage
    )
    node.change(Create("afterwards"))
    assert content(inspect(path).tree) == content(node.tree)
    assert inspect(path).replayed == 1


def test_a_fold_leaves_no_log_beside_the_database(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(Database.open(path, now=1)):
        log = Path(f"{path}-wal").read_bytes()
    Path(f"{path}-wal").write_bytes(log)
    fold(path, now=NOW)
    assert os.listdir(path.parent) == ["config.db"]


def test_a_fold_of_the_originals_database_writes_nothing(path: Path) -> None:
    path.parent.mkdir()
    Database.open(path, now=1).close()
    before = files_of(path.parent)
    fold(path, now=NOW)
    assert files_of(path.parent) == before


def test_a_fold_keeps_what_follows_another_database(
    node: JournalingNode, path: Path, tmp_path: Path, expect_log: ExpectLog
) -> None:
    other = JournalingNode(tmp_path / "other", lineage=b"o" * 16)
    other.save_into(path)
    expect_log(OTHER)
    for name in ("d/saved", "late", "removed"):
        expect_log(f"changed in the journal only: {name}")
    fold(path, now=NOW)
    assert len(kept_copies(path.parent)) == 1
    assert stored(path).index() == other.tree.index()
    found = inspect(path)
    assert found.left_over is None
    assert found.lineage not in (node.lineage, other.lineage)
    fold(path, now=NOW + 1)
    assert len(kept_copies(path.parent)) == 1


def test_fsck_repairs_the_database_and_folds_the_journal(
    node: JournalingNode, path: Path, capsys: Output, expect_log: ExpectLog
) -> None:
    with contextlib.closing(Database.open(path, now=1)) as database:
        execute = database._connection.execute
        execute("UPDATE tree SET parent = 99 WHERE name = 'spare'")
    for line in REPAIRS:
        expect_log(line)
    assert offline.fsck(path, repair=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{path}: sound, version {node.tree.version}, 6 entries" in lines
    assert query(path, "SELECT mtime FROM tree WHERE inode = 0") == [(0,)]
    assert list(path.parent.glob("config.db.bak-*"))


def test_checkpoint_without_a_database_says_so(tmp_path: Path, capsys: Output) -> None:
    assert main(["checkpoint", "--statedir", str(tmp_path)]) == 1
    assert "config.db is not there" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_checkpoint_says_which_daemon_has_the_directory_if_none_answers(
    node: JournalingNode, path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "LOCK_TIMEOUT", 0)
    before = files_of(node.directory)
    lock = StateLock(path.parent / LOCKFILE_NAME, mountpoint=path.parent)
    with lock:
        words = ["--statedir", str(path.parent), "--ipc-name", f"nobody-{os.getpid()}"]
        assert main(["checkpoint", *words]) == 1
    assert f"is in use by the daemon with pid {os.getpid()}" in capsys.readouterr().err
    assert files_of(node.directory) == before


def test_a_fold_keeps_the_history(node: JournalingNode, path: Path) -> None:
    fold(path, now=NOW)
    places = scan(node.directory).segments
    kept = [place.read() for place in places if place.header and place.header.is_history]
    changes = [found.record for segment in kept for found in segment.records]
    assert [type(record) for record in changes].count(Change) == 8
