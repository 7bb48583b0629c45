"""A device that records its writes and flushes, and the images that a power cut of it leaves.

At a cut, all that was written before the last flush is there; of each later write it is open.
"""

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.fakes.programs.recording_disk import FLUSH, RECORD
from tests.harness import detach, is_mount
from tests.places import PROGRAMS

SIZE = 48 << 20  # bytes of the device
PATIENCE = 30.0  # seconds


class Asked(NamedTuple):
    """A write or a flush that the device was asked for."""

    end: int  # of its record in the log
    is_flush: bool
    offset: int
    data: bytes


class Recording:
    """A file system on a recording device. ``position`` is that of the log, in bytes."""

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self._base = workdir / "base.img"  # before the recording
        self._log = workdir / "log"

    @property
    def position(self) -> int:
        """The end of the log."""
        return self._log.stat().st_size

    @contextlib.contextmanager
    def mounted(self, path: Path) -> Iterator[None]:
        """Mount an empty ext4 file system of the device on *path*, until the block ends."""
        image, server = self._workdir / "disk.img", self._workdir / "device"
        with image.open("wb") as file:
            file.truncate(SIZE)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        subprocess.run(["cp", "--sparse=always", image, self._base], check=True)
        server.mkdir()
        path.mkdir(parents=True)
        program: list[str | Path] = [
            sys.executable,
            PROGRAMS / "recording_disk.py",
            server,
            image,
            self._log,
        ]
        with subprocess.Popen(program) as process:
            try:
                until = time.monotonic() + PATIENCE
                while not is_mount(server):
                    assert process.poll() is None
                    assert time.monotonic() < until
                    time.sleep(0.01)
                with loop_mounted(server / "disk", path):
                    yield
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
                process.kill()
                detach(server)

    def asked(self) -> list[Asked]:
        """Return what the device was asked for, in order."""
        log, start = self._log.read_bytes(), 0
        found = []
        while start + RECORD.size <= len(log):
            kind, offset, size = RECORD.unpack_from(log, start)
            start += RECORD.size
            data = log[start : start + size]
            start += size
            found.append(Asked(start, kind == FLUSH, offset, data))
        return found

    def image_at(self, asked: list[Asked], count: int, path: Path, chance: random.Random) -> Path:
        """Write the image that a cut after the first *count* of *asked* leaves to *path*."""
        subprocess.run(["cp", "--sparse=always", self._base, path], check=True)
        flushes = [number for number in range(count) if asked[number].is_flush]
        safe = flushes[-1] if flushes else 0
        share = chance.random()  # of the writes since then that reached the device
        with path.open("r+b") as image:
            for number, one in enumerate(asked[:count]):
                if number < safe or chance.random() < share:
                    image.seek(one.offset)
                    image.write(one.data)
        return path


@contextlib.contextmanager
def loop_mounted(image: Path, path: Path) -> Iterator[None]:
    """Mount the ext4 file system of *image* on *path*."""
    subprocess.run(["mount", "-o", "loop", image, path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def cuts(asked: list[Asked], count: int, chance: random.Random, *, first: int) -> list[int]:
    """Return *count* numbers of requests after which to cut, from *first* on.

    Most are around flushes.
    """
    flushes = [number for number, one in enumerate(asked) if one.is_flush and number >= first]
    around = [number + shift for number in flushes for shift in (0, 1)]
    places = [around if chance.random() < 0.7 else range(first, len(asked)) for _ in range(count)]
    return sorted(max(1, chance.choice(place)) for place in places)
