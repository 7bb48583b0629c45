"""Fixtures of the benchmarks: report, floor server, CPU placement, and clean-up at SIGTERM."""

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.report import RESULTS, Report
from bench.servers import build_floor, pin, preferred

REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--self-check",
        action="store_true",
        help="run the floor on both sides: every ratio of the mount should be 1.0",
    )
    parser.addoption(
        "--real-rate",
        action="store_true",
        help="also run the idle hour for ten minutes at its real rate",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that fixtures clean up


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    report = config.stash[REPORT]
    if report.rows:
        terminalreporter.write_line(report.table())
        for path in report.save(RESULTS):
            terminalreporter.write_line(f"written: {os.path.relpath(path)}")


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """The rows of this run."""
    return pytestconfig.stash[REPORT]


@pytest.fixture(scope="session")
def self_check(pytestconfig: pytest.Config) -> bool:
    """Whether to run the floor on both sides."""
    return bool(pytestconfig.getoption("--self-check"))


@pytest.fixture(scope="session", autouse=True)
def placement() -> Iterator[None]:
    """Keep this process and its children on one CPU; ``servers`` has the reason."""
    cpus = os.sched_getaffinity(0)
    pin({max(cpus)})
    with preferred():
        yield
    pin(cpus)


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """The directory for all files of the run, on the disk for temporary files."""
    directory = Path(tempfile.mkdtemp(prefix="pmxcfs-bench-")).resolve()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def workdir(scratch: Path) -> Callable[[], Path]:
    """A function that returns an unused path below ``scratch``."""
    numbers = itertools.count()
    return lambda: scratch / str(next(numbers))


@pytest.fixture(scope="session")
def floor(scratch: Path) -> Path:
    """The floor server's program."""
    return build_floor(scratch)
