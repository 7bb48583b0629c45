"""Heartbeats that a real daemon keeps in memory first: after a kill, a while, and a stop."""

from pathlib import Path

import pytest

from pmxcfs.cli.main import main
from pmxcfs.storage import staging
from pmxcfs.storage.recovery import inspect
from pmxcfs.storage.segments import scan
from pmxcfs.storage.staging import read_staged
from tests.fakes.doubles.store import contents_of, stored
from tests.fakes.programs.mortal import Plan
from tests.harness import Daemon, ipc_name, mounted, wait_for

pytestmark = [
    pytest.mark.needs_fuse,
    pytest.mark.skipif(
        not any(map(Path.is_dir, (home.parent for home in staging.HOMES))),
        reason="there is no directory in memory",
    ),
]

SOON = Plan(flush=0.1).program()


def beat(daemon: Daemon, content: bytes) -> None:
    """Write a file as HA does."""
    temporary = daemon.path / "nodes" / "node1" / "lrm_status.tmp.1"
    temporary.write_bytes(content)
    temporary.rename(temporary.with_name("lrm_status"))


def prepare(daemon: Daemon) -> None:
    (daemon.path / "nodes" / "node1").mkdir(parents=True)


def size_of_segments(daemon: Daemon) -> int:
    return sum([place.size for place in scan(daemon.state / "journal").segments])


def kill_with_heartbeats(workdir: Path) -> Path:
    """Kill a daemon whose last changes are in memory only; return the path of its database."""
    with mounted(workdir) as daemon:
        prepare(daemon)
        size = size_of_segments(daemon)
        beat(daemon, b"1")
        beat(daemon, b"2")
        assert size_of_segments(daemon) == size
        assert len(read_staged(daemon.state / "journal")) == 1
        daemon.kill()
    return workdir / "state" / "config.db"


def test_a_killed_daemon_loses_none_of_them(tmp_path: Path) -> None:
    database = kill_with_heartbeats(tmp_path)
    assert contents_of(inspect(database).tree)["nodes/node1/lrm_status"] == b"2"
    with mounted(tmp_path) as daemon:
        assert (daemon.path / "nodes/node1/lrm_status").read_bytes() == b"2"
        beat(daemon, b"3")
        daemon.kill()
    with mounted(tmp_path) as daemon:
        assert (daemon.path / "nodes/node1/lrm_status").read_bytes() == b"3"
    assert not (tmp_path / "state" / "conflicts").exists()


def test_checkpoint_writes_them_into_the_database(tmp_path: Path) -> None:
    database = kill_with_heartbeats(tmp_path)
    state = ["--statedir", str(database.parent)]
    assert main(["checkpoint", *state, "--ipc-name", ipc_name(tmp_path)]) == 0
    assert contents_of(stored(database))["nodes/node1/lrm_status"] == b"2"
    assert read_staged(tmp_path / "state" / "journal") == []


def test_they_are_on_the_device_after_a_while(tmp_path: Path) -> None:
    with mounted(tmp_path, program=SOON) as daemon:
        prepare(daemon)
        size = size_of_segments(daemon)
        beat(daemon, b"1")
        wait_for(lambda: size_of_segments(daemon) > size, daemon)


def test_a_stop_leaves_them_in_the_database_and_nothing_in_memory(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        prepare(daemon)
        beat(daemon, b"1")
        assert read_staged(daemon.state / "journal")
    assert read_staged(tmp_path / "state" / "journal") == []
    database = tmp_path / "state" / "config.db"
    assert contents_of(stored(database))["nodes/node1/lrm_status"] == b"1"
