"""Tickets: one for each requested mutation, with its result once it was carried out.

Threads: callers hold the tree's lock, except to wait for a Signal.
Contract: docs/spec/cluster.md, "A mutation must not block forever".
"""

import math
from collections.abc import Callable

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import Exists, GuestTaken, NotFound, PmxcfsError, Stale
from pmxcfs.host.callers import UNKNOWN, Caller
from pmxcfs.host.locking import Lock
from pmxcfs.messages import Create, Delete, Mkdir, Mutation, Rename, Write
from pmxcfs.tree.apply import Change

NAME_TIMEOUT = 2.0  # seconds that a change of a name may wait: the kernel locks the directory
CONTENT_TIMEOUT = 10.0  # seconds that any other change may wait
NAME_LIMIT = 10.25  # seconds until a change of a name is answered, sent or not
_NEVER = math.inf
_OF_NAMES = frozenset([Mkdir, Create, Delete, Rename])  # they let the kernel lock a directory


class Signal:
    """A one-shot event: like ``threading.Event``, but much cheaper to create."""

    def __init__(self) -> None:
        self._is_given = False
        self._lock = Lock()
        self._lock.acquire()

    def give(self) -> None:
        """Wake all present and future waiters. Only one thread at a time may call this."""
        if not self._is_given:
            self._is_given = True
            self._lock.release()

    def wait(self, seconds: float) -> bool:
        """Wait until ``give`` was called, *seconds* at most; tell whether it was. Blocks."""
        if not self._lock.acquire(True, -1.0 if seconds == _NEVER else seconds):
            return False
        self._lock.release()
        return True


class Ticket:
    """A requested mutation, its issuer, and its result.

    With a *target* the mutation is for that entry: its path is looked up when it is applied. It may
    wait at most *timeout* seconds before it is carried out, and *limit* seconds in all; 0 means the
    default of ``timeout_for`` and ``limit_for``.
    *for_another*: on Busy the change is retried later instead of being dropped. *objection* is
    called when the ticket has waited and is about to be sent or applied here: it returns the error
    by which the mutation is refused, or None. *caller* is the process of this node that asked.
    *made* is the object by which the kernel knows a file that this mount has made: a change of
    another object is foreign to it.
    """

    def __init__(
        self,
        mutation: Mutation,
        *,
        writer: int = 0,
        mtime: int = 0,
        foreign: bool = False,
        caller: Caller = UNKNOWN,
        target: Entry | None = None,
        timeout: float = 0.0,
        limit: float = 0.0,
        for_another: bool = False,
        objection: Callable[[], PmxcfsError | None] | None = None,
        made: Entry | None = None,
    ) -> None:
        self.mutation = mutation
        self.writer = writer  # nodeid
        self.mtime = mtime  # seconds since 1970, by the issuer's clock
        self.foreign = foreign  # not made through this node's mount
        self.timeout = timeout
        self.limit = limit
        self.for_another = for_another
        self.caller = caller
        self.made = made
        self._objection = objection
        self.is_queued = False  # local mode: waits to be delivered
        self.is_done = False
        self.change: Change | None = None
        self.error: PmxcfsError | None = None
        self._target = target
        self._done: Signal | None = None  # created only when a thread waits
        self._others: list[Signal] | None = None  # of other threads that wait, if any

    def objection(self) -> PmxcfsError | None:
        """Return the error by which the mutation has to be refused now, or None."""
        return None if self._objection is None else self._objection()

    def with_current_path(self, tree: Tree) -> Mutation:
        """Return the mutation with its target's current path.

        Raises NotFound if the target was removed, Stale if another entry has its path now.
        """
        target, mutation = self._target, self.mutation
        if target is None or isinstance(mutation, Rename):
            return mutation
        if target.is_attached:
            path = target.path
            return mutation if mutation.path == path else mutation._replace(path=path)
        if tree.find(target.path) is not None:
            raise Stale("another file has this path now")
        raise NotFound("the file was removed meanwhile")

    def finish(self, error: PmxcfsError | None = None) -> None:
        """Mark the ticket as done, with the first *error*; wake the waiting threads."""
        if self.error is None:
            self.error = error
        self.is_done = True
        if self._done is not None:
            self._done.give()
        if self._others is not None:
            for signal in self._others:
                signal.give()

    def judge(self, error: PmxcfsError | None, part: int) -> PmxcfsError | None:
        """Return the *error* of one message of this change, the *part*-th from 0, that counts."""
        return error

    def done(self) -> Signal:
        """Return the signal that ``finish`` gives."""
        if self._done is None:
            self._done = Signal()
        return self._done

    def signal(self) -> Signal:
        """Return a signal of the caller's own that ``finish`` gives, and that others may give."""
        signal = Signal()
        self._others = [*(self._others or ()), signal]
        return signal

    def check(self) -> None:
        """Raise the error, if there is one. The ticket must be done."""
        if self.error is not None:
            raise self.error

    def result(self) -> Change:
        """Return the change, or raise the error. The ticket must be done."""
        self.check()
        assert self.change is not None, "the ticket is not done yet"
        return self.change


