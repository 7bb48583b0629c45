"""When the tree is saved: at once, some seconds after a change of the configuration, or later.

Knows no clock, thread, journal or database. Times are monotonic seconds.
Contract: docs/spec/storage.md, "Writing".
"""

import math

SAVE_AFTER = 300.0  # seconds after the first unsaved change
SAVE_SIZE = 8 << 20  # bytes of journal that wait to be saved
PAUSE = 2.0  # seconds without a change of the configuration
CONFIGURATION_AFTER = 30.0  # seconds after the first unsaved change of the configuration
NEVER = math.inf
NOW = -math.inf  # is always over


class Schedule:
    """The unsaved changes as far as the next save depends on them."""

    def __init__(self) -> None:
        self._first = NEVER  # time of the first unsaved change
        # Times of the first and of the last unsaved change of the configuration.
        self._first_configuration = self._last_configuration = NEVER
        self._taken = NEVER, NEVER, NEVER  # the same of the changes that are being saved

    def touch(self, now: float, is_configuration: bool) -> bool:
        """Note a change if it can only put the next save off; return whether it was noted.

        Needs no lock: it sets one number.
        """
        if not is_configuration:
            return self._first != NEVER
        if self._first_configuration == NEVER:
            return False
        self._last_configuration = now
        return True

    def note_change(self, now: float, is_configuration: bool) -> None:
        """Note an unsaved change."""
        self._first = min(self._first, now)
        if is_configuration:
            self._first_configuration = min(self._first_configuration, now)
            self._last_configuration = now

    def due_at(self, size: int, *, is_blocked: bool) -> float:
        """Return the time of the next save; *size* bytes of journal wait.

        With *is_blocked*, the log can't be cut, so there is no save before it has to be.
        """
        if size >= SAVE_SIZE:
            return NOW
        if is_blocked:
            return NEVER
        return min(
            self._first + SAVE_AFTER,
            self._first_configuration + CONFIGURATION_AFTER,
            self._last_configuration + PAUSE,
        )

    def begin(self) -> None:
        """Note that all changes so far are being saved."""
        self._taken = self._first, self._first_configuration, self._last_configuration
        self._first = self._first_configuration = self._last_configuration = NEVER

    def fail(self) -> None:
        """Note that the changes since the last ``begin`` and those before it are unsaved."""
        first, first_configuration, last_configuration = self._taken
        self._first = min(self._first, first)
        self._first_configuration = min(self._first_configuration, first_configuration)
        if self._last_configuration == NEVER:
            self._last_configuration = last_configuration
