"""What is read of damaged files is all that there is to read, by ``page_oracle`` as the judge.

Databases of 20 shapes are damaged at random in five ways. Of each, what is saved must have every
row that was in the intact file and is still on a page that is not free, every other row that the
table's root leads to, and nothing that is on no page. A row that is missing must be reported,
unless a page was replaced by another sound one, which no reader can tell. The new file must be
sound.
"""

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from pmxcfs.cli import offline
from pmxcfs.errors import UnreadableDatabase
from pmxcfs.storage.damaged import Damaged, read_damaged
from pmxcfs.storage.database import inspect
from pmxcfs.storage.integrity import find_damage
from pmxcfs.storage.repair import Row
from tests.fakes.data.databases import (
    DAMAGES,
    LARGEST,
    SHAPES,
    Damage,
    Shape,
    flip_bits,
    make_database,
    swap_pages,
)
from tests.fakes.models.page_oracle import rows_in

ROOT = 2  # the page of the table's root
SEED = int(os.environ.get("PMXCFS_TEST_SEED", "1"))
FEW = 12  # databases of each of the small shapes
SMALL = [shape for shape in SHAPES if shape.entries * max(shape.sizes) < 1 << 21][:12]
PARTS = 4
LONG, LONG_OF_LARGEST = 65, 15  # databases of each shape in each part: 5,000 together
REPAIRED = 6  # one in so many is also repaired to the end; of each kind of damage some
Report = Callable[[object], None]


class Specimen:
    """A database of a shape, and damaged ones made of it."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        self.shape = shape
        self.path = directory / "config.db"
        self._intact = directory / "intact.db"
        make_database(self._intact, shape)
        self.content = self._intact.read_bytes()
        seen = rows_in(self.content, page_size=shape.page_size, root=ROOT)
        self.rows = {seen.row[0]: seen.row for seen in seen if seen.is_live}
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0

    def check(self, damage: Damage, seed: int) -> None:
        """Damage the database, read it, and compare."""
        damaged = damage(self.content, self.shape.page_size, random.Random(seed))
        for leftover in self.path.parent.glob(f"{self.path.name}*"):
            leftover.unlink()
        self.path.write_bytes(damaged)
        seen = rows_in(damaged, page_size=self.shape.page_size, root=ROOT)
        live = [s.row for s in seen if s.is_live]
        once = {key for key, count in Counter(row[0] for row in live).items() if count == 1}
        readable = {
            s.row[0]: s.row
            for s in seen
            if self.rows.get(s.row[0]) == s.row and (s.row[0] in once or not s.is_live)
        }
        ambiguous = {row[0] for row in live} - once  # the number of one of the rows is damaged
        for key in ambiguous:
            readable.pop(key, None)
        self.counts["databases"] += 1
        began = time.process_time()
        try:
            read = read_damaged(self.path)
        except UnreadableDatabase:
            assert not readable, "rows are readable, but the file is refused"
            self.counts["unreadable"] += 1
            return
        self.seconds = max(self.seconds, time.process_time() - began)
        saved = {row[0]: row for row in read.rows}
        assert {key: saved.get(key) for key in readable} == readable
        assert not [row for row in live if not _has(read.rows, saved, row)]
        on_pages = {s.row[1:] for s in seen}
        assert not [row for row in read.rows if row[1:] not in on_pages], "invented rows"
        missing = [key for key in self.rows if key not in saved]
        self.counts["rows missing"] += len(missing)
        self.counts["rows saved"] += len(saved)
        if damage is not swap_pages:
            assert [key for key in missing if not _is_reported(read, key)] == []
        if seed % REPAIRED == 0:
            self._repair()

    def _repair(self) -> None:
        """The new file must be sound, and a second repair change nothing."""
        with contextlib.redirect_stdout(None):
            assert offline.fsck(self.path, repair=True) == 0
        assert find_damage(self.path) == []
        assert inspect(self.path).repairs == []
        self.counts["repaired"] += 1


def _has(rows: Sequence[Row], saved: Mapping[object, Row], row: Row) -> bool:
    """Tell whether a row was saved, as it is, by another number, or in a newer version."""
    other = saved.get(row[0])
    if other is None:
        return False
    is_same_entry = (other[1], other[6]) == (row[1], row[6])
    return is_same_entry or any(each[1:] == row[1:] for each in rows)


def _is_reported(read: Damaged, key: object) -> bool:
    assert isinstance(key, int)
    partial = {found.inode for found in read.partial}
    return key == 0 or key in partial or any(low <= key <= high for low, high in read.gaps)


def damages(count: int, seed: int) -> Iterator[tuple[Damage, int]]:
    for number in range(count):
        yield DAMAGES[number % len(DAMAGES)], seed * 1_000_000 + number


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=lambda shape: f"{shape.entries}")
def test_an_undamaged_file_is_read_in_full(tmp_path: Path, shape: Shape) -> None:
    specimen = Specimen(tmp_path, shape)
    specimen.path.write_bytes(specimen.content)
    read = read_damaged(specimen.path)
    assert {row[0]: row for row in read.rows} == specimen.rows
    assert read.is_complete
    assert read.lost_pages == 0
    assert len(read.removals) == (300 if shape.tables else 0)


@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: f"{shape.entries}")
def test_all_that_is_readable_is_read(tmp_path: Path, shape: Shape) -> None:
    specimen = Specimen(tmp_path, shape)
    for damage, seed in damages(FEW, SEED):
        specimen.check(damage, seed)
    assert specimen.counts["databases"] == FEW


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(5_000_005, id="a cell of an interior page looks like a row"),
        pytest.param(4_000_025, id="the root of other interior pages has a wrong type"),
    ],
)
def test_an_interior_page_is_no_leaf(tmp_path: Path, seed: int) -> None:
    shape = next(shape for shape in SHAPES if (shape.page_size, shape.entries) == (512, 3000))
    Specimen(tmp_path, shape).check(flip_bits, seed)


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.page_size}x{shape.entries}")
def test_all_that_is_readable_of_thousands_is_read(
    tmp_path: Path, shape: Shape, part: int, report: Report
) -> None:
    specimen = Specimen(tmp_path, shape)
    count = LONG_OF_LARGEST if shape is LARGEST else LONG
    for damage, seed in damages(count, SEED * PARTS + part):
        try:
            specimen.check(damage, seed)
        except BaseException as error:
            error.add_note(f"{damage.__name__} of {shape} with the seed {seed}")
            raise
    report(
        f"{len(specimen.content) >> 10} KiB: {dict(specimen.counts)}, "
        f"longest reading {specimen.seconds:.2f} s of CPU"
    )
