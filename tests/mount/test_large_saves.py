"""Other requests during the save of a large file: reads go on, changes wait.

Another process holds the write lock of the database, so a save lasts as long as a test needs.
"""

import contextlib
import os
import resource
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness import Daemon, mounted, wait_for
from tests.mount.observed import published, status

pytestmark = pytest.mark.needs_fuse

LARGE = b"0123456789abcde\n" * (1 << 16)  # 1 MiB
PATIENCE = 30.0  # seconds


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Daemon]:
    with mounted(tmp_path, "--test-control") as daemon:
        (daemon.path / "large").write_bytes(b"as it was")
        (daemon.path / "other").write_bytes(b"never looked at")
        (daemon.path / "directory").mkdir()
        yield daemon


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


@contextlib.contextmanager
def held_database(mount: Daemon) -> Iterator[None]:
    """Hold the write lock of the database until the block ends."""
    with contextlib.closing(sqlite3.connect(mount.state / "config.db")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


@contextlib.contextmanager
def saving(mount: Daemon, pool: ThreadPoolExecutor) -> Iterator[Future[int]]:
    """Save a large file; the save ends only after the block."""
    before = mount.control("info")["version"]
    with held_database(mount):
        save = pool.submit((mount.path / "large").write_bytes, LARGE)
        wait_for(lambda: mount.control("info")["version"] > before, mount)
        yield save
        assert not save.done()


def test_reads_go_on_during_a_large_save(mount: Daemon, pool: ThreadPoolExecutor) -> None:
    with saving(mount, pool) as save:
        assert (mount.path / "other").read_bytes() == b"never looked at"
        assert os.listdir(mount.path / "directory") == []
        assert not (mount.path / "absent").exists()
        assert os.statvfs(mount.path).f_files > 0
        assert status(mount, ".vmlist")["version"] == 1
        assert (mount.path / "large").read_bytes() == LARGE
    assert save.result(PATIENCE) == len(LARGE)
    assert published(mount, "large") == LARGE


def test_changes_wait_for_a_large_save_and_come_after_it(
    mount: Daemon, pool: ThreadPoolExecutor
) -> None:
    with saving(mount, pool) as save:
        change = pool.submit((mount.path / "directory" / "new").mkdir)
        assert (mount.path / "other").read_bytes() == b"never looked at"
        assert not change.done()
    change.result(PATIENCE)
    save.result(PATIENCE)
    assert (mount.path / "directory" / "new").is_dir()


def test_bytes_written_during_the_save_are_the_next_change(
    mount: Daemon, pool: ThreadPoolExecutor
) -> None:
    with saving(mount, pool) as save:
        descriptor = os.open(mount.path / "large", os.O_WRONLY)
        os.pwrite(descriptor, b"X", 0)
    save.result(PATIENCE)
    assert published(mount, "large") == LARGE
    os.close(descriptor)
    assert published(mount, "large") == b"X" + LARGE[1:]


def test_content_that_could_not_be_saved_is_dropped_from_all_caches(
    mount: Daemon, pool: ThreadPoolExecutor
) -> None:
    mount.expect_log("the last writes to large are lost")
    mount.expect_log("config.db can't be written")
    before = (mount.path / "large").stat()
    with saving(mount, pool) as save:
        assert (mount.path / "large").stat().st_size == len(LARGE)
        assert (mount.path / "large").read_bytes() == LARGE
        size = (mount.state / "config.db-wal").stat().st_size
        limits = resource.prlimit(mount.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(mount.process.pid, resource.RLIMIT_FSIZE, (size, limits[1]))
    with pytest.raises(OSError, match=r"Input/output|No space"):
        save.result(PATIENCE)
    mount.wait_until_notified()
    assert (mount.path / "large").read_bytes() == b"as it was"
    assert (mount.path / "large").stat() == before
    resource.prlimit(mount.process.pid, resource.RLIMIT_FSIZE, limits)
    (mount.path / "large").write_bytes(LARGE)
    assert published(mount, "large") == LARGE


def test_a_stop_waits_for_a_large_save(mount: Daemon, pool: ThreadPoolExecutor) -> None:
    stopping = threading.Event()

    def stop() -> None:
        stopping.set()
        mount.stop(grace=PATIENCE)

    with saving(mount, pool) as save:
        stopped = pool.submit(stop)
        assert stopping.wait(PATIENCE)
        wait_for(lambda: "stopping" in mount.log_text(), mount)
    assert save.result(PATIENCE) == len(LARGE)
    stopped.result(PATIENCE)
    with contextlib.closing(sqlite3.connect(mount.state / "config.db")) as connection:
        query = "SELECT data FROM tree WHERE name = 'large'"
        assert connection.execute(query).fetchone() == (LARGE,)
