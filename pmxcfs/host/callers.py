"""The processes that ask for changes: pid, uid, login uid, and the name of the program.

The kernel gives pid and uid with each request. The other two are read from /proc while the request
keeps its process waiting, so the process is still there. That takes longer than the rest of a small
change, so the answer is used for up to a second. A pid that another process gets within that second
shows the first one's name.

Threads: ``of`` needs the tree's lock. It reads two files of /proc, which no device holds up.
Contract: docs/spec/storage.md, "Journal".
"""

import os
from collections.abc import Callable
from typing import NamedTuple

UNSET = 0xFFFF_FFFF  # the kernel's login uid of a process that no login began
FRESH_NS = 1_000_000_000  # age up to which an answer is used again
MAX_KNOWN = 256  # processes that are remembered
_MAX_NAME = 64  # bytes read of a name; the kernel keeps 15 of a process, a few more of its threads


# A process that has asked for a change: pid in the daemon's namespace, of a thread if that has
# asked, 0: unknown; the user it acts as; the user who has logged in, UNSET: none, or unknown; the
# program's name, empty: unknown. A call, as Cython 0.29 can't compile a class with this base.
Caller = NamedTuple(  # noqa: UP014
    "Caller", [("pid", int), ("uid", int), ("login_uid", int), ("process", bytes)]
)


UNKNOWN = Caller(0, 0, UNSET, b"")


class Callers:
    """The processes that have asked for something lately."""

    def __init__(self, *, monotonic_ns: Callable[[], int], proc: str = "/proc") -> None:
        self._now_ns = monotonic_ns
        self._proc = proc
        self._known: dict[int, tuple[int, Caller]] = {}  # by pid; first the time of the look-up
        self._last = UNKNOWN  # what was returned last, and for whom, and when it was looked up
        self._last_pid = self._last_uid = 0
        self._last_ns = -FRESH_NS

    def of(self, pid: int, uid: int) -> Caller:
        """Return the process *pid*, which acts as the user *uid*; UNKNOWN for pid 0."""
        if not pid:
            return UNKNOWN
        now_ns = self._now_ns()
        if pid != self._last_pid or uid != self._last_uid or now_ns - self._last_ns >= FRESH_NS:
            self._last_ns, self._last = self._find(pid, uid, now_ns)
            self._last_pid, self._last_uid = pid, uid
        return self._last

    def _find(self, pid: int, uid: int, now_ns: int) -> tuple[int, Caller]:
        """Return when the process was looked up, at most a second ago, and what was found."""
        known = self._known.get(pid)
        if known is not None and now_ns - known[0] < FRESH_NS and known[1].uid == uid:
            return known
        caller = Caller(pid, uid, self._login_uid(pid), self._name(pid))
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[pid] = now_ns, caller
        return now_ns, caller

    def _name(self, pid: int) -> bytes:
        return _start_of(f"{self._proc}/{pid}/comm").removesuffix(b"\n")

    def _login_uid(self, pid: int) -> int:
        digits = _start_of(f"{self._proc}/{pid}/loginuid")
        return min(int(digits), UNSET) if digits.isdigit() else UNSET


def _start_of(path: str) -> bytes:
    """Return the first bytes of a file; none if it is missing, or its process has ended."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _MAX_NAME)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
