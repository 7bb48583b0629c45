"""Access by users other than root; the kernel enforces the modes."""

import contextlib
import errno
import grp
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import GRACE, Daemon, mounted, wait_for
from tests.places import PROGRAMS

pytestmark = pytest.mark.needs_fuse

PROGRAM = PROGRAMS / "user.py"
NOBODYS_GROUP = 65534


class User:
    """A process without the privileges of root."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, *command: object) -> str:
        """Let the process try an operation; return ``ok`` or the name of an errno."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(word) for word in command]) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def user(directory: Path, gid: int) -> Iterator[User]:
    """Start a process of a group in a directory."""
    command = [sys.executable, str(PROGRAM), str(directory), str(gid)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield User(process)
        process.communicate("", timeout=GRACE)


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with mounted(tmp_path_factory.mktemp("permissions"), "--test-control") as daemon:
        for name in ("priv", "nodes", "nodes/node1", "nodes/node1/priv"):
            (daemon.path / name).mkdir()
        (daemon.path / "public").write_text("for all of the group")
        (daemon.path / "priv" / "secret").write_text("for root")
        (daemon.path / "nodes" / "node1" / "priv" / "secret").write_text("for root")
        yield daemon


@pytest.fixture(scope="module")
def member(mount: Daemon) -> Iterator[User]:
    with user(mount.path, grp.getgrnam("www-data").gr_gid) as process:
        yield process


@pytest.fixture(scope="module")
def stranger(mount: Daemon) -> Iterator[User]:
    with user(mount.path, NOBODYS_GROUP) as process:
        yield process


def mode_of(path: Path) -> int:
    """Return the permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_the_group_reads_and_others_only_list(member: User, stranger: User) -> None:
    assert member("read", "public") == "ok"
    assert stranger("read", "public") == "EACCES"
    assert stranger("stat", "public") == "ok"
    assert stranger("list", "nodes/node1") == "ok"
    assert stranger("read", ".version") == "EACCES"
    assert member("read", ".version") == "ok"


def test_only_root_writes(member: User) -> None:
    assert member("write", "public") == "EACCES"
    assert member("write", ".debug") == "EACCES"
    assert member("read", ".debug") == "ok"


@pytest.mark.parametrize("directory", ["priv", "nodes/node1/priv", "local/priv"])
def test_only_root_can_access_private_directories(member: User, directory: str) -> None:
    assert member("list", directory) == "EACCES"
    assert member("stat", f"{directory}/secret") == "EACCES"
    assert member("stat", f"{directory}/missing") == "EACCES"


def test_a_file_moved_into_a_private_directory_is_private_at_once(
    mount: Daemon, member: User
) -> None:
    path = mount.path / "moving"
    path.write_text("public until now")
    assert member("hold", "moving") == "ok"
    assert member("reopen") == "ok"
    path.rename(mount.path / "priv" / "moving")
    wait_for(lambda: member("reopen") == "EACCES", mount)
    assert member("stat", "moving") == "ENOENT"
    assert mode_of(mount.path / "priv" / "moving") == 0o600
    (mount.path / "priv" / "moving").rename(path)
    wait_for(lambda: member("read", "moving") == "ok", mount)
    assert mode_of(path) == 0o640


def test_a_file_that_another_node_moves_there_is_private_at_once(
    mount: Daemon, member: User
) -> None:
    (mount.path / "moved").write_text("public until now")
    assert member("hold", "moved") == "ok"
    mount.control("inject", kind="rename", path="moved", to="priv/moved")
    wait_for(lambda: member("reopen") == "EACCES", mount)
    wait_for(lambda: member("stat", "moved") == "ENOENT", mount)


def test_a_directory_that_moves_changes_its_mode(mount: Daemon) -> None:
    (mount.path / "directory").mkdir()
    assert mode_of(mount.path / "directory") == 0o755
    (mount.path / "directory").rename(mount.path / "priv" / "directory")
    wait_for(lambda: mode_of(mount.path / "priv" / "directory") == 0o700, mount)


def test_the_execute_bit_of_a_script_follows_its_name(mount: Daemon) -> None:
    path, script = mount.path / "vps.txt", mount.path / "vps.mount"
    path.write_text("#!/bin/sh")
    assert mode_of(path) == 0o640
    path.rename(script)
    wait_for(lambda: mode_of(script) == 0o740, mount)
    script.rename(path)
    wait_for(lambda: mode_of(path) == 0o640, mount)


def test_a_descriptor_of_a_public_file_never_reads_a_private_one(mount: Daemon) -> None:
    path, secret = mount.path / "replaced", mount.path / "priv" / "replacing"
    path.write_text("public")
    secret.write_text("private")
    with path.open("rb", buffering=0) as file:
        node = os.fstat(file.fileno()).st_ino
        path.unlink()
        secret.rename(path)
        assert path.stat().st_ino != node
        assert os.pread(file.fileno(), 100, 0) == b"public"


def test_the_owner_is_root_and_the_group_www_data(mount: Daemon) -> None:
    group = grp.getgrnam("www-data").gr_gid
    for name in ("", "public", "priv", "priv/secret", "local", ".version", ".debug"):
        found = os.lstat(mount.path / name)
        assert (found.st_uid, found.st_gid) == (0, group)


def test_the_kernel_mounts_without_devices_and_setuid(mount: Daemon) -> None:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    (line,) = [line for line in lines if f" {mount.path} " in line]
    assert {"nosuid", "nodev"} <= set(line.split()[5].split(","))
    assert {"default_permissions", "allow_other"} <= set(line.split()[-1].split(","))
    assert " /dev/fuse " in line


def test_an_object_can_get_the_mode_that_it_has(mount: Daemon) -> None:
    script = mount.path / "vps.start"
    script.touch()
    for path in (mount.path, mount.path / "nodes", mount.path / "priv", script):
        path.chmod(mode_of(path))
    (mount.path / ".version").chmod(0o440)
    for path, modes in ((mount.path / "nodes", (0o700, 0o644)), (mount.path / "priv", (0o755,))):
        for mode in modes:
            with pytest.raises(PermissionError):
                path.chmod(mode)
    mount.control("quorum", on=False)
    try:
        (mount.path / "nodes").chmod(0o555)
        (mount.path / "public").chmod(0o440)
    finally:
        mount.control("quorum", on=True)


def test_files_can_be_copied_and_unpacked_with_their_modes(mount: Daemon, tmp_path: Path) -> None:
    original, source = mount.path / "original", tmp_path / "source"
    (original / "directory").mkdir(parents=True)
    (original / "directory" / "file").write_text("content")
    subprocess.run(["cp", "-a", original, source], check=True)
    subprocess.run(["cp", "-a", source, mount.path / "copied"], check=True)
    archive = tmp_path / "archive"
    subprocess.run(["tar", "-C", tmp_path, "-cf", archive, "source"], check=True)
    subprocess.run(["tar", "-C", mount.path, "-xpf", archive], check=True)
    for name in ("copied", "source"):
        assert (mount.path / name / "directory" / "file").read_text() == "content"


def test_no_extended_attribute_is_special(mount: Daemon) -> None:
    for name in ("fuse_stacktrace", "user.x"):
        for flags in (0, os.XATTR_CREATE, os.XATTR_REPLACE):
            with pytest.raises(OSError, match=os.strerror(errno.ENOTSUP)):
                os.setxattr(mount.path, name, b"", flags)


def test_lenient_permissions_ignore_what_programs_set(tmp_path: Path) -> None:
    with mounted(tmp_path, "--permissions", "lenient") as daemon:
        source, target = tmp_path / "source", daemon.path / "target"
        source.write_text("content")
        os.chown(source, 1, 1)
        subprocess.run(["cp", "-p", source, target], check=True)
        target.chmod(0o755)
        assert target.read_text() == "content"
        assert (mode_of(target), target.stat().st_uid) == (0o640, 0)
        secret = daemon.path / "priv" / "key"
        secret.parent.mkdir()
        options = ["-m", "644", "-o", "daemon", "-g", "daemon"]
        subprocess.run(["install", *options, source, secret], check=True)
        assert (mode_of(secret), secret.stat().st_uid) == (0o600, 0)
        for path, mode in ((target, 0o600), (daemon.path / ".version", 0o400)):
            with pytest.raises(PermissionError):  # it would not be secret
                path.chmod(mode)
        with user(daemon.path, NOBODYS_GROUP) as stranger:
            assert stranger("chmod", "target") == "EPERM"
        daemon.wait_for_log("install: chmod and chown succeed without effect")
        daemon.wait_for_log("cp: chmod and chown succeed without effect")


def test_the_log_tells_where_the_number_of_a_guest_is_in_use(mount: Daemon) -> None:
    for directory in ("nodes/node1/lxc", "nodes/node2/qemu-server"):
        (mount.path / directory).mkdir(parents=True)
    (mount.path / "nodes/node1/lxc/100.conf").touch()
    other = mount.path / "nodes/node2/qemu-server/100.conf"
    for _ in range(2):
        with pytest.raises(FileExistsError):
            other.touch()
    mount.wait_for_log(
        "nodes/node2/qemu-server/100.conf: its number is in use by nodes/node1/lxc/100.conf"
    )
