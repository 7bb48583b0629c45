"""llfuse's worker threads, of which all but one are parked.

When the last worker that reads begins to wait, it unparks another one, or it watches for requests
and unparks one when a request has come. A worker parks in its RELEASE handler, as no process waits
for that reply.

Threads: all methods need the tree's lock, and release it while they block.
Contract: docs/spec/fuse.md, "Waiting"; docs/spec/session.md, "Workers".
"""

import contextlib
import select
import threading
from contextlib import AbstractContextManager

from pmxcfs.fuse.waits import Waits

RESERVED_WORKERS = 4  # workers that never wait for other nodes, so that reads go on
SESSION_CHECK_INTERVAL = 1.0  # seconds between checks of a parked worker for the session's end


class Workers(Waits):
    """The *count* workers. *lock_released* releases the tree's lock until its block ends."""

    def __init__(self, count: int, *, lock_released: AbstractContextManager[None]) -> None:
        super().__init__(limit=max(0, count - RESERVED_WORKERS))
        self.count = count
        self._lock_released = lock_released
        # Threads without the lock. Other threads count, too, which may unpark one worker too many.
        self._released_count = 0
        self._parked: list[threading.Event] = []
        self._is_closed = False

    def _is_over(self) -> bool:
        """Return whether the kernel has ended the session, by the state of the descriptor."""
        if self._descriptor < 0:
            return False
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return bool(poll.poll(0))

    @property
    def _readers(self) -> int:
        return self.count - self._released_count - len(self._parked)

    def _release(self) -> None:
        self._lock_released.__enter__()

    def _acquire(self) -> None:
        self._lock_released.__exit__(None, None, None)

    def _begin(self) -> bool:
        self._released_count += 1
        return self._readers < 1

    def _end(self) -> None:
        self._released_count -= 1

    def park(self) -> None:
        """Block until this worker is unparked, unless it is the only one that reads requests."""
        if self._is_closed or self._readers < 2:
            return
        unparked = threading.Event()
        # One worker that checks is enough. It is the first one, as it is unparked last.
        pause = None if self._parked else SESSION_CHECK_INTERVAL
        self._parked.append(unparked)
        with self._lock_released:
            while not unparked.wait(pause) and not self._is_over():
                pass
        if not unparked.is_set():
            self.close()

    def close(self) -> None:
        """Unpark all workers, and let none park any more."""
        self._is_closed = True
        while self._parked:
            self._call_reader()

    def _call_reader(self) -> None:
        """Unpark one worker, if any is parked. For any thread; does not need the lock."""
        with contextlib.suppress(IndexError):
            self._parked.pop().set()
