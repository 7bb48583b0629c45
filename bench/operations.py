"""The operations on a mount.

Each function gets a place and an ExitStack, does the work that must not be timed, and returns a
batch. It runs alike on each side. Most operations are Python's os calls, whose own time of 0.1 to 1
microsecond is part of all figures.
"""

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.clients import parallel_read_us
from bench.data import BIG, GUESTS, REPLACED, SECTOR, SECTORS, SMALL, VARIANTS, variant
from bench.files import CREATE, READ, REWRITE, read_file, write_file
from bench.goals import MIB
from bench.placement import fetch
from bench.places import Place
from bench.turns import Batch, timed

Prepare = Callable[[Place, ExitStack], Batch]

PROCESSES, READS = 4, 1000  # as in the original's measurement; reads per process and figure
SET_CONTENTS = Path(__file__).with_name("set_contents.pl")


def statvfs(place: Place, stack: ExitStack) -> Batch:
    return timed(lambda i: os.statvfs(place.root))


def stat_seen(place: Place, stack: ExitStack) -> Batch:
    """Stat paths that were looked up over 1 s ago: an attribute timeout of 1 s would show."""
    for path in place.files:
        os.stat(path)
    time.sleep(1.1)
    return timed(lambda i: os.stat(place.files[i % GUESTS]))


def stat_unseen(place: Place, stack: ExitStack) -> Batch:
    os.stat(f"{place.root}/d7")
    return timed(lambda i: os.stat(f"{place.root}/d7/f{i}"))


def stat_absent(place: Place, stack: ExitStack) -> Batch:
    os.stat(f"{place.root}/d7")
    return timed(lambda i: os.path.lexists(f"{place.root}/d7/x{i}"))


def open_read_close(place: Place, stack: ExitStack) -> Batch:
    for path in place.files:
        read_file(path)
    return timed(lambda i: read_file(place.files[i % GUESTS]))


def pread(size: int) -> Prepare:
    """Read the first *size* bytes of an open file of 1 MiB whose pages are cached."""

    def prepare(place: Place, stack: ExitStack) -> Batch:
        fd = os.open(f"{place.root}/d5/F0", READ)
        stack.callback(os.close, fd)
        os.pread(fd, MIB, 0)
        return timed(lambda i: os.pread(fd, size, 0))

    return prepare


def list_directory(place: Place, stack: ExitStack) -> Batch:
    return timed(lambda i: os.listdir(place.home))


def list_and_stat(directory: str) -> None:
    """List a directory and stat each entry, as ls -l does."""
    for name in os.listdir(directory):
        os.stat(f"{directory}/{name}")


def list_and_stat_seen(place: Place, stack: ExitStack) -> Batch:
    return timed(lambda i: list_and_stat(place.home))


def list_and_stat_unseen(place: Place, stack: ExitStack) -> Batch:
    os.stat(f"{place.root}/d8")
    return timed(lambda i: list_and_stat(f"{place.root}/d8/d{i}"))


def read_big_unseen(place: Place, stack: ExitStack) -> Batch:
    return timed(lambda i: read_file(f"{place.root}/d6/F{i}", MIB))


def read_version(place: Place, stack: ExitStack) -> Batch:
    return timed(lambda i: read_file(f"{place.root}/.version"))


def read_guest_list(place: Place, stack: ExitStack) -> Batch:
    return timed(lambda i: read_file(f"{place.root}/.vmlist"))


def read_unseen(directory: str) -> Prepare:
    """Read files that the kernel has not cached: what a status file costs on a floor.

    A status file gets a new inode each time it is opened, so nothing of it can be cached.
    """

    def prepare(place: Place, stack: ExitStack) -> Batch:
        os.stat(f"{place.root}/{directory}")
        return timed(lambda i: read_file(f"{place.root}/{directory}/f{i}"))

    return prepare


def overwrite(place: Place, stack: ExitStack) -> Batch:
    def operation(i: int) -> None:
        turn, number = divmod(i, GUESTS)
        write_file(place.files[number], REWRITE, variant(SMALL, turn))

    return timed(operation)


def replace(place: Place, stack: ExitStack) -> Batch:
    targets = _known_targets(place, 0)

    def operation(i: int) -> None:
        temporary = place.temporary(targets[i], i)
        write_file(temporary, CREATE, variant(SMALL, i // GUESTS))
        os.rename(temporary, targets[i])

    return timed(operation)


def set_contents(place: Place, stack: ExitStack) -> Batch:
    """Have a Perl program replace files. It uses one temporary name, as the library does."""
    targets = _known_targets(place, REPLACED)
    perl = stack.enter_context(
        subprocess.Popen(
            ["perl", SET_CONTENTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    )
    assert perl.stdin is not None
    assert perl.stdout is not None
    stdin, stdout = perl.stdin, perl.stdout

    def batch(numbers: range) -> list[float]:
        for i in numbers:
            byte = chr(VARIANTS[i // GUESTS % len(VARIANTS)])
            stdin.write(f"{targets[i]}\t{place.temporary(targets[i], perl.pid)}\t{byte}\n")
        stdin.write("\n")
        stdin.flush()
        fetch(perl.pid)  # it has been woken anywhere
        return [float(figure) for figure in stdout.readline().split()]

    return batch


def _known_targets(place: Place, first: int) -> list[str]:
    """Return REPLACED files to replace; the kernel has cached them, as it has in real use."""
    targets = [place.target(first + number) for number in range(REPLACED)]
    for target in targets:
        os.stat(target)
    return targets


def make_and_remove(place: Place, stack: ExitStack) -> Batch:
    def operation(i: int) -> None:
        path = place.new_directory(i)
        os.mkdir(path)
        os.rmdir(path)

    return timed(operation)


def create(place: Place, stack: ExitStack) -> Batch:
    """Create the files of guests."""
    return _create(place.new_file)


def create_other(place: Place, stack: ExitStack) -> Batch:
    """Create files that are no guest's."""
    return _create(place.new_other_file)


def _create(path: Callable[[int], str]) -> Batch:
    """Create files; remove them untimed, so that there are never many more."""
    create_one = timed(lambda i: write_file(path(i), CREATE, variant(SMALL, i)))

    def batch(numbers: range) -> list[float]:
        times = create_one(numbers)
        for i in numbers:
            os.unlink(path(i))
        return times

    return batch


def write_big(place: Place, stack: ExitStack) -> Batch:
    return timed(lambda i: write_file(f"{place.root}/d5/F0", REWRITE, variant(BIG, i)))


def write_sectors(place: Place, stack: ExitStack) -> Batch:
    def operation(i: int) -> None:
        write_file(f"{place.root}/d5/F1", REWRITE, variant(SECTOR, i), times=SECTORS)

    return timed(operation)


def parallel_reads(place: Place, stack: ExitStack) -> Batch:
    """Read in several processes at once; a figure is the elapsed time per read of all."""
    return lambda numbers: [
        parallel_read_us(place.files, processes=PROCESSES, count=READS) for _ in numbers
    ]
