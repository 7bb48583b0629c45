"""The journal of a real daemon tells which process has asked for each change."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmxcfs.host.callers import UNSET
from pmxcfs.messages import Create, Delete, Mkdir, Mtime, Mutation, Rename, Write
from pmxcfs.storage.records import Change, mutation_of
from pmxcfs.storage.segments import scan
from tests.harness import Daemon, mounted, wait_for

pytestmark = pytest.mark.needs_fuse


def changes_in(daemon: Daemon) -> list[tuple[Change, Mutation]]:
    """Return the changes in the daemon's journal."""
    segments = [place.read() for place in scan(daemon.state / "journal").segments]
    records = [located.record for segment in segments for located in segment.records]
    return [(record, mutation_of(record)) for record in records if isinstance(record, Change)]


def run_python(program: str, *arguments: str | Path) -> int:
    """Run *program* in a process of its own; return its pid."""
    with subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)]) as process:
        assert process.wait(30) == 0
    return process.pid


def login_uid() -> int:
    return int(Path("/proc/self/loginuid").read_text())


EVERYTHING = """
import os, sys
open("/proc/self/comm", "w").write("all-changes")
root = sys.argv[1]
os.mkdir(f"{root}/d")
with open(f"{root}/d/f", "w") as file:
    file.write("content")
os.utime(f"{root}/d/f", (7, 7))
os.truncate(f"{root}/d/f", 3)
os.rename(f"{root}/d/f", f"{root}/d/g")
os.mknod(f"{root}/d/h")
os.unlink(f"{root}/d/g")
os.unlink(f"{root}/d/h")
os.rmdir(f"{root}/d")
"""


def test_every_kind_of_change_names_the_process_that_asked(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        before = len(changes_in(daemon))
        pid = run_python(EVERYTHING, daemon.path)
        changes = changes_in(daemon)[before:]
    kinds = [type(mutation) for _, mutation in changes]
    assert kinds == [Mkdir, Create, Write, Mtime, Write, Rename, Create, Delete, Delete, Delete]
    callers = {(c.pid, c.uid, c.login_uid, c.process) for c, _ in changes}
    assert callers == {(pid, 0, login_uid(), b"all-changes")}


OPEN_FOR_LONG = """
import sys
open("/proc/self/comm", "w").write(sys.argv[2])
file = open(sys.argv[1], "r+b", buffering=0)
for line in sys.stdin:
    file.write(line.encode())
    print("written", flush=True)
"""


def start_writer(path: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OPEN_FOR_LONG, str(path), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def write(writer: subprocess.Popen[str], text: str) -> None:
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdin.write(text)
    writer.stdin.flush()
    assert writer.stdout.readline() == "written\n"


def test_the_timer_publishes_in_the_name_of_the_last_writer(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        path = daemon.path / "open"
        path.write_bytes(b"")
        before = len(changes_in(daemon))
        with start_writer(path, "first") as first, start_writer(path, "second") as second:
            write(second, "2\n")
            write(first, "1\n")
            write(second, "2\n")
            wait_for(lambda: len(changes_in(daemon)) > before, daemon)
            change, mutation = changes_in(daemon)[before]
            assert isinstance(mutation, Write)
            assert (change.pid, change.process) == (second.pid, b"second")
            write(first, "1\n")
            wait_for(lambda: len(changes_in(daemon)) > before + 1, daemon)
            change, _ = changes_in(daemon)[before + 1]
            assert (change.pid, change.process) == (first.pid, b"first")


def test_what_another_node_changes_has_no_caller(tmp_path: Path) -> None:
    with mounted(tmp_path, "--test-control") as daemon:
        (daemon.path / "ours").mkdir()
        daemon.control("inject", kind="mkdir", path="theirs", time=1_795_000_000)
        changes = {mutation.path: change for change, mutation in changes_in(daemon)}
    assert changes["ours"].pid == os.getpid()
    theirs = changes["theirs"]
    assert (theirs.pid, theirs.uid, theirs.login_uid, theirs.process) == (0, 0, UNSET, b"")


def test_a_process_that_ends_before_its_file_is_published_is_named(tmp_path: Path) -> None:
    program = "import os, sys; os.write(os.open(sys.argv[1], os.O_WRONLY), b'x'); os._exit(0)"
    with mounted(tmp_path) as daemon:
        path = daemon.path / "left"
        path.write_bytes(b"")
        before = len(changes_in(daemon))
        pid = run_python(program, path)
        wait_for(lambda: len(changes_in(daemon)) > before, daemon)
        change, _ = changes_in(daemon)[before]
    assert change.pid == pid
    assert change.process.startswith(b"python")
