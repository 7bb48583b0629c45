"""The fixed entries of the root: links, status files, .debug. Also statfs, locks, request log."""

import errno
import itertools
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import GRACE, Daemon, mounted, wait_for
from tests.mount.observed import changes, status

pytestmark = pytest.mark.needs_fuse

STATUS_FILES = (".version", ".members", ".vmlist", ".rrd", ".clusterlog")
BLOCK = 4096
READS = 600


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with mounted(tmp_path_factory.mktemp("fixed"), "--test-control") as daemon:
        for name in ("nodes", "nodes/node1", "nodes/node2", "priv", "priv/lock"):
            (daemon.path / name).mkdir()
        daemon.publish_only_on_request()
        for node in ("node1", "node2"):
            for kind in ("qemu-server", "lxc", "openvz"):
                (daemon.path / "nodes" / node / kind).mkdir()
        yield daemon


@pytest.fixture(autouse=True)
def _settled(mount: Daemon) -> None:
    """Wait until the kernel has been notified of the changes of earlier tests."""
    mount.wait_until_notified()


def test_links_lead_to_this_nodes_directories(mount: Daemon) -> None:
    targets = {name: os.readlink(mount.path / name) for name in ("local", "lxc", "openvz")}
    assert targets == {
        "local": "nodes/node1",
        "lxc": "nodes/node1/lxc",
        "openvz": "nodes/node1/openvz",
    }
    (mount.path / "qemu-server" / "9.conf").write_text("")
    assert (mount.path / "nodes" / "node1" / "qemu-server" / "9.conf").exists()
    (mount.path / "qemu-server" / "9.conf").unlink()


def test_fixed_names_hide_entries_of_the_tree(mount: Daemon) -> None:
    for name in (".version", ".debug", "local"):
        before = os.lstat(mount.path / name)
        mount.control("inject", kind="create", path=name)
        assert os.lstat(mount.path / name).st_mode == before.st_mode
        assert os.listdir(mount.path).count(name) == 1
        mount.control("inject", kind="delete", path=name)


# Status files


@pytest.mark.parametrize("name", STATUS_FILES)
def test_a_status_file_can_not_be_changed(mount: Daemon, name: str) -> None:
    path = mount.path / name
    for attempt in (
        lambda: path.write_text("x"),
        path.unlink,
        lambda: path.rename(mount.path / "other"),
        lambda: (mount.path / "qemu-server").rename(path),
        lambda: os.truncate(path, 0),
        lambda: os.utime(path, (1, 1)),
        lambda: path.chmod(0o600),
    ):
        with pytest.raises(OSError, match=r"\[Errno"):
            attempt()
    assert path.stat().st_size == len(path.read_bytes())


def test_size_and_content_agree_while_they_change(mount: Daemon) -> None:
    is_over = threading.Event()
    wrong = []

    def change() -> None:
        with mount.connect() as control:
            control("inject", kind="create", path="storage.cfg")
            vmid = 10**8
            while not is_over.is_set():
                vmid += 1
                guest = f"nodes/node1/lxc/{vmid}.conf"
                control("inject", kind="create", path=guest)
                control("inject", kind="write", path="storage.cfg", data=str(vmid))
                if vmid % 3:
                    control("inject", kind="delete", path=guest)

    writer = threading.Thread(target=change)
    writer.start()
    contents: set[bytes] = set()
    begin = time.monotonic()
    try:
        for number in itertools.count():
            if number >= READS and len(contents) > 50:
                break
            assert time.monotonic() < begin + 2 * GRACE, f"{len(contents)} versions were seen"
            with (mount.path / (".version", ".vmlist")[number % 2]).open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                content = file.read(10**6)
                again = os.pread(file.fileno(), 10**6, 0)
            contents.add(content)
            if not size == len(content) == len(again) or not content.endswith(b"}\n"):
                wrong.append((size, content, again))
    finally:
        is_over.set()
        writer.join()
    assert wrong == []


def test_an_open_status_file_keeps_its_content(mount: Daemon) -> None:
    with (mount.path / ".vmlist").open("rb", buffering=0) as file:
        before = os.pread(file.fileno(), 10**6, 0)
        (mount.path / "lxc" / "50.conf").write_text("")
        assert os.pread(file.fileno(), 10**6, 0) == before
        assert os.fstat(file.fileno()).st_size == len(before)
        assert (mount.path / ".vmlist").read_bytes() != before
    (mount.path / "lxc" / "50.conf").unlink()


def test_a_status_file_is_never_older_than_its_open(mount: Daemon) -> None:
    start = status(mount, ".version")["user.cfg"]
    for number in range(1, 101):
        if number == 1:
            mount.control("inject", kind="create", path="user.cfg")
        else:
            (mount.path / "user.cfg").write_text(str(number))
        mount.wait_until_notified()
        assert status(mount, ".version")["user.cfg"] == start + number


