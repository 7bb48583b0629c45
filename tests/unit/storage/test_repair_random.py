"""The rules of ``repair``, held against random rows and tables."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from pmxcfs.storage.repair import Row
from tests.fakes.data.rows import (
    DIRECTORY,
    FILE,
    LAST,
    Contents,
    contents_of,
    mend,
    tree_of,
)

# Random rows.

EXAMPLES = settings(max_examples=40)
NUMBERS = st.one_of(st.integers(0, 12), st.integers(-(1 << 63), LAST), st.none(), st.just(b"x"))
NAMES = st.one_of(
    st.sampled_from([b"a", b"priv", b"lost+found", b"nodes", b"lxc", b"100.conf", b"2-a", b".."]),
    st.binary(max_size=3),
    st.none(),
)
DATA = st.one_of(st.none(), st.binary(max_size=3))
ROWS = st.builds(
    lambda inodes, rest: [
        (inode, *columns) for inode, columns in zip(sorted(inodes), rest, strict=False)
    ],
    st.sets(st.integers(-2, 12), max_size=12),
    st.lists(
        st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.sampled_from([4, 8, 5]), NAMES, DATA),
        min_size=12,
        max_size=12,
    ),
)


@given(ROWS)
@EXAMPLES
def test_any_rows_become_a_tree(rows: list[Row]) -> None:
    repaired = mend(*rows)
    tree_of(repaired)
    shuffled = random.Random(len(rows)).sample(rows, len(rows))
    assert mend(*shuffled) == repaired


@given(ROWS)
@EXAMPLES
def test_no_entry_or_content_is_lost(rows: list[Row]) -> None:
    repaired = mend(*rows)
    merged = sum("merged" in line for line in repaired.repairs)
    assert len(repaired.records[1:]) >= len([inode for inode, *_ in rows if inode]) - merged
    before = sorted(data for *_, data in rows if data)
    assert sorted(record.data for record in repaired.records if record.data) == before


@given(ROWS)
@EXAMPLES
def test_a_repaired_tree_is_sound(rows: list[Row]) -> None:
    repaired = mend(*rows)
    root, *entries = repaired.records
    stored = (0, 0, *root[2:5], FILE, b"__version__", None)
    assert mend(stored, *entries) == (repaired.records, [])
    assert (root.mtime == 0) >= bool(repaired.repairs)


@given(ROWS)
@EXAMPLES
def test_a_repair_never_raises_the_version(rows: list[Row]) -> None:
    records = mend(*rows).records
    found = {r[0]: r[2] for r in rows if isinstance(r[2], int) and r[2] > 0}
    assert records[0].version == found.get(0, max(found.values(), default=1))
    assert all(record.version <= records[0].version for record in records)
    numbers = [record.inode for record in records]
    assert all(number <= records[0].version or number > LAST - 50 for number in numbers[1:])


# A thousand random tables, with duplicates and wild numbers.

TABLES = 1000
WILD = (-1, -2, -(1 << 63), LAST, LAST - 1, 1 << 62, 100, None, b"x", 1.5)
TABLE_NAMES = (b"a", b"b", b"priv", b"lost+found", b"nodes", b"lxc", b"100.conf", b"..", b".", b"")


def random_table(chance: random.Random) -> list[Row]:
    def number() -> object:
        return chance.randint(0, 14) if chance.random() < 0.8 else chance.choice(WILD)

    inodes = {number() for _ in range(chance.randint(0, 16))}
    rows: list[Row] = []
    for inode in sorted(n for n in inodes if type(n) is int):
        kind = chance.choice((DIRECTORY, DIRECTORY, FILE, FILE, 5 if chance.random() < 0.3 else 8))
        data = chance.choice((None, b"", b"%d" % inode)) if kind != DIRECTORY else None
        name = chance.choice(TABLE_NAMES) if chance.random() < 0.6 else b"n%d" % inode
        below = [r[0] for r in rows if r[5] == DIRECTORY]
        parent = chance.choice((0, *below)) if chance.random() < 0.8 else number()
        rows.append((inode, parent, number(), 1, 1000, kind, name, data))
    return rows


def places(rows: list[Row]) -> Contents:
    """Return the content by path of each entry that is the only one in its place, as are those
    above it; in which nothing needs a repair but numbers that are no part of a place.
    """
    by_place: dict[tuple[object, bytes], list[Row]] = {}
    for each in rows:
        if each[0] != 0:
            by_place.setdefault((each[1], each[6]), []).append(each)
    found: Contents = {}
    waiting: list[tuple[int, str]] = [(0, "")]
    while waiting:
        parent, path = waiting.pop()
        for (above, name), same in by_place.items():
            (inode, _, _, _, _, kind, _, data), *others = same
            is_named = name not in (b"", b".", b"..")
            if above != parent or type(above) is not int or others or not is_named:
                continue
            if kind == DIRECTORY:
                found[f"{path}{name.decode()}"] = None
                waiting.append((inode, f"{path}{name.decode()}/"))
            elif kind == FILE and not any(r[1] == inode for r in rows):
                found[f"{path}{name.decode()}"] = data or b""
    return found


def test_a_thousand_random_tables_keep_all_that_has_a_place() -> None:
    repaired_tables = kept = 0
    for seed in range(TABLES):
        chance = random.Random(seed)
        rows = random_table(chance)
        repaired = mend(*rows)
        assert mend(*chance.sample(rows, len(rows))) == repaired
        root, *entries = repaired.records
        again = mend((0, 0, *root[2:5], FILE, b"__version__", None), *entries)
        assert again == (repaired.records, [])
        contents = contents_of(repaired)
        # lost+found takes the place of files of its name, and of another guest with a vmid.
        expected = {
            path: data
            for path, data in places(rows).items()
            if not path.startswith("priv") and not path.endswith(".conf")
        }
        assert {path: contents.get(path, "none") for path in expected} == expected
        stored = sorted(data for *_, data in rows if data)
        assert sorted(data for data in contents.values() if data) == stored
        repaired_tables += bool(repaired.repairs)
        kept += len(expected)
    assert repaired_tables > TABLES * 0.8
    assert kept > TABLES
