"""What users other than root may see, with the kernel enforcing what the modes say."""

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

from tests.harness import Daemon, mounted, wait_for

pytestmark = pytest.mark.needs_fuse

PROGRAM = Path(__file__).parent.parent / "fakes" / "user.py"
NOBODYS_GROUP = 65534


class User:
    """A process without root's rights."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, *command: object) -> str:
        """Let it try something; return the errno's name, or ok."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(word) for word in command]) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def user(gid: int) -> Iterator[User]:
    """Start a process of a group."""
    with subprocess.Popen(
        [sys.executable, PROGRAM, str(gid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield User(process)
        process.communicate("", timeout=10)


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    base = tmp_path_factory.mktemp("permissions")
    for directory in (base, *base.parents):  # pytest keeps its directories to root
        if directory.stat().st_uid == os.geteuid() and directory.is_relative_to("/tmp/"):
            directory.chmod(0o755)
    with mounted(base, "--test-control") as daemon:
        for name in ("priv", "nodes", "nodes/node1", "nodes/node1/priv"):
            (daemon.path / name).mkdir()
        (daemon.path / "public").write_text("for all of the group")
        (daemon.path / "priv" / "secret").write_text("for root")
        (daemon.path / "nodes" / "node1" / "priv" / "secret").write_text("for root")
        yield daemon


@pytest.fixture(scope="module")
def member(mount: Daemon) -> Iterator[User]:
    with user(grp.getgrnam("www-data").gr_gid) as process:
        yield process


@pytest.fixture(scope="module")
def stranger(mount: Daemon) -> Iterator[User]:
    with user(NOBODYS_GROUP) as process:
        yield process
