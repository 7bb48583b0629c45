"""The choice of the session: which kinds there are, and which one serves this daemon.

A kind's module is imported only when it is chosen, as it may need what is not installed.
Contract: docs/spec/session.md.
"""

import logging

from pmxcfs.fuse.session import Session
from pmxcfs.fuse.workers import RESERVED_WORKERS
from pmxcfs.settings import Settings

_log = logging.getLogger("pmxcfs.main")

WORKERS = 16  # one that reads; most of them may wait for the device or for other nodes


def make_session(settings: Settings) -> Session:
    """Return a session that is not mounted yet."""
    from pmxcfs.fuse.llfuse_session import LlfuseSession

    return LlfuseSession(workers=workers_for(settings))


def workers_for(settings: Settings) -> int:
    """Return how many threads answer the kernel."""
    workers = settings.workers or WORKERS
    least = RESERVED_WORKERS + 1  # with fewer no change could wait, so all would be refused
    if workers < least:
        _log.warning("--workers %d is too few: using %d", workers, least)
    return max(workers, least)
