"""Commits to the database: fsync, the number of transactions, the format."""

import os
import re
import shutil
import sqlite3
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pmxcfs.storage.database import PAGE_SIZE
from tests.harness import Daemon, mounted
from tests.places import VECTORS

WRITERS = 8
ROUNDS = 20  # of each writer; few enough that the log is not checkpointed meanwhile

# A frame of the log starts with its page's number, and the size of the database in pages if it is
# the last of a transaction, else 0; then the log's salt (https://sqlite.org/walformat.html).
LOG_HEADER = 32
LOG_SALT = slice(16, 24)
FRAME = struct.Struct(">4xI8s")
FRAME_SIZE = 24 + PAGE_SIZE

# linux/fuse.h: a request is its length, opcode and number; a reply its length, error and number.
REQUEST = struct.Struct("=4xIQ")
REPLY = struct.Struct("=4xiQ")
FSYNC = 20

pytestmark = pytest.mark.needs_fuse


@contextmanager
def reader(daemon: Daemon) -> Iterator[sqlite3.Connection]:
    """Open the database as another program would."""
    connection = sqlite3.connect(f"file:{daemon.state}/config.db?mode=ro", uri=True)
    connection.text_factory = bytes
    with closing(connection):
        yield connection


def write_once(path: Path, content: bytes, *, flags: int = os.O_CREAT | os.O_TRUNC) -> None:
    """Open, write with one system call, close."""
    descriptor = os.open(path, os.O_WRONLY | flags)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


# Durability


@pytest.mark.parametrize("workers", ["1", "16"])
def test_other_processes_find_a_closed_file_in_the_database(tmp_path: Path, workers: str) -> None:
    with mounted(tmp_path, "--workers", workers) as daemon, reader(daemon) as database:
        for number in range(20):
            write_once(daemon.path / "file", b"%d" % number)
            ((data,),) = database.execute("SELECT data FROM tree WHERE name = 'file'")
            assert data == b"%d" % number


class Call(NamedTuple):
    """A system call on a file, as strace shows it."""

    name: str
    file: str
    data: bytes  # its first bytes
    result: int


STRACE_LINE = re.compile(
    r'(?P<name>\w+)\(\d+<(?P<file>[^>]*)>(?:, (?:\[\{iov_base=)?"(?P<data>[^"]*)")?.* = '
    r"(?P<result>-?\d+)"
)


def unescaped(text: str) -> bytes:
    """Return the bytes that strace shows as \\x00 each."""
    return bytes.fromhex(text.replace("\\x", ""))


