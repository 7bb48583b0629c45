"""The thread that makes the journal ready for changes, and the wait for it.

Reserving space, beginning a segment and saving the tree after a failure are system calls that a
device can hold for as long as it likes. No request makes them: it asks this thread and waits for
the outcome, with a time limit of its own.

After a failure there are at most two attempts a second. Who asks in between gets the outcome of the
next one.

Threads: ``room``, which begins when it is asked and ends when nobody has asked for a while. The
methods are for any other thread, all but ``wake`` without the tree's lock.
Contract: docs/spec/storage.md, "Writing".
"""

import logging
import threading
import time
from collections.abc import Callable

from pmxcfs.errors import Stalled, StoreError
from pmxcfs.replica.waiting import NOT_INTERRUPTIBLE, Interruption

_log = logging.getLogger("pmxcfs.database")

ATTEMPT_INTERVAL = 0.5  # seconds between attempts after a failure
IDLE_TIMEOUT = 1.0  # seconds without a question after which the thread ends


class RoomMaker:
    """Calls *attempt* with the largest number of bytes that anybody has asked for since the last.

    *attempt* raises StoreError.
    """

    def __init__(
        self,
        attempt: Callable[[int], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._attempt = attempt
        self._monotonic = monotonic
        self._pause = pause
        self._condition = threading.Condition()  # guards the following; told when any changes
        self._size = 0  # bytes
        self._asked = self._answered = 0  # the numbers of the last question and the last answer
        self._outcome: StoreError | None = None  # of the last attempt
        self._next_attempt = 0.0  # monotonic seconds, after a failure
        self._is_running = False

    def ask(self, size: int) -> int:
        """Have room made for *size* bytes; return a number for ``wait``."""
        with self._condition:
            self._size = max(self._size, size)
            self._asked += 1
            if self._is_running:
                self._condition.notify_all()
            else:
                threading.Thread(target=self._run, name="room", daemon=True).start()
                self._is_running = True
            return self._asked

    def wake(self) -> None:
        """Let those that wait look whether they were interrupted."""
        with self._condition:
            self._condition.notify_all()

    def wait(
        self, number: int, seconds: float, interruption: Interruption = NOT_INTERRUPTIBLE
    ) -> None:
        """Wait until the question with this *number* is answered. Blocks.

        Raises the StoreError of the attempt, Stalled if it has not ended after *seconds*, and
        Signaled when *interruption* is given and ``wake`` called.
        """
        limit = min(max(seconds, 0.0), threading.TIMEOUT_MAX)
        with self._condition:
            self._condition.wait_for(
                lambda: self._answered >= number or interruption.is_given, limit
            )
            if self._answered < number:
                interruption.check()
                raise Stalled
            if self._outcome is not None:  # a copy: each that is raised collects frames
                raise StoreError(str(self._outcome), self._outcome.errno)

    def _run(self) -> None:
        while self._is_asked():
            self._pause_after_failure()
            with self._condition:
                number, size, self._size = self._asked, self._size, 0
            outcome = self._try(size)
            with self._condition:
                self._answered, self._outcome = number, outcome
                self._next_attempt = self._monotonic() + ATTEMPT_INTERVAL
                self._condition.notify_all()

    def _is_asked(self) -> bool:
        """Wait for a question; return False if none comes for long, and the thread is to end."""
        with self._condition:
            is_asked = self._condition.wait_for(lambda: self._asked > self._answered, IDLE_TIMEOUT)
            self._is_running = is_asked
            return is_asked

    def _pause_after_failure(self) -> None:
        with self._condition:
            delay = self._next_attempt - self._monotonic() if self._outcome is not None else 0.0
        if delay > 0:
            self._pause(delay)

    def _try(self, size: int) -> StoreError | None:
        try:
            self._attempt(size)
        except StoreError as error:
            return error.with_traceback(None)
        except Exception:  # noqa: BLE001, as those who wait must get an answer
            _log.exception("the journal could not be made ready, which is a bug")
            return StoreError("the journal could not be made ready, by a bug")
        return None
