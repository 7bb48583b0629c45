"""The commands that work on a database file: fsck, dump, export, import."""

import contextlib
import errno
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs import messages
from pmxcfs._core import Tree
from pmxcfs.cli import offline
from pmxcfs.errors import Exists, NoSpace, PmxcfsError, StoreError, TooBig, Unsupported
from pmxcfs.messages import MAX_FILE_SIZE, EntryType
from pmxcfs.storage.database import Database, inspect, whole_batch
from tests.fakes.doubles.store import Contents, Store, contents_of, faulty_connections, query
from tests.places import VECTORS

Output = pytest.CaptureFixture[str]
SECONDS = 1_700_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A recorded database."""
    return Path(shutil.copyfile(VECTORS / "config_node1.db", tmp_path / "config.db"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory to import."""
    source = tmp_path / "source"
    for name in ("nodes/n1/qemu-server", "nodes/n1/priv", "priv/lock", "empty"):
        (source / name).mkdir(parents=True)
    write(source / "datacenter.cfg", b"keyboard: de\n")
    write(source / "nodes/n1/qemu-server/100.conf", b"memory: 512\n")
    write(source / "nodes/n1/101.mount", b"#!/bin/sh\n")
    write(source / "nodes/n1/priv/key", b"secret")
    write(source / "priv/shadow.cfg", b"")
    write(source / "priv/weird n\udcff.txt", bytes(MAX_FILE_SIZE))
    for found in (source, *source.rglob("*")):
        os.utime(found, (SECONDS, SECONDS + len(found.name)))
    return source


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def tree_of(path: Path) -> Tree:
    loaded = inspect(path)
    assert loaded.repairs == []
    tree = Tree()
    tree.load(loaded.records)
    return tree


def contents_below(directory: Path) -> Contents:
    return {
        str(found.relative_to(directory)): None if found.is_dir() else found.read_bytes()
        for found in directory.rglob("*")
    }


def damage(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def put(path: Path, name: str) -> None:
    with contextlib.closing(Database.open(path, now=1)) as database:
        tree = Tree()
        tree.load(database.load(now=1).records)
        entry = tree.create(tree.root, name, EntryType.FILE, writer=0, mtime=1)
        tree.write(entry, 0, b"x", truncate=True, writer=0, mtime=1)
        database.save(whole_batch(tree), None)


# fsck


def test_fsck_of_a_sound_database(path: Path, capsys: Output) -> None:
    before = path.read_bytes()
    for repair in (False, True):
        assert offline.fsck(path, repair=repair) == 0
        assert capsys.readouterr().out == f"{path}: sound, version 27, 13 entries\n"
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["config.db"]


def test_fsck_reports_what_it_would_repair(path: Path, capsys: Output) -> None:
    damage(path, "UPDATE tree SET parent = 99 WHERE inode = 25")
    before = path.read_bytes()
    assert offline.fsck(path, repair=False) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: to repair: entry 25: its parent 99 does not exist; moved to priv/lost+found",
        f"{path}: to repair: entry 1: made the directory lost+found",
    ]
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["config.db"]


def test_fsck_repairs(path: Path, capsys: Output) -> None:
    damage(path, "UPDATE tree SET parent = 99 WHERE inode = 25")
    before = query(path, "SELECT * FROM tree")
    assert offline.fsck(path, repair=True) == 0
    [copy] = path.parent.glob("config.db.bak-*")
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: a copy of the unrepaired file is {copy}",
        f"{path}: repaired: entry 25: its parent 99 does not exist; moved to priv/lost+found",
        f"{path}: repaired: entry 1: made the directory lost+found",
        f"{path}: sound, version 27, 14 entries",
    ]
    assert query(copy, "SELECT * FROM tree") == before
    assert contents_of(tree_of(path))["priv/lost+found/25-empty.cfg"] == b""


