"""Series of daemons on one state directory, each killed at a random moment or a certain point.

Writers change the mount until the daemon is dead. The next daemon must show each writer a state
that its finished operations allow. Nothing may be put aside in conflicts/, and nothing be logged.
"""

import contextlib
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from pmxcfs.host.directories import opened
from pmxcfs.host.process import is_dying
from pmxcfs.messages import Write
from pmxcfs.storage.create import making
from pmxcfs.storage.database import inspect as inspect_database
from pmxcfs.storage.database import whole_batch
from pmxcfs.storage.recovery import inspect
from pmxcfs.storage.staging import forget_staged, read_staged
from pmxcfs.tree.apply import apply
from tests.fakes.programs.mortal import AT_ADOPTION, AT_START, AT_STOP, AT_WORK, POINTS, Plan
from tests.harness import GRACE, POLL_INTERVAL, Daemon, detach, is_loud, launch, wait_for
from tests.mount.workload import Writers

WRITERS = 4
LONGEST_WORK = 0.1  # seconds from the start of the writers to the kill at a random moment
LONGEST_START = 0.2  # seconds from the launch to a kill during the start
LONGEST_WAIT = 3.0  # seconds for a daemon to come to its point; then it is killed
RANDOM = 0.3  # the share of kills at a random moment
RANDOM_START = 0.1  # the share of kills at a random moment of the start
WORKERS = ("9", "16")
SEGMENTS = (32 << 10, 512 << 10, 4 << 20)  # bytes of a full segment
SIZES = (256 << 10, 8 << 20)  # bytes of journal after which the tree is saved
FLUSHES = (0.0, 0.5, 50.0)  # seconds that a record is staged at most
PAUSES = (0.001, 0.02, 2.0)  # seconds without a change after which it is saved
TIMES = (1, 2, 7, 30)  # how often a daemon comes to a point that comes often
OFTEN = ("append", "append-half", "appended", "stage", "staged", "flush", "flushed", "replay")
ADOPTED = "adopted"  # the file that each adoption changes
# A machine that is so busy that the device takes seconds; a stop also refuses what it can't do.
REFUSED = re.compile(
    r"refused: .*Errno 16|the last writes to \S+ are lost: EBUSY|could not be written within"
)
LOST_AT_STOP = re.compile(r"the last writes to ")


