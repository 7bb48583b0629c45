"""The files and sizes of the benchmarks, each with its reason.

The names in the mounted tree are those that floor.c knows in every directory (``f...`` is a file of
1 KiB, ``F...`` a file of 1 MiB, ``d...`` a directory), so that an operation can run on both mounts.
"""

from collections.abc import Iterator

from bench.goals import KIB, MIB

VARIANTS = b"abcd"  # consecutive writes must differ, because SQLite skips equal pages
SMALL = [bytes([byte]) * KIB for byte in VARIANTS]  # a guest's configuration is 0.5 to 3 KiB
BIG = [bytes([byte]) * MIB for byte in VARIANTS]  # the largest file
SECTOR = [bytes([byte]) * 512 for byte in VARIANTS]  # dd's default: the worst common block size
SECTORS = 1000  # as in the original's measurement: half a file of the largest size

LISTED = 500  # entries that floor.c lists; a large cluster has about as many guests on one node
REWRITTEN = 20  # files written in rotation: more than one, few enough to stay in the CPU's cache
TARGETS = 2050  # files replaced through rename, each once: the floor does not store a rename
UNSEEN = 3300  # files looked up for the first time, each once
UNSEEN_BIG = 40  # files of 1 MiB read for the first time, each once; more would only fill memory
LISTINGS = 11  # directories of LISTED files listed for the first time, each once
GUESTS = 500  # as in the original's measurement of .vmlist
FIRST_VMID = 100  # the lowest vmid that Proxmox VE assigns

FEW, MANY = (
    100,
    100_000,
)  # a fresh installation; far beyond the largest clusters (about 10,000 guests)

NODE = "node1"

File = tuple[str, bytes]


def variant(of: list[bytes], number: int) -> bytes:
    """Return content for the *number*-th write, unlike that of the write before."""
    return of[number % len(of)]


def mounted_files() -> Iterator[File]:
    """Yield the files for bench_mount, with an own directory for operations that disturb others."""
    yield from ((f"d0/f{i}", SMALL[0]) for i in range(LISTED))
    yield "d0x/F0", BIG[0]
    yield from ((f"d1/f{i}", SMALL[0]) for i in range(REWRITTEN))
    yield "d2/f0", SMALL[0]
    yield from ((f"d3/f{i}", SMALL[0]) for i in range(TARGETS))
    yield "d4/f0", SMALL[0]
    yield from ((f"d5/F{i}", BIG[0]) for i in range(2))
    yield from ((f"d6/F{i}", BIG[0]) for i in range(UNSEEN_BIG))
    yield from ((f"d7/f{i}", SMALL[0]) for i in range(UNSEEN))
    for directory in range(LISTINGS):
        yield from ((f"d8/d{directory}/f{i}", SMALL[0]) for i in range(LISTED))
    yield from guest_files()


def guest_files() -> Iterator[File]:
    """Yield the configurations of GUESTS guests."""
    for vmid in range(FIRST_VMID, FIRST_VMID + GUESTS):
        yield f"nodes/{NODE}/qemu-server/{vmid}.conf", SMALL[0]


def many_files(count: int) -> Iterator[File]:
    """Yield *count* files of 1 KiB in one directory, the worst case for a look-up."""
    yield from ((f"d0/f{i}", SMALL[0]) for i in range(count))
