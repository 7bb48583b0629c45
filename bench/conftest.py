"""What the benchmarks share: the report, the servers' program, one CPU, and a way to end."""

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
    """Whether the floor stands in for ours."""
    return bool(pytestconfig.getoption("--self-check"))


@pytest.fixture(scope="session", autouse=True)
def placement() -> Iterator[None]:
    """Keep this process, and all that it starts, on one CPU; the reason is in servers."""
    cpus = os.sched_getaffinity(0)
    pin({max(cpus)})
    with preferred():
        yield
    pin(cpus)


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory for everything, on the disk that holds temporary files."""
    directory = Path(tempfile.mkdtemp(prefix="pmxcfs-bench-")).resolve()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def workdir(scratch: Path) -> Callable[[], Path]:
    """Make a path below scratch that nobody has used yet."""
    numbers = itertools.count()
    return lambda: scratch / str(next(numbers))


@pytest.fixture(scope="session")
def floor(scratch: Path) -> Path:
    """The floor server's program."""
    return build_floor(scratch)