def test_fsck_rolls_back_an_interrupted_transaction(path: Path, capsys: Output) -> None:
    """A killed process leaves an unfinished transaction in a file without a write-ahead log."""
    damage(path, "PRAGMA journal_mode = DELETE")
    before = query(path, "SELECT * FROM tree ORDER BY inode")
    interrupted = (
        "import os, sqlite3, sys; database = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "database.execute('PRAGMA cache_size = 1'); database.execute('BEGIN');"
        "database.execute('UPDATE tree SET data = zeroblob(100000) WHERE inode != 0');"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", interrupted, path], check=False)
    with pytest.raises(StoreError, match=r"roll it back with pmxcfs fsck --repair"):
        offline.fsck(path, repair=False)
    assert offline.fsck(path, repair=True) == 0
    assert "repaired: rolled back an interrupted transaction\n" in capsys.readouterr().out
    assert query(path, "SELECT * FROM tree ORDER BY inode") == before


def test_fsck_does_not_repair_a_database_in_use(path: Path) -> None:
    damage(path, "UPDATE tree SET parent = 99 WHERE inode = 25")
    with contextlib.closing(sqlite3.connect(path)) as user:
        user.execute("SELECT * FROM tree").fetchone()
        with pytest.raises(StoreError, match="another process has it open"):
            offline.fsck(path, repair=True)
    assert offline.fsck(path, repair=True) == 0


def test_fsck_saves_the_rows_of_a_file_whose_structure_is_damaged(
    path: Path, capsys: Output
) -> None:
    damage(path, "CREATE TABLE other (x UNIQUE)")
    damage(path, "INSERT INTO other VALUES (1), (2)")
    [(page,)] = query(path, "SELECT rootpage FROM sqlite_master WHERE name LIKE 'sqlite_auto%'")
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096 + 3)
        file.write(b"\0\0")  # the index has no entries now
    before, rows = path.read_bytes(), query(path, "SELECT * FROM tree ORDER BY inode")
    assert offline.fsck(path, repair=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"{path}: damaged: wrong # of entries in index sqlite_autoindex_other_1" in lines
    assert lines[-1].endswith(f"into a new file: pmxcfs fsck --repair {path}")
    assert path.read_bytes() == before
    assert offline.fsck(path, repair=True) == 0
    [copy] = path.parent.glob("config.db.bak-*")
    assert copy.read_bytes() == before
    assert f"{path}: the table other is not kept" in capsys.readouterr().out.splitlines()
    assert query(path, "SELECT * FROM tree ORDER BY inode")[1:] == rows[1:]
    assert query(path, "PRAGMA integrity_check") == [(b"ok",)]


def test_fsck_repairs_values_that_the_table_refuses(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE tree SET mtime = 'x' WHERE inode = 25")
    assert offline.fsck(path, repair=False) == 1
    assert offline.fsck(path, repair=True) == 0
    assert query(path, "PRAGMA integrity_check") == [(b"ok",)]


# dump


def test_dump_lists_entries_and_no_content(path: Path, capsys: Output) -> None:
    assert offline.dump(path) == 0
    output = capsys.readouterr()
    assert output.err == ""
    lines = output.out.splitlines()
    assert lines[:3] == [
        "version 27, writer 1, mtime 1795367941",
        "13 entries, 1729 bytes of content",
        "checksum 982776a0c1e22e29309f48cac0fb0af82f9f8e2c9c478c5a82b24b631c695a56",
    ]
    assert [line.split()[-1] for line in lines[4:]] == [
        "big.cfg",
        "corosync.conf",
        "empty.cfg",
        "nodes/",
        "nodes/node1/",
        "nodes/node1/lxc/",
        "nodes/node1/qemu-server/",
        "nodes/node2/",
        "nodes/node2/qemu-server/",
        "nodes/node2/qemu-server/100.conf",
        "priv/",
        "priv/lock/",
        "n\\u00e4me.txt",
    ]
    assert lines[4].split() == ["26", "27", "1", "1795367941", "1092", "big.cfg"]


def test_a_database_in_use_can_be_dumped(path: Path, capsys: Output) -> None:
    store = Store(path)
    with contextlib.closing(store.database):
        store.put("new", b"x")
        before = sorted(os.listdir(path.parent))
        assert offline.dump(path) == 0
        assert sorted(os.listdir(path.parent)) == before
        store.put("new", b"y")
    assert "version 29, writer 3" in capsys.readouterr().out


def test_dump_shows_a_damaged_tree_as_a_daemon_would_start_it(path: Path, capsys: Output) -> None:
    damage(path, "UPDATE tree SET parent = 99 WHERE inode = 25")
    assert offline.dump(path) == 0
    output = capsys.readouterr()
    assert output.err == f"{path} needs 2 repairs: see pmxcfs fsck {path}\n"
    assert "priv/lost+found/25-empty.cfg\n" in output.out


# export and import


def test_export_makes_files_with_modes_and_times(
    path: Path, tmp_path: Path, capsys: Output
) -> None:
    target = tmp_path / "target"
    previous = os.umask(0o077)
    try:
        assert offline.export(path, target) == 0
    finally:
        os.umask(previous)
    assert capsys.readouterr() == ("", "")
    tree = tree_of(path)
    assert contents_below(target) == contents_of(tree)
    entry = tree.find("nodes/node2/qemu-server/100.conf")
    assert entry is not None
    assert (target / entry.path).stat().st_mtime == entry.mtime
    assert (target / "nodes").stat().st_mtime == 1795367941


def test_private_files_stay_private(source: Path, tmp_path: Path) -> None:
    path, target = tmp_path / "config.db", tmp_path / "target"
    offline.import_(source, path)
    offline.export(path, target)
    modes = {
        str(found.relative_to(target)): oct(stat.S_IMODE(found.stat().st_mode))
        for found in target.rglob("*")
    }
    assert modes == {
        "datacenter.cfg": "0o640",
        "empty": "0o755",
        "nodes": "0o755",
        "nodes/n1": "0o755",
        "nodes/n1/101.mount": "0o740",
        "nodes/n1/priv": "0o700",
        "nodes/n1/priv/key": "0o600",
        "nodes/n1/qemu-server": "0o755",
        "nodes/n1/qemu-server/100.conf": "0o640",
        "priv": "0o700",
        "priv/lock": "0o700",
        "priv/shadow.cfg": "0o600",
        "priv/weird n\udcff.txt": "0o600",
    }


def test_a_write_that_fails_names_the_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fchmod", fail)
    with pytest.raises(OSError, match=rf"full: '{tmp_path}/target/"):
        offline.export(path, tmp_path / "target")


def test_export_takes_a_new_or_empty_directory(path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert offline.export(path, tmp_path / "empty") == 0
    with pytest.raises(Exists, match="is not empty: name a new directory"):
        offline.export(path, tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        offline.export(path, tmp_path / "missing/target")


def test_export_skips_names_that_no_directory_can_have(
    path: Path, tmp_path: Path, capsys: Output
) -> None:
    name = "n" * 300
    put(path, name)
    assert offline.export(path, tmp_path / "target") == 1
    assert capsys.readouterr().err.startswith(f"not exported: {name}: ")
    exported = contents_below(tmp_path / "target")
    assert exported == {p: c for p, c in contents_of(tree_of(path)).items() if p != name}
    assert sorted(os.listdir(tmp_path)) == ["config.db", "target"]


def test_export_skips_the_entries_of_a_directory_with_such_a_name(
    path: Path, tmp_path: Path, capsys: Output
) -> None:
    name = "n" * 300
    damage(path, f"UPDATE tree SET name = '{name}' WHERE name = 'node2'")
    assert offline.export(path, tmp_path / "target") == 1
    assert f"not exported: nodes/{name}: File name too long" in capsys.readouterr().err
    assert not (tmp_path / "target/qemu-server").exists()
    assert not (tmp_path / "target/nodes/qemu-server").exists()


@pytest.mark.parametrize("name", [".", ".."])
def test_export_never_leaves_its_directory(path: Path, tmp_path: Path, name: str) -> None:
    """Such a name is no name of an entry, so that one is in lost+found."""
    damage(path, f"UPDATE tree SET name = '{name}' WHERE name = 'node2'")
    assert offline.export(path, tmp_path / "target") == 0
    (found,) = (tmp_path / "target/priv/lost+found").iterdir()
    assert found.name.endswith(f"-{name}")
    assert sorted(os.listdir(tmp_path)) == ["config.db", "target"]


def test_import_makes_the_tree_that_the_daemon_would_make(
    source: Path, tmp_path: Path, capsys: Output
) -> None:
    path = tmp_path / "config.db"
    assert offline.import_(source, path) == 0
    tree = tree_of(path)
    assert contents_of(tree) == contents_below(source)
    assert capsys.readouterr() == (f"{path}: version {tree.version}, 13 entries\n", "")
    assert tree.version == 1 + 13 + 5  # one for each entry, one more for each content
    config = tree.find("nodes/n1/qemu-server/100.conf")
    assert config is not None
    assert (config.inode, config.version, config.writer) == (14, 15, 0)
    assert config.mtime == SECONDS + len("100.conf")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["config.db", "source"]


def test_import_of_an_export_is_the_same_tree(source: Path, tmp_path: Path) -> None:
    first, second, target = tmp_path / "first.db", tmp_path / "second.db", tmp_path / "target"
    offline.import_(source, first)
    offline.export(first, target)
    offline.import_(target, second)
    assert tree_of(second).checksum() == tree_of(first).checksum()


def test_import_needs_neither_group_nor_host_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("import must not look this up")

    for function in ("gethostbyname", "getaddrinfo", "gethostname"):
        monkeypatch.setattr(socket, function, refuse)
    monkeypatch.setattr("grp.getgrnam", refuse)
    assert offline.import_(source, tmp_path / "config.db") == 0


def test_import_skips_the_fixed_entries_of_a_mount(
    source: Path, tmp_path: Path, capsys: Output
) -> None:
    for name in offline.FIXED_FILES:
        write(source / name, b"x")
    for name in offline.FIXED_LINKS:
        (source / name).symlink_to("nodes/n1")
    write(source / "nodes/.members", b"mine")
    assert offline.import_(source, tmp_path / "config.db") == 0
    left_out = sorted(line.split()[-1] for line in capsys.readouterr().err.splitlines())
    assert left_out == sorted(offline.FIXED_FILES | offline.FIXED_LINKS)
    tree = tree_of(tmp_path / "config.db")
    assert {entry.name for entry in tree.root.children()} == {
        "datacenter.cfg",
        "empty",
        "nodes",
        "priv",
    }
    assert tree.find("nodes/.members") is not None


def test_import_of_nothing_is_a_fresh_database(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    assert offline.import_(tmp_path / "source", tmp_path / "config.db") == 0
    tree = tree_of(tmp_path / "config.db")
    assert (tree.version, tree.entry_count) == (1, 0)


@contextlib.contextmanager
def refused(tmp_path: Path, error: type[Exception], match: str) -> Iterator[None]:
    """Expect *error*, and no new file in *tmp_path*."""
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(error, match=match):
        yield
    assert sorted(os.listdir(tmp_path)) == before


def test_import_refuses_files_that_a_tree_can_t_hold(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "config.db"
    (source / "link").symlink_to("datacenter.cfg")
    with refused(tmp_path, Unsupported, "link is neither a file nor a directory"):
        offline.import_(source, target)
    (source / "link").unlink()
    write(source / "big", bytes(MAX_FILE_SIZE + 1))
    with refused(tmp_path, TooBig, "big has more than 1048576 bytes"):
        offline.import_(source, target)
    (source / "big").unlink()
    (source / "nodes/n2/lxc").mkdir(parents=True)
    write(source / "nodes/n2/lxc/100.conf", b"")
    with refused(tmp_path, Exists, "its number is in use by nodes/n1/qemu-server/100.conf"):
        offline.import_(source, target)


@pytest.mark.parametrize("limit", ["MAX_ENTRIES", "MAX_TOTAL_SIZE"])
def test_import_keeps_to_the_limits_of_the_tree(
    source: Path, tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, limit, 12)
    with refused(tmp_path, NoSpace, "source has more than 12"):
        offline.import_(source, tmp_path / "config.db")


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_import_replaces_no_file(source: Path, tmp_path: Path, suffix: str) -> None:
    there = tmp_path / f"config.db{suffix}"
    write(there, b"mine")
    with refused(tmp_path, Exists, "already exists: move it away or name another file"):
        offline.import_(source, tmp_path / "config.db")
    assert there.read_bytes() == b"mine"


def test_a_failed_import_leaves_no_file(source: Path, tmp_path: Path) -> None:
    with refused(tmp_path, PmxcfsError, r"can't be made: .* make it first"):
        offline.import_(source, tmp_path / "missing/config.db")


def test_an_import_that_fills_the_disk_leaves_no_file(source: Path, tmp_path: Path) -> None:
    with faulty_connections() as faults:
        faults.arm(sqlite3.SQLITE_FULL, at=2, matching="BEGIN IMMEDIATE")
        with refused(tmp_path, StoreError, "can't be written: .* free some space"):
            offline.import_(source, tmp_path / "config.db")
    assert os.listdir(tmp_path) == ["source"]


def test_import_does_not_use_the_file_of_a_killed_import(source: Path, tmp_path: Path) -> None:
    left = tmp_path / f".config.db.{os.getpid()}"
    Database.open(left, now=1).close()
    put(left, "other")
    assert offline.import_(source, tmp_path / "config.db") == 0
    assert tree_of(tmp_path / "config.db").find("other") is None
    assert not left.exists()


def test_import_reports_a_missing_directory(tmp_path: Path) -> None:
    with refused(tmp_path, FileNotFoundError, "missing"):
        offline.import_(tmp_path / "missing", tmp_path / "config.db")


# Unusable files, with every command that reads one


@pytest.mark.parametrize("command", ["fsck", "repair", "dump", "export"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "can't be read: No such file or directory"),
        (b"", "is empty: name another file"),
        (
            b"text" * 5000,
            "(is a text, no|can't be read: file is not a) database: name another file",
        ),
    ],
    ids=["missing", "empty", "text"],
)
def test_unusable_files_are_named(
    tmp_path: Path, command: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "config.db"
    if content is not None:
        write(path, content)
    with refused(tmp_path, StoreError, reason):
        run(command, path, tmp_path / "target")
    assert (path.read_bytes() if content is not None else None) == content


@pytest.mark.parametrize("command", ["fsck", "repair", "dump", "export"])
@pytest.mark.parametrize(("kind", "reason"), [("dir", "a directory"), ("pipe", "a named pipe")])
def test_what_is_no_file_is_named(tmp_path: Path, command: str, kind: str, reason: str) -> None:
    path = tmp_path / "config.db"
    path.mkdir() if kind == "dir" else os.mkfifo(path)
    with refused(tmp_path, StoreError, f"is {reason}, not a database: name a file"):
        run(command, path, tmp_path / "target")


def run(command: str, path: Path, target: Path) -> int:
    if command == "dump":
        return offline.dump(path)
    if command == "export":
        return offline.export(path, target)
    return offline.fsck(path, repair=command == "repair")
