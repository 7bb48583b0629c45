"""The rules of ``repair``, applied to rows as SQLite stores them; test_repair_files has files."""

from typing import Any

import pytest

from pmxcfs.messages import MAX_FILE_SIZE, Record
from pmxcfs.storage.repair import MAX_NAME, Row
from tests.fakes.data.rows import (
    DIRECTORY,
    FILE,
    LAST,
    LOST,
    VERSION,
    Contents,
    contents_of,
    found,
    mend,
    record_at,
    row,
    tree_of,
    version_row,
)

# Sound trees stay as they are.


@pytest.mark.parametrize("kind", [FILE, DIRECTORY], ids=["by an operation", "by a sync"])
def test_sound_rows_become_records(kind: int) -> None:
    repaired = mend(
        version_row(kind=kind, mtime=1234), row(2, 0, b"d"), row(3, 2, b"f", b"x", version=9)
    )
    assert repaired == (
        [
            Record(0, 0, VERSION, 7, 1234, DIRECTORY, b"", None),
            Record(2, 0, 2, 1, 1000, DIRECTORY, b"d", None),
            Record(3, 2, 9, 1, 1000, FILE, b"f", b"x"),
        ],
        [],
    )


@pytest.mark.parametrize("rows", [[], [row(2, 0, b"f", b"")]], ids=["empty", "one file"])
def test_order_of_rows_does_not_matter(rows: list[Row]) -> None:
    assert mend(version_row(), *rows) == mend(*rows, version_row())


@pytest.mark.parametrize(
    "odd",
    [
        row(2, 0, b"n" * MAX_NAME, b"x"),
        row(2, 0, b"...", b"x"),
        row(2, 0, b"\xff\xfe", b"x"),
        row(2, 0, b"f", b"x" * MAX_FILE_SIZE),
        row(2, 0, b"f", None, kind=FILE),
        row(2, 0, b"d", b"", kind=DIRECTORY),
        row(2, 0, b"f", b"x", writer=(1 << 32) - 1, mtime=(1 << 32) - 1),
        row(2, 0, b"f", b"x", version=0),
        row(VERSION, 0, b"f", b"x", version=3),
    ],
    ids=lambda odd: str(odd)[:30],
)
def test_unusual_but_legal_rows_are_kept(odd: Row) -> None:
    repaired = mend(version_row(), odd)
    assert repaired.repairs == []
    record = repaired.records[1]
    assert (*record[:7], record.data or None) == (*odd[:7], odd[7] or None)


def test_versions_up_to_the_last_one_are_legal() -> None:
    repaired = mend(version_row(LAST), row(2, LAST, b"f", b"x", version=LAST), row(LAST, 0, b"d"))
    assert [record[:3] for record in repaired.records] == [
        (0, 0, LAST),
        (2, LAST, LAST),
        (LAST, 0, LAST),
    ]
    assert repaired.repairs == []


def test_the_total_size_is_not_checked() -> None:
    block = bytes(MAX_FILE_SIZE)
    repaired = mend(version_row(999), *(row(i, 0, b"f%d" % i, block) for i in range(2, 132)))
    assert repaired.repairs == []


# The version row.


@pytest.mark.parametrize(
    ("rows", "version"),
    [
        ([], 1),
        ([row(2, 0, b"f", b"x", version=9), row(3, 0, b"g", b"y")], 9),
        ([row(2, 0, b"f", b"x", version=9), row(3, 0, b"g", b"y", version=-1)], 9),
        ([version_row(0)], 1),
        ([version_row(-1), row(2, 0, b"f", b"x", version=9)], 9),
        ([version_row("x"), row(2, 0, b"f", b"x", version=9)], 9),
    ],
    ids=["no rows", "missing", "a negative one besides", "zero", "negative", "not a number"],
)
def test_the_version_becomes_the_highest_version_found(rows: list[Row], version: int) -> None:
    repaired = mend(*rows)
    root = repaired.records[0]
    assert (root.version, root.mtime, root.type, root.name) == (version, 0, DIRECTORY, b"")
    assert repaired.repairs
    assert [record[1:] for record in repaired.records[1:]] == [
        (r[1], r[2] if r[2] > 0 else version, *r[3:7], r[7]) for r in rows if r[0] != 0
    ]


