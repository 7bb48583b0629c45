"""Every operation on a mount of pmxcfs against the floor server, alternating in one run."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from statistics import median

import pytest

from bench.bare import commit_us
from bench.clients import parallel_read_us
from bench.data import REWRITTEN, SMALL, mounted_files
from bench.goals import Goal
from bench.operations import COMPARISONS, READING, REWRITE, STATUS_FILES, Comparison, write_file
from bench.populate import write_database
from bench.report import Report
from bench.servers import Server, floor_server, on_all_cpus, pmxcfs_server
from bench.turns import Benchmark, by_turns

PROCESSES, READS = 4, 2000  # as in the original's measurement; reads per process and turn


@pytest.fixture(scope="module")
def floor_mount(floor: Path, workdir: Callable[[], Path]) -> Iterator[Server]:
    with floor_server(floor, workdir()) as server:
        yield server


@pytest.fixture(scope="module")
def our_mount(floor: Path, workdir: Callable[[], Path], *, self_check: bool) -> Iterator[Server]:
    directory = workdir()
    if self_check:
        with floor_server(floor, directory) as server:
            yield server
        return
    write_database(directory / "state" / "config.db", mounted_files())
    with pmxcfs_server(directory) as server:
        yield server


@pytest.fixture(scope="module")
def bare_commit_us(floor_mount: Server, workdir: Callable[[], Path]) -> Callable[[int], float]:
    """Map a size in bytes to the microseconds of one SQLite commit of that size."""

    def request(number: int) -> None:
        write_file(f"{floor_mount.root}/d1/f{number % REWRITTEN}", REWRITE, SMALL[0])

    return cache(lambda size: commit_us(workdir(), size, between=request))


@pytest.mark.parametrize("case", COMPARISONS, ids=lambda case: case.name)
def bench_operation(
    case: Comparison,
    our_mount: Server,
    floor_mount: Server,
    benchmark: Benchmark,
    report: Report,
    bare_commit_us: Callable[[int], float],
    *,
    self_check: bool,
) -> None:
    if self_check and case.name in STATUS_FILES:
        pytest.skip("the floor has no status files")
    with ExitStack() as stack:
        pair = by_turns(
            benchmark,
            case.prepare(our_mount.root, stack),
            (case.prepare_base or case.prepare)(floor_mount.root, stack),
            rounds=case.rounds,
            batch=case.batch,
        )
    commits = case.goal.commits * bare_commit_us(case.goal.commit_bytes)
    report.add(
        "mount", case.name, unit=case.unit, ours=pair.ours, base=pair.base, goal=case.goal,
        commit_us=commits,
    )  # fmt: skip


def bench_parallel_readers(
    our_mount: Server, floor_mount: Server, benchmark: Benchmark, report: Report
) -> None:
    figures: dict[str, list[float]] = {"ours": [], "base": []}

    def play(side: str, server: Server) -> None:
        figures[side].append(parallel_read_us(server.root, processes=PROCESSES, count=READS))

    with on_all_cpus(our_mount, floor_mount):
        benchmark.pedantic(
            lambda: play("ours", our_mount), setup=lambda: play("base", floor_mount), rounds=5
        )
    report.add(
        "mount",
        "4 processes: open + read + close, each of all",
        unit="µs",
        ours=median(figures["ours"]),
        base=median(figures["base"]),
        goal=Goal(READING, must=20, base_then=11.8),
    )
