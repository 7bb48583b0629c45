"""``make run``, its tour and ``make clean`` in a directory of the test, with this checkout."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import GRACE, detach, is_mount
from tests.places import ROOT

pytestmark = pytest.mark.needs_fuse


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """An empty checkout, as far as ``make clean`` looks at it."""
    for name in ("pmxcfs", "tests", "bench"):
        (tmp_path / name).mkdir()
    yield tmp_path
    if is_mount(tmp_path / "run" / "pve"):
        detach(tmp_path / "run" / "pve")


def make(directory: Path, target: str) -> list[str]:
    """Return the command for a target, without the build.

    The daemon's name for local clients is the same in each checkout, and a network namespace has
    names of its own.
    """
    command = ["unshare", "--net", "make", "--no-print-directory", "-C", str(directory)]
    built = ["-f", str(ROOT / "Makefile"), "-o", "build", f"BIN={Path(sys.executable).parent}"]
    return [*command, *built, target]


@contextlib.contextmanager
def run(directory: Path, said: list[str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """``make run`` as a shell's foreground job; enters the block when the daemon serves.

    *said* gets the lines that it has printed until then.
    """
    said = [] if said is None else said
    process = subprocess.Popen(
        make(directory, "run"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout
        for line in process.stdout:
            said.append(line)
            if ": [main] info: serving " in line:
                break
        else:
            pytest.fail("".join(said))
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def clean(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        make(directory, "clean"), capture_output=True, text=True, check=False, timeout=GRACE
    )


def kill(directory: Path, process: subprocess.Popen[str]) -> str:
    """Kill the daemon with SIGKILL; return what ``make run`` says."""
    os.kill(int((directory / "run" / "sockets" / "pmxcfs.pid").read_text()), signal.SIGKILL)
    return process.communicate(timeout=GRACE)[0]


def test_after_sigkill_the_next_run_has_all_files(directory: Path) -> None:
    file = directory / "run" / "pve" / "file"
    for number in range(2):
        with run(directory) as process:
            assert (file.read_text() if number else "") == "saved 0\n" * number
            file.write_text(f"saved {number}\n")
            assert "pmxcfs has ended with exit status 137" in kill(directory, process)
            assert is_mount(directory / "run" / "pve")
    with run(directory) as process:
        assert file.read_text() == "saved 1\n"
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
        assert "pmxcfs has ended with exit status 0" in process.communicate(timeout=GRACE)[0]
    assert sorted(path.name for path in (directory / "run").iterdir()) == ["sockets", "state"]


def printed_tour(text: str) -> str:
    """Return the commands of the tour that ``make run`` prints."""
    (commands,) = re.findall(r"(?s)From a second shell:\n\n(.*?)\n\n", text)
    return str(commands)


def readme_tour(text: str) -> str:
    """Return the commands of README's tour."""
    (block,) = re.findall(r"(?ms)^## A tour.*?^```\n(.*?)^```", text)
    return "\n".join(["cd run/pve", *re.findall(r"(?m)^\$ (.*)", block)])


def second_shell(directory: Path, commands: str) -> subprocess.CompletedProcess[str]:
    """Run commands as a user would in a second shell, in the network namespace of the daemon."""
    pid = (directory / "run" / "sockets" / "pmxcfs.pid").read_text().strip()
    return subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", "bash", "-c", commands],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=GRACE,
    )


def test_the_tours_of_make_run_and_readme_can_be_repeated(directory: Path) -> None:
    (directory / ".venv").symlink_to(Path(sys.executable).parents[1])
    said: list[str] = []
    with run(directory, said) as process:
        printed, readme = printed_tour("".join(said)), readme_tour((ROOT / "README.md").read_text())
        for commands in (printed, readme, readme, printed):
            result = second_shell(directory, commands)
            (refusal,) = result.stderr.splitlines()
            assert refusal.endswith("nodes/node2/qemu-server/100.conf: File exists")
            first, second = re.findall('"100": { "node": "(node.)"', result.stdout)
            assert (first, second) == ("node1", "node2")
            assert result.returncode == 0
        assert "\nstate     healthy\n" in result.stdout
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
        assert "debug: opendir / " in process.communicate(timeout=GRACE)[0]


def test_clean_refuses_while_the_daemon_serves(directory: Path) -> None:
    with run(directory):
        (directory / "run" / "pve" / "file").write_text("saved\n")
        result = clean(directory)
        assert result.returncode != 0
        assert "run/pve is mounted: end the daemon first" in result.stderr
        assert (directory / "run" / "pve" / "file").read_text() == "saved\n"


def test_clean_removes_the_mount_of_a_daemon_that_was_killed(directory: Path) -> None:
    with run(directory) as process:
        (directory / "run" / "pve").stat()  # the kernel has its attributes
        kill(directory, process)
    for _ in range(2):
        result = clean(directory)
        assert (result.returncode, result.stderr) == (0, "")
    assert sorted(path.name for path in directory.iterdir()) == ["bench", "pmxcfs", "tests"]
