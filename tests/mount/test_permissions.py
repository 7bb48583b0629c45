"""Access by users other than root; the kernel enforces the modes."""

import contextlib
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
