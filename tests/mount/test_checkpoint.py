"""``pmxcfs checkpoint``, crashes, and databases that were put in place of a daemon's own."""

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from pmxcfs.cli.main import main
from pmxcfs.storage.recovery import inspect
from tests.fakes.doubles.store import contents_of, stored
from tests.fakes.models import original
from tests.harness import detach, ipc_name, mounted
from tests.places import VECTORS

pytestmark = pytest.mark.needs_fuse

Output = pytest.CaptureFixture[str]
OTHER = r"the database is not the one that the journal goes on from.* kept as .*\.journal"
ONLY = "changed in the journal only: "


def checkpoint(workdir: Path) -> int:
    return main(
        ["checkpoint", "--statedir", str(workdir / "state"), "--ipc-name", ipc_name(workdir)]
    )


def kill(workdir: Path, name: str, content: bytes = b"x") -> None:
    """Start a daemon, write a file, and kill the daemon before it saves that."""
    with mounted(workdir) as daemon:
        (daemon.path / name).write_bytes(content)
        daemon.kill()
    detach(daemon.path)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "state" / "config.db"


def test_a_running_daemon_saves_when_it_is_asked_to(
    tmp_path: Path, database: Path, capsys: Output
) -> None:
    with mounted(tmp_path) as daemon:
        for number in range(3):
            (daemon.path / "file").write_bytes(b"%d" % number)
            assert checkpoint(tmp_path) == 0
            copy = Path(shutil.copyfile(database, tmp_path / "copy.db"))
            assert contents_of(stored(copy))["file"] == b"%d" % number
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{database}: the daemon has written all changes to it"] * 3


def test_checkpoint_writes_what_a_killed_daemon_has_left(
    tmp_path: Path, database: Path, capsys: Output
) -> None:
    kill(tmp_path, "file", b"late")
    assert checkpoint(tmp_path) == 0
    assert "changes of the journal were written to it" in capsys.readouterr().out
    assert contents_of(stored(database)) == {"file": b"late"}
    with mounted(tmp_path) as daemon:
        assert (daemon.path / "file").read_bytes() == b"late"
        (daemon.path / "file").write_bytes(b"later")
        daemon.kill()
    detach(daemon.path)
    with mounted(tmp_path) as daemon:
        assert (daemon.path / "file").read_bytes() == b"later"
    assert not (tmp_path / "state" / "conflicts").exists()


def work(root: Path) -> dict[str, bytes | None]:
    """Change a tree in every way; return what it holds then, without status files and links."""
    for name in ("priv", "nodes", "nodes/node1", "nodes/node1/qemu-server", "gone", "moved"):
        (root / name).mkdir(exist_ok=True)
    for number in range(40):
        temporary = root / "nodes/node1/qemu-server" / f"{100 + number}.conf.tmp.1"
        temporary.write_bytes(b"memory: %d\n" % number)
        temporary.rename(root / "nodes/node1/qemu-server" / f"{100 + number}.conf")
    (root / "nodes/node1/qemu-server/100.conf").unlink()
    (root / "priv" / "key").write_bytes(os.urandom(200_000))
    (root / "moved").rename(root / "here")
    (root / "here" / "empty").touch()
    (root / "gone").rmdir()
    (root / "caf\u00e9").write_bytes(b"x" * 3000)
    os.truncate(root / "caf\u00e9", 1000)
    os.utime(root / "here" / "empty", (7, 7))
    paths = [path for path in root.rglob("*") if not path.is_symlink()]
    paths = [path for path in paths if not path.relative_to(root).parts[0].startswith(".")]
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in paths}


@pytest.mark.parametrize("end", ["kill -9", "stop"])
def test_the_original_reads_everything_from_the_database_alone(
    tmp_path: Path, database: Path, end: str, report: Callable[[object], None]
) -> None:
    with mounted(tmp_path, "--test-control") as daemon:
        (daemon.path / "before").write_bytes(b"x")
        assert checkpoint(tmp_path) == 0
        contents = work(daemon.path)
        info = daemon.control("info")
        if end == "kill -9":
            daemon.kill()
    if end == "kill -9":
        detach(daemon.path)
        assert original.read(database).version < info["version"]
        assert checkpoint(tmp_path) == 0  # as ExecStopPost= does
    copy = Path(shutil.copyfile(database, tmp_path / "copy.db"))
    found = original.read(copy)
    report(f"{end}: the original reads version {found.version}, {len(found.contents)} entries")
    assert found == original.Original(info["version"], contents, info["checksum"])