class Announcement(Ticket):
    """A requested new file: its CREATE, a WRITE unless *content* is None, and perhaps a RENAME.

    All are sent back to back, with one wait. That the file is there already is no error.
    """

    def __init__(
        self,
        create: Create,
        content: Write | None,
        rename: Rename | None = None,
        *,
        made: Entry | None = None,
        timeout: float,
        limit: float = 0.0,
        caller: Caller = UNKNOWN,
        objection: Callable[[], PmxcfsError | None] | None = None,
    ) -> None:
        super().__init__(
            rename or content or Write(create.path, 0, b"", truncate=False),
            timeout=timeout,
            limit=limit,
            caller=caller,
            objection=objection,
            made=made,
        )
        self.create, self.content, self.rename = create, content, rename
        self.has_found_file = False  # another node has made the file meanwhile
        self.was_refused = False  # by the objection, before anything was sent
        self.content_error: PmxcfsError | None = None  # of the CREATE and the WRITE
        self._left = 1 if content is None else 2  # parts that did not come back, but the RENAME

    @property
    def is_announced(self) -> bool:
        """Whether the file and its content were delivered, whatever has become of the RENAME."""
        return self._left == 0 and self.content_error is None

    def objection(self) -> PmxcfsError | None:
        """Return the error by which the announcement has to be refused now, or None."""
        error = super().objection()
        self.was_refused = error is not None
        return error

    def parts(self, split: Callable[[Mutation], list[Mutation]]) -> list[Mutation]:
        """Return the messages, of which *split* divides one that is too large."""
        contents = [] if self.content is None else split(self.content)
        self._left = 1 + len(contents)
        return [self.create, *contents, *([] if self.rename is None else [self.rename])]

    def judge(self, error: PmxcfsError | None, part: int) -> PmxcfsError | None:
        """Return the *error* that counts: not Exists of the CREATE."""
        if part == 0 and isinstance(error, Exists) and not isinstance(error, GuestTaken):
            self.has_found_file, error = True, None
        if self._left:
            self._left -= 1
            self.content_error = self.content_error or error
        return error


def timeout_for(ticket: Ticket) -> float:
    """Return the seconds that *ticket* may wait before it is carried out."""
    if ticket.timeout:
        return ticket.timeout
    return NAME_TIMEOUT if _is_of_name(ticket) else CONTENT_TIMEOUT


def limit_for(ticket: Ticket) -> float:
    """Return the seconds after which *ticket* is answered, even if its outcome is unknown."""
    if ticket.limit:
        return ticket.limit
    return NAME_LIMIT if _is_of_name(ticket) else _NEVER


def _is_of_name(ticket: Ticket) -> bool:
    """Return whether the kernel locks a directory while *ticket* waits."""
    return type(ticket.mutation) in _OF_NAMES
