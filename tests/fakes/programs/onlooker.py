"""A process that looks at files all the time, as daemons and backup tools do: ``onlooker.py SEED``.

Each line on standard input is the path of a file that nobody has looked at yet: it is looked up at
once, about as fast as the kernel can, and from then on it is one of those that are looked at in
between, in random ways, whatever comes of it. At the end of the input the number of looks is
printed.
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
    """Read by a page fault, on the only page that is sure to stay."""
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


RECENT = 40  # paths that are looked at in between
JITTER = 200  # turns of an empty loop at most before a new path is looked up


def look(way: Callable[[str], object], path: str) -> None:
    """Look once; it may be gone, and an empty file can't be mapped."""
    with contextlib.suppress(OSError, ValueError):
        way(path)


def main(seed: int) -> int:
    """Look until standard input ends; return how often."""
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
