"""A mutation on its way from the one who asked for it to the tree, and back with what came of it.

Threads: everything but waiting for the signal needs the tree's lock.
"""

import threading

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import NotFound, PmxcfsError, Stale
from pmxcfs.messages import Create, Delete, Mkdir, Mutation, Rename
from pmxcfs.tree.apply import Change

NAME_TIMEOUT = 2.0  # seconds that a change of a name may wait: the kernel locks its directory
CONTENT_TIMEOUT = 10.0  # seconds for all others


class Signal:
    """What threads wait for and one gives, once: ``threading.Event`` at a fraction of its cost."""

    def __init__(self) -> None:
        self._is_given = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def give(self) -> None:
        """Let go all who wait, or will. For one thread at a time."""
        if not self._is_given:
            self._is_given = True
            self._lock.release()

    def wait(self, seconds: float) -> bool:
        """Wait until it is given, *seconds* at most; tell whether it is."""
        if not self._lock.acquire(timeout=seconds):
            return False
        self._lock.release()
        return True


class Ticket:
    """One mutation on its way: what to apply in whose name, and what came of it.

    With a *target* the mutation is for that entry, whatever its path is when its turn comes. It
    may wait for *timeout* seconds before it is carried out, at most; 0 stands for what is usual.
    What is done *for_another* has to be done all the same if there was no room for it now.
    """

    def __init__(
        self,
        mutation: Mutation,
        *,
        writer: int = 0,
        mtime: int = 0,
        foreign: bool = False,
        target: Entry | None = None,
        timeout: float = 0.0,
        for_another: bool = False,
    ) -> None:
        self.mutation = mutation
        self.writer = writer  # node id
        self.mtime = mtime  # the issuer's clock, seconds
        self.foreign = foreign
        self.timeout = timeout
        self.for_another = for_another
        self.is_done = False
        self.change: Change | None = None
        self.error: PmxcfsError | None = None
        self._target = target
        self._done: Signal | None = None  # made only when somebody waits

    def with_current_path(self, tree: Tree) -> Mutation:
        """Return the mutation with its target's present path.

        Raises NotFound if the target was removed, Stale if another entry has its name.
        """
        target, mutation = self._target, self.mutation
        if target is None or isinstance(mutation, Rename):
            return mutation
        if target.is_attached:
            path = target.path
            return mutation if mutation.path == path else mutation._replace(path=path)
        if tree.find(target.path) is not None:
            raise Stale("another file has its name now")
        raise NotFound("it was removed meanwhile")

    def finish(self, error: PmxcfsError | None = None) -> None:
        """It is over; wake who waits."""
        if self.error is None:
            self.error = error
        self.is_done = True
        if self._done is not None:
            self._done.give()

    def done(self) -> Signal:
        """Return what ``finish`` gives."""
        if self._done is None:
            self._done = Signal()
        return self._done

    def result(self) -> Change:
        """Return the change that was made, or raise why there is none."""
        if self.error is not None:
            raise self.error
        assert self.change is not None, "a ticket is asked for its result before it is done"
        return self.change


def timeout_for(ticket: Ticket) -> float:
    """Return the seconds that a ticket may wait, at most, before it is carried out."""
    if ticket.timeout:
        return ticket.timeout
    of_name = isinstance(ticket.mutation, Mkdir | Create | Delete | Rename)
    return NAME_TIMEOUT if of_name else CONTENT_TIMEOUT
