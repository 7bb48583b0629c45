"""A mutation on its way from the one who asked for it to the tree, and back with what came of it.

Threads: everything but waiting for the event needs the tree's lock.
"""

import threading

from pmxcfs._core import Entry, Tree
from pmxcfs.delivery import Change
from pmxcfs.errors import NotFound, PmxcfsError, Stale
from pmxcfs.messages import Mutation, Rename


class Ticket:
    """One mutation on its way: what to apply in whose name, and what came of it.

    With a *target* the mutation is for that entry, whatever its path is when its turn comes.
    """

    def __init__(
        self,
        mutation: Mutation,
        *,
        writer: int = 0,
        mtime: int = 0,
        foreign: bool = False,
        target: Entry | None = None,
    ) -> None:
        self.mutation = mutation
        self.writer = writer  # node id
        self.mtime = mtime  # the issuer's clock, seconds
        self.foreign = foreign
        self.is_done = False
        self.change: Change | None = None
        self.error: PmxcfsError | None = None
        self._target = target
        self._done: threading.Event | None = None  # made only when somebody waits

    def aimed(self, tree: Tree) -> Mutation:
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
            self._done.set()

    def done(self) -> threading.Event:
        """Return an event for ``finish``."""
        if self._done is None:
            self._done = threading.Event()
        return self._done

    def result(self) -> Change:
        """Return the change that was made, or raise why there is none."""
        if self.error is not None:
            raise self.error
        assert self.change is not None, "a ticket is asked for its result before it is done"
        return self.change
