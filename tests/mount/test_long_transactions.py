"""Other programs that keep a transaction of the database open under load, and backups meanwhile.

No user of the mount notices them. When they end, the log is cut, and a copy of config.db alone is
current.
"""

import contextlib
import faulthandler
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmxcfs.settings import HISTORY_SIZE
from pmxcfs.storage.saver import READER_TIMEOUT
from tests.fakes.doubles.store import contents_of, reading, stored
from tests.fakes.programs.mortal import Plan
from tests.harness import Daemon, mounted, wait_for
from tests.mount.devices import blocks_of
from tests.mount.users import users_of

pytestmark = pytest.mark.needs_fuse

Report = Callable[[object], None]

UNNOTICED = 2.0  # seconds for any request, fsync included, on a busy machine
SHORT_READ = 4.0  # seconds
LONG_READ = 600.0
WRITE_LOCK = 60.0
CURRENT_AFTER = 40.0  # seconds after a change of the configuration
BOUND = 24 << 20  # bytes of journal beside the history
PERIOD = 0.03  # seconds between the steps of each user
CATCH_UP = CURRENT_AFTER  # seconds for config.db to have a change under load
READER = "has kept a read transaction of .* open for 60 s"
WRITER = "another process has it open: .*; changes are kept in the journal"
SAVING_OFTEN = Plan(pause=0.1, size=1 << 20).program()
WRITING = (
    "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60);"
    "c.execute('BEGIN IMMEDIATE'); print(flush=True); sys.stdin.read()"
)


def database_of(mount: Daemon) -> Path:
    return mount.state / "config.db"


def copied(mount: Daemon, path: str) -> bytes | None:
    """Return a file of a copy of config.db alone, which must be sound; None if it has none."""
    copy = mount.state.parent / "copy.db"
    subprocess.run(["cp", database_of(mount), copy], check=True)
    check(copy)
    return contents_of(stored(copy)).get(path)


