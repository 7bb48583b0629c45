"""The session by io_uring: the kernel hands requests to a queue of each CPU instead of /dev/fuse.

A request is answered on the CPU on which its program runs, so no other CPU is woken to answer it.
What has no reply (FORGET, INTERRUPT) still comes through /dev/fuse, where the native session reads
it; so does everything if the queues can't be used.

Contract: docs/spec/session.md, "FUSE over io_uring".
"""

import contextlib
import functools
import logging
import os
import resource
import threading
import time
from collections.abc import Set
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from pmxcfs.errors import StartError
from pmxcfs.fuse._device import Device
from pmxcfs.fuse._queue import Keeper, Ring, Slots, Worker
from pmxcfs.fuse.handlers import Handlers
from pmxcfs.fuse.native import FIRST_REQUEST_TIMEOUT, NativeSession
from pmxcfs.fuse.turns import MAX_WAITING, Turns
from pmxcfs.fuse.waits import MAX_QUEUED
from pmxcfs.host.locking import Lock
from pmxcfs.host.threads import STOP_TIMEOUT, BackgroundThread, Wakeup

_log = logging.getLogger("pmxcfs.main")

POSSIBLE_CPUS = Path("/sys/devices/system/cpu/possible")
RESERVED_SLOTS = 4  # slots for requests that need not wait, so that reads go on
# All changes that may wait, or wait until they may, can come from one CPU. A queue without a free
# slot would stop every program of its CPU.
SLOTS = MAX_WAITING + MAX_QUEUED + RESERVED_SLOTS

AnyRing = TypeVar("AnyRing", bound=Ring)


class UringSession(NativeSession):
    """The native session, whose requests come by io_uring.

    If that can't be, *must* makes ``mount`` fail; else requests come through /dev/fuse.
    """

    name = "uring"

    def __init__(self, *, must: bool) -> None:
        super().__init__()
        self._must = must
        self._queues: list[_Queue] = []

    def _agree(self, handlers: Handlers) -> int:
        prepare = functools.partial(self._prepare, handlers)
        minor = self._device.agree(FIRST_REQUEST_TIMEOUT, prepare)
        if self._queues:
            for queue in self._queues:
                queue.is_agreed.set()
            if self._check([queue.is_registered for queue in self._queues]):
                self._device.never_look()
        elif self.name == "uring":
            self._do_without("the kernel does not offer it")
        return minor

    def _prepare(self, handlers: Handlers) -> bool:
        """Make the queues; tell whether they can be used. Raises StartError."""
        allow_many_files()
        allowed = os.sched_getaffinity(0)
        for cpu in range(possible_cpus(POSSIBLE_CPUS.read_text())):
            try:
                queue = _Queue(cpu, self._device, handlers, self._turns, self.lock, allowed)
                queue.start()
            except (OSError, MemoryError, RuntimeError) as error:  # the last one: no thread
                self._do_without(f"the queue of CPU {cpu}: {error}")
                return False
            self._queues.append(queue)
        return self._check([queue.is_prepared for queue in self._queues])

    def _check(self, results: "list[Future[None]]") -> bool:
        """Wait for all *results*; if one has failed, do without queues. Raises StartError."""
        for cpu, error in enumerate([result.exception() for result in results]):
            if error is not None:
                self._do_without(f"the queue of CPU {cpu}: {error}")
                return False
        return True

    def _do_without(self, reason: str) -> None:
        """Let requests come through /dev/fuse. Raises StartError if that is not wanted."""
        self._end_queues()
        if self._must:
            raise StartError(f"can't use FUSE over io_uring: {reason}")
        self.name = "native"
        _log.warning("FUSE over io_uring can't be used: %s; using the native session", reason)

    def _end_queues(self) -> None:
        for queue in self._queues:
            queue.stop()
        deadline = time.monotonic() + STOP_TIMEOUT
        for thread in [each for queue in self._queues for each in (queue, *queue.workers)]:
            thread.close(max(0.0, deadline - time.monotonic()))
        self._queues.clear()

    def end(self) -> None:
        """Make ``serve`` return; requests that wait are still answered."""
        for queue in self._queues:
            queue.slots.is_stopping = True
        super().end()

    def close(self) -> None:
        """Detach the mount, if it is there, and end the session."""
        self.end()
        self._mount.detach(self._device.descriptor)
        self._end_queues()
        self._device.close()


