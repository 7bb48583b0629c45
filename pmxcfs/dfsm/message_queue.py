"""Changes that wait for the end of a round, in the order in which all members must deliver them.

Contract: spec cluster.md, "NORMAL messages".
"""

from bisect import insort
from collections.abc import Callable, Collection
from typing import NamedTuple

from pmxcfs.messages import Member, Normal


class Letter(NamedTuple):
    """A change and who sent it."""

    sender: Member
    message: Normal


class Letters:
    """One list over all senders, by the serial alone; equal serials in order of arrival."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []

    def __len__(self) -> int:
        return len(self._letters)

    def add(self, letter: Letter) -> None:
        """Put *letter* behind all whose serial is not higher."""
        insort(self._letters, letter, key=lambda known: known.message.serial)

    def take(self, senders: Collection[Member]) -> list[Letter]:
        """Remove and return what *senders* sent."""
        return self._take(lambda letter: letter.sender in senders)

    def take_all(self) -> list[Letter]:
        """Remove and return everything."""
        return self._take(lambda _: True)

    def _take(self, is_wanted: Callable[[Letter], bool]) -> list[Letter]:
        taken = [letter for letter in self._letters if is_wanted(letter)]
        self._letters = [letter for letter in self._letters if not is_wanted(letter)]
        return taken
