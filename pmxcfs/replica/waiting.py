"""Protocols for a thread that holds the tree's lock and waits: RequestWatch and Yielding.

When the last worker that reads FUSE requests begins to wait for other nodes, it could wake another
worker to read them. Usually no request arrives before the wait is over, and the other worker would
only take CPU time. So the waiting worker polls the FUSE descriptor beside the event it waits for,
and wakes another worker only when a request has arrived.
Contract: docs/spec/fuse.md, "Waiting".
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class RequestWatch:
    """Watches the FUSE descriptor for the last worker that reads it, while that worker waits.

    Not active if another worker reads requests. *call* wakes another worker; it may be called from
    any thread.
    """

    __slots__ = ("_call", "_descriptor", "is_active")

    def __init__(self, descriptor: int, call: Callable[[], None], *, is_active: bool) -> None:
        self.is_active = is_active
        self._descriptor = descriptor
        self._call = call

    def fileno(self) -> int:
        """Return the descriptor that is readable when a request has arrived."""
        return self._descriptor

    def stop(self) -> None:
        """Stop watching and wake another worker, as a request arrived or the caller can't poll."""
        if self.is_active:
            self.is_active = False
            self._call()


class Yielding(Protocol):
    """Ways in which a thread that holds the tree's lock releases it for a while."""

    def writing(self) -> AbstractContextManager[None]:
        """Release the lock until the block ends: a write, usually over in microseconds.

        Requests are answered meanwhile only if it takes longer.
        """

    def waiting(self, *, must: bool = False) -> AbstractContextManager[None]:
        """Release the lock until the block ends. Raises Busy if too many threads wait already.

        If the thread *must* wait, it does so in any case.
        """


class WatchfulYielding(Yielding, Protocol):
    """Yielding for a thread that may be the last worker that reads FUSE requests."""

    def waiting_with_watch(self) -> AbstractContextManager[RequestWatch]:
        """Release the lock until the block ends, and watch for requests meanwhile.

        Raises Busy if too many threads wait already. The block must stop the watch before it waits
        without polling it.
        """

    def during_write(self, watch: RequestWatch) -> AbstractContextManager[None]:
        """Stop *watch* if the block, a write, takes longer than usual."""
