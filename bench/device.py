"""An ext4 file system on a loop device, and the number of bytes written to that device.

The kernel counts the sectors that reach a block device. /proc/PID/io counts dirtied pages instead,
which may be written once, several times, or never.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.goals import MIB

SIZE = 192 * MIB  # sparse; room for the largest database here, its log, and ext4's journal
SECTOR = 512  # the unit of /sys/block/*/stat, independent of the device's sector size
SMALL_BLOCK, USUAL_BLOCK = 1024, 4096  # what mkfs.ext4 takes below 512 MiB, and above
WRITTEN_SECTORS = 6  # index of the field, see the kernel's Documentation/block/stat.rst


class Disk:
    """A mounted file system and the block device below it."""

    def __init__(self, mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        number = mountpoint.stat().st_dev
        device = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
        self._statistics = Path(device, "stat")

    def written(self) -> int:
        """Flush the file system; return the bytes written since the device was made. Blocks."""
        subprocess.run(["sync", "--file-system", self.mountpoint], check=True)
        return self.written_so_far()

    def written_so_far(self) -> int:
        """Return the bytes written since the device was made, without what the kernel keeps."""
        return int(self._statistics.read_text().split()[WRITTEN_SECTORS]) * SECTOR


@contextlib.contextmanager
def disk(directory: Path, *, block: int = SMALL_BLOCK) -> Iterator[Disk]:
    """Create *directory*; make and mount a disk in it, and unmount and remove it afterwards.

    *block* is ext4's block size in bytes.
    ``mount -o loop`` makes the kernel free the loop device at the unmount.
    """
    image, mountpoint = directory / "image", directory / "disk"
    mountpoint.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(SIZE)
    eager = (
        "lazy_itable_init=0,lazy_journal_init=0"  # else the kernel writes during the measurement
    )
    options = ["-q", "-b", str(block), "-E", eager]
    subprocess.run(["mkfs.ext4", *options, image], check=True)
    subprocess.run(["mount", "-o", "loop,noatime", image, mountpoint], check=True)
    try:
        yield Disk(mountpoint)
    finally:
        subprocess.run(["umount", mountpoint], check=True)
        image.unlink()
