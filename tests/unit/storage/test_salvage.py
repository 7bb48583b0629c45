"""Saving a damaged database into a new one: what the files are afterwards, and what is told."""

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pmxcfs.cli import offline
from pmxcfs.errors import StoreError
from pmxcfs.messages import Create, Write
from pmxcfs.storage import salvage as module
from pmxcfs.storage.damaged import read_damaged
from pmxcfs.storage.database import Database, inspect
from pmxcfs.storage.recovery import inspect as inspect_with_journal
from pmxcfs.storage.salvage import report, salvage
from tests.fakes.data.databases import Shape, make_database
from tests.fakes.doubles.journals import JournalingNode

NOW = 1800000000
PAGE = 1024
SHAPE = Shape(PAGE, 300, (100,), tables=True)
Output = pytest.CaptureFixture[str]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database of some 40 pages."""
    path = tmp_path / "state" / "config.db"
    path.parent.mkdir()
    make_database(path, SHAPE)
    return path


def zero(path: Path, *pages: int) -> bytes:
    """Zero pages, by number; return the file's content."""
    with path.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(bytes(PAGE))
    return path.read_bytes()


def leaf_with(path: Path, inode: int) -> int:
    """Return the number of the page with the row of *inode*."""
    name = b"%d.conf" % ((inode - 3) // 2)
    pages = path.read_bytes()
    return pages.index(name) // PAGE + 1


def files_of(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


def is_incomplete(path: Path) -> bool:
    with contextlib.closing(Database.open(path, now=1)) as database:
        return database.incomplete.is_set


def test_the_new_file_replaces_the_old_one_which_is_kept(path: Path) -> None:
    damaged = zero(path, leaf_with(path, 203))
    read = read_damaged(path)
    found = salvage(path, now=NOW)
    assert found.copy.read_bytes() == damaged
    assert files_of(path) == ["config.db", f"config.db.bak-{NOW}"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    again = read_damaged(path)
    assert again.rows[0] == (*read.rows[0][:4], 0, *read.rows[0][5:])
    assert again.rows[1:] == read.rows[1:]
    assert (again.notes, again.removals) == (read.notes, read.removals)
    assert again.is_complete
    assert is_incomplete(path)


def test_the_report_counts_the_pages_that_were_cut_off(path: Path) -> None:
    count = read_damaged(path).page_count
    os.truncate(path, path.stat().st_size // count * (count - 1))
    read = read_damaged(path)
    assert (read.page_count, read.lost_pages) == (count, 1)


def test_the_report_names_what_is_missing(path: Path) -> None:
    before = {row[0] for row in read_damaged(path).rows}
    zero(path, leaf_with(path, 203))
    read = read_damaged(path)
    missing = before - {row[0] for row in read.rows}
    assert 203 in missing
    (gap,) = read.gaps
    assert (min(missing) >= gap[0], max(missing) <= gap[1]) == (True, True)
    lines = list(report(read, with_names=True))
    assert lines[0] == f"1 of {read.page_count} pages can't be read"
    assert f"entries {gap[0]} to {gap[1]} may be missing" in lines
    assert f"{len(before) - len(missing) - 1} entries can be read" in lines


def test_a_file_whose_content_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.db"
    make_database(path, Shape(PAGE, 1, (0,)))
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE tree SET type = 4, name = 'priv', data = NULL WHERE inode = 3")
        connection.execute("INSERT INTO tree VALUES (4, 3, 4, 1, 1, 8, 'key', ?)", (b"key" * 2000,))
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(len(content) - PAGE)
    read = read_damaged(path)
    (partial,) = read.partial
    assert (partial.inode, partial.name) == (4, b"key")
    assert not read.is_complete
    assert "entry 4: its content can't be read: priv/key" in list(report(read, with_names=True))
    assert "key" not in "".join(report(read, with_names=False))


def test_a_tree_of_which_nothing_seems_to_be_missing_must_not_lead_either(path: Path) -> None:
    rows = read_damaged(path).rows
    with path.open("r+b") as file:
        file.write(b"not SQLite")  # the file's header
    read = salvage(path, now=NOW).damaged
    assert (read.rows, read.is_complete) == (rows, True)
    assert is_incomplete(path)


def test_fsck_repairs_to_a_sound_database(path: Path, capsys: Output) -> None:
    before = zero(path, 2, leaf_with(path, 203))
    assert offline.fsck(path, repair=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(f": pmxcfs fsck --repair {path}")
    assert path.read_bytes() == before
    assert files_of(path) == ["config.db"]
    assert offline.fsck(path, repair=True) == 0
    assert "repaired: a new file has what could be read" in capsys.readouterr().out
    assert inspect(path).repairs == []
    assert inspect(path).records[0].mtime == 0
    assert offline.fsck(path, repair=False) == 0


def test_dump_and_export_show_what_can_be_read(path: Path, tmp_path: Path, capsys: Output) -> None:
    readable = {row[6] for row in read_damaged(path).rows if row[5] == 8 and row[0]}
    damaged = zero(path, 1, leaf_with(path, 203))
    assert offline.dump(path) == 1
    output = capsys.readouterr()
    assert output.err.startswith(f"{path} is damaged: this is what can be read of it\n")
    assert "100.conf" not in output.out
    assert len(output.out.splitlines()) > 250
    assert offline.export(path, tmp_path / "exported") == 1
    found = {file.name.encode() for file in (tmp_path / "exported").rglob("*.conf")}
    assert b"100.conf" not in found
    assert len(readable - found) < 20
    assert path.read_bytes() == damaged
    assert files_of(path) == ["config.db"]


def test_a_log_is_applied_and_kept_beside_the_old_file(path: Path) -> None:
    writer = (
        "import os, sqlite3, sys; database = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "database.execute('PRAGMA journal_mode = WAL');"
        "database.execute('UPDATE tree SET name = ''in-log'' WHERE inode = 203'); os._exit(0)"
    ).replace("''", '"')
    subprocess.run([sys.executable, "-c", writer, path], check=True)
    log = path.with_name("config.db-wal").read_bytes()
    damaged = zero(path, leaf_with(path, 501))
    found = salvage(path, now=NOW)
    assert (found.copy.read_bytes(), path.read_bytes() != damaged) == (damaged, True)
    assert found.copy.with_name(f"{found.copy.name}-wal").read_bytes() == log
    assert files_of(path) == ["config.db", f"config.db.bak-{NOW}", f"config.db.bak-{NOW}-wal"]
    assert b"in-log" in {record.name for record in inspect(path).records}


def test_a_damaged_log_is_kept_and_reported(path: Path, capsys: Output) -> None:
    log = path.with_name("config.db-wal")
    log.write_bytes(b"\x37\x7f\x06\x82" + b"damage" * 500)
    assert offline.fsck(path, repair=False) == 1
    assert "the write-ahead log has no valid header" in capsys.readouterr().out
    assert offline.fsck(path, repair=True) == 0
    (kept,) = path.parent.glob("config.db.bak-*-wal")
    assert kept.read_bytes().endswith(b"damage")
    assert is_incomplete(path)


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_file_in_use_is_left_alone(path: Path, mode: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as user:
        user.execute(f"PRAGMA journal_mode = {mode}")
        user.execute("BEGIN")
        user.execute("SELECT * FROM tree").fetchone()
        before = path.stat()  # reading the file would drop this process's locks
        program = (
            "import sys; from pathlib import Path; from pmxcfs.storage.salvage import salvage;"
        )
        program += "salvage(Path(sys.argv[1]), now=1)"
        result = subprocess.run(
            [sys.executable, "-c", program, path], capture_output=True, text=True, check=False
        )
        assert "another process has it open: stop that process" in result.stderr
        assert path.stat()[:9] == before[:9]
    assert [name for name in files_of(path) if "bak" in name or name.startswith(".")] == []


def test_nobody_can_open_the_file_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def read(file: Path) -> object:
        program = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0)"
        program += ".execute('SELECT * FROM tree').fetchone()"
        found = read_damaged(file)  # which closes a descriptor of the file
        result = subprocess.run(
            [sys.executable, "-c", program, file], capture_output=True, text=True, check=False
        )
        tried.append(result.stderr)
        return found

    monkeypatch.setattr(module, "read_damaged", read)
    salvage(path, now=NOW)
    assert "database is locked" in tried[0]


def test_a_failure_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = zero(path, leaf_with(path, 203))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(StoreError, match="No space left"):
        salvage(path, now=NOW)
    assert path.read_bytes() == damaged
    assert [name for name in files_of(path) if name == f".config.db.{os.getpid()}"] == []


def test_changes_of_the_journal_are_applied_to_what_could_be_read(
    tmp_path: Path, capsys: Output
) -> None:
    """The rows are saved as they are, so the journal still goes on from them."""
    state = tmp_path / "state"
    state.mkdir()
    node = JournalingNode(state / "journal")
    for number in range(60):
        node.change(Create(f"f{number}"))
        node.change(Write(f"f{number}", 0, b"x" * 100, truncate=True))
    path = state / "config.db"
    node.save_into(path)
    node.change(Create("after"))
    pages = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(pages.index(b"f30" + b"x" * 100) // PAGE * PAGE)
        file.write(bytes(PAGE))
    assert offline.fsck(path, repair=True) == 0
    assert "1 changes of the journal were written" in capsys.readouterr().out
    found = inspect_with_journal(path)
    assert found.left_over is None
    assert found.tree.find("after") is not None
    assert found.tree.find("f30") is None
    assert found.tree.root.mtime == 0


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    for name, content, kind in KINDS:
        path = tmp_path / name
        path.write_bytes(content)
        for repair in (False, True):
            with pytest.raises(StoreError) as caught:
                offline.fsck(path, repair=repair)
            text = str(caught.value)
            assert kind in text
            assert "remove" not in text
            assert "dmesg" not in text
        assert path.read_bytes() == content


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_directory_in_the_place_of_a_file_of_sqlite_is_named(path: Path, suffix: str) -> None:
    Path(f"{path}{suffix}").mkdir()
    for run in (lambda: offline.fsck(path, repair=True), lambda: Database.open(path, now=1)):
        with pytest.raises(StoreError, match=rf"config.db{suffix} is a directory, so .* move it"):
            run()


KINDS = (
    ("text", b"some text\n" * 900, "is a text, no database"),
    ("gzip", b"\x1f\x8b\x08" + bytes(range(256)) * 9, "is a file compressed by gzip"),
    ("elf", b"\x7fELF" + bytes(9000), "is a program"),
    ("tar", b"etc/pve".ljust(257, b"\0") + b"ustar" + bytes(800), "is an archive of tar"),
    ("zeros", bytes(9000), "of which the first are all 0"),
    ("wal", b"\x37\x7f\x06\x82" + bytes(9000), "is a write-ahead log of SQLite"),
    ("segment", b"pmxcfs\0J" + bytes(9000), "is a segment of pmxcfs's journal"),
    ("key", b"-----BEGIN PRIVATE KEY-----\n" * 9, "is a key or a certificate"),
    ("random", bytes(range(1, 256)) * 40, "has no rows that can be read"),
    ("empty", b"", "is empty"),
    ("one byte", b"\xff", "has no rows that can be read"),
)


@pytest.mark.parametrize("repair", [False, True])
def test_a_database_of_another_program_is_named(tmp_path: Path, repair: bool) -> None:
    path = tmp_path / "places.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE bookmarks (a, b)")
        connection.execute("CREATE TABLE history (a, b, c, d, e, f, g, h)")
        connection.execute("INSERT INTO history VALUES (1, 2, 3, 4, 5, 6, 'x', 'y')")
    before = path.read_bytes()
    with pytest.raises(
        StoreError, match=r"another program .*no table named tree, but bookmarks, h"
    ):
        offline.fsck(path, repair=repair)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["places.sqlite"]
