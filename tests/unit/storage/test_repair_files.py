"""Damaged database files: each damage that docs/spec/storage.md names is repaired or refused.

Each case damages a small tree, as a fault or an administrator could, and states the whole repaired
tree.
"""

import contextlib
import random
import shutil
import sqlite3
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import PmxcfsError, StoreError
from pmxcfs.messages import MAX_FILE_SIZE, EntryType
from pmxcfs.storage.database import PAGE_SIZE, Database, whole_batch
from pmxcfs.storage.mark import Mark, Position, write_mark
from tests.conftest import ExpectLog
from tests.fakes.doubles.store import Contents, contents_of
from tests.places import VECTORS

NOW = 1800000000
VERSION = 40

# inode, parent, version, type, name, data
ROWS: tuple[tuple[int, int, int, int, str, bytes | None], ...] = (
    (0, 0, VERSION, 8, "__version__", None),
    (2, 0, 2, 4, "nodes", None),
    (3, 2, 3, 4, "n1", None),
    (4, 3, 4, 4, "qemu-server", None),
    (5, 4, 25, 8, "100.conf", b"memory: 512\n"),
    (6, 2, 6, 4, "n2", None),
    (7, 6, 7, 4, "lxc", None),
    (8, 7, 26, 8, "200.conf", b"arch: amd64\n"),
    (10, 0, 10, 4, "priv", None),
    (11, 10, 27, 8, "key", b"secret"),
    (12, 0, 28, 8, "a.cfg", b"a"),
    (13, 0, VERSION, 8, "b.cfg", b"b"),
)
SOUND: Contents = {
    "nodes": None,
    "nodes/n1": None,
    "nodes/n1/qemu-server": None,
    "nodes/n1/qemu-server/100.conf": b"memory: 512\n",
    "nodes/n2": None,
    "nodes/n2/lxc": None,
    "nodes/n2/lxc/200.conf": b"arch: amd64\n",
    "priv": None,
    "priv/key": b"secret",
    "a.cfg": b"a",
    "b.cfg": b"b",
}
LOST = "priv/lost+found"
NO_CHECKS = "PRAGMA ignore_check_constraints = ON;"


def without(*paths: str) -> Contents:
    """Return the sound tree without *paths* and all below them, but with a lost+found."""
    gone = tuple(f"{path}/" for path in paths)
    kept = {p: data for p, data in SOUND.items() if not f"{p}/".startswith(gone)}
    return {**kept, LOST: None}


class Specimen(NamedTuple):
    """A damage of the tree, and the tree that the repair must give."""

    id: str
    damage: str  # SQL
    tree: Contents
    repairs: int = 2  # number of lines; one is for lost+found
    version: int = VERSION


