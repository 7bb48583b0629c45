"""A failure that lasts, logged once when it begins and once when it is over."""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

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
