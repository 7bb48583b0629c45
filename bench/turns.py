"""Timing of two sides in alternating batches of operations.

Changes of the machine's speed within seconds affect both sides alike, and their ratio stays. An
operation is a function of a running number, from which it can make a new name; both sides get the
same numbers.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

Operation = Callable[[int], object]


class Benchmark(Protocol):
    """The part of pytest-benchmark's fixture that is used here; the fixture has no types."""

    def pedantic(
        self,
        target: Callable[[], None],
        *,
        setup: Callable[[], None],
        rounds: int,
        warmup_rounds: int = 0,
    ) -> None:
        """Call setup and target alternately; keep the target's times."""


class Pair(NamedTuple):
    """A time of an operation on each side, in microseconds."""

    ours: float
    base: float


def times_us(operation: Operation, numbers: Iterable[int]) -> list[float]:
    """Run the operation once per number; return the time of each run in microseconds."""
    times = []
    for number in numbers:
        start = time.perf_counter_ns()
        operation(number)
        times.append((time.perf_counter_ns() - start) / 1000)
    return times


class Turns:
    """The two sides of an operation, and the times of their batches."""

    def __init__(self, ours: Operation, base: Operation, *, batch: int) -> None:
        self._operations = ours, base
        self._times: tuple[list[float], list[float]] = [], []
        self._batch = batch
        self._round = 0

    def play_base(self) -> None:
        """Run the base's batch of the next round."""
        self._play(1)

    def play_ours(self) -> None:
        """Run our batch, which ends the round. The first round is a warm-up without times."""
        self._play(0)
        if self._round == 0:
            for times in self._times:
                times.clear()
        self._round += 1

    def _play(self, side: int) -> None:
        first = self._round * self._batch
        self._times[side].extend(
            times_us(self._operations[side], range(first, first + self._batch))
        )

    def medians(self) -> Pair:
        """Return the median time of each side."""
        ours, base = (statistics.median(times) for times in self._times)
        return Pair(ours, base)

    def tails(self) -> Pair:
        """Return the 99th percentile of each side."""
        ours, base = (statistics.quantiles(times, n=100)[-1] for times in self._times)
        return Pair(ours, base)


def by_turns(
    benchmark: Benchmark, ours: Operation, base: Operation, *, rounds: int, batch: int
) -> Pair:
    """Time both sides alternately; the numbers run from 0 to (rounds + 1) x batch - 1."""
    return played(benchmark, ours, base, rounds=rounds, batch=batch).medians()


def played(
    benchmark: Benchmark, ours: Operation, base: Operation, *, rounds: int, batch: int
) -> Turns:
    """Time both sides as ``by_turns`` does, and return all times."""
    turns = Turns(ours, base, batch=batch)
    gc.collect()
    gc.disable()
    try:
        benchmark.pedantic(turns.play_ours, setup=turns.play_base, rounds=rounds, warmup_rounds=1)
    finally:
        gc.enable()
    return turns