def test_the_model_of_the_original_reads_its_databases() -> None:
    wanted = json.loads((VECTORS / "config_node1.json").read_text())
    found = original.read(VECTORS / "config_node1.db")
    assert found.checksum == wanted["state_checksum_sha256"]
    assert found.version == wanted["entries"][0]["version"]


def test_after_an_orderly_stop_the_database_has_everything(
    tmp_path: Path, database: Path, capsys: Output
) -> None:
    with mounted(tmp_path) as daemon:
        (daemon.path / "file").write_bytes(b"x")
    assert checkpoint(tmp_path) == 0
    assert capsys.readouterr().out == f"{database}: has all changes of the journal\n"
    copy = Path(shutil.copyfile(database, tmp_path / "copy.db"))
    assert contents_of(stored(copy)) == {"file": b"x"}


@pytest.mark.parametrize("end", ["kill -9", "stop"])
def test_an_older_copy_that_is_put_back_counts_and_nothing_later_is_lost(
    tmp_path: Path, database: Path, capsys: Output, end: str
) -> None:
    with mounted(tmp_path) as daemon:
        (daemon.path / "file").write_bytes(b"old")
        assert checkpoint(tmp_path) == 0
        shutil.copyfile(database, tmp_path / "copy.db")
        (daemon.path / "file").write_bytes(b"new")
        assert checkpoint(tmp_path) == 0
        (daemon.path / "priv").mkdir()
        (daemon.path / "priv/key").write_bytes(b"secret")
        if end == "kill -9":
            daemon.kill()
    detach(daemon.path)
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    shutil.copyfile(tmp_path / "copy.db", database)
    expected = [OTHER, ONLY + "file", ONLY + "private entry", ONLY + "private entry"]
    with mounted(tmp_path, expect_log=expected) as daemon:
        assert (daemon.path / "file").read_bytes() == b"old"
        assert not (daemon.path / "priv").exists()
        (daemon.path / "file").write_bytes(b"newest")
        daemon.kill()
    detach(daemon.path)
    with mounted(tmp_path) as daemon:
        assert (daemon.path / "file").read_bytes() == b"newest"
    [copy] = (tmp_path / "state" / "conflicts").glob("*.journal")
    capsys.readouterr()
    words = ["--statedir", str(tmp_path / "state"), copy.name]
    assert main(["conflicts", "show", *words]) == 0
    said = capsys.readouterr().out
    assert "priv/key: kept: 6 bytes" in said
    assert main(["conflicts", "export", *words, str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "file").read_bytes() == b"new"
    assert (tmp_path / "out" / "priv" / "key").read_bytes() == b"secret"


def test_a_database_that_another_program_has_changed_after_a_crash_counts(
    tmp_path: Path, database: Path
) -> None:
    with mounted(tmp_path) as daemon:
        (daemon.path / "saved").write_bytes(b"x")
        assert checkpoint(tmp_path) == 0
        (daemon.path / "unsaved").write_bytes(b"x")
        daemon.kill()
    detach(daemon.path)
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE tree SET version = version + 1 WHERE inode = 0")
        connection.execute("UPDATE tree SET name = 'renamed' WHERE name = 'saved'")
    with mounted(tmp_path, expect_log=[OTHER, ONLY + "unsaved"]) as daemon:
        names = {path.name for path in daemon.path.iterdir()}
        assert "renamed" in names
        assert "unsaved" not in names
    assert inspect(database).left_over is None


def test_a_new_database_beside_an_old_journal_begins_anew(tmp_path: Path, database: Path) -> None:
    kill(tmp_path, "unsaved")
    for path in database.parent.glob("config.db*"):
        path.unlink()
    source = tmp_path / "source"
    source.mkdir()
    (source / "imported").write_bytes(b"x")
    assert main(["import", str(source), str(database)]) == 0
    with mounted(tmp_path, expect_log=[OTHER, ONLY + "unsaved"]) as daemon:
        assert (daemon.path / "imported").read_bytes() == b"x"
        assert not (daemon.path / "unsaved").exists()
        daemon.kill()
    detach(daemon.path)
    with mounted(tmp_path) as daemon:
        assert (daemon.path / "imported").read_bytes() == b"x"
