"""Rules for every test: capabilities, expected logs, a clean environment, no mounts left.

The build of the Debian package runs the unit tests with pytest 7.2 of Debian 12, which has neither
new-style hook wrappers nor some of the types named here.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from pmxcfs.fuse.choice import URING_SWITCH
from pmxcfs.host import mountpoint
from pmxcfs.storage.staging import forget_staged
from tests.harness import detach, fuse_mounts, offered_uring

TIERS = ("unit", "mount", "cluster", "clients", "package")
# Where `make test-deps` unpacks the services that tests run.
UNPACKED = Path(__file__).parents[1] / "build" / "debian" / "usr"
SERVICES = ("corosync", "corosync-qdevice", "corosync-qnetd")  # of the nodes of a cluster
# Variables that would reach the daemon from the shell or the service that runs the tests.
SCRUBBED = (
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "JOURNAL_STREAM",
    "PMXCFS_REQUIRE",
)
TESTS = itertools.count(1)  # that have begun
TESTS_BETWEEN_FREEZES = 100
REQUIRED = pytest.StashKey[frozenset[str]]()

if TYPE_CHECKING:
    from pluggy import Result

ExpectLog = Callable[[str], None]


def missing_for_fuse() -> str:
    """Return the reason why this process can't mount; empty if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no usable /dev/fuse"
    return ""


def missing_for_uring() -> str:
    """Return the reason why this process can't mount by io_uring; empty if it can."""
    has_switch = os.access(URING_SWITCH, os.W_OK)
    return missing_for_fuse() or ("" if has_switch else "this kernel has no FUSE over io_uring")


def missing_for_corosync() -> str:
    """Return the reason why this process can't run nodes in namespaces; empty if it can."""
    if missing := missing_for_fuse():
        return missing
    programs = (*SERVICES, "unshare", "nsenter", "ip", "nft")
    absent = [name for name in programs if not shutil.which(name)]
    return f"not installed: {', '.join(absent)}; `make test-deps` does it" if absent else ""


def missing_for_packaging() -> str:
    """Return the reason why this process can't build and boot the package; empty if it can."""
    tools = ("dpkg-buildpackage", "lintian", "debootstrap", "ip")
    absent = [tool for tool in tools if not shutil.which(tool)]
    if absent:
        return f"there is no {absent[0]}: make deb-packages"
    return missing_for_fuse()


CAPABILITIES: dict[str, Callable[[], str]] = {
    "fuse": missing_for_fuse,
    "uring": missing_for_uring,
    "corosync": missing_for_corosync,
    "packaging": missing_for_packaging,
}


def pytest_configure(config: pytest.Config) -> None:
    required = frozenset(filter(None, os.environ.get("PMXCFS_REQUIRE", "").split(",")))
    config.stash[REQUIRED] = required
    for name in SCRUBBED:
        os.environ.pop(name, None)
    os.environ.update(LC_ALL="C.UTF-8", TZ="UTC")
    os.environ["PATH"] += f":{UNPACKED}/sbin:{UNPACKED}/bin"
    time.tzset()
    # SIGTERM ends a run as Ctrl-C does, so that fixtures detach their mounts.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A job in the background ignores Ctrl-C, and so would all programs that tests run.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The time of one example depends on the machine.
    hypothesis.settings.register_profile("pmxcfs", deadline=None)
    hypothesis.settings.load_profile("pmxcfs")


def pytest_report_header(config: pytest.Config) -> str:
    states = [f"{name}: {missing() or 'on'}" for name, missing in CAPABILITIES.items()]
    required = config.stash[REQUIRED]
    return f"capabilities: {'; '.join(states)} (required: {','.join(required) or 'none'})"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, missing in CAPABILITIES.items():
        if item.get_closest_marker(f"needs_{name}") and missing():
            pytest.skip(missing())


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, Result[pytest.TestReport], None]:
    report = (yield).get_result()
    if not hasattr(report, "wasxfail"):
        refuse_skip(item.config, report)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, Result[pytest.CollectReport], None]:
    refuse_skip(collector.config, (yield).get_result())