ZOO = [
    Specimen("no version row", "DELETE FROM tree WHERE inode = 0", SOUND, 1),
    Specimen(
        "no version row, and the last change was a removal",
        "DELETE FROM tree WHERE inode IN (0, 13)",
        {path: data for path, data in SOUND.items() if path != "b.cfg"},
        1,
        28,
    ),
    Specimen("version row too low", "UPDATE tree SET version = 30 WHERE inode = 0", SOUND, 1, 30),
    Specimen("version row negative", "UPDATE tree SET version = -1 WHERE inode = 0", SOUND, 1),
    Specimen("negative version", "UPDATE tree SET version = -1 WHERE inode = 12", SOUND, 1),
    Specimen("version far ahead", "UPDATE tree SET version = 1 << 62 WHERE inode = 12", SOUND, 1),
    Specimen(
        "directory with an inode far ahead",
        "UPDATE tree SET inode = 1 << 62 WHERE inode = 4;"
        "UPDATE tree SET parent = 1 << 62 WHERE parent = 4",
        SOUND,
        1,
    ),
    Specimen(
        "dots for a name",
        "UPDATE tree SET name = '..' WHERE inode = 12",
        {**without("a.cfg"), f"{LOST}/12-..": b"a"},
    ),
    Specimen(
        "directory twice",
        "INSERT INTO tree VALUES (14, 2, 14, 1, 9, 4, 'n1', NULL);"
        "INSERT INTO tree VALUES (15, 14, 15, 1, 9, 8, 'new', 'x')",
        {**SOUND, "nodes/n1/new": b"x"},
        1,
    ),
    Specimen("version row renamed", "UPDATE tree SET name = 'x' WHERE inode = 0", SOUND, 1),
    Specimen("version row elsewhere", "UPDATE tree SET parent = 10 WHERE inode = 0", SOUND, 1),
    Specimen("version row of no type", "UPDATE tree SET type = 6 WHERE inode = 0", SOUND, 1),
    Specimen(
        "directory gone, orphaned secret",
        "DELETE FROM tree WHERE inode = 10",
        {**without("priv"), "priv": None, f"{LOST}/11-key": b"secret"},
        3,
    ),
    Specimen(
        "directory gone, orphaned directories",
        "DELETE FROM tree WHERE inode = 3",
        {
            **without("nodes/n1"),
            f"{LOST}/4-qemu-server": None,
            f"{LOST}/4-qemu-server/100.conf": b"memory: 512\n",
        },
    ),
    Specimen(
        "entry below a file",
        "UPDATE tree SET parent = 12 WHERE inode = 13",
        {**without("b.cfg"), f"{LOST}/13-b.cfg": b"b"},
    ),
    Specimen(
        "directory with data",
        "UPDATE tree SET data = x'2121' WHERE inode = 7",
        {**without(), f"{LOST}/7-lxc": b"!!"},
    ),
    Specimen(
        "file of unknown type",
        "UPDATE tree SET type = 1 WHERE inode = 12",
        {**without("a.cfg"), f"{LOST}/12-a.cfg": b"a"},
    ),
    Specimen(
        "directory of unknown type",
        "UPDATE tree SET type = 0 WHERE inode = 7",
        {
            **without("nodes/n2/lxc"),
            f"{LOST}/7-lxc": None,
            f"{LOST}/7-lxc/200.conf": SOUND["nodes/n2/lxc/200.conf"],
        },
    ),
    Specimen(
        "name used twice",
        "UPDATE tree SET name = 'b.cfg' WHERE inode = 12",
        {**without("a.cfg"), f"{LOST}/12-b.cfg": b"a"},
    ),
    Specimen(
        "vmid used twice",
        "UPDATE tree SET name = '100.conf' WHERE inode = 8",
        {
            **without("nodes/n1/qemu-server/100.conf", "nodes/n2/lxc/200.conf"),
            "nodes/n2/lxc/100.conf": b"arch: amd64\n",
            f"{LOST}/5-100.conf": b"memory: 512\n",
        },
    ),
    Specimen(
        "cycle",
        "UPDATE tree SET parent = 4 WHERE inode = 3",
        {
            **without("nodes/n1"),
            f"{LOST}/3-n1": None,
            f"{LOST}/3-n1/qemu-server": None,
            f"{LOST}/3-n1/qemu-server/100.conf": b"memory: 512\n",
        },
    ),
    Specimen(
        "directory in itself",
        "UPDATE tree SET parent = 7 WHERE inode = 7",
        {
            **without("nodes/n2/lxc"),
            f"{LOST}/7-lxc": None,
            f"{LOST}/7-lxc/200.conf": b"arch: amd64\n",
        },
    ),
    Specimen(
        "file over the limit",
        f"UPDATE tree SET data = zeroblob({MAX_FILE_SIZE + 1}) WHERE inode = 12",
        {**without("a.cfg"), f"{LOST}/12-a.cfg": bytes(MAX_FILE_SIZE)},
    ),
    Specimen(
        "name with a slash",
        "UPDATE tree SET name = 'x/y' WHERE inode = 12",
        {**without("a.cfg"), f"{LOST}/12-x_y": b"a"},
    ),
    Specimen(
        "no name",
        "UPDATE tree SET name = '' WHERE inode = 12",
        {**without("a.cfg"), f"{LOST}/12-": b"a"},
    ),
    Specimen(
        "name with a NUL",
        "UPDATE tree SET name = CAST(x'610062' AS TEXT) WHERE inode = 12",
        {**without("a.cfg"), f"{LOST}/12-a_b": b"a"},
    ),
    Specimen(
        "text for numbers",
        NO_CHECKS + "UPDATE tree SET version = 'x', writer = 'y', mtime = 'z' WHERE inode = 12",
        SOUND,
        3,
    ),
    Specimen(
        "a parent that is not a number",
        NO_CHECKS + "UPDATE tree SET parent = 1.5 WHERE inode = 12",
        {**without("a.cfg"), f"{LOST}/12-a.cfg": b"a"},
        3,
    ),
    Specimen("mtime over 32 bits", "UPDATE tree SET mtime = 1 << 40 WHERE inode = 12", SOUND, 1),
    Specimen("nothing left", "DELETE FROM tree", {}, 1, 1),
    Specimen(
        "priv is a file",
        "UPDATE tree SET type = 8, data = 'p' WHERE inode = 10",
        {
            **without("priv"),
            "priv": None,
            f"{LOST}/10-priv": b"p",
            f"{LOST}/11-key": b"secret",
        },
        4,
    ),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound database."""
    path = tmp_path / "config.db"
    with contextlib.closing(Database.open(path, now=1)):
        pass
    with editing(path) as connection:
        connection.executemany(
            "INSERT OR REPLACE INTO tree (inode, parent, version, writer, mtime, type, name, data)"
            " VALUES (?, ?, ?, 1, 1700000000, ?, ?, ?)",
            ROWS,
        )
    return path


@contextlib.contextmanager
def editing(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file as an administrator does with sqlite3."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def start(path: Path) -> Tree:
    """Open, load, save if that is needed, and close the file as a daemon does; return its tree."""
    tree = Tree()
    with contextlib.closing(Database.open(path, now=NOW)) as database:
        tree.load(database.load(now=NOW).records)
        if database.needs_whole:
            database.save(whole_batch(tree), None)
    return tree


def copies_of(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.bak-*"))


def rows_of(path: Path) -> list[tuple[object, ...]]:
    with editing(path) as connection:
        connection.text_factory = bytes
        return connection.execute("SELECT * FROM tree ORDER BY inode").fetchall()


def test_the_sound_tree_starts_unchanged(path: Path) -> None:
    before = rows_of(path)
    tree = start(path)
    assert contents_of(tree) == SOUND
    assert (tree.version, tree.root.mtime) == (VERSION, 1700000000)
    assert (rows_of(path), copies_of(path)) == (before, [])


@pytest.mark.parametrize("specimen", ZOO, ids=lambda specimen: specimen.id)
def test_a_damaged_tree_starts_repaired(
    path: Path, specimen: Specimen, expect_log: ExpectLog, caplog: pytest.LogCaptureFixture
) -> None:
    with editing(path) as connection:
        connection.executescript(specimen.damage)
    damaged = rows_of(path)
    expect_log(r"pmxcfs\.database WARNING repaired .*config\.db: ")
    expect_log(
        r"WARNING a copy of .*config\.db before the repair is kept as .*config\.db\.bak-1800000000"
    )
    tree = start(path)
    assert contents_of(tree) == specimen.tree
    assert (tree.version, tree.root.mtime) == (specimen.version, 0)
    assert len(caplog.records) == specimen.repairs + 1
    [copy] = copies_of(path)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert rows_of(copy) == damaged
    again = start(path)
    assert again.checksum() == tree.checksum()
    assert copies_of(path) == [copy]


def test_a_repair_is_not_written_before_the_next_save(path: Path, expect_log: ExpectLog) -> None:
    """The file must stay the one that the journal goes on from."""
    with editing(path) as connection:
        connection.execute("UPDATE tree SET parent = 99 WHERE inode = 13")
    damaged = rows_of(path)
    expect_log("repaired")
    expect_log("kept")
    with contextlib.closing(Database.open(path, now=NOW)) as database:
        assert database.read().repairs
        assert not database.needs_whole
        assert database.load(now=NOW).repairs
        assert database.needs_whole
    assert rows_of(path) == damaged


def test_mending_writes_the_repair_and_removes_the_mark(path: Path) -> None:
    mark = Mark(b"s" * 16, b"l" * 16, Position(1, 64, 2))
    with editing(path) as connection:
        connection.execute("UPDATE tree SET parent = 99 WHERE inode = 13")
        write_mark(connection.execute, mark)
    with contextlib.closing(Database.open(path, now=NOW)) as database:
        loaded, copy = database.mend(now=NOW)
        assert len(loaded.repairs) == 2
        assert copy == copies_of(path)[0]
        assert database.mend(now=NOW) == (loaded._replace(repairs=[]), None)
    for file, expected in ((path, None), (copy, mark)):
        with contextlib.closing(Database.open(file, now=NOW)) as database:
            assert database.mark == expected


def test_a_repaired_tree_can_be_changed_at_once(path: Path, expect_log: ExpectLog) -> None:
    with editing(path) as connection:
        connection.execute("UPDATE tree SET parent = 99 WHERE inode = 13")
    expect_log("repaired")
    expect_log("kept")
    with contextlib.closing(Database.open(path, now=NOW)) as database:
        tree = Tree()
        tree.load(database.load(now=NOW).records)
        tree.create(tree.root, "new", EntryType.FILE, writer=0, mtime=5)
        database.save(whole_batch(tree), None)
    assert contents_of(start(path)) == {**without("b.cfg"), f"{LOST}/13-b.cfg": b"b", "new": b""}


def test_two_repairs_in_one_second_keep_two_copies(path: Path, expect_log: ExpectLog) -> None:
    expect_log("repaired")
    expect_log("kept")
    for name in ("first", "second"):
        with editing(path) as connection:
            connection.execute("UPDATE tree SET parent = 99, name = ? WHERE inode = 13", (name,))
        start(path)
    assert [copy.name for copy in copies_of(path)] == [
        f"config.db.bak-{NOW}",
        f"config.db.bak-{NOW}.1",
    ]


def test_text_in_data_is_content(path: Path) -> None:
    with editing(path) as connection:
        connection.execute("UPDATE tree SET data = 'by hand', name = x'612e' WHERE inode = 12")
        connection.execute("UPDATE tree SET data = 42 WHERE inode = 13")
    tree = start(path)
    assert {p: d for p, d in contents_of(tree).items() if p not in SOUND} == {"a.": b"by hand"}
    assert contents_of(tree)["b.cfg"] == b"42"
    assert copies_of(path) == []


# A file that is not a pmxcfs database is refused.


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        ("DROP TABLE tree; CREATE TABLE other (x)", "it has no table named tree"),
        ("ALTER TABLE tree ADD COLUMN extra", "its table has other columns"),
        ("ALTER TABLE tree RENAME COLUMN data TO content", "its table has other columns"),
        ("DROP TABLE tree; CREATE VIEW tree AS SELECT 1 AS inode", "it has no table named tree"),
        (
            "DROP TABLE tree; CREATE TABLE tree "
            "(inode, parent, version, writer, mtime, type, name, data)",
            "its table has other columns",
        ),
    ],
    ids=["no table", "more columns", "other columns", "a view", "no key"],
)
def test_a_foreign_database_is_refused_and_left_alone(
    path: Path, statements: str, reason: str
) -> None:
    with editing(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.executescript(statements)
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        start(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    assert "is the database of another program" in str(caught.value)
    assert "remove" not in str(caught.value)
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == ["config.db"]


def test_names_in_another_encoding_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA encoding = 'UTF-16'")
        connection.execute(
            "CREATE TABLE tree (inode INTEGER PRIMARY KEY, parent, version, writer, mtime, type, "
            "name, data)"
        )
    with pytest.raises(StoreError, match="its names are not stored byte by byte"):
        start(path)


# A file that SQLite can't read is fatal, and the message gives advice.


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x7fELF" + bytes(5000), "file is not a database: name another file"),
        (b"SQLite format 3\0" + bytes(84) + bytes(4000), "not a database: name another file"),
    ],
    ids=["another file", "only the first bytes"],
)
def test_a_file_that_is_not_a_database_is_fatal(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "config.db"
    path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        start(path)
    assert str(caught.value).startswith(f"{path} can't be opened: ")
    assert reason in str(caught.value)
    assert path.read_bytes() == content


def test_a_file_cut_short_is_fatal(path: Path) -> None:
    with editing(path) as connection:
        connection.execute("UPDATE tree SET data = zeroblob(100000) WHERE inode = 12")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 50000)
    with pytest.raises(StoreError, match=r"config\.db can't be .* malformed: restore a backup, or"):
        start(path)


@pytest.mark.parametrize("kind", ["directory", "dangling link"])
def test_a_path_that_is_not_a_file_is_fatal(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.db"
    if kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("missing")
    with pytest.raises(
        StoreError, match=r"config\.db can't be opened: .*in a directory that exists"
    ):
        start(path)


def test_an_empty_file_starts_with_an_empty_tree(tmp_path: Path) -> None:
    path = tmp_path / "config.db"
    path.touch()
    tree = start(path)
    assert (tree.version, tree.root.mtime, tree.entry_count) == (1, NOW, 0)
    assert copies_of(path) == []


def test_a_file_with_a_damaged_table_list_is_not_treated_as_empty(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100 + 3)  # the number of cells on the first page, after the file's header
        file.write(b"\0\0")
    with pytest.raises(StoreError, match="it has no table named tree"):
        start(path)


def test_rows_out_of_order_are_fatal(path: Path) -> None:
    """SQLite does not detect this damage and would change the wrong rows in a repair."""
    content = bytearray(path.read_bytes())
    leaf = PAGE_SIZE  # the table's only page, the second of the file
    pointers = struct.unpack_from(f">{len(ROWS)}H", content, leaf + 8)
    cell = leaf + pointers[ROWS.index((12, 0, 28, 8, "a.cfg", b"a"))]
    assert content[cell + 1] == 12  # after the size of its content
    content[cell + 1] = 7
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"config\.db can't be read: its rows are out of order: "):
        start(path)


# Random damage: a tree or a StoreError that names the file, and nothing else.


def make_large(path: Path) -> None:
    """Make a database with a B-tree of several levels, overflow pages and free pages."""
    with contextlib.closing(Database.open(path, now=1)) as database:
        tree = Tree()
        tree.load(database.load(now=1).records)
        for number in range(400):
            entry = tree.create(tree.root, f"f{number}", EntryType.FILE, writer=0, mtime=1)
            size = 9000 if number % 40 == 0 else 100
            tree.write(entry, 0, bytes(size), truncate=True, writer=0, mtime=1)
        database.save(whole_batch(tree), None)
        for entry in tree.root.children()[::7]:
            tree.remove(entry, writer=0, mtime=1)
        database.save(whole_batch(tree), None)


@pytest.mark.parametrize("size", ["small", "large"])
def test_random_damage_is_repaired_or_named(
    tmp_path: Path, size: str, expect_log: ExpectLog
) -> None:
    expect_log(".")  # any log line is allowed
    intact, path = tmp_path / "intact.db", tmp_path / "config.db"
    if size == "large":
        make_large(intact)
    else:
        shutil.copyfile(VECTORS / "config_node1.db", intact)
    content = intact.read_bytes()
    chance = random.Random(20261122)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 1, 4, 40))):
            page = chance.choice((0, PAGE_SIZE, chance.randrange(0, len(content), PAGE_SIZE)))
            damaged[page + chance.randrange(PAGE_SIZE if chance.random() < 0.3 else 200)] ^= (
                1 << chance.randrange(8)
            )
        path.write_bytes(damaged)
        reason = use(path)
        assert reason == "" or str(path) in reason
        refused += bool(reason)
        for leftover in tmp_path.glob("config.db*"):
            leftover.unlink()
    assert 20 < refused < 280


def use(path: Path) -> str:
    """Load a file and change it; return the error if loading failed, else an empty string."""
    try:
        with contextlib.closing(Database.open(path, now=NOW)) as database:
            tree = Tree()
            tree.load(database.load(now=NOW).records)
            with contextlib.suppress(PmxcfsError):
                tree.create(tree.root, "a new file", EntryType.FILE, writer=0, mtime=1)
                database.save(whole_batch(tree), None)
    except StoreError as error:
        return str(error)
    return ""