@pytest.mark.parametrize("wild", [VERSION + 1, 1 << 62, LAST, -1, -(1 << 63)])
def test_a_version_row_counts_and_entries_are_not_newer(wild: int) -> None:
    repaired = mend(version_row(), row(2, 0, b"f", b"x", version=wild), row(3, 0, b"g", b"y"))
    assert [record.version for record in repaired.records] == [VERSION, VERSION, 3]
    assert repaired.records[0].mtime == 0
    assert len(repaired.repairs) == 1


@pytest.mark.parametrize("wild", [VERSION + 1, 1 << 62, LAST, -1, -(1 << 63)])
def test_inodes_above_the_version_get_the_smallest_free_ones(wild: int) -> None:
    repaired = mend(
        version_row(),
        row(2, 0, b"a", b"x"),
        row(wild, 0, b"d", version=7),
        row(4, wild, b"f", b"y"),
    )
    assert contents_of(repaired) == {"a": b"x", "d": None, "d/f": b"y"}
    assert record_at(repaired, "d")[:3] == (3, 0, 7)
    assert len(repaired.repairs) == 1


def test_inodes_without_a_smaller_free_one_stay() -> None:
    wild = (*range(LAST - 2, LAST + 1),)
    rows = [row(inode, 0, b"%d" % inode, b"x", version=1) for inode in (2, 3, *wild)]
    repaired = mend(version_row(3), *rows)
    assert repaired.repairs == []
    assert [record.inode for record in repaired.records] == [0, 2, 3, *wild]
    several = mend(version_row(3), *rows[:2], *(row(n, 0, b"%d" % n, b"x") for n in (7, LAST)))
    assert [record.inode for record in several.records] == [0, 2, 3, LAST - 1, LAST]


@pytest.mark.parametrize(
    "columns",
    [
        {"mtime": -1},
        {"mtime": 1 << 32},
        {"mtime": None},
        {"writer": b"x"},
        {"kind": 5},
        {"kind": b"8"},
    ],
    ids=str,
)
def test_a_damaged_version_row_keeps_the_version(columns: dict[str, Any]) -> None:
    repaired = mend(version_row(**columns), row(2, 0, b"f", b"x"))
    assert repaired.records[0][:3] == (0, 0, VERSION)
    assert repaired.records[0].mtime == 0
    assert len(repaired.repairs) == 1


@pytest.mark.parametrize(("parent", "name"), [(3, b"__version__"), (0, b"x"), (0, None)])
def test_a_version_row_is_known_by_its_inode(parent: int, name: bytes | None) -> None:
    repaired = mend((0, parent, VERSION, 7, 1000, FILE, name, None))
    assert repaired.records == [Record(0, 0, VERSION, 7, 0, DIRECTORY, b"", None)]
    assert len(repaired.repairs) == 1


def test_content_of_the_version_row_moves_to_lost_and_found() -> None:
    repaired = mend((0, 0, VERSION, 7, 1000, FILE, b"__version__", b"text"))
    assert contents_of(repaired) == found(_0___version__=b"text")


# The single row.


@pytest.mark.parametrize("value", [None, b"x", 1.5], ids=str)
@pytest.mark.parametrize(("column", "mended"), [("version", 1), ("writer", 0), ("mtime", 0)])
def test_a_value_that_is_not_a_number_becomes_the_lowest(
    column: str, mended: int, value: object
) -> None:
    columns: dict[str, Any] = {column: value}
    repaired = mend(version_row(), row(2, 0, b"f", b"x", **columns))
    assert getattr(repaired.records[1], column) == mended
    assert contents_of(repaired) == {"f": b"x"}
    assert len(repaired.repairs) == 1


@pytest.mark.parametrize(("stored", "kept"), [(-1, (1 << 32) - 1), ((5 << 32) + 3, 3)])
def test_times_keep_their_lower_32_bits(stored: int, kept: int) -> None:
    repaired = mend(version_row(), row(2, 0, b"f", b"x", mtime=stored, writer=stored))
    assert (repaired.records[1].mtime, repaired.records[1].writer) == (kept, kept)
    assert len(repaired.repairs) == 2


def test_a_parent_that_is_not_a_number_makes_an_orphan() -> None:
    repaired = mend(version_row(), row(2, b"x", b"f", b"x"))
    assert contents_of(repaired) == found(_2_f=b"x")


