"""Changes that wait for the end of a round, in the order in which all members must deliver them.

Contract: docs/spec/cluster.md, "NORMAL messages".
"""

from bisect import insort
from collections.abc import Callable, Collection
from typing import NamedTuple

from pmxcfs.messages import Member, Normal


class QueuedChange(NamedTuple):
    """A change and who sent it."""

    sender: Member
    message: Normal


class MessageQueue:
    """One list over all senders, by the serial alone; equal serials in order of arrival."""

    def __init__(self) -> None:
        self._changes: list[QueuedChange] = []

    def __len__(self) -> int:
        return len(self._changes)

    def add(self, queued: QueuedChange) -> None:
        """Put *queued* behind all whose serial is not higher."""
        insort(self._changes, queued, key=lambda known: known.message.serial)

    def take(self, senders: Collection[Member]) -> list[QueuedChange]:
        """Remove and return what *senders* sent."""
        return self._take(lambda queued: queued.sender in senders)

    def take_all(self) -> list[QueuedChange]:
        """Remove and return everything."""
        return self._take(lambda _: True)

    def _take(self, is_wanted: Callable[[QueuedChange], bool]) -> list[QueuedChange]:
        taken = [queued for queued in self._changes if is_wanted(queued)]
        self._changes = [queued for queued in self._changes if not is_wanted(queued)]
        return taken
