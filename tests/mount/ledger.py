"""Counts of comparisons with the expected state, and the stale or late results among them."""

import time
from collections import Counter
from collections.abc import Callable

from tests.harness import POLL_INTERVAL, Daemon

GRACE = 0.1  # seconds after the control's answer until a change must be visible
SLACK = 3  # a delay that is tolerated a few times on a busy machine


class Ledger:
    """Counts of comparisons. Time without a free processor does not count as a delay."""

    def __init__(self, daemon: Daemon) -> None:
        self.checks: Counter[str] = Counter()
        self.late = self.starved = 0
        self.stale: list[str] = []
        self._daemon = daemon
        self._starvation = daemon.starvation()

    def begin(self) -> None:
        """Start the clock for the changes that follow."""
        self._starvation = self._daemon.starvation()

    def check(self, kind: str, path: object, see: Callable[[], object], wanted: object) -> None:
        """Compare one value that must be visible by now; if it gets right soon, it was late."""
        self.checks[kind] += 1
        seen, due = see(), time.monotonic()
        if seen == wanted:
            return
        while see() != wanted:
            if self._delay(due) > (SLACK - 1) * GRACE:
                self.stale.append(f"{kind} of {path}: {shorten(seen)}, not {shorten(wanted)}")
                return
            time.sleep(POLL_INTERVAL)
        if self._delay(due) > 0:
            self.late += 1
        else:
            self.starved += 1

    def _delay(self, due: float) -> float:
        return time.monotonic() - due - self._starvation.seconds()


def shorten(value: object) -> str:
    """Return the beginning of a value's repr."""
    text = repr(value)
    return text if len(text) < 60 else f"{text[:40]}... ({len(text)} characters)"
