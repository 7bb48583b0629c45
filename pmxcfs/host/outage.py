"""Failures that repeat or last, of which not every occurrence is logged."""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

MAX_KEYS = 1000  # that Repetitions remembers
Cause = TypeVar("Cause")


class Outage(Generic[Cause]):
    """Whether one thing fails at present, and why.

    *describe* makes the log line of a cause; *over* is the line for the end, "" for none. While the
    outage lasts, a failure is logged again only if its *kind* is not the kind of the last one.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        describe: Callable[[Cause], str] = str,
        over: str = "",
        level: int = logging.ERROR,
        kind: Callable[[Cause], object] = lambda cause: None,
    ) -> None:
        self.cause: Cause | None = None  # of the last failure; None while it works
        self._logger = logger
        self._describe = describe
        self._over = over
        self._level = level
        self._kind = kind

    def fails(self, cause: Cause) -> None:
        """Note a failure."""
        is_new = self.cause is None or self._kind(self.cause) != self._kind(cause)
        self.cause = cause  # always the latest: an exception that is raised again keeps its frames
        if is_new:
            self._logger.log(self._level, "%s", self._describe(cause))

    def works(self) -> None:
        """Note a success."""
        if self.cause is not None and self._over:
            self._logger.info("%s", self._over)
        self.cause = None


class Repetitions:
    """Which occurrences of many are to be logged: for each key one in *interval_ns*."""

    def __init__(self, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self._logged: dict[object, int] = {}  # monotonic ns of the last one, the oldest key first

    def is_due(self, key: object, *, now_ns: int) -> bool:
        """Tell whether the occurrence at *now_ns* (monotonic) is to be logged."""
        since_ns = self._logged.get(key)
        if since_ns is not None and now_ns - since_ns < self._interval_ns:
            return False
        self._logged.pop(key, None)
        self._logged[key] = now_ns
        while len(self._logged) > MAX_KEYS:
            del self._logged[next(iter(self._logged))]
        return True
