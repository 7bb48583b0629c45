"""The native session's threads, which take turns to read requests.

One thread reads and answers. If its handler has to wait, it gives the turn to another thread, waits
itself, and sends its reply when it knows the outcome; so nothing is handed over, and no wait delays
other requests. While it waits for the cluster, it gives the turn away only when a request has come.
Threads that have no turn sleep, or end if there are enough of them.

Contract: docs/spec/session.md, "Turns".
"""

import threading
from collections.abc import Callable
from threading import get_ident
from typing import Protocol

from pmxcfs.fuse.interrupts import Handled, Interrupts
from pmxcfs.fuse.waits import Waits
from pmxcfs.host.locking import Lock
from pmxcfs.host.threads import BackgroundThread
from pmxcfs.replica.waiting import Interruption

MAX_WAITING = 64  # changes that may wait for a device or for other nodes
SPARE_THREADS = 4  # threads without a turn that are kept


class Served(Protocol):
    """What a Device is for the threads that read it."""

    turn: int  # the number of the reader that may read

    @property
    def descriptor(self) -> int:
        """The descriptor that is readable when there is a request."""

    @property
    def end_errno(self) -> int:
        """The errno by which the kernel has ended the session; 0: it has not."""


class Reading(Handled, Protocol):
    """What a Reader is for its thread."""

    def run(self) -> None:
        """Read and answer requests for as long as it is this reader's turn. Blocks."""


class Turns(Waits):
    """The threads of a session, of which one at a time has the turn to read requests."""

    def __init__(self, lock: Lock, *, limit: int = MAX_WAITING) -> None:
        super().__init__(limit)
        self._lock = lock
        self.is_over = threading.Event()  # nobody reads any more
        self.interrupts = Interrupts()
        self._mutex = threading.Lock()  # for what follows
        self._spare: list[_TurnThread] = []  # the last one gets the next turn
        self._count = 0  # threads ever made
        self._reading: _TurnThread | None = None  # it has the turn

    def begin(self, device: Served, make_reader: Callable[[int], Reading]) -> None:
        """Start to read requests from *device*, by readers with numbers from 1 on."""
        self._device = device
        self._make_reader = make_reader
        self.attach(device.descriptor)
        self._call_reader()

    def close(self) -> None:
        """Let no thread read any more; those that handle a request end with it."""
        with self._mutex:
            self.is_over.set()
            while self._spare:
                self._spare.pop().wake()

    def interruptible(self, wake: Callable[[], None]) -> Interruption:
        """Return what calls *wake* if the calling thread's request is interrupted."""
        return self.interrupts.interruptible(wake)

    def _release(self) -> None:
        self._lock.release()

    def _acquire(self) -> None:
        self._lock.acquire()

    def _begin(self) -> bool:
        return self._reading is not None and self._reading.id == get_ident()

    def _end(self) -> None:
        """Do nothing: a thread that has no turn any more notices when it has sent its reply."""

    def _call_reader(self) -> None:
        with self._mutex:
            if self.is_over.is_set():
                return
            thread = self._spare.pop() if self._spare else self._new_thread()
            self._reading = thread
            self._device.turn = thread.number
        thread.wake()

    def _new_thread(self) -> "_TurnThread":
        self._count += 1
        thread = _TurnThread(self._count, self._make_reader(self._count), self)
        thread.start()
        return thread

    def await_turn(self, thread: "_TurnThread") -> bool:
        """Wait until *thread* has the turn; return False if it is to end. Blocks."""
        with self._mutex:
            if self._device.end_errno:
                self.is_over.set()
                while self._spare:
                    self._spare.pop().wake()
            if self.is_over.is_set():
                return False
            if self._reading is thread:
                return True
            if len(self._spare) >= SPARE_THREADS:
                return False
            self._spare.append(thread)
        thread.sleep()
        return not self.is_over.is_set()


class _TurnThread(BackgroundThread):
    """A thread that reads requests when it has the turn."""

    def __init__(self, number: int, reader: Reading, turns: Turns) -> None:
        super().__init__("fuse")
        self.number = number
        self._reader = reader
        self.id = 0  # of the running thread
        self._turns = turns
        self._called = threading.Semaphore(0)

    def run(self) -> None:
        """Read requests in each turn."""
        self.id = get_ident()
        self._turns.interrupts.begin(self._reader)
        self.sleep()
        while not self._turns.is_over.is_set():
            self._reader.run()
            if not self._turns.await_turn(self):
                break
        self._turns.interrupts.end()

    def wake(self) -> None:
        """End ``sleep``, or the next one."""
        self._called.release()

    def sleep(self) -> None:
        """Wait for ``wake``. Blocks."""
        self._called.acquire()
