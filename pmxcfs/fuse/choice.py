"""The choice of the session: which kinds there are, and which one serves this daemon.

A kind's module is imported only when it is chosen, as it may need what is not installed.
Contract: docs/spec/session.md.
"""

import logging
import os
from pathlib import Path

from pmxcfs.errors import StartError
from pmxcfs.fuse.session import Session
from pmxcfs.fuse.workers import RESERVED_WORKERS
from pmxcfs.settings import Settings

_log = logging.getLogger("pmxcfs.main")

WORKERS = 16  # one that reads; most of them may wait for the device or for other nodes
NATIVE_SINCE = (5, 4)  # version of Linux
URING_SWITCH = Path("/sys/module/fuse/parameters/enable_uring")  # Y: the kernel offers io_uring


def make_session(settings: Settings) -> Session:
    """Return a session that is not mounted yet. Raises StartError."""
    kind = kind_for(settings.fuse)
    if kind == "uring":
        return make_uring_session(must=settings.fuse == "uring")
    if kind == "native":
        from pmxcfs.fuse.native import NativeSession

        return NativeSession()
    from pmxcfs.fuse.llfuse_session import LlfuseSession

    return LlfuseSession(workers=workers_for(settings))


def kind_for(wanted: str) -> str:
    """Return the kind of session that the setting *wanted* leads to here."""
    if wanted != "auto":
        return wanted
    if not can_be_native():
        return "llfuse"
    return "uring" if is_uring_offered() else "native"


def make_uring_session(*, must: bool) -> Session:
    """Return a session by io_uring; unless it *must* be, a native one where that can't be built.

    Raises StartError.
    """
    try:
        from pmxcfs.fuse.uring import UringSession
    except ImportError:
        if must:
            raise StartError("this pmxcfs was built without liburing: use --fuse native") from None
        from pmxcfs.fuse.native import NativeSession

        _log.warning("FUSE over io_uring is on, but this pmxcfs was built without liburing")
        return NativeSession()
    return UringSession(must=must)


def is_uring_offered() -> bool:
    """Tell whether this machine's administrator has switched FUSE over io_uring on."""
    try:
        return URING_SWITCH.read_text().strip() == "Y"
    except OSError:  # the kernel does not have it, or not fuse
        return False


def can_be_native() -> bool:
    """Tell whether the native session can run here: as root, on a kernel that is new enough."""
    return os.geteuid() == 0 and _version(os.uname().release) >= NATIVE_SINCE


def _version(release: str) -> tuple[int, ...]:
    """Return the first two numbers of a kernel's release, such as 6.1.0-18-amd64."""
    numbers = release.replace("-", ".").split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())


def workers_for(settings: Settings) -> int:
    """Return how many threads answer the kernel through llfuse."""
    workers = settings.workers or WORKERS
    least = RESERVED_WORKERS + 1  # with fewer no change could wait, so all would be refused
    if workers < least:
        _log.warning("--workers %d is too few: using %d", workers, least)
    return max(workers, least)