@dataclass
class Outcome:
    """The results of a series of kills."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)  # by point
    operations: int = 0
    refused: int = 0  # with EBUSY
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        points = ", ".join(f"{point} {count}" for point, count in sorted(self.kills.items()))
        return (
            f"kills: seed {self.seed}, {self.kills.total()} kills ({points}), "
            f"{self.operations} operations done, {self.refused} refused, "
            f"{len(self.violations)} violations"
            + "".join(f"\n  {line}" for line in self.violations[:20])
        )


class Kills:
    """A series of daemons on the directories below *workdir*."""

    def __init__(self, workdir: Path, seed: int, *, sabotage: str = "") -> None:
        self.outcome = Outcome(seed)
        self._workdir = workdir
        self._sabotage = sabotage
        self._random = random.Random(seed)
        self._state = workdir / "state"
        self._armed = workdir / "armed"
        self._version = 0  # that the next start must show at least
        self._was_stopped = False  # the last daemon may have published what is not closed yet
        self._adopted = {b""}  # contents that the adopted file may have

    def run(self, times: int, *, seconds: float = 1e9) -> Outcome:
        """Kill *times* daemons, or as many as *seconds* allow, then stop one.

        End early after a violation.
        """
        until = time.monotonic() + seconds
        plan = Plan()
        with closing(Writers(self._workdir / "pve", self.outcome.seed, count=WRITERS)) as writers:
            while self.outcome.kills.total() < times and not self.outcome.violations:
                if time.monotonic() > until:
                    break
                last, plan = plan, self._choose()
                self._kill_one(writers, plan)
                if self.outcome.violations:
                    self.outcome.violations.append(f"after {last} and during {plan}")
            if not self.outcome.violations:
                self._stop_one(writers)
        forget_staged(self._state / "journal")
        return self.outcome

    def _kill_one(self, writers: Writers, plan: Plan) -> None:
        self._armed.unlink(missing_ok=True)
        with self._running(plan) as daemon:
            if plan.point in AT_START or (not plan.point and self._random.random() < RANDOM_START):
                start = self._random.uniform(0, LONGEST_START)
                self._await_death(daemon, LONGEST_WAIT if plan.point else start)
            else:
                wait_for(daemon.is_ready, daemon, GRACE)
                self._look(writers, daemon)
                if plan.point in AT_ADOPTION:
                    self._adopt(daemon)
                else:
                    self._write(writers, daemon, plan)
            is_hit = daemon.process.poll() is not None
            daemon.kill()
            self.outcome.kills[plan.point if is_hit else "random"] += 1
            if plan.point not in (*AT_START, *AT_ADOPTION) and self._armed.exists():
                self._gather(writers, plan)
            self._read_log(daemon, plan)

    def _choose(self) -> Plan:
        """Choose where the next daemon dies."""
        choose = self._random.choice
        plan = Plan(
            armed=str(self._armed),
            segment=choose(SEGMENTS),
            size=choose(SIZES),
            pause=choose(PAUSES),
            flush=choose(FLUSHES),
            sabotage=self._sabotage,
        )
        if self._random.random() < RANDOM:
            return plan
        # Some are reached less often than others, and all are to be among the kills.
        point = min(self._random.sample(POINTS, 3), key=self.outcome.kills.__getitem__)
        times = choose(TIMES if point in OFTEN else (1, 2))
        if point in AT_WORK:  # which come often on a small scale
            plan = plan._replace(segment=min(SEGMENTS), pause=min(PAUSES))
        return plan._replace(point=point, times=times if point in AT_WORK + AT_START[:1] else 1)

    @contextlib.contextmanager
    def _running(self, plan: Plan) -> Iterator[Daemon]:
        workers = self._random.choice(WORKERS)
        flags = ("--test-control", "--workers", workers)
        daemon = launch(self._workdir, *flags, program=plan.program())
        try:
            yield daemon
        finally:
            if daemon.process.poll() is None:
                daemon.kill()
            detach(daemon.path)

    def _await_death(self, daemon: Daemon, seconds: float) -> None:
        """Wait until the daemon has killed itself, *seconds* at most."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = daemon.process.wait(seconds)
            assert status == -9, f"the daemon ended with {status}\n{daemon.log_tail()}"

    def _write(self, writers: Writers, daemon: Daemon, plan: Plan) -> None:
        """Let the writers work until the daemon dies."""
        self._armed.touch()
        writers.start()
        if plan.point in AT_STOP:
            writers.wait(self._random.uniform(0, LONGEST_WORK))
            self._was_stopped = True
            daemon.process.terminate()
        if plan.point:
            self._await_death(daemon, LONGEST_WAIT)
        else:
            writers.wait(self._random.uniform(0, LONGEST_WORK))

    def _gather(self, writers: Writers, plan: Plan) -> None:
        for report in writers.reports():
            self.outcome.operations += report.operations
            self._version += report.mutations
            self._note(report.violations, plan)

    def _note(self, violations: list[str], plan: Plan) -> None:
        """Add violations; what is refused is none."""
        for line in violations:
            if REFUSED.search(line):
                self.outcome.refused += 1
            elif not (plan.point in AT_STOP and LOST_AT_STOP.search(line)):
                self.outcome.violations.append(line)

    def _adopt(self, daemon: Daemon) -> None:
        """Have the daemon adopt its own tree with another content of one file."""
        before = inspect(self._state / "config.db")
        if before.tree.find(ADOPTED) is None:
            self.outcome.violations.append(f"the database has no file {ADOPTED}")
            return
        content = b"%d" % before.tree.version
        mutation = Write(ADOPTED, 0, content, truncate=True)
        apply(before.tree, before.guests, mutation, writer=7, mtime=1)
        leader = self._workdir / "leader.db"
        with making(leader, now=1) as database:
            database.save(whole_batch(before.tree), None)
        self._armed.touch()
        try:
            daemon.control("adopt", path=str(leader))
            self._adopted = {content}
            self._version += 1
            self._touch(daemon, "after")  # its record is behind that of the adoption
        except (OSError, json.JSONDecodeError):  # it dies
            self._adopted.add(content)
            self._await_death(daemon, LONGEST_WAIT)

    def _touch(self, daemon: Daemon, name: str) -> None:
        """Touch a file of a daemon that may die meanwhile. Raises OSError then.

        If it is killed while it notifies the kernel of a name in this directory, the touch waits
        for the daemon's reply, and the daemon's last thread waits in the kernel for the touch. Both
        end when the mount is detached. The file is named in the mount's open root, so that it is
        never made in the directory that the mount covers.
        """
        with opened(os.open(daemon.path, os.O_PATH)) as root, ThreadPoolExecutor(1) as pool:
            touched = pool.submit(lambda: os.close(os.open(name, os.O_CREAT, 0o640, dir_fd=root)))
            while not wait([touched], POLL_INTERVAL).done:
                if is_dying(str(daemon.process.pid)):
                    detach(daemon.path)
            touched.result()

    def _look(self, writers: Writers, daemon: Daemon) -> None:
        """Compare with what must be there, as far as users and other programs see it."""
        found = self.outcome.violations
        found += [*writers.look(was_stopped=self._was_stopped), *self._look_at_database()]
        self._was_stopped = False
        file = daemon.path / ADOPTED
        file.touch()
        if file.read_bytes() not in self._adopted:
            found.append(f"{ADOPTED} holds {file.read_bytes()!r}, not one of {self._adopted}")
        self._adopted = {file.read_bytes()}
        version = daemon.control("info")["version"]
        if version < self._version:
            found.append(f"version {version}, {self._version} was reached before")
        self._version = version
        if (self._state / "conflicts").exists():
            found.append(f"put aside: {sorted((self._state / 'conflicts').iterdir())}")

    def _look_at_database(self) -> list[str]:
        """Return what is wrong in the file, for another program that reads it."""
        path = f"file:{self._state}/config.db?mode=ro"
        with closing(sqlite3.connect(path, uri=True)) as reader:
            return [line for (line,) in reader.execute("PRAGMA integrity_check") if line != "ok"]

    def _read_log(self, daemon: Daemon, plan: Plan) -> None:
        """Take warnings as violations: a crash leaves nothing to repair."""
        loud = [line for line in daemon.log_text().splitlines() if is_loud(line)]
        self._note(loud, plan)
        if not loud:
            daemon.log.unlink()

    def _stop_one(self, writers: Writers) -> None:
        """Stop a daemon; its tree must be in the database alone then."""
        plan = Plan(sabotage=self._sabotage)
        with self._running(plan) as daemon:
            wait_for(daemon.is_ready, daemon, GRACE)
            self._look(writers, daemon)
            version = daemon.control("info")["version"]
            daemon.stop()
            self._read_log(daemon, plan)
        if read_staged(self._state / "journal"):
            self.outcome.violations.append("something is staged after an orderly stop")
        alone = Path(shutil.copy(self._state / "config.db", self._workdir / "alone.db"))
        found = inspect_database(alone).records[0].version
        if found != version:
            self.outcome.violations.append(f"version {found} in the database, {version} at the end")
