"""INTERRUPT: finds the request of which the kernel says that its program has got a signal.

The kernel says it once, for any signal, and waits for the answer all the same. The thread that
handles the request looks, while it waits, whether it was interrupted; what it has sent or begun to
write goes on. The number of a request that no thread handles is remembered for a moment, as such a
request may be read after its INTERRUPT.

Threads: all methods need the tree's lock, except ``begin`` and ``end``.
Contract: docs/spec/session.md, "Interrupts".
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from pmxcfs.replica.waiting import NOT_INTERRUPTIBLE, Interruptible, Interruption

MOST_REMEMBERED = 64  # numbers of requests that no thread handles
REMEMBERED = 1.0  # seconds


class Handled(Interruptible, Protocol):
    """What a thread handles: one request after the other."""

    @property
    def unique(self) -> int:
        """The kernel's number of the request."""


class Interrupts:
    """The requests that the threads of a session handle, and those interrupted too early."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._handled: dict[int, Handled] = {}  # by thread
        self._early: dict[int, float] = {}  # number of the request -> monotonic time; oldest first

    def begin(self, handled: Handled) -> None:
        """Note that the calling thread handles the requests of *handled*."""
        self._handled[threading.get_ident()] = handled

    def end(self) -> None:
        """Note that the calling thread handles no more requests."""
        del self._handled[threading.get_ident()]

    @contextlib.contextmanager
    def interrupting(self, handled: Handled) -> Iterator[None]:
        """Let the requests of *handled* be interrupted, which the calling thread handles."""
        self.begin(handled)
        try:
            yield
        finally:
            self.end()

    def interrupt(self, unique: int) -> None:
        """Interrupt the request with the number *unique*, or remember that."""
        for handled in list(self._handled.values()):
            if handled.unique == unique:
                handled.is_interrupted = True
                if handled.on_interrupt is not None:
                    handled.on_interrupt()
                return
        self._forget_old()
        if len(self._early) >= MOST_REMEMBERED:
            del self._early[next(iter(self._early))]
        self._early[unique] = self._monotonic()

    def interruptible(self, wake: Callable[[], None]) -> Interruption:
        """Return what calls *wake* if the request is interrupted that the calling thread handles.

        A thread that handles none, such as the publisher's, can't be interrupted.
        """
        handled = self._handled.get(threading.get_ident())
        if handled is None:
            return NOT_INTERRUPTIBLE
        if self._early:
            self._forget_old()
            if self._early.pop(handled.unique, None) is not None:
                handled.is_interrupted = True
        return Interruption(handled, wake)

    def _forget_old(self) -> None:
        oldest = self._monotonic() - REMEMBERED
        self._early = {unique: at for unique, at in self._early.items() if at > oldest}
