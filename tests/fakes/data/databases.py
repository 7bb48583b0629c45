"""Databases of many shapes, and ways to damage their pages."""

import contextlib
import random
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pmxcfs.storage.schema import TABLE


class Shape(NamedTuple):
    """What a database is made of."""

    page_size: int
    entries: int
    sizes: Sequence[int]  # of the files, by turns
    depth: int = 3  # of directories
    removed: float = 0.0  # share of the entries that are removed again
    rewritten: int = 0  # rounds in which every third entry gets another content
    stride: int = 2  # versions from one entry to the next
    tables: bool = False  # also the tables of pmxcfs besides the tree
    is_vacuumed: bool = False


CONFIGS = (0, 150, 350, 420, 700, 1200, 60, 2500)
SHAPES = (
    Shape(1024, 3, (10,)),
    Shape(1024, 40, CONFIGS),
    Shape(4096, 40, CONFIGS, tables=True),
    Shape(1024, 400, (100,), tables=True),
    Shape(1024, 400, CONFIGS, removed=0.3),
    Shape(1024, 1500, (60,), depth=8),
    Shape(512, 600, (40, 300), removed=0.2, rewritten=1),
    Shape(512, 3000, (5,), stride=1),
    Shape(2048, 500, CONFIGS, rewritten=3),
    Shape(4096, 1000, CONFIGS, removed=0.5),
    Shape(4096, 2500, (200,), tables=True, rewritten=1),
    Shape(8192, 400, CONFIGS, removed=0.2),
    Shape(16384, 300, CONFIGS),
    Shape(32768, 300, CONFIGS, rewritten=1),
    Shape(65536, 200, CONFIGS, removed=0.1),
    Shape(1024, 8, (1 << 18, 1000), rewritten=1),
    Shape(1024, 300, (30000, 50), removed=0.3, is_vacuumed=True),
    Shape(4096, 900, (900,), stride=1000),
    Shape(1024, 6000, (330, 1000), removed=0.1),
    Shape(1024, 60000, (300, 420), rewritten=1),  # 30 MB
)
LARGEST = SHAPES[-1]


def make_database(path: Path, shape: Shape, seed: int = 0) -> None:
    """Write a database of a shape; all of it is in the file, none in a log."""
    chance = random.Random(seed)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        execute = connection.execute
        execute(f"PRAGMA page_size = {shape.page_size}")
        execute("PRAGMA synchronous = OFF")
        execute(TABLE)
        if shape.tables:
            execute("CREATE TABLE divergence_notes (nodeid INTEGER PRIMARY KEY, version, parted)")
            execute("INSERT INTO divergence_notes VALUES (2, 7, 9)")
            execute("CREATE TABLE divergence_removals (inode INTEGER PRIMARY KEY, version, path)")
            rows = [(n, n + 1, b"removed/%d" % n) for n in range(300)]
            execute("BEGIN")
            connection.executemany("INSERT INTO divergence_removals VALUES (?, ?, ?)", rows)
            execute("COMMIT")
        execute("BEGIN")
        _fill(connection, shape, chance)
        execute("COMMIT")
        if shape.is_vacuumed:
            execute("VACUUM")


def _fill(connection: sqlite3.Connection, shape: Shape, chance: random.Random) -> None:
    insert = "INSERT INTO tree VALUES (?, ?, ?, 1, 1700000000, ?, CAST(? AS TEXT), ?)"
    directories, version = [(0, 0)], 1
    for number in range(shape.entries):
        version += shape.stride
        size = shape.sizes[number % len(shape.sizes)]
        parent, depth = chance.choice(directories[-40:])
        content: bytes | None = None
        if number % 12 == 0 and depth < shape.depth:
            directories.append((version, depth + 1))
            row = (version, parent, version, 4, b"dir%d" % number, content)
        else:
            content = _content(number, size) or None
            row = (version, parent, version, 8, b"%d.conf" % number, content)
        connection.execute(insert, row)
    version += 1
    inodes = [inode for (inode,) in connection.execute("SELECT inode FROM tree WHERE type = 8")]
    for turn in range(shape.rewritten):
        for inode in inodes[turn::3]:
            version += 1
            content = _content(inode, shape.sizes[(inode + turn) % len(shape.sizes)] * 2)
            change = "UPDATE tree SET data = ?, version = ? WHERE inode = ?"
            connection.execute(change, (content, version, inode))
    for inode in inodes:
        if chance.random() < shape.removed:
            version += 1
            connection.execute("DELETE FROM tree WHERE inode = ?", (inode,))
    connection.execute(insert, (0, 0, version, 8, b"__version__", None))


def _content(number: int, size: int) -> bytes:
    line = b"value of %d: some words of a configuration\n" % number
    return (line * (size // len(line) + 1))[:size]


# Damage. Each takes the content of a file, its page size and a source of chance.


def flip_bits(content: bytes, page_size: int, chance: random.Random) -> bytes:
    """Flip bits: some anywhere, some at the start of a page, where its structure is."""
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 1, 3, 30))):
        page = chance.randrange(0, len(content), page_size)
        reach = chance.choice((12, 100, page_size))
        at = min(page + chance.randrange(min(reach, page_size)), len(content) - 1)
        damaged[at] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def zero_pages(content: bytes, page_size: int, chance: random.Random) -> bytes:
    """Zero some pages, one behind the other or anywhere."""
    damaged = bytearray(content)
    pages = len(content) // page_size
    first, count = chance.randrange(pages), chance.choice((1, 1, 2, 8))
    for step in range(count):
        page = first + step if chance.random() < 0.7 else chance.randrange(pages)
        damaged[page * page_size : (page + 1) * page_size] = bytes(page_size)
    return bytes(damaged[: len(content)])


def swap_pages(content: bytes, page_size: int, chance: random.Random) -> bytes:
    """Let some pairs of pages change places, but not the first page."""
    damaged = bytearray(content)
    pages = len(content) // page_size
    for _ in range(chance.choice((1, 1, 2, 5)) if pages > 2 else 0):
        one, other = (chance.randrange(1, pages) * page_size for _ in range(2))
        first, second = damaged[one : one + page_size], damaged[other : other + page_size]
        damaged[one : one + page_size], damaged[other : other + page_size] = second, first
    return bytes(damaged)


def cut(content: bytes, page_size: int, chance: random.Random) -> bytes:
    """Cut the file off at any byte."""
    return content[: chance.randrange(page_size // 2, len(content))]


def overwrite(content: bytes, page_size: int, chance: random.Random) -> bytes:
    """Write random bytes over a range that knows no pages."""
    damaged = bytearray(content)
    at, size = chance.randrange(len(content)), chance.choice((8, 200, 5000))
    damaged[at : at + size] = chance.randbytes(min(size, len(content) - at))
    return bytes(damaged)


Damage = Callable[[bytes, int, random.Random], bytes]
DAMAGES: Sequence[Damage] = (flip_bits, zero_pages, swap_pages, cut, overwrite)
