"""Bytes that an idle hour of a five-node cluster with HA hands to one node's block device.

The hour is played in a minute, and with ``--real-rate`` also for ten minutes as it is: the kernel
writes each page that has stayed dirty for 30 s, and ext4 commits the time of a file's last change
every 5 s. So the real rate costs more. It is measured with both block sizes that mkfs.ext4 takes
by itself, because such a commit is three blocks.

The base is the least that any program pays which writes its records at once: a file on a disk of
its own that one ``pwrite`` of as many bytes extends for each replacement.
Contract: docs/spec/storage.md, "Bytes".
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import idle
from bench.device import SMALL_BLOCK, USUAL_BLOCK, Disk, disk
from bench.goals import MIB, Goal
from bench.report import Report
from bench.servers import pmxcfs_server

MOST_MIB = 8  # an hour
FAST = 60.0  # times the real rate
REAL_SECONDS = 600.0
RECORDS = 900  # bytes of the records of a replacement, on the average


class Extended:
    """The base: a file that each replacement extends."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        self._end = 0

    def extend(self) -> None:
        self._end += os.pwrite(self._descriptor, bytes(RECORDS), self._end)

    def close(self) -> None:
        os.close(self._descriptor)


@contextlib.contextmanager
def extended(path: Path) -> Iterator[Extended]:
    file = Extended(path)
    try:
        yield file
    finally:
        file.close()


def measured(workdir: Path, *, seconds: float, speed: float, block: int) -> tuple[float, float]:
    """Return the MiB written in *seconds* of the idle hour, by our side and by the base."""
    with disk(workdir, block=block) as ours, disk(workdir / "base", block=block) as base:
        state = ours.mountpoint / "state"
        with (
            pmxcfs_server(workdir, statedir=state) as server,
            extended(base.mountpoint / "file") as file,
        ):
            idle.prepare(server.root)
            idle.play(server.root, seconds=60, speed=60)  # each file is there
            before = ours.written(), base.written()
            idle.play(server.root, seconds=seconds, speed=speed, on_replaced=file.extend)
        return since(ours, before[0]), since(base, before[1])


def since(device: Disk, before: int) -> float:
    """Return the MiB written since *before*."""
    return (device.written() - before) / MIB


def bench_hour_in_a_minute(workdir: Callable[[], Path], report: Report) -> None:
    """The orderly stop and its save are included."""
    ours, base = measured(workdir(), seconds=idle.HOUR, speed=FAST, block=USUAL_BLOCK)
    report.add(
        "idle", "an hour played in a minute", unit="MiB", ours=ours, base=base,
        goal=Goal(absolute=MOST_MIB),
    )  # fmt: skip


@pytest.mark.parametrize("block", [SMALL_BLOCK, USUAL_BLOCK])
def bench_hour(
    block: int, workdir: Callable[[], Path], report: Report, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--real-rate"):
        pytest.skip("ten minutes each, with --real-rate only")
    ours, base = measured(workdir(), seconds=REAL_SECONDS, speed=1, block=block)
    hours = idle.HOUR / REAL_SECONDS
    report.add(
        "idle", f"an hour at the real rate, ext4 blocks of {block} bytes", unit="MiB",
        ours=ours * hours, base=base * hours, goal=Goal(absolute=MOST_MIB),
    )  # fmt: skip
