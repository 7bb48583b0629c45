"""A disk of one's own: ext4 on a loop device, and how many bytes were handed to it.

The kernel counts the sectors that reach a block device. /proc/PID/io would count dirtied pages
instead, which may be written once, often, or never.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.goals import MIB

SIZE = 192 * MIB  # sparse; room for the largest database here, its log, and ext4's journal
SECTOR = 512  # /sys/block/*/stat counts in these, whatever the device's own sectors are
WRITTEN_SECTORS = 6  # the field's index, see Documentation/block/stat.rst of the kernel


class Disk:
    """A mounted file system and the block device below it."""

    def __init__(self, mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        number = mountpoint.stat().st_dev
        device = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
        self._statistics = Path(device, "stat")

    def written(self) -> int:
        """Flush the file system; return the bytes written since the device exists. Blocks."""
        subprocess.run(["sync", "--file-system", self.mountpoint], check=True)
        return int(self._statistics.read_text().split()[WRITTEN_SECTORS]) * SECTOR


@contextlib.contextmanager
def disk(directory: Path) -> Iterator[Disk]:
    """Make and mount a disk in a directory that is made for it; take it away afterwards.

    ``mount -o loop`` frees the loop device with the mount, even if nobody is left to do it.
    """
    image, mountpoint = directory / "image", directory / "disk"
    mountpoint.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(SIZE)
    eager = "lazy_itable_init=0,lazy_journal_init=0"  # or the kernel writes while we count
    subprocess.run(["mkfs.ext4", "-q", "-E", eager, image], check=True)
    subprocess.run(["mount", "-o", "loop,noatime", image, mountpoint], check=True)
    try:
        yield Disk(mountpoint)
    finally:
        subprocess.run(["umount", mountpoint], check=True)
        image.unlink()
