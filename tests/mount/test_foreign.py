"""Changes of other nodes are visible within 100 ms, whatever the kernel has cached.

In each round foreign changes hit names that other processes look up for the first time at that
moment. Then all that a user can see of each name is compared.
"""

import contextlib
import json
import mmap
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Control, Daemon, mounted, wait_for
from tests.mount.ledger import GRACE, Ledger
from tests.places import PROGRAMS

pytestmark = pytest.mark.needs_fuse

QUORUM_GRACE = 0.2  # modes are invalidated again after 100 ms, see fuse.md
LEAD = 0.0025  # seconds at most that the first look has before the change is made
CHECKS = 5_000  # for each number of workers
ONLOOKERS = 3
ONLOOKER = PROGRAMS / "onlooker.py"
PAGE = 4096
PATIENCE = 60.0  # seconds for a process to end


class Onlookers:
    """Processes that access paths all the time."""

    def __init__(self) -> None:
        self.looks = 0
        self._processes = [
            subprocess.Popen(
                [sys.executable, ONLOOKER, str(seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for seed in range(ONLOOKERS)
        ]

    def look_at(self, path: Path) -> None:
        """Look at this at once, for the first time, and every now and then."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{path}\n")
            process.stdin.flush()

    def end(self) -> None:
        """End them and count how often they looked."""
        for process in self._processes:
            self.looks += int(process.communicate(timeout=PATIENCE)[0])


@contextlib.contextmanager
def onlooking() -> Iterator[Onlookers]:
    """Run the processes while the block runs."""
    onlookers = Onlookers()
    try:
        yield onlookers
    finally:
        onlookers.end()


class Expected:
    """The expected state of one path, and a mapping made before the change."""

    def __init__(self, path: Path, content: bytes | None, *, mtime: int, directory: bool) -> None:
        self.path = path
        self.content = content  # None: there must be nothing
        self.mtime = mtime
        self.directory = directory
        self.pages: mmap.mmap | None = None

    def keep_mapped(self) -> None:
        """Map the file as it is now and touch its pages."""
        descriptor = os.open(self.path, os.O_RDONLY)
        self.pages = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        os.close(descriptor)
        self.pages[:]


def compare(expected: Expected, ledger: Ledger) -> None:
    """Compare all that a user can see of one path."""
    path = expected.path

    def check(kind: str, see: Callable[[Path], object], wanted: object) -> None:
        ledger.check(kind, path, lambda: see(path), wanted)

    is_there = expected.directory or expected.content is not None
    check("listing", is_listed, is_there)
    if not is_there:
        check("negative name", os.path.lexists, False)
        return
    check("stat", seen_by_stat, wanted_of(expected))
    if expected.content is not None:
        check("content", read_or_none, expected.content)
    if expected.pages is not None and expected.content is not None:
        size = min(len(expected.pages), len(expected.content))
        pages = expected.pages
        check("mmap", lambda _: pages[:size], expected.content[:size])
        pages.close()


def is_listed(path: Path) -> bool:
    """Tell whether the name is in its directory's listing."""
    return path.name in os.listdir(path.parent)


def seen_by_stat(path: Path) -> tuple[int, int, int] | None:
    """Return mode, size, mtime."""
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        return found.st_mode, found.st_size, int(found.st_mtime)
    return None


def wanted_of(expected: Expected) -> tuple[int, int, int]:
    """Return mode, size, mtime as they must be."""
    is_private = "priv" in expected.path.parts
    if expected.directory:
        return stat.S_IFDIR | (0o700 if is_private else 0o755), 0, expected.mtime
    mode = stat.S_IFREG | (0o600 if is_private else 0o640)
    return mode, len(expected.content or b""), expected.mtime


def permissions(path: Path) -> int:
    """Return the permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def read_or_none(path: Path) -> bytes | None:
    """Return the content."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None


class Round:
    """One directory of fresh names, and a foreign change to each of them."""

    EACH = 5  # names per kind of change

    def __init__(self, root: Path, control: Control, number: int) -> None:
        self._root = root
        self._control = control
        self._chance = random.Random(number)
        home = "priv" if number % 4 == 3 else "d"
        self._home = f"{home}/round{number}"
        self._time = 1_000_000 + 1000 * number
        self.expected: list[Expected] = []
        self._pending: list[tuple[str, dict[str, Any], list[Expected]]] = []

    def _inject(self, kind: str, path: str, **more: object) -> None:
        self._control("inject", kind=kind, path=path, time=self._time, **more)

    def _content(self, least: int = 1) -> bytes:
        size = self._chance.choice([least, 100, PAGE - 1, PAGE, 3 * PAGE + 5])
        return self._chance.choice(b"abcdefgh").to_bytes(1, "big") * size

    def _make(self, path: str, content: bytes) -> None:
        self._inject("create", path)
        self._inject("write", path, data=content.decode())

    def prepare(self) -> None:
        """Make what the changes start from, and note what they will be."""
        self._inject("mkdir", self._home)
        plans: dict[str, Callable[[str], None]] = {
            "create": self._plan_create,
            "mkdir": self._plan_mkdir,
            "write": self._plan_write,
            "part": self._plan_part,
            "delete": self._plan_delete,
            "rename": self._plan_rename,
            "replace": self._plan_replace,
            "mtime": self._plan_mtime,
        }
        for name, plan in plans.items():
            for index in range(self.EACH):
                plan(f"{self._home}/{name}{index}")
        self._chance.shuffle(self._pending)

    def _plan(self, kind: str, path: str, outcome: dict[str, bytes | None], **more: object) -> None:
        directory = kind == "mkdir"
        expected = [
            Expected(self._root / seen, content, mtime=self._time + 500, directory=directory)
            for seen, content in outcome.items()
        ]
        self._pending.append((kind, {"path": path, **more}, expected))
        self.expected += expected

    def _plan_create(self, path: str) -> None:
        self._plan("create", path, {path: b""})

    def _plan_mkdir(self, path: str) -> None:
        self._plan("mkdir", path, {path: None})

    def _plan_write(self, path: str) -> None:
        self._make(path, self._content())
        content = self._content()
        self._plan("write", path, {path: content}, data=content.decode())
        if self._chance.random() < 0.5:
            self.expected[-1].keep_mapped()

    def _plan_part(self, path: str) -> None:
        before, data = self._content(least=50), b"changed"
        self._make(path, before)
        content = before[:20] + data + before[27:]
        more = {"offset": 20, "truncate": False, "data": data.decode()}
        self._plan("write", path, {path: content}, **more)

    def _plan_delete(self, path: str) -> None:
        self._make(path, b"x")
        self._plan("delete", path, {path: None})

    def _plan_rename(self, path: str) -> None:
        content = self._content()
        self._make(path, content)
        self._plan("rename", path, {path: None, f"{path}.to": content}, to=f"{path}.to")

    def _plan_replace(self, path: str) -> None:
        content = self._content()
        self._make(path, self._content())
        self._make(f"{path}.tmp", content)
        self._plan("rename", f"{path}.tmp", {f"{path}.tmp": None, path: content}, to=path)

    def _plan_mtime(self, path: str) -> None:
        content = self._content()
        self._make(path, content)
        self._plan("mtime", path, {path: content}, mtime=self._time + 500)

    def change(self, onlookers: Onlookers, ledger: Ledger) -> None:
        """Make each change just when it is looked up, and compare GRACE after its answer."""
        self._time += 500
        answered = []
        ledger.begin()
        for kind, request, expected in self._pending:
            onlookers.look_at(self._chance.choice(expected).path)
            spin_until(time.monotonic() + self._chance.uniform(0, LEAD))
            self._inject(kind, **request)
            answered.append((time.monotonic(), expected))
        for since, expected in answered:
            await_time(since + GRACE)
            for each in expected:
                compare(each, ledger)


def spin_until(moment: float) -> None:
    """Spin without giving up the processor; a sleep would take much longer."""
    while time.monotonic() < moment:
        pass


def await_time(moment: float) -> None:
    """Wait until the delay that the contract allows is over."""
    if (left := moment - time.monotonic()) > 0:
        time.sleep(left)


MODES = {  # by quorum
    True: {stat.S_IFREG: 0o640, stat.S_IFDIR: 0o755},
    False: {stat.S_IFREG: 0o440, stat.S_IFDIR: 0o555},
}


def check_quorum(mount: Daemon, control: Control, number: int, ledger: Ledger) -> None:
    """Switch the quorum off and on while known and unknown names are looked up."""
    for on in (False, True):
        ledger.begin()
        control("quorum", on=on)
        await_time(time.monotonic() + QUORUM_GRACE)
        for path in (mount.path / f"d/round{number}").iterdir():
            wanted = MODES[on][stat.S_IFMT(path.stat().st_mode)]
            ledger.check("mode", path, partial(permissions, path), wanted)


@pytest.mark.parametrize("workers", [5, 16])
def test_nothing_is_stale_after_a_foreign_change(
    tmp_path: Path, workers: int, report: Callable[[object], None]
) -> None:
    with (
        mounted(tmp_path, "--test-control", "--workers", str(workers)) as mount,
        mount.connect() as control,
        onlooking() as onlookers,
    ):
        ledger = Ledger(mount)
        for home in ("d", "priv"):
            control("inject", kind="mkdir", path=home)
        number = 0
        while ledger.checks.total() < CHECKS:
            turn = Round(mount.path, control, number)
            turn.prepare()
            turn.change(onlookers, ledger)
            if number % 8 == 0:
                check_quorum(mount, control, number, ledger)
            number += 1
    counts = ", ".join(f"{kind} {count}" for kind, count in sorted(ledger.checks.items()))
    report(
        f"foreign changes, {workers} workers: {ledger.checks.total()} checks, "
        f"{len(ledger.stale)} stale, {ledger.late} late, "
        f"{ledger.starved} only starved: {counts}; {onlookers.looks} looks beside"
    )
    assert ledger.stale == []
    assert ledger.late <= CHECKS / 1000
    assert ledger.checks.total() >= CHECKS
    assert min(ledger.checks[kind] for kind in ("stat", "content", "listing", "mmap")) > 50
    assert ledger.checks["negative name"] > 50
    assert ledger.checks["mode"] > 50
    assert onlookers.looks > CHECKS


def counter_of(mount: Daemon, name: str) -> int:
    """Return one counter of ``.version``."""
    return int(json.loads((mount.path / ".version").read_bytes())[name])


def in_place(control: Control, number: int) -> None:
    """Write the file with *number* as its content, counting once.

    All contents have one size, as a reader may get the old size and the new bytes.
    """
    control("inject", kind="write", path="storage.cfg", data=f"{number:06}")


def by_renaming(control: Control, number: int) -> None:
    """Put a new file in its place, as Perl's file_set_contents does."""
    control("inject", kind="create", path="storage.cfg.tmp")
    control("inject", kind="write", path="storage.cfg.tmp", data=f"{number:06}")
    control("inject", kind="rename", path="storage.cfg.tmp", to="storage.cfg")


class Writer(threading.Thread):
    """Another node that changes storage.cfg all the time."""

    def __init__(self, control: Control, change: Callable[[Control, int], None]) -> None:
        super().__init__()
        self.number = 0
        self._control = control
        self._change = change
        self._is_enough = threading.Event()

    def run(self) -> None:
        while not self._is_enough.is_set():
            self._change(self._control, self.number + 1)
            self.number += 1

    def end(self) -> None:
        """Stop changing."""
        self._is_enough.set()
        self.join()


@contextlib.contextmanager
def changing(mount: Daemon, change: Callable[[Control, int], None]) -> Iterator[Writer]:
    """Have storage.cfg changed by another node until the block ends."""
    with mount.connect() as control:
        control("inject", kind="create", path="storage.cfg")
        in_place(control, 0)
        writer = Writer(control, change)
        writer.start()
        try:
            yield writer
        finally:
            writer.end()


READS = 300


@pytest.mark.parametrize("change", [in_place, by_renaming])
@pytest.mark.parametrize("workers", [5, 16])
def test_a_client_that_sees_a_new_counter_reads_the_new_content(
    tmp_path: Path, workers: int, change: Callable[[Control, int], None]
) -> None:
    old = []
    with mounted(tmp_path, "--test-control", "--workers", str(workers)) as mount:
        start = counter_of(mount, "storage.cfg") + 2  # created and written before it is changed
        with changing(mount, change) as writer:
            for _ in range(READS):
                count = counter_of(mount, "storage.cfg") - start
                content = int((mount.path / "storage.cfg").read_bytes())
                if content < count:
                    old.append(f"counter {count}, content {content}")
        wait_for(lambda: counter_of(mount, "storage.cfg") == start + writer.number, mount)
        assert int((mount.path / "storage.cfg").read_bytes()) == writer.number
    assert old == []
    assert writer.number > 10


def test_a_client_that_sees_a_new_counter_sees_whether_there_is_a_file(tmp_path: Path) -> None:
    wrong = []
    path = tmp_path / "pve" / "storage.cfg"
    with (
        mounted(tmp_path, "--test-control", "--workers", "16") as mount,
        mount.connect() as control,
    ):
        start = counter_of(mount, "storage.cfg")
        for number in range(1, READS + 1):
            is_made = bool(number % 2)
            control("inject", kind="create" if is_made else "delete", path="storage.cfg")
            while counter_of(mount, "storage.cfg") - start != number:
                pass
            if path.exists() != is_made:
                wrong.append(number)
    assert wrong == []
