"""Clients that run at the same time, as processes that start together.

Processes, because threads would also measure the wait for the interpreter lock.
"""

import contextlib
import itertools
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

from bench.data import BIG, variant
from bench.files import REWRITE, read_file, write_file
from bench.places import Place
from bench.turns import times_us

Result = TypeVar("Result")
CLIENT_TIMEOUT = 60.0  # seconds, for the slowest client


def together(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run each job in a process of its own, started together; return their results. Blocks."""
    context = multiprocessing.get_context("fork")  # a job need not be picklable
    barrier = context.Barrier(len(jobs))
    results: list[Result] = []
    with contextlib.ExitStack() as cleanup:
        pipes = []
        for job in jobs:
            reader, sink = context.Pipe(duplex=False)
            pipes.append(cleanup.enter_context(reader))
            client = context.Process(target=_run, args=(job, barrier, sink), daemon=True)
            client.start()
            cleanup.callback(client.join)
            cleanup.callback(client.kill)
            sink.close()
        for pipe in pipes:
            if not pipe.poll(CLIENT_TIMEOUT):
                raise TimeoutError(f"a client took more than {CLIENT_TIMEOUT} s")
            try:
                results.append(pipe.recv())
            except EOFError:
                raise RuntimeError("a client died; stderr has the reason") from None
    return results


def _run(job: Callable[[], Any], barrier: Barrier, sink: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    barrier.wait(CLIENT_TIMEOUT)
    sink.send(job())


def parallel_read_us(files: Sequence[str], *, processes: int, count: int) -> float:
    """Return the elapsed microseconds divided by the number of reads of all processes.

    A read is open + read + close.
    """
    turns = list(itertools.islice(itertools.cycle(files), count))

    def job() -> tuple[int, int]:
        start = time.perf_counter_ns()
        for path in turns:
            read_file(path)
        return start, time.perf_counter_ns()

    starts, ends = zip(*together([job] * processes), strict=True)
    return float(max(ends) - min(starts)) / 1000 / (processes * count)


def read_times_us(
    place: Place, *, readers: int, seconds: float, pause: float | None
) -> list[float]:
    """Return the microseconds of each open + read + close of *readers* threads beside a writer.

    The writer is a process that saves 1 MiB files and sleeps for *pause* seconds after each; None:
    no writer. The readers share a process, as the threads of a management daemon do, so the times
    include their wait for the interpreter lock, with and without a writer.
    """

    def read_on() -> list[float]:
        numbers = _until(time.monotonic() + seconds)
        return times_us(lambda i: read_file(place.files[i % len(place.files)]), numbers)

    def reading() -> list[float]:
        with ThreadPoolExecutor(readers) as pool:
            threads = [pool.submit(read_on) for _ in range(readers)]
            return [time for thread in threads for time in thread.result()]

    def writing() -> list[float]:
        for number in _until(time.monotonic() + seconds):
            write_file(f"{place.root}/d5/F0", REWRITE, variant(BIG, number))
            time.sleep(pause or 0)
        return []

    times = together([reading] + [writing] * (pause is not None))
    return [time for client in times for time in client]


def _until(deadline: float) -> Iterator[int]:
    number = 0
    while time.monotonic() < deadline:
        yield number
        number += 1