class _Queue(BackgroundThread):
    """The queue of a CPU: the keeper's thread, and those of the workers. Raises OSError."""

    def __init__(
        self,
        cpu: int,
        device: Device,
        handlers: Handlers,
        turns: Turns,
        lock: Lock,
        allowed: Set[int],
    ) -> None:
        super().__init__(f"fuse-{cpu}")
        self._end = Wakeup()
        self.slots = Slots(cpu, SLOTS, device, self._end.fileno())
        self.is_prepared: Future[None] = Future()
        self.is_agreed = threading.Event()  # with the kernel, that requests come by io_uring
        self.is_registered: Future[None] = Future()
        self.workers: list[_WorkerThread] = []
        self._handlers = handlers
        self._turns = turns
        self._lock = lock
        self._cpus = {cpu} & allowed or allowed  # on which the threads run
        self._is_short = False  # of what a worker needs

    def run(self) -> None:
        """Keep the slots, on their CPU."""
        os.sched_setaffinity(0, self._cpus)
        ring = _made(Keeper, self.slots, self.is_prepared)
        if ring is not None:
            self.is_agreed.wait()
            if not self.is_stopping:
                self._keep(ring)
            ring.close()

    def _keep(self, keeper: Keeper) -> None:
        try:
            keeper.register()
        except OSError as error:
            self.is_registered.set_exception(error)
        else:
            self.is_registered.set_result(None)
            substitute = Worker(self._handlers, self._lock, self._turns.interrupts)
            with self._turns.interrupts.interrupting(substitute):
                keeper.run(self._add_worker, substitute)

    def _add_worker(self) -> Worker | None:
        """Return a new worker that can answer requests; None if the means for it are missing."""
        worker = Worker(self._handlers, self._lock, self._turns.interrupts)
        thread = _WorkerThread(worker, self.slots, self._turns, self._cpus)
        try:
            thread.start()
            thread.is_prepared.result()
        except (OSError, MemoryError, RuntimeError) as error:
            if not self._is_short:
                _log.error(
                    "there can be no more threads for requests of CPU %d, whose programs now wait "
                    "for one another: %s",
                    self.slots.cpu,
                    error,
                )
            self._is_short = True
            return None
        self._is_short = False
        self.workers.append(thread)
        return worker

    def wake(self) -> None:
        """Have all threads of the queue end."""
        self.slots.is_over = True
        self._end.set()
        self.is_agreed.set()


class _WorkerThread(BackgroundThread):
    """A thread that answers requests, on the CPU of its queue. It ends when its queue does."""

    def __init__(self, worker: Worker, slots: Slots, turns: Turns, cpus: Set[int]) -> None:
        super().__init__(f"fuse-{slots.cpu}-worker")
        self.is_prepared: Future[None] = Future()
        self._worker = worker
        self._slots = slots
        self._turns = turns
        self._cpus = cpus

    def run(self) -> None:
        """Answer requests."""
        os.sched_setaffinity(0, self._cpus)
        ring = _made(Ring, self._slots, self.is_prepared)
        if ring is not None:
            with self._turns.interrupts.interrupting(self._worker):
                self._worker.run(ring)
            ring.close()


def _made(kind: type[AnyRing], slots: Slots, result: "Future[None]") -> AnyRing | None:
    """Return a ring for the calling thread, or None; also tell who waits for the *result*."""
    try:
        ring = kind(slots)
    except (OSError, MemoryError) as error:
        result.set_exception(error)
        return None
    result.set_result(None)
    return ring


def allow_many_files() -> None:
    """Raise the limit of this process's descriptors, as each thread has a ring."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError):  # it is above fs.nr_open
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def possible_cpus(text: str) -> int:
    """Return how many CPUs the machine can have, by a list of ranges such as 0-3,6."""
    ranges = [part.partition("-") for part in text.strip().split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)