@pytest.mark.parametrize("kind", [0, 5, -8, 264, b"8", 8.0, None], ids=str)
def test_unknown_types_are_files_and_move(kind: object) -> None:
    repaired = mend(version_row(), (2, 0, 2, 1, 1000, kind, b"f", b"x"))
    assert contents_of(repaired) == found(_2_f=b"x")
    assert record_at(repaired, f"{LOST}/2-f")[2:6] == (2, 1, 1000, FILE)


def test_unknown_types_with_children_are_directories_and_move() -> None:
    repaired = mend(version_row(), row(2, 0, b"d", kind=6), row(3, 2, b"f", b"x"))
    assert contents_of(repaired) == {**found(_2_d=None), f"{LOST}/2-d/f": b"x"}


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (None, "2-"),
        (b"", "2-"),
        (b"a/b", "2-a_b"),
        (b"a\0b", "2-a_b"),
        (b"/", "2-_"),
        (b".", "2-."),
        (b"..", "2-.."),
    ],
    ids=str,
)
def test_impossible_names_move(name: bytes | None, kept: str) -> None:
    repaired = mend(version_row(), row(2, 0, name, b"x"))
    assert contents_of(repaired) == {"priv": None, LOST: None, f"{LOST}/{kept}": b"x"}


def test_a_name_that_is_too_long_is_cut() -> None:
    repaired = mend(version_row(), row(2, 0, b"n" * (MAX_NAME + 1), b"x"))
    record = next(record for record in repaired.records if record.data)
    assert record.name == b"2-" + b"n" * (MAX_NAME - 2)


def test_an_oversize_file_moves_and_is_cut() -> None:
    repaired = mend(version_row(), row(2, 0, b"f", b"x" * (MAX_FILE_SIZE + 1)))
    assert contents_of(repaired) == found(_2_f=b"x" * MAX_FILE_SIZE)


def test_a_directory_with_data_stays_and_its_data_moves() -> None:
    repaired = mend(version_row(), row(5, 0, b"d", b"text", kind=DIRECTORY), row(6, 5, b"f", b"x"))
    assert contents_of(repaired) == {"d": None, "d/f": b"x", **found(_5_d=b"text")}
    assert record_at(repaired, f"{LOST}/5-d").inode == 3  # 2 is priv


def test_data_of_a_directory_is_cut_like_that_of_a_file() -> None:
    data = b"x" * (MAX_FILE_SIZE + 1)
    repaired = mend(version_row(), row(2, 0, b"d", data, kind=DIRECTORY))
    assert contents_of(repaired) == {"d": None, **found(_2_d=data[:-1])}


# The tree.


def test_orphans_move_with_all_that_is_below_them() -> None:
    repaired = mend(version_row(), row(5, 99, b"d"), row(6, 5, b"e"), row(7, 6, b"f", b"x"))
    assert contents_of(repaired) == {
        **found(_5_d=None),
        f"{LOST}/5-d/e": None,
        f"{LOST}/5-d/e/f": b"x",
    }
    assert record_at(repaired, f"{LOST}/5-d")[2:6] == (5, 1, 1000, DIRECTORY)
    assert len(repaired.repairs) == 3  # priv and lost+found were made


def test_entries_below_a_file_move() -> None:
    repaired = mend(version_row(), row(5, 0, b"f", b"x"), row(6, 5, b"g", b"y"))
    assert contents_of(repaired) == {"f": b"x", **found(_6_g=b"y")}


@pytest.mark.parametrize(
    ("parents", "cut"),
    [({2: 2}, 2), ({2: 3, 3: 2}, 2), ({3: 4, 4: 5, 5: 3}, 3), ({2: 4, 4: 5, 5: 4}, 4)],
    ids=["itself", "two", "three", "two and one above"],
)
def test_a_cycle_is_cut_at_its_smallest_inode(parents: dict[int, int], cut: int) -> None:
    rows = [row(inode, parent, b"d%d" % inode) for inode, parent in parents.items()]
    repaired = mend(version_row(), *rows, row(9, max(parents), b"f", b"x"))
    assert [record for record in repaired.records if record.parent == 1] == [
        Record(cut, 1, cut, 1, 1000, DIRECTORY, b"%d-d%d" % (cut, cut), None)
    ]
    assert set(contents_of(repaired).values()) == {None, b"x"}
    assert len(repaired.repairs) == 3