def refuse_skip(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure if PMXCFS_REQUIRE is set."""
    if report.skipped and config.stash[REQUIRED]:
        report.outcome = "failed"
        report.longrepr = f"skipped, but PMXCFS_REQUIRE is set: {report.longrepr}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this kernel does not have, unless PMXCFS_REQUIRE names it."""
    if missing_for_uring() and "uring" not in config.stash[REQUIRED]:
        left_out = [item for item in items if item.get_closest_marker("needs_uring")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # a collection after a test skips objects from before the tests


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for tier in TIERS:
        reports = [
            (outcome, report)
            for outcome in ("passed", "failed", "error", "skipped")
            for report in terminalreporter.stats.get(outcome, [])
            if report.nodeid.startswith(f"tests/{tier}/")
        ]
        counts = Counter(outcome for outcome, _ in reports)
        # A report of a failed collection has no duration.
        seconds = sum(getattr(report, "duration", 0.0) for _, report in reports)
        listed = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        terminalreporter.write_line(f"tier {tier}: {listed or 'none'} in {seconds:.1f} s")


class WarningCollector(logging.Handler):
    """Collects the warnings and errors that the code under test logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture(autouse=True)
def expect_log(request: pytest.FixtureRequest) -> Iterator[ExpectLog]:
    """Declare expected warnings; a test fails on any other warning, and if one is missing."""
    patterns = [marker.args[0] for marker in request.node.iter_markers("expect_log")]
    collector = WarningCollector()
    logging.getLogger().addHandler(collector)
    yield patterns.append
    logging.getLogger().removeHandler(collector)
    surprises = [line for line in collector.lines if not any(re.search(p, line) for p in patterns)]
    assert not surprises, "not declared with expect_log:\n" + "\n".join(surprises)
    missing = [p for p in patterns if not any(re.search(p, line) for line in collector.lines)]
    assert not missing, f"declared with expect_log, but not logged: {missing}"


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[object], None]:
    """Print the results of a long run, even if the test passes."""

    def show(outcome: object) -> None:
        with capsys.disabled():
            print(f"\n{outcome}")

    return show


@pytest.fixture
def seed() -> int:
    """The number that a run of random faults begins with, from the environment if it has one."""
    return int(os.environ.get("PMXCFS_TEST_SEED") or random.randrange(1 << 32))


@pytest.fixture(autouse=True)
def _collect_garbage() -> Iterator[None]:
    """Collect garbage after each test, so that a leak is reported for the test that made it.

    Reports and caches stay until the end of the run; without the freezing each collection would
    visit all of them. At the start of a test nothing of another one is alive.
    """
    if next(TESTS) % TESTS_BETWEEN_FREEZES == 0:
        gc.collect()
        gc.freeze()
    yield
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def _uring_is_offered() -> Iterator[None]:
    """Have the kernel offer FUSE over io_uring to a run of tests that asks for it."""
    is_asked_for = os.environ.get("PMXCFS_TEST_FUSE") == "uring"
    with offered_uring() if is_asked_for else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session", autouse=True)
def _sweep_mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Detach dead mounts of aborted runs; assert that this run leaves no mount."""
    mine = tmp_path_factory.getbasetemp().resolve()
    for path in fuse_mounts(mine.parent):
        if is_dead(path):
            detach(path)
    yield
    left = fuse_mounts(mine)
    for path in left:
        detach(path)
    for path in mine.rglob("journal"):
        forget_staged(path)  # a killed daemon leaves it
    assert not left, f"left mounted: {left}"


def is_dead(path: Path) -> bool:
    """Tell whether the daemon of a mount is dead; other test runs may have live mounts."""
    try:
        path.stat()
    except OSError as error:
        return error.errno in mountpoint.DEAD
    return False
