"""What was compared with what must be seen, and what of it was stale, or late."""

import time
from collections import Counter
from collections.abc import Callable

from tests.harness import POLL_INTERVAL, Daemon

GRACE = 0.1  # seconds after the control's answer until a change must be visible
SLACK = 3  # by which a busy machine may be late, now and then


class Ledger:
    """Counts of comparisons. Of a delay, what the machine was too busy for is nobody's fault."""

    def __init__(self, daemon: Daemon) -> None:
        self.checks: Counter[str] = Counter()
        self.late = self.starved = 0
        self.stale: list[str] = []
        self._daemon = daemon
        self._starvation = daemon.starvation()

    def begin(self) -> None:
        """Changes are made from now on that will be compared."""
        self._starvation = self._daemon.starvation()

    def check(self, kind: str, path: object, see: Callable[[], object], wanted: object) -> None:
        """Compare one thing that must be visible by now; what comes right soon was late."""
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
    """Show the beginning of a value."""
    text = repr(value)
    return text if len(text) < 60 else f"{text[:40]}... ({len(text)} characters)"