def test_each_watched_path_has_a_counter_of_its_own(mount: Daemon) -> None:
    before = status(mount, ".version")
    (mount.path / "datacenter.cfg").write_text("x")  # created, then written
    (mount.path / "datacenter.cfg").rename(mount.path / "jobs.cfg")
    (mount.path / "jobs.cfg").unlink()
    (mount.path / "unwatched.cfg").write_text("x")
    after = status(mount, ".version")
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        "datacenter.cfg": 3,
        "jobs.cfg": 2,
    }


# Guests


def guests(mount: Daemon) -> dict[str, dict[str, object]]:
    """Return the ids of .vmlist."""
    found: dict[str, dict[str, object]] = status(mount, ".vmlist").get("ids", {})
    return {vmid: guest for vmid, guest in found.items() if int(vmid) < 10**8}


def test_the_guest_list_follows_every_change(mount: Daemon) -> None:
    first, second = mount.path / "nodes" / "node1", mount.path / "nodes" / "node2"
    start = status(mount, ".vmlist")["version"]
    (first / "qemu-server" / "100.conf").write_text("memory: 512")  # created, then written
    created = guests(mount)["100"]
    assert (created["node"], created["type"]) == ("node1", "qemu")
    assert status(mount, ".vmlist")["version"] == start + 2
    (first / "qemu-server" / "100.conf").write_text("memory: 1024")
    written = guests(mount)["100"]
    assert written["version"] == int(str(created["version"])) + 1
    (first / "qemu-server" / "100.conf").rename(second / "lxc" / "100.conf")
    moved = guests(mount)["100"]
    assert (moved["node"], moved["type"]) == ("node2", "lxc")
    assert moved["version"] == int(str(written["version"])) + 1
    (second / "lxc" / "100.conf").unlink()
    assert "100" not in guests(mount)
    assert status(mount, ".vmlist")["version"] == start + 5
    (first / "lxc" / "101.conf").write_text("")
    assert int(str(guests(mount)["101"]["version"])) > int(str(moved["version"]))
    (first / "lxc" / "101.conf").unlink()


def test_a_vmid_belongs_to_one_guest(mount: Daemon) -> None:
    first = mount.path / "nodes" / "node1" / "qemu-server" / "200.conf"
    second = mount.path / "nodes" / "node2" / "lxc" / "200.conf"
    first.write_text("x")
    with pytest.raises(FileExistsError):
        second.write_text("x")
    other = mount.path / "other"
    other.write_text("x")
    with pytest.raises(FileExistsError):
        other.rename(second)
    with pytest.raises(FileExistsError):
        second.mkdir()
    temporary = first.with_name("200.conf.tmp.1")
    temporary.write_text("saved")
    temporary.rename(first)
    assert first.read_text() == "saved"
    assert guests(mount)["200"]["node"] == "node1"
    first.rename(second)
    second.unlink()
    other.unlink()


def test_a_directory_can_not_have_the_name_of_a_guest(mount: Daemon) -> None:
    for name in ("qemu-server", "lxc", "openvz"):
        with pytest.raises(FileExistsError):
            (mount.path / name / "300.conf").mkdir()
    (mount.path / "directory").mkdir()
    with pytest.raises(FileExistsError):
        (mount.path / "directory").rename(mount.path / "lxc" / "300.conf")
    (mount.path / "directory").rmdir()


# Locks


@pytest.fixture
def lock(mount: Daemon) -> Iterator[Path]:
    """A lock that is held; its lifetime is short enough for a test."""
    path = mount.path / "priv" / "lock" / "ha"
    path.mkdir()
    yield path
    mount.control("lock-lifetime", seconds=120)
    mount.wait_until_notified()
    if path.exists():
        path.rmdir()


def test_only_one_mkdir_takes_a_lock_and_rmdir_frees_it(mount: Daemon, lock: Path) -> None:
    with pytest.raises(FileExistsError):
        lock.mkdir()
    with pytest.raises(PermissionError):
        lock.rename(mount.path / "priv" / "lock" / "other")
    lock.rmdir()
    lock.mkdir()


def test_only_an_expired_lock_is_removed_on_request(mount: Daemon, lock: Path) -> None:
    with pytest.raises(PermissionError):
        os.utime(lock, (0, 0))
    assert lock.is_dir()
    mount.control("lock-lifetime", seconds=0)
    os.utime(lock, (0, 0))
    wait_for(lambda: not lock.exists(), mount)


def test_a_renewed_lock_does_not_expire(mount: Daemon, lock: Path) -> None:
    begin = time.monotonic()
    now = time.time() + 5
    os.utime(lock, (0, now))  # as the HA manager does
    mount.control("lock-lifetime", seconds=time.monotonic() - begin + 60)
    with pytest.raises(PermissionError):
        os.utime(lock, (0, 0))
    assert lock.stat().st_mtime == int(now)
    with pytest.raises(PermissionError):
        os.utime(lock, (0, now - 3600))


