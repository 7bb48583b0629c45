"""Timing of two or three sides in alternating batches of operations.

Changes of the machine's speed within seconds affect all sides alike, and their ratios stay. An
operation is a function of a running number, from which it can make a new name; all sides get the
same numbers.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from math import ceil
from typing import NamedTuple, Protocol

Operation = Callable[[int], object]
Batch = Callable[[range], list[float]]  # runs an operation once per number; microseconds of each


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


def timed(operation: Operation) -> Batch:
    """Return a batch of an operation that this process runs."""
    return lambda numbers: times_us(operation, numbers)


def p99(times: Sequence[float]) -> float:
    """Return the 99th percentile; the greatest of fewer than 100 values."""
    return sorted(times)[ceil(0.99 * len(times)) - 1]


def typical(rounds: Sequence[list[float]], *, kinds: int) -> float:
    """Return the mean of the medians of each kind of rounds: every *kinds*-th is of one kind.

    A median of all would be that of one kind or of another, by chance.
    """
    alike = [[*chain(*rounds[first::kinds])] for first in range(kinds)]
    return statistics.mean(statistics.median(times) for times in alike if times)


class Turns:
    """The sides of an operation, ours first, and the times of their batches.

    Rounds whose numbers are equal modulo *kinds* have the same circumstances, such as CPUs.
    """

    def __init__(self, *sides: Batch, batch: int, kinds: int = 1) -> None:
        self._sides = sides
        self._kinds = kinds
        self._times: list[list[list[float]]] = [[] for _ in sides]  # by side and round
        self._batch = batch
        self._round = 0

    def play_others(self) -> None:
        """Run the other sides' batches of the next round."""
        for side in range(1, len(self._sides)):
            self._play(side)

    def play_ours(self) -> None:
        """Run our batch, which ends the round. The first round is a warm-up without times."""
        self._play(0)
        if self._round == 0:
            for rounds in self._times:
                rounds.clear()
        self._round += 1

    def _play(self, side: int) -> None:
        first = self._round * self._batch
        self._times[side].append(self._sides[side](range(first, first + self._batch)))

    def figures(self) -> list[tuple[float, float]]:
        """Return median and 99th percentile of each side, in microseconds."""
        return [
            (typical(rounds, kinds=self._kinds), p99([*chain(*rounds)])) for rounds in self._times
        ]


def by_turns(
    benchmark: Benchmark, ours: Operation, base: Operation, *, rounds: int, batch: int
) -> Pair:
    """Time both sides alternately; the numbers run from 0 to (rounds + 1) x batch - 1."""
    turns = played(benchmark, timed(ours), timed(base), rounds=rounds, batch=batch)
    return Pair(*(median for median, _ in turns.figures()))


def played(benchmark: Benchmark, *sides: Batch, rounds: int, batch: int, kinds: int = 1) -> Turns:
    """Time all sides as ``by_turns`` does, and return all times."""
    turns = Turns(*sides, batch=batch, kinds=kinds)
    gc.collect()
    gc.disable()
    try:
        benchmark.pedantic(turns.play_ours, setup=turns.play_others, rounds=rounds, warmup_rounds=1)
    finally:
        gc.enable()
    return turns
