"""The queue of changes received during a round, in the order in which all members deliver them.

Contract: docs/spec/cluster.md, "NORMAL messages".
"""

from bisect import insort
from collections.abc import Callable, Collection
from typing import NamedTuple

from pmxcfs.messages import Member, Normal


class QueuedChange(NamedTuple):
    """A change and its sender."""

    sender: Member
    message: Normal


class MessageQueue:
    """The changes of all senders, sorted by serial only; equal serials in order of arrival."""

    def __init__(self) -> None:
        self._changes: list[QueuedChange] = []

    def __len__(self) -> int:
        return len(self._changes)

    def add(self, queued: QueuedChange) -> None:
        """Insert *queued* behind all changes with the same or a lower serial."""
        insort(self._changes, queued, key=lambda known: known.message.serial)

    def take(self, senders: Collection[Member]) -> list[QueuedChange]:
        """Remove and return the changes of *senders*, in queue order."""
        return self._take(lambda queued: queued.sender in senders)

    def take_all(self) -> list[QueuedChange]:
        """Remove and return all changes, in queue order."""
        return self._take(lambda _: True)

    def _take(self, is_wanted: Callable[[QueuedChange], bool]) -> list[QueuedChange]:
        taken = [queued for queued in self._changes if is_wanted(queued)]
        self._changes = [queued for queued in self._changes if not is_wanted(queued)]
        return taken
