"""The database behind the mount: when config.db has a change, and what other programs do to that.

A copy is made as backup scripts make it: of config.db alone, by another process.
"""

import contextlib
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.storage.schedule import PAUSE
from tests.fakes.doubles.store import Contents, contents_of, reading, stored
from tests.harness import Daemon, mounted, wait_for

pytestmark = pytest.mark.needs_fuse

AT_ONCE = 1.0  # seconds in which a change is answered, with a margin


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with mounted(tmp_path) as daemon:
        yield daemon


def database_of(daemon: Daemon) -> Path:
    return daemon.state / "config.db"


def copied(daemon: Daemon) -> Contents:
    """Return what a copy of config.db alone holds; the copy must be sound."""
    copy = daemon.state.parent / "copy.db"
    subprocess.run(["cp", database_of(daemon), copy], check=True)
    return contents_of(stored(copy))


def is_copied(daemon: Daemon, name: str, content: bytes) -> bool:
    """Tell whether a copy of config.db alone has the file; a copy can be made during a save."""
    with contextlib.suppress(Exception):
        return copied(daemon).get(name) == content
    return False


def write(daemon: Daemon, name: str, content: bytes) -> float:
    """Write a file; return the seconds that this took."""
    start = time.monotonic()
    (daemon.path / name).write_bytes(content)
    return time.monotonic() - start


def test_a_configuration_change_is_in_a_copy_within_seconds(daemon: Daemon) -> None:
    start = time.monotonic()
    write(daemon, "datacenter.cfg", b"keyboard: de\n")
    wait_for(lambda: is_copied(daemon, "datacenter.cfg", b"keyboard: de\n"), daemon)
    assert time.monotonic() - start < 3 * PAUSE
    assert (daemon.state / "config.db-wal").stat().st_size == 0


@pytest.mark.long
def test_heartbeats_are_not_saved_one_by_one(daemon: Daemon) -> None:
    write(daemon, "datacenter.cfg", b"x")
    wait_for(lambda: is_copied(daemon, "datacenter.cfg", b"x"), daemon)
    before = database_of(daemon).stat().st_mtime_ns
    (daemon.path / "nodes/node1").mkdir(parents=True, exist_ok=True)
    wait_for(lambda: database_of(daemon).stat().st_mtime_ns != before, daemon)
    before = database_of(daemon).stat().st_mtime_ns
    deadline = time.monotonic() + 2 * PAUSE
    while time.monotonic() < deadline:
        temporary = daemon.path / "nodes/node1/lrm_status.tmp.7"
        temporary.write_bytes(os.urandom(300))
        temporary.rename(daemon.path / "nodes/node1/lrm_status")
    assert database_of(daemon).stat().st_mtime_ns == before


@pytest.mark.long
def test_a_program_that_keeps_the_write_lock_is_not_noticed_by_users(daemon: Daemon) -> None:
    """As an administrator's sqlite3 with an open transaction."""
    daemon.expect_log("another process has it open: .*; changes are kept in the journal")
    with contextlib.closing(sqlite3.connect(database_of(daemon), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        write(daemon, "datacenter.cfg", b"first")
        daemon.wait_for_log("another process has it open")
        assert "datacenter.cfg" not in copied(daemon)
        assert write(daemon, "datacenter.cfg", b"last") < AT_ONCE
    wait_for(lambda: is_copied(daemon, "datacenter.cfg", b"last"), daemon, 60)


@pytest.mark.long
def test_with_a_long_reader_a_copy_is_older_but_never_torn(daemon: Daemon) -> None:
    names = [f"file{number}" for number in range(40)]
    for name in names:
        write(daemon, name, b"first" * 300)
    wait_for(lambda: is_copied(daemon, names[-1], b"first" * 300), daemon)
    with reading(database_of(daemon)):
        for name in names[::3]:
            assert write(daemon, name, b"second" * 300) < AT_ONCE
        wait_for(lambda: (daemon.state / "config.db-wal").stat().st_size > 0, daemon)
        for name in names[1::3]:
            assert write(daemon, name, b"third" * 300) < AT_ONCE
        deadline = time.monotonic() + 4 * PAUSE
        while time.monotonic() < deadline:  # the daemon tries again to cut the log
            found = copied(daemon)
            assert {found[name] for name in names} == {b"first" * 300}
    wait_for(lambda: is_copied(daemon, names[1], b"third" * 300), daemon)
    assert copied(daemon)[names[0]] == b"second" * 300


def test_rows_of_another_program_are_written_over_if_it_changed_the_version(
    daemon: Daemon,
) -> None:
    write(daemon, "file", b"ours")
    wait_for(lambda: is_copied(daemon, "file", b"ours"), daemon)
    daemon.expect_log("another program has changed the tree in .*config.db")
    with contextlib.closing(sqlite3.connect(database_of(daemon))) as other, other:
        other.execute("UPDATE tree SET data = x'00', version = version + 1 WHERE name = 'file'")
        other.execute("UPDATE tree SET version = version + 1 WHERE inode = 0")
    write(daemon, "other", b"x")
    wait_for(lambda: is_copied(daemon, "other", b"x"), daemon)
    assert copied(daemon)["file"] == (daemon.path / "file").read_bytes() == b"ours"
