"""The index of the database's log: its room on the device."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.errors import StoreError
from pmxcfs.storage.database import Database
from pmxcfs.storage.log_index import SIZE, check_room
from tests.fakes.doubles.store import Store, contents_of, stored


@pytest.fixture
def small_device(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a database and for an index, but for little else."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path = tmp_path / "device"
    path.mkdir()
    size = f"size={SIZE + (256 << 10)}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def index_of(path: Path) -> os.stat_result:
    return os.stat(f"{path}-shm")


def test_all_of_the_index_has_its_room_from_the_start(tmp_path: Path) -> None:
    """A page without a block would end the process with SIGBUS when the device is full."""
    store = Store(tmp_path / "config.db")
    with contextlib.closing(store.database):
        assert index_of(store.path).st_blocks * 512 >= SIZE
        store.put("file", b"x" * 100_000)
        assert index_of(store.path).st_blocks * 512 >= SIZE


def test_without_room_for_an_index_none_is_made(small_device: Path) -> None:
    path = small_device / "config.db"
    Database.open(path, now=1).close()
    check_room(small_device)
    ballast = small_device / "ballast"
    ballast.write_bytes(bytes(256 << 10))
    with pytest.raises(OSError, match="No space left") as caught:
        check_room(small_device)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(StoreError, match="can't be opened") as refused:
        Database.open(path, now=1)
    assert refused.value.errno == errno.ENOSPC
    assert not [name for name in os.listdir(small_device) if name.endswith("-shm")]
    ballast.unlink()
    store = Store(path)
    with contextlib.closing(store.database):
        store.put("file", b"x")
    assert contents_of(stored(path)) == {"file": b"x"}
