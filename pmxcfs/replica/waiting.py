"""A thread that holds the tree's lock and waits: RequestWatch, Interruption and Yielding.

When the last worker that reads FUSE requests begins to wait for other nodes, it could wake another
worker to read them. Usually no request arrives before the wait is over, and the other worker would
only take CPU time. So the waiting worker polls the FUSE descriptor beside the event it waits for,
and wakes another worker only when a request has arrived.

A program that gets a signal while its request waits has to be answered soon, if nothing of its
change was sent or written yet: until then it can't even be killed.
Contract: docs/spec/fuse.md, "Waiting".
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, Self

from pmxcfs.errors import Signaled
from pmxcfs.replica.tickets import Ticket


class RequestWatch:
    """Watches the FUSE descriptor for the last worker that reads it, while that worker waits.

    Not active if another worker reads requests. *call* wakes another worker; it may be called from
    any thread.
    """

    def __init__(self, descriptor: int, call: Callable[[], None], is_active: bool) -> None:
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


class Interruptible(Protocol):
    """A request that a thread handles. Used with the tree's lock held."""

    is_interrupted: bool  # its program has got a signal since
    on_interrupt: Callable[[], None] | None  # called when that happens


class Interruption:
    """Calls *wake*, with the tree's lock held, when *request* is interrupted while the block runs.

    If that has happened before, the block is not entered: raises Signaled. Without a *request*
    there is no program that could get a signal. Instead of a block there can be ``begin`` and, if
    that has not raised, ``end``; a block costs more.
    """

    def __init__(self, request: Interruptible | None, wake: Callable[[], None]) -> None:
        self._request = request
        self._wake = wake
        self._outer: Callable[[], None] | None = None

    @property
    def is_given(self) -> bool:
        """Whether the request was interrupted. Needs no lock."""
        return self._request is not None and self._request.is_interrupted

    def check(self) -> None:
        """Raise Signaled if the request was interrupted."""
        if self.is_given:
            raise Signaled

    def begin(self) -> None:
        """Call *wake* from now on when the request is interrupted. Raises Signaled if it was."""
        request = self._request
        if request is not None:
            if request.is_interrupted:
                raise Signaled
            self._outer = request.on_interrupt
            request.on_interrupt = self._wake

    def end(self) -> None:
        """Call *wake* no more."""
        if self._request is not None:
            self._request.on_interrupt = self._outer

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


NOT_INTERRUPTIBLE = Interruption(None, lambda: None)


class Yielding(Protocol):
    """Ways in which a thread that holds the tree's lock releases it for a while."""

    def begin_write(self) -> RequestWatch:
        """Release the lock for a write, usually over in microseconds, until ``end_write``.

        Requests are answered meanwhile only if it takes longer.
        """

    def end_write(self, watch: RequestWatch) -> None:
        """Take the lock again after a write; *watch* is what ``begin_write`` returned."""

    def waiting(self, *, must: bool = False) -> AbstractContextManager[None]:
        """Release the lock until the block ends. Raises Busy if too many threads wait already.

        If the thread *must* wait, it does so in any case.
        """

    def interruptible(self, wake: Callable[[], None]) -> Interruption:
        """Return what calls *wake* if the calling thread's request is interrupted."""


class WatchfulYielding(Yielding, Protocol):
    """Yielding for a thread that may be the last worker that reads FUSE requests."""

    def begin_waiting(self) -> RequestWatch:
        """Release the lock until ``end_waiting``, and watch for requests meanwhile.

        Raises Busy if too many threads wait already. The watch must be stopped before the thread
        waits without polling it.
        """

    def expect_write(self, watch: RequestWatch) -> None:
        """Stop *watch* if the rest of the wait, a write, takes longer than usual. No lock needed.

        *watch* is what ``begin_waiting`` returned.
        """

    def end_waiting(self, watch: RequestWatch) -> None:
        """Take the lock again after a wait; *watch* is what ``begin_waiting`` returned."""


def await_done(ticket: Ticket, seconds: float, yielding: Yielding) -> bool:
    """Wait until another thread has carried out *ticket*; tell whether it has. Blocks.

    Releases the lock meanwhile. Raises Signaled, and Busy if too many threads wait already.
    """
    if not ticket.is_done:
        signal = ticket.signal()
        with yielding.interruptible(signal.give) as interruption, yielding.waiting():
            signal.wait(seconds)
        if not ticket.is_done:
            interruption.check()
    return ticket.is_done
