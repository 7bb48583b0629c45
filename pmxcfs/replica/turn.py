"""The turn to write, in local mode: one group of changes is written at a time.

Threads: callers hold the tree's lock. It is released while a thread waits.
"""

import time

from pmxcfs.errors import Stalled
from pmxcfs.replica.tickets import Signal
from pmxcfs.replica.waiting import Yielding


class Turn:
    """Whether a group is being written; the tree must not be changed then."""

    def __init__(self, yielding: Yielding) -> None:
        self.is_taken = False
        self._yielding = yielding
        self._waiting: list[Signal] = []

    def begin(self) -> None:
        """Note that this thread writes a group from now on."""
        self.is_taken = True

    def end(self) -> None:
        """Note that the group was written, or not."""
        self.is_taken = False
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for signal in waiting:
                signal.give()

    def await_end(self, seconds: float) -> None:
        """Wait until no group is being written, *seconds* at most. Blocks.

        Releases the lock meanwhile, so other threads may have changed the tree. Raises Stalled
        after that time, Busy if too many threads wait, and Signaled.
        """
        if not self.is_taken:
            return
        until = time.monotonic() + seconds
        while self.is_taken:
            signal = Signal()
            self._waiting.append(signal)
            interruption = self._yielding.interruptible(signal.give)
            with interruption, self._yielding.waiting():
                is_given = signal.wait(max(0.0, until - time.monotonic()))
            interruption.check()
            if not is_given and self.is_taken:
                raise Stalled
