"""Fixtures of the benchmarks: report, session, scratch directory, and clean-up at SIGTERM."""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.conditions import favored
from bench.report import RESULTS, Report
from bench.servers import SESSIONS, Session, pmxcfs_server, session_of

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
    parser.addoption(
        "--against",
        type=Path,
        metavar="DIR",
        help="measure the rows of the mount with this built checkout, too, by turns",
    )
    parser.addoption(
        "--fuse", choices=SESSIONS, help="the daemon's session, instead of what it chooses"
    )
    parser.addoption(
        "--scratch",
        type=Path,
        metavar="DIR",
        default="/var/tmp",
        help="where all files of the run are: on a real disk (default: %(default)s)",
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


@pytest.fixture(scope="session", autouse=True)
def priority() -> Iterator[None]:
    """Keep what else the machine does from the CPUs; ``favored`` has the details."""
    with favored():
        yield


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """The rows of this run."""
    return pytestconfig.stash[REPORT]


@pytest.fixture(scope="session")
def self_check(pytestconfig: pytest.Config) -> bool:
    """Whether to run the floor on both sides."""
    return bool(pytestconfig.getoption("--self-check"))


@pytest.fixture(scope="session")
def scratch(pytestconfig: pytest.Config) -> Iterator[Path]:
    """The directory for all files of the run."""
    place = pytestconfig.getoption("--scratch")
    directory = Path(tempfile.mkdtemp(prefix="pmxcfs-bench-", dir=place)).resolve()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def workdir(scratch: Path) -> Callable[[], Path]:
    """A function that returns an unused path below ``scratch``."""
    numbers = itertools.count()
    return lambda: scratch / str(next(numbers))


@pytest.fixture(scope="session")
def options(pytestconfig: pytest.Config) -> list[str]:
    """What is added to the daemon's command line."""
    name = pytestconfig.getoption("--fuse")
    return ["--fuse", name] if name else []


@pytest.fixture(scope="session")
def session(
    workdir: Callable[[], Path], scratch: Path, options: list[str], report: Report
) -> Session:
    """The session that the daemon chooses; the report names it, and the kind of disk."""
    with pmxcfs_server(workdir(), options=options) as server:
        found = session_of(server)
    command = ["findmnt", "--noheadings", "--output=FSTYPE", "--target", str(scratch)]
    disk = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    report.remark = f"session {found.name}, floor: {' '.join(found.floor)}; state on {disk}"
    return found
