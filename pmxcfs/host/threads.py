"""Background threads that can be stopped, and an eventfd that wakes a thread.

Each BackgroundThread is a daemon thread: one that hangs in the kernel or in a library does not keep
the process from ending.
"""

import contextlib
import os
import threading
from collections.abc import Callable

STOP_TIMEOUT = 0.5  # seconds that ``close`` waits for a thread to end, unless told otherwise


class Wakeup:
    """An eventfd that wakes the thread which polls it. For any thread; never blocks.

    The descriptor is closed with the last reference: a thread that sets it may be the last to end.
    """

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        """Return the descriptor, which is readable from ``set`` to ``clear``."""
        return self._descriptor

    def set(self) -> None:
        """Wake the thread."""
        os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """Let the thread sleep again until the next ``set``."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)


class BackgroundThread:
    """A thread with a stop flag. A subclass overrides ``run``, or the constructor gets a *target*.

    ``run`` returns soon after ``is_stopping`` becomes true. A subclass whose ``run`` waits for
    anything but ``pause`` overrides ``wake``, too.
    """

    def __init__(self, name: str, target: Callable[[], None] | None = None) -> None:
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)

    def run(self) -> None:
        """Do the work of the thread, in the thread."""
        assert self._target is not None, "a thread has a target, or its class overrides run"
        self._target()

    def wake(self) -> None:
        """Have ``run`` look at ``is_stopping`` now. Called by ``stop``; never blocks."""

    @property
    def is_alive(self) -> bool:
        """Whether the thread was started and has not ended."""
        return self._thread.is_alive()

    @property
    def is_stopping(self) -> bool:
        """Whether ``stop`` or ``close`` was called."""
        return self._stop.is_set()

    def start(self) -> None:
        """Start the thread. For one call."""
        self._thread.start()

    def pause(self, seconds: float) -> bool:
        """Wait for *seconds*, or until the thread is to stop; return whether it is to stop."""
        return self._stop.wait(seconds)

    def stop(self) -> None:
        """Ask the thread to end, without waiting for it."""
        self._stop.set()
        self.wake()

    def close(self, timeout: float | None = STOP_TIMEOUT) -> None:
        """Ask the thread to end and wait up to *timeout* seconds; None: until it has ended.

        Must not be called with a lock held that the thread may want.
        """
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(timeout)
