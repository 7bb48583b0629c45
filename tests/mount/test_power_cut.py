"""Power cuts: what fsync has acknowledged is there, and the rest is a state that the tree was in.

The state directory is on a device that records its writes and flushes. One run of a writer gives
the images of many cuts; a daemon is started on each.
"""

import faulthandler
import os
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from pmxcfs.storage.staging import forget_staged
from tests.fakes.programs.mortal import Plan
from tests.harness import PROGRAM, is_loud, mounted
from tests.mount.devices import needs_loop
from tests.mount.power import Recording, cuts, loop_mounted
from tests.mount.workload import Journal, Possible, State, Writer, difference, snapshot

pytestmark = [pytest.mark.needs_fuse, needs_loop]

OPERATIONS = 150
CUTS = 25
LONG_CUTS = 250  # in one part
PARTS = 2
CUTS_TO_CATCH = 60
SCALE = Plan(segment=128 << 10, size=512 << 10, pause=0.05)


class Enough(Exception):
    """The writer has done all its operations."""


class Step(NamedTuple):
    """A state that the tree may have been in, from this position of the device's log on."""

    possible: Possible
    position: int


class Trail(Journal):
    """All states of a run, and which of them an fsync has acknowledged."""

    def __init__(self, recording: Recording) -> None:
        super().__init__({})
        self._recording = recording
        self.steps = [Step(Possible({}), recording.position)]
        self.synced = [(0, 0)]  # position of the log when fsync returned, number of the step

    def note(self, possible: Possible) -> None:
        super().note(possible)
        self.steps.append(Step(possible, self._recording.position))

    def promise(self, *, is_synced: bool = False) -> None:
        super().promise()
        if is_synced:
            self.synced.append((self._recording.position, len(self.steps) - 1))
        if self.operations >= OPERATIONS and is_synced:
            raise Enough

    def states_at(self, position: int) -> list[State]:
        """Return the states that a cut at *position* of the log may leave."""
        first = max(step for synced_at, step in self.synced if synced_at <= position)
        steps = [step.possible for step in self.steps[first:] if step.position <= position]
        return [state for possible in steps for state in possible.all()]


def run(recording: Recording, workdir: Path, seed: int, program: Sequence[str | Path]) -> Trail:
    """Let one writer work on a daemon, which stops in the end."""
    with mounted(workdir, program=program) as daemon:
        trail = Trail(recording)
        root = daemon.path / "writer"
        root.mkdir()
        with pytest.raises(Enough):
            Writer(root, trail, random.Random(seed)).run()
    return trail


def look(workdir: Path, states: list[State]) -> list[str]:
    """Return what is wrong with the tree after a cut."""
    found = []
    with mounted(workdir) as daemon:
        root = daemon.path / "writer"
        seen = snapshot(root) if root.exists() else {}
        differences = sorted((difference(state, seen) for state in states), key=len)
        if differences[0]:
            nearest = "; ".join(differences[0])
            found.append(f"none of {len(states)} possible states, the nearest: {nearest}")
        for line in filter(is_loud, daemon.log_text().splitlines()):
            daemon.expect_log(re.escape(line))
            found.append(line)
        if (daemon.state / "conflicts").exists():
            found.append("something is put aside")
    return found


def violations_of_cuts(
    tmp_path: Path, seed: int, count: int, *, program: Sequence[str | Path] = PROGRAM
) -> tuple[int, list[str]]:
    """Return how many cuts were made, up to the first violations, and these."""
    recording, chance = Recording(tmp_path), random.Random(seed)
    state = tmp_path / "first" / "state"
    with recording.mounted(state):
        trail = run(recording, tmp_path / "first", seed, program)
    asked = recording.asked()
    workdir = tmp_path / "cut"
    (workdir / "state").mkdir(parents=True)
    done = 0
    first = next(n for n, one in enumerate(asked) if one.end > trail.steps[0].position)
    for number in cuts(asked, count, chance, first=first):
        position = asked[number - 1].end
        # One file each, as a loop device may still be about to end.
        image = recording.image_at(asked, number, tmp_path / f"cut{done}.img", chance)
        with loop_mounted(image, workdir / "state"):
            forget_staged(workdir / "state" / "journal")  # memory is empty after a power cut
            found = look(workdir, trail.states_at(position))
        image.unlink()
        done += 1
        if found:
            return done, [f"cut after {number} of {len(asked)} requests", *found]
    return done, []


def test_after_a_power_cut_all_that_was_synced_is_there(
    tmp_path: Path, report: Callable[[object], None], seed: int
) -> None:
    done, found = violations_of_cuts(tmp_path, seed, CUTS, program=SCALE.program())
    report(f"power cuts: seed {seed}, {done} cuts, violations: {found}")
    assert found == []


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_after_many_power_cuts_all_that_was_synced_is_there(
    tmp_path: Path, report: Callable[[object], None], seed: int, part: int
) -> None:
    faulthandler.cancel_dump_traceback_later()  # it takes long, and nothing is wrong then
    done, found = violations_of_cuts(tmp_path, seed + part, LONG_CUTS, program=SCALE.program())
    report(f"power cuts: seed {seed + part}, {done} cuts, violations: {found}")
    assert found == []


def test_a_daemon_that_does_not_sync_loses_changes(
    tmp_path: Path, report: Callable[[object], None], seed: int
) -> None:
    program = SCALE._replace(sabotage="forget-to-sync").program()
    done, found = violations_of_cuts(tmp_path, seed, CUTS_TO_CATCH, program=program)
    report(f"without syncs: found by cut {done}: {found[:2]}")
    assert found


def test_what_a_killed_daemon_has_written_is_on_the_device_after_a_later_fsync(
    tmp_path: Path, seed: int
) -> None:
    recording, workdir, image = Recording(tmp_path), tmp_path / "first", tmp_path / "cut.img"
    content = bytes(range(256)) * 200  # of many blocks
    with recording.mounted(workdir / "state"):
        with mounted(workdir) as daemon:
            (daemon.path / "file").write_bytes(content)
            daemon.kill()
        with mounted(workdir) as daemon:
            descriptor = os.open(daemon.path / "file", os.O_RDWR)
            os.fsync(descriptor)
            position = recording.position
            os.close(descriptor)
            daemon.kill()
    asked = recording.asked()
    count = sum([one.end <= position for one in asked])
    recording.image_at(asked, count, image, random.Random(seed))
    with loop_mounted(image, workdir / "state"), mounted(workdir) as daemon:
        assert (daemon.path / "file").read_bytes() == content
