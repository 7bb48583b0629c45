"""The files and sizes of the benchmarks, each with its reason.

Beside the guests, the names in the mounted tree are those that a floor knows, too (``places``).
"""

from collections.abc import Iterator

from bench.goals import KIB, MIB

VARIANTS = b"abcd"  # consecutive writes must differ, because SQLite skips equal pages
SMALL = [bytes([byte]) * KIB for byte in VARIANTS]  # a guest's configuration is 0.5 to 3 KiB
BIG = [bytes([byte]) * MIB for byte in VARIANTS]  # the largest file
SECTOR = [bytes([byte]) * 512 for byte in VARIANTS]  # dd's default: the worst common block size
SECTORS = 1000  # as in the original's measurement: half a file of the largest size

NODE = "node1"
HOME = f"nodes/{NODE}/qemu-server"
GUESTS = 500  # on one node of a large cluster; also the entries that a floor lists
BIG_FILES = 2  # files of 1 MiB that are written
REPLACED = 2010  # files replaced in a row
UNSEEN = 2100  # files looked up for the first time, each once
UNSEEN_BIG = 40  # files of 1 MiB read for the first time, each once; more would only fill memory
LISTINGS = 21  # directories of GUESTS files listed for the first time, each once
FIRST_VMID = 100  # the lowest vmid that Proxmox VE assigns

FEW, MANY = (
    100,
    100_000,
)  # a fresh installation; far beyond the largest clusters (about 10,000 guests)

File = tuple[str, bytes]


def variant(of: list[bytes], number: int) -> bytes:
    """Return content for the *number*-th write, unlike that of the write before."""
    return of[number % len(of)]


def mounted_files() -> Iterator[File]:
    """Yield the files of a mount: the guests, and files that are read for the first time."""
    yield from guest_files()
    yield from ((f"d5/F{i}", BIG[0]) for i in range(BIG_FILES))
    yield from ((f"d6/F{i}", BIG[0]) for i in range(UNSEEN_BIG))
    yield from ((f"d7/f{i}", SMALL[0]) for i in range(UNSEEN))
    for directory in range(LISTINGS):
        yield from ((f"d8/d{directory}/f{i}", SMALL[0]) for i in range(GUESTS))


def guest_files() -> Iterator[File]:
    """Yield the configurations of GUESTS guests."""
    for vmid in range(FIRST_VMID, FIRST_VMID + GUESTS):
        yield f"{HOME}/{vmid}.conf", SMALL[0]


def many_files(count: int) -> Iterator[File]:
    """Yield *count* files of 1 KiB in one directory, the worst case for a look-up."""
    yield from ((f"d0/f{i}", SMALL[0]) for i in range(count))
