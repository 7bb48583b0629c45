"""The test of a corosync.conf by a program in the place of corosync."""

import contextlib
import os
import time
from pathlib import Path

import pytest

from pmxcfs.cluster.corosync_check import MAX_REASON, Cancelled, complaint

SECONDS = 30.0  # within which all of it must end; a hang would take longer

OF_COROSYNC = """\
cat <<END
Nov 30 04:40:58.069 warning [MAIN  ] Please migrate to knet.
Nov 30 04:40:58.069 error   [MAIN  ] parse error in config: No interfaces defined
Nov 30 04:40:58.069 error   [MAIN  ] Corosync Cluster Engine exiting with status 8 at main.c:1445.
END
exit 8"""


class Program:
    """A shell script in the place of corosync."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, script: str) -> None:
        path = self.directory / "corosync"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def complaint(self, content: bytes = b"totem {}\n", *, timeout: float = SECONDS) -> str:
        return complaint(content, search_path=str(self.directory), timeout=timeout)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_without_corosync_nothing_is_refused(program: Program) -> None:
    assert program.complaint() == ""


def test_the_program_gets_the_content_and_nothing_else(program: Program, tmp_path: Path) -> None:
    told = tmp_path / "told"
    program.write(f'{{ echo "$1 $2"; cat "$3"; env | sort; pwd; ls /proc/self/fd; }} >{told}')
    assert program.complaint(b"the content\n") == ""
    options, content, *environment, directory = told.read_text().partition("/\n0")[0].splitlines()
    assert (options, content) == ("-t -c", "the content")
    names = {line.partition("=")[0] for line in [*environment, directory]}
    assert names <= {"PATH", "LC_ALL", "PWD", "_", "OLDPWD", "SHLVL"}


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (OF_COROSYNC, "parse error in config: No interfaces defined"),
        ('echo "parser error: $3:7: Missing brace"; exit 8', "parser error: corosync.conf:7: Mis"),
        ("exit 8", "corosync -t ended with status 8"),
        ("kill -ABRT $$", "corosync -t was ended by signal 6"),
        ("echo Assertion failed; kill -ABRT $$", "corosync -t was ended by signal 6: Assertion"),
        (r"printf 'a\033[31m\377\n'; exit 1", "a#027[31m"),
    ],
)
def test_the_reason_is_in_the_words_of_corosync(program: Program, script: str, reason: str) -> None:
    program.write(script)
    found = program.complaint()
    assert found.startswith(reason)
    assert found.isascii()
    assert found.isprintable()


@pytest.mark.parametrize(
    "script",
    ["exec sleep 1000", "exec yes", "trap '' TERM; while :; do sleep 0.01; done"],
    ids=["sleeps", "writes", "ignores-signals"],
)
def test_a_hang_counts_as_refused(program: Program, script: str) -> None:
    program.write(script)
    began = time.monotonic()
    assert program.complaint(timeout=0.3).startswith("corosync -t did not end in time")
    assert time.monotonic() - began < SECONDS


def test_a_child_that_keeps_the_output_open_delays_nothing(program: Program) -> None:
    program.write("sleep 1 & echo bad; exit 3")
    began = time.monotonic()
    assert program.complaint() == "bad"
    assert time.monotonic() - began < SECONDS


def test_a_cancelled_test_ends(program: Program, tmp_path: Path) -> None:
    program.write("exec sleep 1000")
    began = time.monotonic()
    with pytest.raises(Cancelled):
        complaint(b"", search_path=str(tmp_path), is_cancelled=lambda: True)
    assert time.monotonic() - began < SECONDS


def test_a_long_output_gives_a_short_reason(program: Program) -> None:
    program.write("head -c 60000 /dev/zero | tr '\\0' x; exit 1")
    assert program.complaint() == "x" * MAX_REASON


def test_a_program_that_can_not_be_run_refuses(program: Program, tmp_path: Path) -> None:
    program.write("exit 0")
    (tmp_path / "corosync").write_text("#!/nonexistent\n")
    assert program.complaint() == f"{tmp_path}/corosync can't be run: No such file or directory"


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["timeout", "cancelled"])
def test_a_killed_program_leaves_no_shared_memory(
    program: Program, tmp_path: Path, *, is_cancelled: bool
) -> None:
    places = ["/dev/shm/qb-corosync-$$-blackbox-header", "/dev/shm/qb-corosync-$$-blackbox-data"]
    program.write(f"touch {' '.join(places)}; echo $$ >{tmp_path}/pid; exec sleep 1000")
    with contextlib.suppress(Cancelled):
        complaint(
            b"",
            search_path=str(tmp_path),
            timeout=1.0,
            is_cancelled=lambda: is_cancelled and (tmp_path / "pid").exists(),
        )
    pid = (tmp_path / "pid").read_text().strip()
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(f"qb-corosync-{pid}-")]
