"""Saves that local clients ask for, with ``pmxcfs checkpoint``.

Threads: ``save`` works while there is a request; it ends by itself. ``begin`` and ``outcome`` are
for any thread, and never block. Contract: docs/spec/storage.md, "Handing over".
"""

import logging
import threading
from collections.abc import Callable

from pmxcfs.errors import NotFound, StoreError

_log = logging.getLogger("pmxcfs.database")


class SaveRequests:
    """Runs *save*, which blocks and raises StoreError, once for all requests that wait."""

    def __init__(self, save: Callable[[], None]) -> None:
        self._save = save
        self._lock = threading.Lock()  # guards the following
        self._wanted = self._done = 0  # the numbers of the last request and of the last answered
        self._outcome = ""  # of the last save
        self._is_running = False

    def begin(self) -> int:
        """Begin a save of all that is unsaved, or have one follow that runs; return its number."""
        with self._lock:
            self._wanted += 1
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="save", daemon=True).start()
            return self._wanted

    def outcome(self, number: int) -> str | None:
        """Return why a save failed, "" if it succeeded, None while it runs. Raises NotFound.

        It is that of the last save that was begun after the request.
        """
        with self._lock:
            if not 0 < number <= self._wanted:
                raise NotFound(f"no save has the number {number}")
            return self._outcome if number <= self._done else None

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._wanted == self._done:
                    self._is_running = False
                    return
                number = self._wanted
            outcome = "a bug, see the log"
            try:
                self._save()
                outcome = ""
            except StoreError as error:
                outcome = str(error)
            except Exception:  # noqa: BLE001, as later requests must be answered, too
                _log.exception("the save for a client has failed, which is a bug")
            finally:
                with self._lock:
                    self._outcome, self._done = outcome, number