def check(path: Path) -> None:
    """Assert that SQLite finds a database sound."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def has_caught_up(mount: Daemon, content: bytes) -> bool:
    """Tell whether a copy of config.db alone has the last change; a save can tear it."""
    with contextlib.suppress(Exception):
        return copied(mount, "last") == content
    return False


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Run a process that keeps SQLite's write lock of the database *path*."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WRITING, str(path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        yield
        process.communicate("")


def sampled(mount: Daemon, seconds: float) -> tuple[int, int]:
    """Wait; return the most that journal and log took on the device meanwhile."""
    until = time.monotonic() + seconds
    most = (0, 0)
    while time.monotonic() < until:
        journal, log = blocks_of(mount.state)
        most = max(most[0], journal), max(most[1], log)
        time.sleep(0.1)
    return most


def catch_up(mount: Daemon) -> float:
    """Return the seconds until a change is in config.db alone; no log is left then."""
    start = time.monotonic()
    (mount.path / "last").write_bytes(b"change")
    wait_for(lambda: has_caught_up(mount, b"change"), mount, CATCH_UP)
    seconds = time.monotonic() - start
    wait_for(lambda: blocks_of(mount.state)[1] == 0, mount, CATCH_UP)
    return seconds


def test_a_reader_that_ends_is_not_noticed(tmp_path: Path, report: Report) -> None:
    with mounted(tmp_path, program=SAVING_OFTEN) as mount:
        (mount.path / "last").write_bytes(b"before")
        with users_of(mount, period=PERIOD) as users, reading(database_of(mount)):
            journal, log = sampled(mount, SHORT_READ)
        seconds = catch_up(mount)
    report(
        f"a reader for {SHORT_READ:.0f} s: journal {journal >> 10} KiB, log {log >> 10} KiB at "
        f"most; {users}; config.db has a change {seconds:.1f} s later"
    )
    assert log > 0, "no save while it read"
    assert users.errors == []
    assert max(users.slowest.values()) < UNNOTICED


@pytest.mark.long
def test_a_reader_for_ten_minutes_is_named_and_not_noticed(tmp_path: Path, report: Report) -> None:
    faulthandler.cancel_dump_traceback_later()  # it takes long, and nothing is wrong then
    with mounted(tmp_path, expect_log=[READER]) as mount:
        (mount.path / "last").write_bytes(b"before")
        with users_of(mount, period=PERIOD) as users:
            with reading(database_of(mount)) as reader:
                start = time.monotonic()
                wait_for(lambda: mount.log_count("read transaction") > 0, mount, 2 * READER_TIMEOUT)
                named_after = time.monotonic() - start
                journal, log = sampled(mount, LONG_READ - named_after)
            seconds = catch_up(mount)
        [line] = [line for line in mount.log_text().splitlines() if "read transaction" in line]
    report(
        f"a reader for {LONG_READ:.0f} s: named after {named_after:.1f} s as {line!r}; "
        f"journal {journal / (1 << 20):.1f} MiB, log {log / (1 << 20):.1f} MiB at most; {users}; "
        f"config.db alone has a change {seconds:.1f} s after its end, and there is no log"
    )
    assert users.errors == []
    assert max(users.slowest.values()) < UNNOTICED
    assert re.search(rf"\(pid {reader.pid}\) {READER}", line)
    assert named_after >= READER_TIMEOUT
    assert log > 0
    assert journal < HISTORY_SIZE + BOUND


@pytest.mark.long
def test_a_write_lock_for_a_minute_is_not_noticed(tmp_path: Path, report: Report) -> None:
    with mounted(tmp_path, expect_log=[WRITER]) as mount:
        (mount.path / "last").write_bytes(b"before")
        with users_of(mount, period=PERIOD) as users:
            with writing(database_of(mount)):
                journal, log = sampled(mount, WRITE_LOCK)
            seconds = catch_up(mount)
    report(
        f"the write lock for {WRITE_LOCK:.0f} s: {users}; "
        f"journal {journal / (1 << 20):.1f} MiB, log {log / (1 << 20):.1f} MiB at most; "
        f"config.db alone has a change {seconds:.1f} s after its end, and there is no log"
    )
    assert users.errors == []
    assert max(users.slowest.values()) < UNNOTICED


# Backups.


def heartbeat(root: Path, number: int) -> None:
    """Replace a file as the HA manager does."""
    temporary = root / "nodes" / "node1" / "lrm_status.tmp.7"
    temporary.write_bytes(b"%0300d" % number)
    temporary.rename(temporary.with_name("lrm_status"))


def configuration(root: Path, number: int) -> None:
    """Change a file that is part of the configuration."""
    (root / "storage.cfg").write_bytes(b"dir: number%d\n" % number)


@contextlib.contextmanager
def traffic(root: Path, step: Callable[[Path, int], None] | None, period: float) -> Iterator[None]:
    """Make a step every *period* seconds during the block."""
    is_over = threading.Event()

    def repeat() -> None:
        number = 0
        while step is not None and not is_over.wait(period):
            step(root, number)
            number += 1

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@pytest.mark.long
@pytest.mark.parametrize(
    ("step", "period"),
    [(None, 0.0), (heartbeat, 5.0), (configuration, 1.0)],
    ids=["at rest", "heartbeats", "configuration"],
)
def test_a_copy_has_what_was_changed_40_seconds_ago(
    tmp_path: Path,
    report: Report,
    step: Callable[[Path, int], None] | None,
    period: float,
    request: pytest.FixtureRequest,
) -> None:
    with mounted(tmp_path) as mount:
        (mount.path / "nodes" / "node1").mkdir(parents=True)
        with traffic(mount.path, step, period):
            time.sleep(period)
            (mount.path / "datacenter.cfg").write_bytes(b"keyboard: de\n")
            time.sleep(CURRENT_AFTER)
            found = copied(mount, "datacenter.cfg")
    report(f"cp config.db, {request.node.callspec.id}: sound, datacenter.cfg holds {found!r}")
    assert found == b"keyboard: de\n"


@pytest.mark.long
@pytest.mark.parametrize("program", ["sqlite3 .backup", "mode=ro"])
def test_others_read_a_sound_tree_while_changes_are_made(
    tmp_path: Path, report: Report, program: str
) -> None:
    versions = []
    with mounted(tmp_path, program=SAVING_OFTEN) as mount, users_of(mount, period=0) as users:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            path = database_of(mount)
            if program == "sqlite3 .backup":
                path = backed_up(path, tmp_path / "backup.db")
            check(path)
            uri = f"file:{path}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as reader:
                statement = "SELECT version FROM tree WHERE inode = 0"
                [(version,)] = reader.execute(statement).fetchall()
            versions.append(version)
    report(
        f"{program}: {len(versions)} times sound, {len(set(versions))} states, versions "
        f"{versions[0]} to {versions[-1]}; {users}"
    )
    assert versions == sorted(versions)
    assert len(set(versions)) > 5
    assert users.errors == []


def backed_up(path: Path, to: Path) -> Path:
    """Back up a database with SQLite's own command, or its function where that is missing."""
    to.unlink(missing_ok=True)
    if shutil.which("sqlite3"):
        subprocess.run(["sqlite3", path, f".backup {to}"], check=True)
    else:
        source, target = sqlite3.connect(path), sqlite3.connect(to)
        with contextlib.closing(source), contextlib.closing(target):
            source.backup(target)
    assert os.stat(to).st_size
    stored(to)  # loads without repairs
    return to
