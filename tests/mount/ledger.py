"""What was compared with what must be seen, and what of it was stale, or late."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.harness import POLL_INTERVAL, Daemon

GRACE = 0.1  # seconds after the control's answer until a change must be visible
SLACK = 3  # by which a busy machine may be late, now and then


class Starvation:
    """How long the threads of a daemon, and the caller's, have had no processor."""

    def __init__(self, daemon: Daemon) -> None:
        self._places = (Path("/proc/thread-self"), Path(f"/proc/{daemon.process.pid}/task"))
        self._before = self._waits()

    def seconds(self) -> float:
        """Return the sum since this was made: they may have waited for one another."""
        now = self._waits()
        return sum(waited - self._before.get(name, 0) for name, waited in now.items()) / 1e9

    def _waits(self) -> dict[Path, int]:
        """Return the nanoseconds for each thread, the second number of schedstat."""
        own, tasks = self._places
        found = {}
        for file in (own / "schedstat", *tasks.glob("*/schedstat")):
            with contextlib.suppress(OSError):  # a thread has ended
                found[file] = int(file.read_bytes().split()[1])
        return found


class Ledger:
    """Counts of comparisons. Of a delay, what the machine was too busy for is nobody's fault."""

    def __init__(self, daemon: Daemon) -> None:
        self.checks: Counter[str] = Counter()
        self.late = self.starved = 0
        self.stale: list[str] = []
        self._daemon = daemon
        self._starvation = Starvation(daemon)

    def begin(self) -> None:
        """Changes are made from now on that will be compared."""
        self._starvation = Starvation(self._daemon)

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