@contextmanager
def traced(daemon: Daemon, directory: Path) -> Iterator[list[Call]]:
    """Collect the calls of the thread that serves the kernel; they are there after the block."""
    calls: list[Call] = []
    argv = ["strace", "-ff", "-y", "-xx", "-s", "32", "-o", str(directory / "trace")]
    argv += ["-e", "trace=read,writev,pwrite64,fdatasync,fsync", "-p", str(daemon.process.pid)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as strace:
        try:
            assert strace.stderr is not None
            assert "attached" in strace.stderr.readline()
            yield calls
        finally:
            strace.terminate()
    for line in (directory / f"trace.{daemon.process.pid}").read_text().splitlines():
        if match := STRACE_LINE.match(line):
            file = os.path.basename(os.fsdecode(unescaped(match["file"])))
            data = unescaped(match["data"] or "")
            calls.append(Call(match["name"], file, data, int(match["result"])))


def calls_of_request(calls: list[Call], opcode: int) -> list[Call]:
    """Return what happened between the one request with *opcode* and the reply to it."""
    start, number = next(
        (position, REQUEST.unpack_from(call.data)[1])
        for position, call in enumerate(calls)
        if call[:2] == ("read", "fuse") and REQUEST.unpack_from(call.data)[0] == opcode
    )
    end = next(
        position
        for position, call in enumerate(calls)
        if call[:2] == ("writev", "fuse") and REPLY.unpack_from(call.data) == (0, number)
    )
    return calls[start + 1 : end]


@pytest.mark.skipif(not shutil.which("strace"), reason="there is no strace")
def test_fsync_reaches_the_device_before_the_reply(tmp_path: Path) -> None:
    with mounted(tmp_path, "--test-control", "--workers", "1") as daemon:
        # The one worker is the main thread.
        daemon.publish_only_on_request()
        write_once(daemon.path / "file", b"before")
        with traced(daemon, tmp_path) as calls:
            descriptor = os.open(daemon.path / "file", os.O_WRONLY)
            os.write(descriptor, b"synced")
            os.fsync(descriptor)
            os.close(descriptor)
    meanwhile = [(call.name, call.file, call.result) for call in calls_of_request(calls, FSYNC)]
    assert "pwrite64" in {name for name, _, _ in meanwhile[:-1]}, "nothing was committed"
    assert {file for _, file, _ in meanwhile} == {"config.db-wal"}
    assert meanwhile[-1] == ("fdatasync", "config.db-wal", 0)
    assert sum(name == "fdatasync" for name, _, _ in meanwhile) == 1


# Transactions


def commits(daemon: Daemon) -> int:
    """Return the number of transactions in the write-ahead log since the last checkpoint."""
    log = (daemon.state / "config.db-wal").read_bytes()
    count = 0
    for start in range(LOG_HEADER, len(log), FRAME_SIZE):
        pages, salt = FRAME.unpack_from(log, start)
        if salt != log[LOG_SALT]:
            break
        count += pages > 0
    return count


class Costs:
    """The transactions of a block, and the number of timer commits that its duration allows."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.transactions = 0
        self.by_timer = 0

    def __enter__(self) -> "Costs":
        self._before = commits(self._daemon)
        self._start = time.monotonic()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.transactions = commits(self._daemon) - self._before
        self.by_timer = int(time.monotonic() - self._start)


def test_a_new_file_and_its_content_are_one_transaction(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        with Costs(daemon) as costs:
            write_once(daemon.path / "file", b"content", flags=os.O_CREAT | os.O_EXCL)
        assert costs.transactions in (1, 1 + costs.by_timer)


def test_a_new_file_written_by_a_shell_is_two_transactions(tmp_path: Path) -> None:
    # The shell closes a duplicate of the descriptor before the write; each close commits.
    with mounted(tmp_path) as daemon:
        with Costs(daemon) as costs:
            subprocess.run(["sh", "-c", 'echo content > "$0"', daemon.path / "file"], check=True)
        assert costs.transactions == 2


def test_a_close_saves_a_new_empty_file(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        (daemon.path / "empty").touch(exist_ok=False)
        os.mknod(daemon.path / "made", stat.S_IFREG)
        daemon.kill()
    with mounted(tmp_path) as daemon:
        assert sorted(path.name for path in daemon.path.glob("[em]*")) == ["empty", "made"]


def test_a_replacement_is_two_transactions(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        write_once(daemon.path / "file", b"before")
        with Costs(daemon) as costs:
            write_once(daemon.path / "tmp", b"after", flags=os.O_CREAT | os.O_EXCL)
            (daemon.path / "tmp").rename(daemon.path / "file")
        assert costs.transactions <= 2 + costs.by_timer


def test_many_small_writes_are_one_transaction(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        with Costs(daemon) as costs, (daemon.path / "file").open("wb", buffering=0) as file:
            for _ in range(1000):
                file.write(bytes(512))
        assert costs.transactions <= 1 + costs.by_timer
        assert (daemon.path / "file").stat().st_size == 1000 * 512


def test_concurrent_writers_share_transactions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rewrite(path: Path) -> None:
        for number in range(ROUNDS):
            write_once(path, b"%d" % number, flags=os.O_TRUNC)

    with mounted(tmp_path, "--workers", "16", "--test-control") as daemon:
        paths = [daemon.path / f"file{number}" for number in range(WRITERS)]
        for path in paths:
            write_once(path, b"first")
        before = daemon.control("info")
        with Costs(daemon) as costs, ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(rewrite, paths))
        after = daemon.control("info")
        assert {path.read_bytes() for path in paths} == {b"%d" % (ROUNDS - 1)}
    operations = WRITERS * ROUNDS
    with capsys.disabled():
        print(f"\ngroup commit: {operations} operations in {costs.transactions} transactions")
    assert after["version"] - before["version"] >= operations
    assert costs.transactions < operations
    assert after["transactions"] - before["transactions"] == costs.transactions


# The format


def rows(path: Path) -> dict[int, tuple[Any, ...]]:
    """Return the rows of a database that nothing has open, by inode."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
        database.text_factory = bytes
        found = database.execute("SELECT * FROM tree").fetchall()
    return {row[0]: row for row in found}


def layout(path: Path) -> list[object]:
    """Return what SQLite knows of a database apart from its rows, and from our own table."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
        tables = database.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master "
            "WHERE tbl_name NOT GLOB 'divergence*'"
        ).fetchall()
        pragmas = ("encoding", "user_version", "application_id", "auto_vacuum")
        return [tables, *(database.execute(f"PRAGMA {name}").fetchone() for name in pragmas)]


def types(path: Path) -> set[tuple[str, ...]]:
    """Return the types of the values of the rows, each combination once."""
    columns = ["inode", "parent", "version", "writer", "mtime", "type", "name", "data"]
    wanted = ", ".join(f"typeof({column})" for column in columns)
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
        return set(database.execute(f"SELECT {wanted} FROM tree"))


def test_a_stop_leaves_nothing_beside_the_database(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        write_once(daemon.path / "file", b"content")
    assert sorted(os.listdir(daemon.state)) == [".pmxcfs.lockfile", "config.db"]
    assert (daemon.state / "config.db").stat().st_mode & 0o777 == 0o600
    assert daemon.state.stat().st_mode & 0o777 == 0o750
    assert layout(daemon.state / "config.db") == layout(VECTORS / "config_node1.db")


def change_everything(root: Path) -> int:
    """Do each kind of change below *root*; return how many mutations that is."""
    (root / "new").mkdir()
    write_once(root / "new" / "file", b"content")  # a create and a write
    os.mkdir(os.fsencode(root) + b"/new/\xff\xfe")
    write_once(root / "new" / "ü", b"x" * 10_000)  # two
    (root / "new" / "ü").rename(root / "new" / "file")
    os.truncate(root / "new" / "file", 5000)
    os.utime(root / "new", (7, 7))
    (root / "new" / "empty").touch()
    (root / "new" / "gone").mkdir()
    (root / "new" / "gone").rmdir()
    return 12


def test_a_database_of_the_original_keeps_its_format(tmp_path: Path) -> None:
    original, path = VECTORS / "config_node1.db", tmp_path / "state" / "config.db"
    path.parent.mkdir()
    shutil.copy(original, path)
    with mounted(tmp_path) as daemon:
        mutations = change_everything(daemon.path)
    before, after = rows(original), rows(path)
    assert layout(path) == layout(original)
    first, last = int(before[0][2]) + 1, int(before[0][2]) + mutations
    assert types(path) <= {(*("integer",) * 6, "text", data) for data in ("blob", "null")}
    inode, parent, version, writer, _, kind, name, data = after.pop(0)
    assert (inode, parent, version, writer) == (0, 0, last, 0)
    assert (kind, name, data) == (8, b"__version__", None)
    del before[0]
    assert before.items() <= after.items(), "an entry that nobody changed is another one now"
    made = {row[6]: row for inode, row in after.items() if inode not in before}
    directory = made[b"new"]
    assert made[b"\xff\xfe"][1] == made[b"file"][1] == made[b"empty"][1] == directory[0]
    assert (directory[4], directory[5], directory[7]) == (7, 4, None)
    assert (made[b"file"][5], made[b"file"][7]) == (8, b"x" * 5000)
    assert (made[b"empty"][5], made[b"empty"][7] or b"") == (8, b"")
    assert made.keys() == {b"new", b"file", b"\xff\xfe", b"empty"}
    assert all(first <= inode <= last for inode in after.keys() - before.keys())
