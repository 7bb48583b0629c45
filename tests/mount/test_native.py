"""What only the native session can do, and what it must not change."""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Daemon, mounted, wait_for

AT_FDCWD = -100
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4  # flags of renameat2(2)
MANY = 300  # names, more than fit into one answer to a listing

pytestmark = pytest.mark.needs_fuse


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Daemon]:
    with mounted(tmp_path, "--test-control", "--fuse", "native") as daemon:
        yield daemon


def rename(source: Path, target: Path, flags: int) -> int:
    """Return the errno of renameat2(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(source), os.fsencode(target)
    result = libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], flags)
    return ctypes.get_errno() if result else 0


@pytest.mark.parametrize("name", ["native", "llfuse"])
def test_the_log_and_the_report_name_the_session(name: str, tmp_path: Path) -> None:
    with mounted(tmp_path, "--fuse", name) as daemon:
        daemon.wait_for_log(f"serving {daemon.path} for node node1, FUSE session {name}")


def test_a_rename_can_refuse_to_replace(mount: Daemon) -> None:
    source, target = mount.path / "source", mount.path / "target"
    source.write_text("source")
    assert rename(source, target, NOREPLACE) == 0
    source.write_text("another")
    assert rename(source, target, NOREPLACE) == errno.EEXIST
    assert target.read_text() == "source"
    assert source.read_text() == "another"


@pytest.mark.parametrize("flags", [EXCHANGE, WHITEOUT, EXCHANGE | NOREPLACE])
def test_other_kinds_of_rename_are_refused_each_time(mount: Daemon, flags: int) -> None:
    for name in ("source", "target"):
        (mount.path / name).write_text(name)
    for _ in range(2):
        assert rename(mount.path / "source", mount.path / "target", flags) == errno.EINVAL
    (mount.path / "source").rename(mount.path / "target")
    assert (mount.path / "target").read_text() == "source"


def test_a_rename_without_replacing_is_refused_if_another_node_was_faster(mount: Daemon) -> None:
    (mount.path / "source").write_text("mine")
    assert not (mount.path / "target").exists()
    mount.control("inject", kind="create", path="target")
    assert rename(mount.path / "source", mount.path / "target", NOREPLACE) == errno.EEXIST


def test_listed_names_need_no_look_up(tmp_path: Path) -> None:
    with mounted(tmp_path, "--test-control", "--fuse", "native") as mount, mount.connect() as ask:
        ask("inject", kind="mkdir", path="d")
        for number in range(MANY):
            ask("inject", kind="create", path=f"d/{number}")
        (mount.path / ".debug").write_text("1\n")
        for _ in range(2):  # the second time the reply is only names
            with os.scandir(mount.path / "d") as entries:
                sizes = [entry.stat().st_size for entry in entries]
            assert sizes == [0] * MANY
        (mount.path / ".debug").write_text("0\n")
        wait_for(lambda: "readdir /d" in mount.log_text(), mount)
        assert mount.log_count("lookup /d") == 0
        assert mount.log_count("getattr /d/") == 0


def test_a_listing_after_a_change_of_another_node_shows_it(mount: Daemon) -> None:
    directory = mount.path / "d"
    directory.mkdir()
    for number in range(MANY):
        (directory / str(number)).write_text("old")
    for _ in range(2):
        assert {entry.stat().st_size for entry in os.scandir(directory)} == {len("old")}
    for number in range(MANY):
        mount.control("inject", kind="write", path=f"d/{number}", offset=0, data="newer")
    mount.wait_until_notified()
    assert {entry.stat().st_size for entry in os.scandir(directory)} == {len("newer")}


def test_a_listing_goes_on_although_names_change(mount: Daemon) -> None:
    directory = mount.path / "d"
    directory.mkdir()
    for number in range(MANY):
        (directory / f"{number:04}").write_text(str(number))
    found = []
    with os.scandir(directory) as entries:
        for index, entry in enumerate(entries):
            if index == 0:
                (directory / "0290").unlink()
                (directory / "0291").rename(directory / "0292")
            found.append(entry.name)
    assert len(found) == len(set(found)) >= MANY - 2
    assert not (directory / "0290").exists()
    assert (directory / "0292").read_text() == "291"


def test_a_descriptor_that_becomes_one_to_append_appends(mount: Daemon) -> None:
    path = mount.path / "f"
    path.write_text("mine ")
    descriptor = os.open(path, os.O_WRONLY)
    try:
        mount.control("inject", kind="write", path="f", offset=5, data="theirs ")
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
        os.write(descriptor, b"more")
    finally:
        os.close(descriptor)
    mount.wait_until_notified()
    assert path.read_text() == "mine theirs more"


def test_a_mapping_of_a_descriptor_to_append_writes_to_its_own_place(mount: Daemon) -> None:
    path = mount.path / "f"
    path.write_bytes(b"x" * 2 * mmap.PAGESIZE)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        with mmap.mmap(descriptor, 2 * mmap.PAGESIZE) as mapping:
            mapping[mmap.PAGESIZE] = ord("m")
            mapping.flush()
        os.write(descriptor, b"end")
    finally:
        os.close(descriptor)
    expected = bytearray(b"x" * 2 * mmap.PAGESIZE + b"end")
    expected[mmap.PAGESIZE] = ord("m")
    assert path.read_bytes() == bytes(expected)


def test_a_new_file_that_is_opened_to_read_is_saved_at_its_close(mount: Daemon) -> None:
    mount.publish_only_on_request()
    before = mount.control("info")["writes"]
    os.close(os.open(mount.path / "new", os.O_CREAT | os.O_RDONLY))
    assert mount.control("info")["writes"] == before + 1


LOOKER = """
import os, sys
os.chdir(sys.argv[1])
opened = os.open("file", os.O_RDONLY)
print("ready", flush=True)
for _ in sys.stdin:
    modes = [os.stat(".").st_mode, os.fstat(opened).st_mode, os.stat("file").st_mode]
    print(os.getcwd(), *(oct(mode & 0o777) for mode in modes), flush=True)
"""


def test_modes_follow_the_quorum_also_where_no_name_is_looked_up(mount: Daemon) -> None:
    """In a working directory, and through an open descriptor."""
    home = mount.path / "home"
    home.mkdir()
    (home / "file").write_text("content")
    with (
        subprocess.Popen(
            [sys.executable, "-c", LOOKER, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as looker,
        mount.connect() as control,
    ):
        assert looker.stdin is not None
        assert looker.stdout is not None
        assert looker.stdout.readline() == "ready\n"
        for on in (False, True) * 20:
            control("quorum", on=on)
            by_path = oct(stat.S_IMODE((home / "file").stat().st_mode))
            print(file=looker.stdin, flush=True)
            where, *modes = looker.stdout.readline().split()
            assert where == str(home)
            directory, file = ("0o755", "0o640") if on else ("0o555", "0o440")
            assert [by_path, *modes] == [file, directory, file, file]