@pytest.mark.parametrize(
    ("versions", "winner"), [((9, 8, 7), 2), ((7, 9, 8), 3), ((9, 9, 9), 4)], ids=str
)
def test_of_two_with_one_name_the_higher_version_stays(
    versions: tuple[int, int, int], winner: int
) -> None:
    rows = [row(i, 0, b"f", b"%d" % i, version=v) for i, v in zip((2, 3, 4), versions, strict=True)]
    lost = {f"{LOST}/{i}-f": b"%d" % i for i in (2, 3, 4) if i != winner}
    repaired = mend(version_row(), *rows)
    assert contents_of(repaired) == {"f": b"%d" % winner, "priv": None, LOST: None, **lost}


def test_directories_with_one_name_are_merged_with_all_below_them() -> None:
    repaired = mend(
        version_row(),
        row(2, 0, b"d", version=9, mtime=7),
        row(3, 0, b"d"),
        row(4, 0, b"d"),
        row(5, 2, b"f", b"older"),
        row(6, 3, b"f", b"newer"),
        row(7, 4, b"g", b"z"),
        row(10, 2, b"e"),
        row(11, 4, b"e"),
        row(12, 10, b"h", b"1"),
        row(13, 11, b"i", b"2"),
    )
    assert contents_of(repaired) == {
        "d": None,
        "d/f": b"newer",
        "d/g": b"z",
        "d/e": None,
        "d/e/h": b"1",
        "d/e/i": b"2",
        **found(_5_f=b"older"),
    }
    assert record_at(repaired, "d")[:5] == (2, 0, 9, 1, 7)
    assert record_at(repaired, "d/e").inode == 11


@pytest.mark.parametrize(("version", "winner"), [(9, "file"), (5, "directory")])
def test_a_file_is_compared_with_the_merged_directories(version: int, winner: str) -> None:
    repaired = mend(
        version_row(),
        row(2, 0, b"d"),
        row(3, 0, b"d", b"file", version=version),
        row(4, 0, b"d", version=7),
        row(5, 2, b"f", b"x"),
    )
    expected: dict[str, Contents] = {
        "file": {"d": b"file", **found(_4_d=None), f"{LOST}/4-d/f": b"x"},
        "directory": {"d": None, "d/f": b"x", **found(_3_d=b"file")},
    }
    assert contents_of(repaired) == expected[winner]


def test_the_guests_of_two_directories_of_one_node_stay() -> None:
    """The report that this is from: 51 guests went to lost+found."""
    rows = [row(2, 0, b"nodes"), row(3, 2, b"pve1"), row(4, 3, b"qemu-server")]
    rows += [row(5, 2, b"pve1"), row(6, 5, b"qemu-server")]
    rows += [row(100 + n, 4 + n % 2 * 2, b"%d.conf" % n, b"%d" % n) for n in range(100, 151)]
    contents = contents_of(mend(version_row(999), *rows))
    assert len(contents) == 3 + 51
    assert contents["nodes/pve1/qemu-server/101.conf"] == b"101"


def guest_rows(*places: tuple[bytes, bytes, int]) -> list[Row]:
    """Return rows for files ``nodes/NODE/TYPE/100.conf``, whose inodes begin at 12."""
    rows = [row(2, 0, b"nodes")]
    for number, (node, kind, version) in enumerate(places, 2):
        rows.append(row(number * 2, 2, node))
        rows.append(row(number * 2 + 1, number * 2, kind))
        content = b"%d" % version
        rows.append(row(number + 10, number * 2 + 1, b"100.conf", content, version=version))
    return rows


def test_of_two_guests_with_one_vmid_the_higher_version_stays() -> None:
    repaired = mend(version_row(), *guest_rows((b"a", b"lxc", 20), (b"b", b"qemu-server", 30)))
    contents = contents_of(repaired)
    assert contents["nodes/b/qemu-server/100.conf"] == b"30"
    assert contents[f"{LOST}/12-100.conf"] == b"20"
    assert "nodes/a/lxc/100.conf" not in contents


