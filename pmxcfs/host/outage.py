"""Whether something works: told to the log when that changes, and not each time."""

import logging

from pmxcfs.errors import StoreError

_log = logging.getLogger("pmxcfs.database")


class Health:
    """Whether one thing works, logged whenever that changes."""

    def __init__(self, failing: str, working: str) -> None:
        self.error: StoreError | None = None
        self._failing = failing
        self._working = working

    def fails(self, error: StoreError) -> None:
        """It failed. The same errno again is no news."""
        if self.error is None or self.error.errno != error.errno:
            _log.error("%s; %s", error, self._failing)
        self.error = error

    def works(self) -> None:
        """It worked."""
        if self.error is not None:
            _log.info("%s", self._working)
        self.error = None
