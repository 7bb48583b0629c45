"""Reads files all the time, as daemons and backup tools do: ``onlooker.py SEED``.

Each line on standard input is the path of a file that no process has looked up yet. The program
looks it up at once, about as fast as the kernel can. From then on it accesses this file and the
other recent ones in random ways, and ignores errors. At the end of the input it prints the number
of accesses.
"""

import collections
import contextlib
import mmap
import os
import random
import select
import sys
from collections.abc import Callable
from pathlib import Path


def read(path: str) -> None:
    """Read through the page cache."""
    Path(path).read_bytes()


def map_page(path: str) -> None:
    """Read the first page by a page fault; later pages may be truncated meanwhile."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = min(os.fstat(descriptor).st_size, mmap.PAGESIZE)
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as pages:
            pages[:]
    finally:
        os.close(descriptor)


def list_around(path: str) -> None:
    """List the directory that the path is in."""
    os.listdir(os.path.dirname(path))


WAYS: tuple[Callable[[str], object], ...] = (os.stat, os.stat, read, map_page, list_around)


RECENT = 40  # paths that are accessed between two new ones
JITTER = 200  # iterations of an empty loop at most before a new path is looked up


def look(way: Callable[[str], object], path: str) -> None:
    """Access *path* once; the file may be gone, and an empty file can't be mapped."""
    with contextlib.suppress(OSError, ValueError):
        way(path)


def main(seed: int) -> int:
    """Access files until standard input ends; return the number of accesses."""
    chance = random.Random(seed)
    paths: collections.deque[str] = collections.deque(maxlen=RECENT)
    looks = 0
    while True:
        while not paths or select.select([sys.stdin], [], [], 0)[0]:
            line = sys.stdin.readline()
            if not line:
                return looks
            for _ in range(chance.randrange(JITTER)):
                pass
            look(os.stat, line.rstrip())
            paths.append(line.rstrip())
        look(chance.choice(WAYS), chance.choice(paths))
        looks += 1


print(main(int(sys.argv[1])))