def test_a_guest_that_moves_anyway_is_not_a_duplicate() -> None:
    rows = guest_rows((b"a", b"lxc", 20), (b"b", b"lxc", 10))
    repaired = mend(version_row(), *rows[:4], row(6, 99, b"b"), *rows[5:])
    contents = contents_of(repaired)
    assert contents["nodes/a/lxc/100.conf"] == b"20"
    assert contents[f"{LOST}/6-b/lxc/100.conf"] == b"10"


def test_directories_named_like_guests_are_not_guests() -> None:
    rows = guest_rows((b"a", b"lxc", 20), (b"b", b"lxc", 30))
    rows[-1] = row(13, 7, b"100.conf")
    assert mend(version_row(), *rows).repairs == []


# The directory lost+found.


def test_lost_and_found_gets_inodes_that_no_mutation_uses() -> None:
    repaired = mend(version_row(), row(2, 0, b"d"), row(4, 99, b"f", b"x"))
    assert record_at(repaired, LOST) == Record(1, 3, VERSION, 0, 0, DIRECTORY, b"lost+found", None)
    assert record_at(repaired, "priv") == Record(3, 0, VERSION, 0, 0, DIRECTORY, b"priv", None)


def test_the_inode_of_the_next_mutation_is_not_used() -> None:
    repaired = mend(version_row(3), row(2, 0, b"d"), row(3, 99, b"f", b"x"))
    assert record_at(repaired, "priv").inode == LAST
    tree = tree_of(repaired)
    assert tree.create(tree.root, "next", FILE, writer=0, mtime=0).inode == 4


def test_existing_directories_are_used() -> None:
    repaired = mend(
        version_row(), row(2, 0, b"priv"), row(3, 2, b"lost+found"), row(4, 99, b"f", b"x")
    )
    assert contents_of(repaired) == found(_4_f=b"x")
    assert record_at(repaired, LOST).inode == 3


def test_the_next_repair_uses_the_same_lost_and_found() -> None:
    first = mend(version_row(), row(4, 99, b"f", b"x"))
    rows = [
        (*record[:5], record.type, record.name or b"__version__", record.data)
        for record in first.records
    ]
    again = mend(*rows, row(5, 99, b"g", b"y"))
    assert contents_of(again) == found(_4_f=b"x", _5_g=b"y")


def test_another_entry_with_inode_1_is_kept() -> None:
    repaired = mend(version_row(), row(1, 0, b"old"), row(4, 99, b"f", b"x"))
    assert contents_of(repaired) == {"old": None, **found(_4_f=b"x")}
    assert record_at(repaired, LOST).inode == 3


def test_files_in_the_way_of_lost_and_found_move_into_it() -> None:
    repaired = mend(version_row(), row(2, 0, b"priv", b"p"), row(4, 99, b"f", b"x"))
    assert contents_of(repaired) == found(_2_priv=b"p", _4_f=b"x")
    repaired = mend(
        version_row(), row(2, 0, b"priv"), row(3, 2, b"lost+found", b"l"), row(4, 99, b"f", b"x")
    )
    assert contents_of(repaired) == {
        "priv": None,
        LOST: None,
        f"{LOST}/3-lost+found": b"l",
        f"{LOST}/4-f": b"x",
    }


def test_a_lost_and_found_that_contains_itself_is_replaced() -> None:
    repaired = mend(version_row(), row(1, 1, b"lost+found"), row(4, 1, b"f", b"x"))
    assert contents_of(repaired) == {
        "priv": None,
        LOST: None,
        f"{LOST}/1-lost+found": None,
        f"{LOST}/1-lost+found/f": b"x",
    }


def test_names_in_lost_and_found_are_unique() -> None:
    repaired = mend(
        version_row(),
        row(2, 0, b"priv"),
        row(1, 2, b"lost+found"),
        row(3, 1, b"4-f", b"there"),
        row(4, 99, b"f", b"x"),
    )
    assert contents_of(repaired) == {
        "priv": None,
        LOST: None,
        f"{LOST}/4-f": b"there",
        f"{LOST}/4-4-f": b"x",
    }


def test_repair_lines_contain_no_path() -> None:
    repaired = mend(
        version_row(), row(2, 0, b"priv"), row(3, 2, b"geheim", b"1"), row(4, 2, b"geheim", b"2")
    )
    assert "entry 3" in "".join(repaired.repairs)
    assert "geheim" not in "".join(repaired.repairs)
