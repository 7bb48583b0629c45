"""Daemons that kill themselves at a certain point, with journal and saves on a small scale.

The first argument is a ``Plan`` as JSON, the others go to the daemon. A point before the mount
counts at once, all others as soon as the file ``armed`` is there.
"""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pmxcfs.cli import main as cli
from pmxcfs.daemon import daemon
from pmxcfs.daemon import storage as opening
from pmxcfs.storage import (
    database,
    journal,
    recovery,
    saver,
    schedule,
    segment_file,
    segments,
    staging,
)
from pmxcfs.storage.database import Database
from pmxcfs.storage.history import History
from pmxcfs.storage.journal import Journal
from pmxcfs.storage.mark import Position
from pmxcfs.storage.records import Kind

AT_START = (
    *("replay", "replayed", "absorb", "absorbed", "forgotten", "settled", "journal-begun"),
    "serving",
)
AT_WORK = (
    *("append", "append-half", "appended", "sync", "synced"),
    *("stage", "stage-half", "staged", "flush", "flush-half", "flushed"),
    *("segment", "segment-made", "segment-cut", "segment-begun"),
    *("save-announced", "save", "save-rows", "save-mark", "save-committed", "save-noted"),
    *("release", "rewrite", "rewrite-rename", "rewrite-renamed", "rewritten", "released"),
    "log-cut",
)
AT_ADOPTION = ("adoption", "adoption-rows", "adoption-mark", "adoption-saved", "adoption-noted")
AT_STOP = ("journal-end", "memory-cleared", "journal-ended", "database-closed")
POINTS = (*AT_START, *AT_WORK, *AT_ADOPTION, *AT_STOP)


class Plan(NamedTuple):
    """What a daemon does differently from the real one."""

    point: str = ""  # of POINTS; empty: it does not kill itself
    times: int = 1  # how often it comes to the point
    armed: str = ""  # path of a file
    segment: int = 4 << 20  # bytes of a full segment
    size: int = 8 << 20  # bytes of journal after which the tree is saved
    pause: float = 2.0  # seconds without a change after which it is saved
    sabotage: str = ""  # of careless
    flush: float = 50.0  # seconds that a record is staged at most

    def program(self) -> tuple[str, str]:
        """Return the arguments of Python."""
        return __file__, json.dumps(self)


class Death:
    """Counts how often the daemon comes to the point of its *plan*."""

    def __init__(self, plan: Plan) -> None:
        self._point = plan.point
        self._armed = Path(plan.armed)
        self._left = plan.times
        self._is_at_start = plan.point in AT_START
        self.is_appending = False  # the next write is that of a change
        self.is_staging = False  # the next write is to memory
        self.has_staged = False  # the next one to the segment has what is staged

    def meet(self, point: str) -> None:
        """Die if this is the time."""
        if self.is_next(point):
            os.kill(os.getpid(), signal.SIGKILL)

    def is_next(self, point: str) -> bool:
        """Count one more time at *point*; tell whether the daemon is to die now."""
        if point != self._point or not (self._is_at_start or self._armed.exists()):
            return False
        self._left -= 1
        return self._left == 0

    def around(self, owner: object, name: str, *, before: str = "", after: str = "") -> None:
        """Replace a function or method by one that comes to these points."""
        function: Callable[..., Any] = getattr(owner, name)

        def surrounded(*args: Any, **options: Any) -> Any:
            self.meet(before)
            result = function(*args, **options)
            self.meet(after)
            return result

        setattr(owner, name, surrounded)


def set_points(death: Death) -> None:
    """Have the parts of the product come to their points."""
    death.around(recovery, "apply", before="replay")
    death.around(opening, "recover", after="replayed")
    death.around(opening, "settle", after="settled")
    death.around(daemon.Daemon, "serve", before="serving")
    death.around(Database, "checkpoint", after="log-cut")
    death.around(Database, "save", before="save", after="save-committed")
    death.around(Database, "adopt", before="adoption", after="adoption-saved")
    death.around(Database, "close", after="database-closed")
    death.around(History, "take", before="rewrite", after="rewritten")
    death.around(os, "fdatasync", before="sync", after="synced")
    set_points_in_journal(death)
    set_points_in_segments(death)
    set_points_in_staging(death)
    set_points_in_transactions(death)


def set_points_in_journal(death: Death) -> None:
    """The same for the journal as its owners use it."""

    class Mortal(vars(opening)["Journal"]):  # type: ignore[misc]  # a careless one, maybe
        @classmethod
        def start(cls, *args: Any, **options: Any) -> Journal:
            begun: Journal = super().start(*args, **options)
            death.meet("journal-begun")
            return begun

        def append(self, bodies: list[bytes], seconds: float = -1.0) -> None:
            self._append_and_meet(super().append, bodies, seconds)

        def stage(self, bodies: list[bytes], seconds: float = -1.0) -> None:
            self._append_and_meet(super().stage, bodies, seconds)

        def _append_and_meet(
            self, append: Callable[..., None], bodies: list[bytes], seconds: float
        ) -> None:
            kinds = {body[0] for body in bodies}
            is_change = Kind.CHANGE in kinds
            death.meet("append" if is_change else "")
            death.is_appending = is_change
            append(bodies, seconds)
            death.meet("appended" if is_change else "")
            death.meet("save-announced" if Kind.SAVING in kinds else "")
            death.meet("save-noted" if Kind.SAVED in kinds else "")
            death.meet("adoption-noted" if Kind.ADOPTED in kinds else "")

        def begin_segment(self, *, version: int, sync: bool = True) -> None:
            death.meet("segment")
            super().begin_segment(version=version, sync=sync)
            death.meet("segment-begun")

        def release(
            self, position: Position, progress: Callable[[Position], None] = lambda position: None
        ) -> None:
            death.meet("release")
            super().release(position, progress)
            death.meet("released")

        def close(self) -> None:
            death.meet("journal-end")
            super().close()
            death.meet("journal-ended")

    setattr(opening, "Journal", Mortal)  # noqa: B010, as mypy objects to an assignment


