"""File systems for a state directory: a small tmpfs that fills up, an ext4 whose device fails."""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.storage.staging import forget_staged

IMAGE_SIZE = 32 << 20  # bytes
SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, _IOR('X', 125, __u32)
WITHOUT_FLUSH = 2  # unwritten pages are lost, as in a power cut
FREEZE, THAW = 0xC0045877, 0xC0045878  # FIFREEZE and FITHAW: _IOWR('X', 119 and 120, int)
FILL = 65536  # bytes

needs_loop = pytest.mark.skipif(
    not Path("/dev/loop-control").exists(), reason="there are no loop devices"
)


def _run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)


def _unmount(path: Path) -> None:
    """Detach all mounts on *path*, even if files on them are open."""
    forget_staged(path / "journal")
    while path.is_mount():
        _run("umount", "--lazy", path)


@contextlib.contextmanager
def tmpfs(path: Path, *, size: int) -> Iterator[None]:
    """Mount a file system of *size* bytes on *path*."""
    path.mkdir(parents=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0750", "tmpfs", path)
    try:
        yield
    finally:
        _unmount(path)


@contextlib.contextmanager
def filled(path: Path) -> Iterator[None]:
    """Fill the file system of *path* until the block ends."""
    filler = path / "filler"
    with filler.open("wb", buffering=0) as out:
        size = FILL
        while size:
            try:
                out.write(bytes(size))
            except OSError:
                size //= 2
    try:
        yield
    finally:
        filler.unlink()


def make_immutable(path: Path, *, undo: bool = False) -> None:
    """Set the immutable attribute of a file on ext4: root can't change it either."""
    _run("chattr", "-i" if undo else "+i", path)


class Ext4:
    """An ext4 file system in the file *image*, mounted on *path*."""

    def __init__(self, image: Path, path: Path) -> None:
        self._image = image
        self._path = path

    def mount(self) -> None:
        """Mount the file system of the image."""
        _run("mount", "-o", "loop", self._image, self._path)

    def unmount(self) -> None:
        """Unmount lazily: open files stay usable."""
        _unmount(self._path)

    def replace(self) -> None:
        """Mount a copy of the image in its place, even if files on the first one are open."""
        self.unmount()
        self._image = Path(shutil.copy(self._image, f"{self._image}.copy"))
        self.mount()

    def mount_read_only(self) -> None:
        """Remount read-only."""
        _run("mount", "-o", "remount,ro", self._path)

    def mount_writable(self) -> None:
        """Remount as it was."""
        _run("mount", "-o", "remount,rw", self._path)

    def fail(self) -> None:
        """Let every access to the device fail until it is mounted again."""
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("=I", WITHOUT_FLUSH))
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def ext4(path: Path, *, size: int = IMAGE_SIZE) -> Iterator[Ext4]:
    """Mount an ext4 file system of *size* bytes on *path*; its image is a file beside it."""
    path.mkdir(parents=True)
    image = path.with_name(f"{path.name}.img")
    with image.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", image)
    device = Ext4(image, path)
    device.mount()
    try:
        yield device
    finally:
        device.unmount()


@contextlib.contextmanager
def frozen(path: Path) -> Iterator[None]:
    """Let every write to the file system of *path* wait until the block ends, as fsfreeze does.

    That program would close this process's files on the mount, and wait for their writes.
    """
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.ioctl(descriptor, FREEZE, 0)
    try:
        yield
    finally:
        fcntl.ioctl(descriptor, THAW, 0)
        os.close(descriptor)


def blocks_of(state: Path) -> tuple[int, int]:
    """Return the bytes that the journal and the database's log take on the device."""
    segments = sum(map(_size_on_device, (state / "journal").glob("*")))
    return segments, _size_on_device(state / "config.db-wal")


def _size_on_device(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
