"""Every operation on a mount of pmxcfs against the session's floor, by turns, in three conditions.

With ``--against DIR`` the daemon of another checkout takes its turns, too.
"""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.comparisons import COMPARISONS, Comparison
from bench.conditions import CONDITIONS, Condition, placed
from bench.data import mounted_files
from bench.goals import Figures
from bench.placement import PLACEMENTS, scatter
from bench.places import FloorPlace, Place
from bench.populate import copy_files, write_database
from bench.report import Report
from bench.servers import (
    REPOSITORY,
    Server,
    Session,
    cpu_us,
    floor_server,
    pmxcfs_server,
)
from bench.turns import Batch, Benchmark, played


class Mount(NamedTuple):
    """A mounted side, and where its server's threads are."""

    place: Place
    tasks: Path | None = None  # None: there is no server

    def cpu_us(self) -> float:
        """Return the CPU time of the server so far, in microseconds."""
        return cpu_us(self.tasks) if self.tasks else 0.0

    def scattered(self, batch: Batch, size: int) -> Batch:
        """Return a batch that begins with another placement on the CPUs each time."""

        def run(numbers: range) -> list[float]:
            if self.tasks:
                scatter(numbers.start // size, self.tasks, lambda: os.statvfs(self.place.root))
            return batch(numbers)

        return run


class Mounts(NamedTuple):
    """All sides under one condition."""

    ours: Mount
    floor: Mount
    tmpfs: Mount
    before: Mount | None  # of another checkout

    def sides(self, case: Comparison) -> list[Mount]:
        """Return the sides of a row: ours, the base, and perhaps another checkout."""
        base = self.tmpfs if case.is_cached else self.floor
        return [self.ours, base, *([self.before] if self.before else [])]


@pytest.fixture(scope="module", params=CONDITIONS, ids=lambda condition: condition.name)
def condition(request: pytest.FixtureRequest) -> Iterator[Condition]:
    found: Condition = request.param
    with placed(found):
        yield found


@pytest.fixture(scope="module")
def mounts(
    condition: Condition,
    session: Session,
    options: list[str],
    workdir: Callable[[], Path],
    pytestconfig: pytest.Config,
    *,
    self_check: bool,
) -> Iterator[Mounts]:
    """Start the servers under the condition; each has files that the kernel has not cached."""
    other = pytestconfig.getoption("--against")
    with ExitStack() as stack:
        floor, *more = [
            _served(stack.enter_context(floor_server(session, workdir())), FloorPlace)
            for _ in range(1 + self_check)
        ]
        before = (
            stack.enter_context(_populated(workdir(), checkout=other.resolve())) if other else None
        )
        ours = more[0] if more else stack.enter_context(_populated(workdir(), options=options))
        yield Mounts(ours, floor, stack.enter_context(_tmpfs(workdir())), before)


def _served(server: Server, place: Callable[[str], Place]) -> Mount:
    return Mount(place(server.root), server.tasks)


@contextmanager
def _populated(
    directory: Path, *, checkout: Path = REPOSITORY, options: Sequence[str] = ()
) -> Iterator[Mount]:
    """Run the daemon of a checkout, this one by default, on the files of a mount."""
    write_database(directory / "state" / "config.db", mounted_files())
    with pmxcfs_server(directory, checkout=checkout, options=options) as server:
        yield _served(server, Place)


@contextmanager
def _tmpfs(directory: Path) -> Iterator[Mount]:
    """Mount a tmpfs with the same files."""
    mountpoint = directory / "mnt"  # paths as long as those of the servers
    mountpoint.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mountpoint], check=True)
    try:
        copy_files(mountpoint, mounted_files())
        yield Mount(Place(str(mountpoint)))
    finally:
        subprocess.run(["umount", mountpoint], check=True)


@pytest.mark.parametrize("case", COMPARISONS, ids=lambda case: case.name)
def bench_operation(
    case: Comparison,
    condition: Condition,
    mounts: Mounts,
    benchmark: Benchmark,
    report: Report,
    *,
    self_check: bool,
) -> None:
    if self_check and (case.is_cached or case.operation is not case.base):
        pytest.skip("a row without the floor, or one for which the floor has another operation")
    ours, base, *others = measure(case, mounts.sides(case), benchmark)
    report.compare(
        condition.section, case.name, unit="µs", ours=ours, base=base,
        goal=condition.goal(case), before=others[0] if others else None,
    )  # fmt: skip


def measure(case: Comparison, sides: Sequence[Mount], benchmark: Benchmark) -> list[Figures]:
    """Return the figures of each side, in microseconds.

    The CPU time includes what a server does during the other sides' turns, such as saving.
    """
    operations = [case.operation, case.base, case.operation]
    with ExitStack() as stack:
        batches = [
            side.scattered(operation(side.place, stack), case.batch)
            for operation, side in zip(operations, sides, strict=False)
        ]
        begun = [side.cpu_us() for side in sides]
        turns = played(benchmark, *batches, rounds=case.rounds, batch=case.batch, kinds=PLACEMENTS)
        spent = [side.cpu_us() - since for side, since in zip(sides, begun, strict=True)]
    count = (case.rounds + 1) * case.batch * case.each  # with the round to warm up
    return [
        Figures(median, tail, cpu / count)
        for (median, tail), cpu in zip(turns.figures(), spent, strict=True)
    ]
