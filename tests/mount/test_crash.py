"""Crash safety: a daemon killed at any moment loses and tears no operation that has returned.

Writers change the mount until the daemon is killed. The next daemon runs on the same database and
must show each writer a state that its finished operations allow.
"""

import contextlib
import random
import re
import sqlite3
import struct
import subprocess
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes.programs import careless
from tests.harness import PROGRAM, Daemon, is_loud, launch, mounted
from tests.mount.workload import Writers

pytestmark = pytest.mark.needs_fuse

WRITERS = 4
KILLS = 200
LONG_RUNS = 25  # of as many kills each
LONGEST_WORK = 0.1  # seconds from the start of the writers to the kill
STARTS_KILLED = 0.1  # the share of daemons that are killed while they start
LONGEST_START = 0.2  # seconds
KILLS_TO_CATCH = 200  # that a careless daemon may survive without being caught
WORKERS = ("1", "16")  # the default in local mode, and that of a cluster: groups are committed

# The log's index ends with what a checkpoint has done (https://sqlite.org/walformat.html, 2.1):
# the frames that are in the database, and those that the last checkpoint wanted to bring there.
COPIED = struct.Struct("=96xI")
ATTEMPTED = struct.Struct("=128xI")


@dataclass
class Outcome:
    """The results of a run of kills."""

    seed: int
    kills: int = 0
    kills_in_checkpoint: int = 0
    operations: int = 0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"kills: seed {self.seed}, {self.kills} kills, {self.kills_in_checkpoint} of them "
            f"inside a checkpoint, {self.operations} operations done, "
            f"{len(self.violations)} violations"
        )


class Run:
    """A series of daemons on one database."""

    def __init__(
        self, workdir: Path, seed: int, *, program: Sequence[str | Path] = PROGRAM
    ) -> None:
        self.outcome = Outcome(seed)
        self._workdir = workdir
        self._program = program
        self._random = random.Random(seed)
        self._database = workdir / "state" / "config.db"
        self._version = 0  # that the next start must show at least

    def kill(self, times: int) -> Outcome:
        """Kill *times* daemons, then stop one; end early after a violation."""
        with closing(Writers(self._workdir / "pve", self.outcome.seed, count=WRITERS)) as writers:
            while self.outcome.kills < times and not self.outcome.violations:
                if self._random.random() < STARTS_KILLED:
                    self._kill_at_start()
                else:
                    self._kill_at_work(writers)
            with mounted(self._workdir, program=self._program) as daemon:
                self._look(writers)
                self._read_log(daemon)
        return self.outcome

    def _kill_at_start(self) -> None:
        daemon = launch(self._workdir, program=self._program)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = daemon.process.wait(self._random.uniform(0, LONGEST_START))
                raise AssertionError(f"the daemon ended with {status}\n{daemon.log_tail()}")
        finally:
            daemon.kill()
        self._count_kill(daemon)

    def _kill_at_work(self, writers: Writers) -> None:
        workers = self._random.choice(WORKERS)
        with mounted(self._workdir, "--workers", workers, program=self._program) as daemon:
            self._look(writers)
            writers.start()
            writers.wait(self._random.uniform(0, LONGEST_WORK))
            daemon.kill()
            self._count_kill(daemon)
        for report in writers.reports():
            self.outcome.operations += report.operations
            self.outcome.violations += report.violations
            self._version += report.mutations

    def _look(self, writers: Writers) -> None:
        self.outcome.violations += [*writers.look(), *self._look_at_database()]

    def _look_at_database(self) -> list[str]:
        """Return what is wrong in the file, for another program that reads it."""
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as reader:
            found = [line for (line,) in reader.execute("PRAGMA integrity_check") if line != "ok"]
            (version,) = reader.execute("SELECT version FROM tree WHERE inode = 0").fetchone()
        if version < self._version:
            found.append(f"version {version}, {self._version} was reached before")
        self._version = version
        return found

    def _read_log(self, daemon: Daemon) -> None:
        """Take warnings as violations: a crash leaves nothing to repair."""
        for line in filter(is_loud, daemon.log_text().splitlines()):
            daemon.expect_log(re.escape(line))
            self.outcome.violations.append(line)

    def _count_kill(self, daemon: Daemon) -> None:
        self._read_log(daemon)
        self.outcome.kills += 1
        with contextlib.suppress(FileNotFoundError):
            index = Path(f"{self._database}-shm").read_bytes()
            if len(index) >= ATTEMPTED.size:
                (copied,), (attempted,) = COPIED.unpack_from(index), ATTEMPTED.unpack_from(index)
                self.outcome.kills_in_checkpoint += attempted > copied


def check(outcome: Outcome, kills: int) -> None:
    """Assert that nothing was lost in a sufficient number of operations."""
    assert outcome.violations == []
    assert outcome.kills == kills
    assert outcome.kills_in_checkpoint > 0
    assert outcome.operations > kills * WRITERS


def test_no_finished_operation_is_lost(tmp_path: Path, report: Callable[[object], None]) -> None:
    outcome = Run(tmp_path, random.randrange(1 << 32)).kill(KILLS)
    report(outcome)
    check(outcome, KILLS)


@pytest.mark.long
@pytest.mark.parametrize("_", range(LONG_RUNS))
def test_no_finished_operation_is_lost_in_many_kills(
    tmp_path: Path, report: Callable[[object], None], _: int
) -> None:
    test_no_finished_operation_is_lost(tmp_path, report)


@pytest.mark.parametrize("sabotage", ["reply-before-commit", "commit-in-pieces"])
def test_a_daemon_with_a_deliberate_bug_is_found(
    tmp_path: Path, report: Callable[[object], None], sabotage: str
) -> None:
    run = Run(tmp_path, random.randrange(1 << 32), program=(careless.__file__, sabotage))
    outcome = run.kill(KILLS_TO_CATCH)
    report(outcome)
    assert outcome.violations
