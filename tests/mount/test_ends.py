"""Ends of the session that are not orderly, and other mounts on the daemon's mountpoint."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import GRACE, Daemon, mounted
from tests.mount.observed import published

pytestmark = pytest.mark.needs_fuse


@contextlib.contextmanager
def in_use(daemon: Daemon) -> Iterator[None]:
    """Keep a file with unpublished bytes open."""
    daemon.publish_only_on_request()
    descriptor = os.open(daemon.path / "file", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(descriptor, b"unpublished")
        yield
    finally:
        with contextlib.suppress(OSError):  # its daemon is dead
            os.close(descriptor)


@contextlib.contextmanager
def file_system(kind: str, path: Path) -> Iterator[None]:
    """Mount another file system; assert that it is still there at the end."""
    subprocess.run(["mount", "-t", kind, kind, path], check=True)
    yield
    subprocess.run(["umount", path], check=True)


def force_unmount(daemon: Daemon) -> None:
    result = subprocess.run(["umount", "--force", daemon.path], check=False, capture_output=True)
    assert b"busy" in result.stderr


def abort(daemon: Daemon) -> None:
    minor = os.minor(daemon.path.stat().st_dev)
    connections = daemon.state.parent / "connections"
    connections.mkdir()
    with file_system("fusectl", connections):
        (connections / str(minor) / "abort").write_text("1")


@pytest.mark.parametrize("end", [force_unmount, abort])
def test_an_aborted_connection_ends_the_daemon_with_an_error_and_loses_nothing(
    end: Callable[[Daemon], None], tmp_path: Path
) -> None:
    with mounted(tmp_path, "--test-control") as daemon, in_use(daemon):
        daemon.exit_status = 1
        daemon.expect_log("the connection to the kernel was aborted, as by umount --force")
        end(daemon)
        daemon.process.wait(GRACE)
    assert published(daemon, "file") == b"unpublished"


def test_a_forced_unmount_without_users_is_orderly(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        subprocess.run(["umount", "--force", daemon.path], check=True)
        daemon.process.wait(GRACE)


def test_a_stop_after_a_lazy_unmount_leaves_what_is_mounted_there_since(tmp_path: Path) -> None:
    with mounted(tmp_path, "--test-control") as daemon, in_use(daemon):
        subprocess.run(["umount", "--lazy", daemon.path], check=True)
        with file_system("tmpfs", daemon.path):
            daemon.stop(signal.SIGTERM)
    assert published(daemon, "file") == b"unpublished"


def test_a_stop_leaves_what_is_mounted_over_the_mount(tmp_path: Path) -> None:
    with mounted(tmp_path, "--test-control") as daemon, in_use(daemon):
        daemon.expect_log("another file system is mounted over .*: the dead mount stays below it")
        with file_system("tmpfs", daemon.path):
            daemon.stop(signal.SIGTERM)
    assert published(daemon, "file") == b"unpublished"
