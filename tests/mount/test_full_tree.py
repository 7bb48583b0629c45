"""A tree without room: only growth is refused, and a refused rewriting leaves the old content."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmxcfs.messages import MAX_FILE_SIZE, MAX_TOTAL_SIZE
from tests.harness import Daemon, mounted

pytestmark = [pytest.mark.needs_fuse, pytest.mark.long]

REFUSED = r"the last writes to (small|new) are lost: ENOSPC"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that fill a tree to the last byte, one of them has ten bytes."""
    directory = tmp_path_factory.mktemp("content")
    for number in range(MAX_TOTAL_SIZE // MAX_FILE_SIZE - 1):
        (directory / f"f{number}").write_bytes(bytes(MAX_FILE_SIZE))
    (directory / "last").write_bytes(b"o" * (MAX_FILE_SIZE - 10))
    (directory / "small").write_bytes(b"ten bytes\n")
    return directory


@pytest.fixture
def daemon(content: Path, tmp_path: Path) -> Iterator[Daemon]:
    (tmp_path / "state").mkdir(mode=0o750)
    subprocess.run(
        [sys.executable, "-m", "pmxcfs", "import", "--statedir", tmp_path / "state", content],
        check=True,
    )
    with mounted(tmp_path) as daemon:
        free = os.statvfs(daemon.path)
        assert free.f_bfree == 0
        yield daemon


def shell(daemon: Daemon, command: str) -> tuple[int, str]:
    """Run a shell command in the root of the mount; return its exit status and stderr."""
    result = subprocess.run(
        ["sh", "-c", command], cwd=daemon.path, capture_output=True, text=True, check=False
    )
    return result.returncode, result.stderr


def errno_of(operation: Callable[[], object]) -> int:
    """Return the errno that *operation* fails with, 0 if it succeeds."""
    try:
        operation()
    except OSError as error:
        return error.errno or 0
    return 0


@pytest.mark.parametrize("size", [MAX_FILE_SIZE - 10, MAX_FILE_SIZE // 2, 0])
def test_a_file_can_be_rewritten_with_as_many_bytes_or_fewer(daemon: Daemon, size: int) -> None:
    command = f"dd if=/dev/zero bs=65536 iflag=count_bytes count={size} of=last"
    assert shell(daemon, command)[0] == 0
    assert (daemon.path / "last").read_bytes() == bytes(size)


def test_growth_is_refused_and_leaves_the_old_content(daemon: Daemon) -> None:
    daemon.expect_log(REFUSED)
    for command in ("echo 'eleven byt' > small", "echo x >> small", "truncate -s 11 small"):
        status, told = shell(daemon, command)
        assert status != 0, command
        assert "No space left on device" in told or "I/O error" in told
        assert (daemon.path / "small").read_bytes() == b"ten bytes\n"
    descriptor = os.open(daemon.path / "small", os.O_WRONLY | os.O_TRUNC)
    answers = [
        errno_of(lambda: os.write(descriptor, b"eleven byte")),
        errno_of(
            lambda: os.write(descriptor, b"x")
        ),  # the first refusal has dropped the truncation
        errno_of(lambda: os.close(descriptor)),
    ]
    assert answers == [errno.ENOSPC] * 3
    assert (daemon.path / "small").read_bytes() == b"ten bytes\n"
    assert shell(daemon, "echo x > new")[0] != 0
    (daemon.path / "f0").unlink()
    assert shell(daemon, "echo 'eleven byt' > small && echo x > new") == (0, "")
    assert (daemon.path / "small").read_bytes() == b"eleven byt\n"
    assert (daemon.path / "new").read_bytes() == b"x\n"
