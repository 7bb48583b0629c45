"""The watch that the kernel's requests come through, for the one who waits while nobody is there.

A worker that begins to wait for other nodes, and is the last that reads requests, could call
another one to read them. But mostly none comes before it is done, and the other one would run for
nothing, on the time that this one needs. So it *keeps* the watch: it watches that beside what it
waits for, and calls the other one when a request has come. Contract: docs/spec/fuse.md, "Waiting".
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class RequestWatch:
    """Not kept if somebody reads. *call* has another worker read; it is for any thread."""

    __slots__ = ("_call", "_descriptor", "is_active")

    def __init__(self, descriptor: int, call: Callable[[], None], *, is_active: bool) -> None:
        self.is_active = is_active
        self._descriptor = descriptor
        self._call = call

    def fileno(self) -> int:
        """Return what can be read when a request has come."""
        return self._descriptor

    def stop(self) -> None:
        """Keep it no longer, because a request has come, or because it can't be watched now."""
        if self.is_active:
            self.is_active = False
            self._call()


class Yielding(Protocol):
    """How a thread that holds the tree's lock lets others have it for a while."""

    def give_way(self) -> None:
        """Let requests that are ready run first; they may join this group."""

    def released(self) -> AbstractContextManager[None]:
        """Give the lock back until the block ends, to wait for a device."""

    def aside(self, work: Callable[[], object]) -> object:
        """Have something done that takes long, with the lock given back, and return its outcome."""

    def waiting(self) -> AbstractContextManager[None]:
        """Give the lock back until the block ends; raise Busy if too many wait already."""


class WatchfulYielding(Yielding, Protocol):
    """The same for a thread that may be the last that reads requests."""

    def waiting_with_watch(self) -> AbstractContextManager[RequestWatch]:
        """As ``waiting``; the block must leave the watch before it waits for anything else."""
