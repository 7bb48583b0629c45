"""What reaches the disk: fsync, the number of writes to the journal, the database's format."""

import os
import re
import shutil
import sqlite3
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.harness import Daemon, mounted, session_in_use, wait_for
from tests.mount.observed import published
from tests.places import VECTORS

SAVED_WITHIN = 10.0  # seconds; the pause is 2 s

# linux/fuse.h: a request is its length, opcode and number; a reply its length, error and number.
REQUEST = struct.Struct("=4xIQ")
REPLY = struct.Struct("=4xiQ")
FSYNC = 20

pytestmark = pytest.mark.needs_fuse


def write_once(path: Path, content: bytes, *, flags: int = os.O_CREAT | os.O_TRUNC) -> None:
    """Open, write with one system call, close."""
    descriptor = os.open(path, os.O_WRONLY | flags)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


# Durability


def test_other_processes_find_a_closed_file_in_database_and_journal(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        for number in range(20):
            write_once(daemon.path / "file", b"%d" % number)
            assert published(daemon, "file") == b"%d" % number


def test_a_closed_file_is_in_the_database_alone_within_seconds(tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"

    def is_saved() -> bool:
        shutil.copy(tmp_path / "state" / "config.db", copy)
        return any(row[6:] == (b"file", b"content") for row in rows(copy).values())

    with mounted(tmp_path) as daemon:
        write_once(daemon.path / "file", b"content")
        wait_for(is_saved, daemon, SAVED_WITHIN)


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
    """Collect the calls of the thread that syncs; they are there after the block."""
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
    for path in directory.glob("trace.*"):
        found = calls_in(path)
        if any(is_request(call, FSYNC) for call in found):
            calls += found


def calls_in(trace: Path) -> list[Call]:
    """Return the calls of one thread."""
    calls = []
    for line in trace.read_text().splitlines():
        if match := STRACE_LINE.match(line):
            file = os.path.basename(os.fsdecode(unescaped(match["file"])))
            data = unescaped(match["data"] or "")
            calls.append(Call(match["name"], file, data, int(match["result"])))
    return calls


def is_request(call: Call, opcode: int) -> bool:
    """Tell whether *call* has read a request with *opcode*."""
    is_read = call[:2] == ("read", "fuse") and len(call.data) >= REQUEST.size
    return is_read and REQUEST.unpack_from(call.data)[0] == opcode


def calls_of_request(calls: list[Call], opcode: int) -> list[Call]:
    """Return what happened between the one request with *opcode* and the reply to it."""
    start, number = next(
        (position, REQUEST.unpack_from(call.data)[1])
        for position, call in enumerate(calls)
        if is_request(call, opcode)
    )
    end = next(
        position
        for position, call in enumerate(calls)
        if call[:2] == ("writev", "fuse") and REPLY.unpack_from(call.data) == (0, number)
    )
    return calls[start + 1 : end]


@pytest.mark.skipif(not shutil.which("strace"), reason="there is no strace")
def test_fsync_reaches_the_device_before_the_reply(tmp_path: Path) -> None:
    # By io_uring no system call tells of a request.
    session = ["--fuse", "native"] if session_in_use() == "uring" else []
    with mounted(tmp_path, "--test-control", *session) as daemon:
        daemon.publish_only_on_request()
        write_once(daemon.path / "file", b"before")
        with traced(daemon, tmp_path) as calls:
            descriptor = os.open(daemon.path / "file", os.O_WRONLY)
            os.write(descriptor, b"synced")
            os.fsync(descriptor)
            os.close(descriptor)
    meanwhile = [(call.name, call.file, call.result) for call in calls_of_request(calls, FSYNC)]
    (segment,) = os.listdir(tmp_path / "state" / "journal")
    assert [name for name, file, _ in meanwhile if file == segment] == ["pwrite64", "fdatasync"]
    assert meanwhile[-1][2] == 0


# Writes


class Costs:
    """The writes to the journal in a block, and the number of those that the timer may make."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.writes = 0
        self.by_timer = 0

    def __enter__(self) -> "Costs":
        self._before = self._daemon.control("info")["writes"]
        self._start = time.monotonic()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.writes = self._daemon.control("info")["writes"] - self._before
        self.by_timer = int(time.monotonic() - self._start)


def test_a_new_file_and_its_content_are_one_write(tmp_path: Path) -> None:
    with mounted(tmp_path, "--test-control") as daemon:
        write_once(daemon.path / "first", b"reserves space")
        with Costs(daemon) as costs:
            write_once(daemon.path / "file", b"content", flags=os.O_CREAT | os.O_EXCL)
        assert costs.writes in (1, 1 + costs.by_timer)


def test_a_new_file_written_by_a_shell_is_two_writes(tmp_path: Path) -> None:
    # The shell closes a duplicate of the descriptor before it writes; each close publishes.
    with mounted(tmp_path, "--test-control") as daemon:
        with Costs(daemon) as costs:
            subprocess.run(["sh", "-c", 'echo content > "$0"', daemon.path / "file"], check=True)
        assert costs.writes == 2


def test_a_close_saves_a_new_empty_file(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        (daemon.path / "empty").touch(exist_ok=False)
        os.mknod(daemon.path / "made", stat.S_IFREG)
        daemon.kill()
    with mounted(tmp_path) as daemon:
        assert sorted(path.name for path in daemon.path.glob("[em]*")) == ["empty", "made"]


def test_a_replacement_is_two_writes(tmp_path: Path) -> None:
    with mounted(tmp_path, "--test-control") as daemon:
        write_once(daemon.path / "file", b"before")
        with Costs(daemon) as costs:
            write_once(daemon.path / "tmp", b"after", flags=os.O_CREAT | os.O_EXCL)
            (daemon.path / "tmp").rename(daemon.path / "file")
        assert costs.writes <= 2 + costs.by_timer


def test_many_small_blocks_are_one_write(tmp_path: Path) -> None:
    with mounted(tmp_path, "--test-control") as daemon:
        write_once(daemon.path / "first", b"reserves space")
        with Costs(daemon) as costs, (daemon.path / "file").open("wb", buffering=0) as file:
            for _ in range(1000):
                file.write(bytes(512))
        assert costs.writes <= 1 + costs.by_timer
        assert (daemon.path / "file").stat().st_size == 1000 * 512


# The format


def rows(path: Path) -> dict[int, tuple[Any, ...]]:
    """Return the rows of a database that nothing has open, by inode."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
        database.text_factory = bytes
        found = database.execute("SELECT * FROM tree").fetchall()
    return {row[0]: row for row in found}


def layout(path: Path) -> list[object]:
    """Return what SQLite knows of a database apart from its rows, and from our own tables."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
        tables = database.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master "
            "WHERE tbl_name NOT GLOB 'divergence*' AND tbl_name != 'pmxcfs_journal'"
        ).fetchall()
        pragmas = ("encoding", "user_version", "application_id", "auto_vacuum")
        return [tables, *(database.execute(f"PRAGMA {name}").fetchone() for name in pragmas)]


def types(path: Path) -> set[tuple[str, ...]]:
    """Return the types of the values of the rows, each combination once."""
    columns = ["inode", "parent", "version", "writer", "mtime", "type", "name", "data"]
    wanted = ", ".join(f"typeof({column})" for column in columns)
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
        return set(database.execute(f"SELECT {wanted} FROM tree"))


def test_a_stop_leaves_only_the_journal_beside_the_database(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        write_once(daemon.path / "file", b"content")
    assert sorted(os.listdir(daemon.state)) == [".pmxcfs.lockfile", "config.db", "journal"]
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
