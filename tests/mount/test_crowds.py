"""Many programs at once for a while: no error, nothing that grows; what a look-up takes then."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.harness import Daemon, mounted, wait_for
from tests.places import ROOT

pytestmark = pytest.mark.needs_fuse

PROGRAM = ROOT / "tests" / "fakes" / "programs" / "crowd.py"
READERS, WRITERS = 64, 8
PAUSE = 0.05  # seconds between two rounds of each program
MOST_RINGS = 133  # of a CPU: a keeper's, and a worker's for each slot
WARM = 0.2  # the part of the time after which nothing may grow any more
# Bytes of resident memory: names that were looked up, and what the allocator keeps. In a short run
# that includes the first rewriting of a segment for the history, about 21 MB.
GROWTH, GROWTH_AT_FIRST = 8 << 20, 32 << 20


def resident(daemon: Daemon) -> int:
    """Return the daemon's resident memory, in bytes."""
    fields = Path(f"/proc/{daemon.process.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGESIZE")


def descriptors(daemon: Daemon) -> int:
    """Return the number of the daemon's open files.

    Without the rings of io_uring: as many stay as there were ever requests at once.
    """
    found = [os.readlink(path) for path in Path(f"/proc/{daemon.process.pid}/fd").iterdir()]
    rings = found.count("anon_inode:[io_uring]")
    assert rings <= MOST_RINGS * (os.cpu_count() or 1)
    return len(found) - rings


def told(times: Sequence[float]) -> str:
    """Return median, 99th percentile and maximum of *times*, in microseconds."""
    ranked = sorted(times)
    p99 = ranked[len(ranked) * 99 // 100]
    return f"median {ranked[len(ranked) // 2]:.0f} us, p99 {p99:.0f} us, worst {ranked[-1]:.0f} us"


@pytest.mark.parametrize("pause", [0.0, PAUSE], ids=["without pause", "paced"])
@pytest.mark.parametrize(
    ("seconds", "most"),
    [(10, GROWTH_AT_FIRST), pytest.param(300, GROWTH, marks=pytest.mark.long)],
)
def test_64_readers_and_8_writers_get_no_error_and_leave_nothing(
    tmp_path: Path, seconds: int, most: int, pause: float, report: Callable[[object], None]
) -> None:
    with mounted(tmp_path, "--test-control") as mount:
        files = descriptors(mount)
        argv = [sys.executable, "-S", "-E", str(PROGRAM), str(mount.path)]
        argv += [str(READERS), str(WRITERS), str(seconds), str(pause)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as crowd:
            assert crowd.stdout is not None
            assert crowd.stdout.readline() == "ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                crowd.wait(WARM * seconds)
            warm = resident(mount)
            reports = json.loads(crowd.communicate()[0])
        growth = resident(mount) - warm
        counts: Counter[str] = Counter()
        for each in reports:
            counts[each["kind"]] += each["count"]
        looks, echoes = zip(*reports[0]["times"], strict=True)
        report(
            f"{READERS} readers and {WRITERS} writers, each pausing {pause} s, for {seconds} s: "
            f"{dict(counts)}; resident "
            f"{warm / 1e6:.1f} MB, then {growth / 1e6:+.1f} MB; an uncached look-up: "
            f"{told(looks)}; a byte to another process and back: {told(echoes)}"
        )
        assert len(reports) == 1 + READERS + WRITERS
        assert [each["errors"] for each in reports if each["errors"]] == []
        assert growth < most
        wait_for(lambda: mount.control("info")["waiting"] == 0, mount)
        # Test control is connected only for the command that asks.
        wait_for(lambda: descriptors(mount) <= files, mount)
