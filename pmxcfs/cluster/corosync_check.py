"""The test of a corosync.conf by corosync itself: ``corosync -t``.

The program reads the content, opens no socket of a cluster, changes nothing and ends. It also needs
what it would need to start on this host: its keys, the addresses of its links and names that can be
resolved. So the same content can fail on one host and not on another, or later not any more.

It runs without a shell, with the priority of the calling thread, and ends with the test.
Contract: docs/spec/operations.md, "corosync.conf".
"""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from pmxcfs.text import escape

SEARCH_PATH = "/usr/sbin:/sbin"  # where corosync is looked for, whatever PATH says
TIMEOUT = 10.0  # seconds for the test; 0.05 on an idle machine, names included
CANCEL_INTERVAL = 0.2  # seconds that a test goes on after it was cancelled
MAX_REASON = 300  # characters

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_PIPE_SIZE = (
    1 << 16
)  # bytes of output that are read; a program that writes more waits, and is ended
_SHARED_MEMORY = Path("/dev/shm")
_PREFIX = re.compile(r"^\w+ \d+ [\d:.]+ +(\w+) +\[\w+ *\] +")  # of a log line: time, level, part
_QUIET = ("debug", "info", "notice", "warning")  # levels that are not the reason of a failure
_END = "Corosync Cluster Engine exiting"  # begins the last line, which has no reason


class Cancelled(Exception):
    """Raised if a test was cancelled before its end. It says nothing about the content."""


def complaint(
    content: bytes,
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
    search_path: str = SEARCH_PATH,
    timeout: float = TIMEOUT,
) -> str:
    """Return why corosync can't start with *content* on this host, in corosync's own words.

    Returns "" if it can, or if no corosync is installed. A corosync that crashes, or has not ended
    after *timeout* seconds, can't start. Blocks that long at most; *is_cancelled* ends it earlier,
    and then Cancelled is raised.
    """
    program = shutil.which("corosync", path=search_path)
    if program is None:
        return ""
    try:
        with open(os.memfd_create("corosync.conf"), "wb", buffering=0) as file:
            file.write(content)
            return _test(program, file, deadline=time.monotonic() + timeout, cancelled=is_cancelled)
    except OSError as error:
        return f"{program} can't be run: {error.strerror}"


def _test(program: str, file: BinaryIO, *, deadline: float, cancelled: Callable[[], bool]) -> str:
    path = f"/proc/self/fd/{file.fileno()}"
    with subprocess.Popen(
        [program, "-t", "-c", path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pipesize=_PIPE_SIZE,
        pass_fds=[file.fileno()],
        env=_ENVIRONMENT,
        cwd="/",
        start_new_session=True,
    ) as process:
        try:
            status = _wait(process, deadline=deadline, cancelled=cancelled)
        except Cancelled:
            process.kill()
            process.wait()
            _remove_shared_memory(process.pid)
            raise
        finally:
            process.kill()  # no effect on one that has ended
        assert process.stdout is not None, "it is a pipe"
        os.set_blocking(process.stdout.fileno(), False)  # a child of corosync may keep it open
        output = process.stdout.read(_PIPE_SIZE) or b""
    if status == 0:
        return ""
    if status is None or status < 0:
        _remove_shared_memory(process.pid)
    lines = output.decode("ascii", "replace").replace(path, "corosync.conf").splitlines()
    return _reason(lines, status)


def _wait(
    process: "subprocess.Popen[bytes]", *, deadline: float, cancelled: Callable[[], bool]
) -> int | None:
    """Return the exit status, negative after a signal; None if it had not ended in time.

    Raises Cancelled.
    """
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(left, CANCEL_INTERVAL))
        if cancelled():
            raise Cancelled
    return process.poll()


def _remove_shared_memory(pid: int) -> None:
    """Remove the log buffer of a corosync that was killed, which else removes it itself."""
    for part in ("header", "data"):
        with contextlib.suppress(OSError):
            (_SHARED_MEMORY / f"qb-corosync-{pid}-blackbox-{part}").unlink()


def _reason(lines: Sequence[str], status: int | None) -> str:
    """Return the reason of a failure from the output, one line of printable ASCII."""
    if status is None:
        end = "corosync -t did not end in time"
    elif status < 0:
        end = f"corosync -t was ended by signal {-status}"
    else:
        end = f"corosync -t ended with status {status}"
    told = [_PREFIX.sub("", line) for line in lines if _is_reason(line)]
    if not told:
        return end
    reason = escape(told[0].strip().rstrip("."))[:MAX_REASON]
    return reason if status is not None and status > 0 else f"{end}: {reason}"


def _is_reason(line: str) -> bool:
    found = _PREFIX.match(line)
    if found and (found[1] in _QUIET or line[found.end() :].startswith(_END)):
        return False
    return bool(line.strip())