def set_points_in_segments(death: Death) -> None:
    """The same for the system calls of a segment."""
    write, cut, rename = os.pwrite, os.ftruncate, os.rename

    def write_and_meet(descriptor: int, data: bytes, offset: int) -> int:
        is_change, death.is_appending = death.is_appending, False
        is_staging, death.is_staging = death.is_staging, False
        is_flush, death.has_staged = death.has_staged and not is_staging, is_staging
        death.meet("flush" if is_flush else "")
        halves = {
            "append-half": is_change and not is_staging,
            "stage-half": is_staging,
            "flush-half": is_flush,
        }
        if any([is_meant and death.is_next(name) for name, is_meant in halves.items()]):
            write(descriptor, data[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        size = write(descriptor, data, offset)
        death.meet("flushed" if is_flush else "")
        return size

    def cut_and_meet(descriptor: int, size: int) -> None:
        death.meet("segment-made")  # a segment is cut when the next one is there
        cut(descriptor, size)
        death.meet("segment-cut")

    def rename_and_meet(source: Any, target: Any, **directories: int) -> None:
        death.meet("rewrite-rename" if str(target).endswith(".log") else "")
        rename(source, target, **directories)
        death.meet("rewrite-renamed" if str(target).endswith(".log") else "")

    setattr(os, "pwrite", write_and_meet)  # noqa: B010
    setattr(os, "ftruncate", cut_and_meet)  # noqa: B010
    setattr(os, "rename", rename_and_meet)  # noqa: B010


def set_points_in_staging(death: Death) -> None:
    """The same for what is staged in memory: at work, at the start, and at the end."""
    extend, absorb = staging.StagingFile.extend, segments.absorb_staged

    def extend_and_meet(file: staging.StagingFile, frames: bytes) -> bool:
        death.meet("stage")
        death.is_staging = True
        is_staged = extend(file, frames)
        death.is_staging = False
        death.meet("staged")
        return is_staged

    def absorb_and_meet(directory: Path) -> None:
        is_there = bool(staging.read_staged(directory))
        death.meet("absorb" if is_there else "")
        absorb(directory)
        death.meet("forgotten" if is_there else "")

    setattr(staging.StagingFile, "extend", extend_and_meet)  # noqa: B010
    setattr(recovery, "absorb_staged", absorb_and_meet)  # noqa: B010
    death.around(segments, "forget_staged", before="absorbed")
    death.around(journal, "forget_staged", after="memory-cleared")


def set_points_in_transactions(death: Death) -> None:
    """The same inside of the transactions that save changes or an adoption."""
    mark: Callable[..., None] = vars(database)["write_mark"]
    is_adopting: list[bool] = []
    adopt = Database.adopt

    def adopt_and_tell(*args: Any, **options: Any) -> None:
        is_adopting.append(True)
        adopt(*args, **options)
        is_adopting.clear()

    def mark_and_meet(*args: Any) -> None:
        death.meet("adoption-rows" if is_adopting else "save-rows")
        mark(*args)
        death.meet("adoption-mark" if is_adopting else "save-mark")

    setattr(Database, "adopt", adopt_and_tell)  # noqa: B010
    setattr(database, "write_mark", mark_and_meet)  # noqa: B010


def set_scale(plan: Plan) -> None:
    """Make segments and saves as small as *plan* says."""
    setattr(journal, "SEGMENT_LIMIT", plan.segment)  # noqa: B010
    setattr(schedule, "SAVE_SIZE", plan.size)  # noqa: B010
    setattr(schedule, "PAUSE", plan.pause)  # noqa: B010
    setattr(schedule, "CONFIGURATION_AFTER", 10 * plan.pause)  # noqa: B010
    setattr(saver, "OVERDUE_SIZE", 2 * plan.size)  # noqa: B010
    setattr(journal, "FLUSH_AFTER", plan.flush)  # noqa: B010
    setattr(segment_file, "STEP", min(segment_file.STEP, plan.segment))  # noqa: B010


if __name__ == "__main__":
    chosen = Plan(*json.loads(sys.argv[1]))
    set_scale(chosen)
    if chosen.sabotage:
        importlib.import_module("careless").SABOTAGE[chosen.sabotage]()  # it is beside this file
    if chosen.point:
        set_points(Death(chosen))
    sys.exit(cli.main(sys.argv[2:]))