def test_a_renewal_restarts_the_lifetime(mount: Daemon, lock: Path) -> None:
    lifetime = 2.0
    mount.control("lock-lifetime", seconds=lifetime)
    soon = time.time() + 1000
    begin = time.monotonic()
    while time.monotonic() < begin + 1.2 * lifetime:
        soon += 1
        renewed = time.monotonic()
        os.utime(lock, (0, soon))
        with pytest.raises(PermissionError):
            os.utime(lock, (0, 0))
        assert time.monotonic() < renewed + lifetime, "too slow a machine for this test"
    wait_for(lambda: removes(lock), mount)


def removes(lock: Path) -> bool:
    """Ask for the removal of a lock."""
    try:
        os.utime(lock, (0, 0))
    except PermissionError:
        return False
    return True


def test_another_nodes_lock_can_not_be_renewed(mount: Daemon) -> None:
    mount.control("inject", kind="mkdir", path="priv/lock/theirs", time=1000)
    with pytest.raises(PermissionError):
        os.utime(mount.path / "priv" / "lock" / "theirs", (0, time.time() + 60))
    (mount.path / "priv" / "lock" / "theirs").rmdir()


def test_a_locks_access_time_does_not_matter(mount: Daemon, lock: Path) -> None:
    mount.control("lock-lifetime", seconds=0)
    with changes(mount, 0):
        subprocess.run(["touch", "-a", "-d", "@0", lock], check=True)
    assert lock.is_dir()


# Space


def test_statfs_reports_the_free_space(mount: Daemon) -> None:
    before = os.statvfs(mount.path)
    assert (before.f_bsize, before.f_blocks, before.f_files) == (BLOCK, 32768, 262144)
    (mount.path / "space").write_bytes(bytes(10 * BLOCK))
    after = os.statvfs(mount.path)
    assert before.f_bfree - after.f_bfree == 10
    assert before.f_ffree - after.f_ffree == 1
    assert (after.f_bavail, after.f_favail) == (after.f_bfree, after.f_ffree)
    (mount.path / "space").unlink()
    assert os.statvfs(mount.path) == before


def test_blocks_are_of_512_bytes(mount: Daemon) -> None:
    (mount.path / "blocks").write_bytes(bytes(1025))
    assert (mount.path / "blocks").stat().st_blocks == 3
    (mount.path / "blocks").unlink()


# .debug and the log of requests


def test_debug_takes_a_digit_and_a_line_feed(mount: Daemon) -> None:
    path = mount.path / ".debug"
    descriptor = os.open(path, os.O_RDWR)
    for content, outcome in ((b"1\n", 2), (b"0\nand more", 2)):
        assert os.write(descriptor, content) == outcome
        assert path.read_bytes() == content[:2]
        assert path.stat().st_size == 2
    for content in (b"2\n", b"1", b"\n", b"yes"):
        with pytest.raises(OSError, match="Input/output") as failure:
            os.write(descriptor, content)
        assert failure.value.errno == errno.EIO
    os.ftruncate(descriptor, 0)
    os.close(descriptor)
    assert path.read_bytes() == b"0\n"


REQUEST = re.compile(r"\[fuse\] debug: (?P<what>\w+) .* -> (?P<outcome>\w+).* \(\d+ us\)$")


def test_each_request_is_one_log_line_without_private_content(tmp_path: Path) -> None:
    with mounted(tmp_path, "-d", "--test-control") as mount:
        root = mount.path
        for name in ("priv", "nodes", "nodes/node1", "nodes/node1/priv", "public"):
            (root / name).mkdir()
        (root / "f").write_text("CONTENT-of-f")
        for private in (root / "priv", root / "local" / "priv"):
            (private / "SECRET1").write_text("CONTENT")
            assert (private / "SECRET1").read_text() == "CONTENT"
            (private / "SECRET1").rename(private / "SECRET2")
            (root / "f").rename(private / "SECRET3")
            (private / "SECRET3").rename(root / "f")
            (private / "SECRET4").mkdir()
            with pytest.raises(OSError, match="Not a directory"):
                (root / "f" / "x").rename(private / "SECRET4")
            with pytest.raises(OSError, match=r"\[Errno"):
                (root / "public").rename(private / "SECRET2")
            os.utime(private / "SECRET2", (5, 5))
            os.truncate(private / "SECRET2", 1)
            assert not (private / "SECRET5").exists()
            os.listdir(private / "SECRET4")
        mount.control("inject", kind="write", path="priv/SECRET2", data="CONTENT")
        descriptor = os.open(root / "priv" / "SECRET2", os.O_RDWR)
        os.write(descriptor, b"CONTENT")
        mount.control("inject", kind="delete", path="priv/SECRET2")
        with pytest.raises(FileNotFoundError):
            os.close(descriptor)
        mount.expect_log("the last writes to a private file are lost: ENOENT")
        (root / "last").mkdir()
    text = mount.log_text()
    assert "SECRET" not in text
    assert "CONTENT" not in text
    requests = [line for line in text.splitlines() if "[fuse] debug" in line]
    assert all(REQUEST.search(line) for line in requests)
    assert {"lookup", "create", "write", "flush", "rename", "mkdir", "readdir"} <= {
        match["what"] for line in requests if (match := REQUEST.search(line))
    }
