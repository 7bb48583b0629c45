"""The journal on real devices: one that stands still, one that is small, one under load."""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pmxcfs.ipc.client import IpcClient
from pmxcfs.settings import HISTORY_SIZE
from pmxcfs.storage.segments import scan
from tests.fakes.programs.mortal import Plan
from tests.harness import Daemon, ipc_name, mounted, wait_for
from tests.mount.devices import Ext4, blocks_of, ext4, frozen, needs_loop

pytestmark = [pytest.mark.needs_fuse, needs_loop]

SMALL, LARGE = 100 << 20, 1 << 30  # bytes of a disk
FROZEN, LONG_FROZEN = 6.0, 12.0  # seconds
QUICK = 0.1  # seconds until an answer that needs no device
NAME_TIMEOUT, CONTENT_TIMEOUT = 2.0, 10.0  # seconds until a change that could not begin is refused
STOP_AFTER_THAW = 3.0  # seconds
LATE = 1.5  # seconds that a refusal may be late on a busy machine
WRITING = 60.0  # seconds
BOUND = 24 << 20  # bytes of journal and log beside the history

SEALED = 3  # segments
BIG = bytes(range(256)) * 2000  # 512,000 bytes
NEVER_SAVING = Plan(pause=3600.0, size=1 << 40).program()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Ext4]:
    with ext4(tmp_path / "state", size=SMALL) as device:
        yield device


def timed(operation: Callable[[], object]) -> tuple[int, float]:
    """Return the errno of *operation*, 0 if there is none, and the seconds that it took."""
    start = time.monotonic()
    try:
        operation()
    except OSError as error:
        return error.errno or 0, time.monotonic() - start
    return 0, time.monotonic() - start


def replace(directory: Path, name: str, content: bytes) -> None:
    """Write a temporary file and rename it over another."""
    temporary = directory / f"{name}.tmp.1"
    temporary.write_bytes(content)
    temporary.rename(directory / name)


class Looks:
    """Looks at what no device is needed for, again and again; notes the slowest."""

    def __init__(self, mount: Daemon, workdir: Path) -> None:
        self._mount = mount
        self._ipc = ipc_name(workdir)
        self._number = 0
        self.slowest: dict[str, float] = {}

    def look(self) -> None:
        """Look once at each."""
        root = self._mount.path
        self._number += 1
        absent = root / "elsewhere" / f"absent{self._number}"
        steps: dict[str, Callable[[], object]] = {
            "a cached name": (root / "elsewhere" / "file").stat,
            "a look-up elsewhere": absent.exists,
            "content": (root / "elsewhere" / "file").read_bytes,
            ".version": (root / ".version").read_bytes,
            "IPC": self._ask,
        }
        for name, step in steps.items():
            starvation = self._mount.starvation()
            _, seconds = timed(step)
            seconds -= starvation.seconds()  # without a free processor
            self.slowest[name] = max(self.slowest.get(name, 0.0), seconds)

    def _ask(self) -> None:
        with IpcClient(self._ipc) as client:
            client.report()


@pytest.mark.parametrize("seconds", [FROZEN, LONG_FROZEN])
def test_a_device_that_stands_still_stops_changes_only(
    tmp_path: Path, disk: Ext4, report: Callable[[object], None], seconds: float
) -> None:
    with mounted(tmp_path, "--test-control") as mount, ThreadPoolExecutor() as pool:
        root = mount.path
        for name in ("busy", "later", "elsewhere", "content"):
            (root / name).mkdir()
        (root / "elsewhere" / "file").write_bytes(b"content")
        descriptor = os.open(root / "content" / "file", os.O_CREAT | os.O_WRONLY)
        looks = Looks(mount, tmp_path)
        with frozen(mount.state):
            # The first change of all begins to be written; the others could not begin.
            first = pool.submit(timed, (root / "busy" / "first").mkdir)
            wait_for(lambda: mount.control("info")["waiting"] > 0 or first.running(), mount)
            second = pool.submit(timed, (root / "later" / "second").mkdir)
            os.write(descriptor, b"x")
            third = pool.submit(timed, lambda: os.fsync(descriptor))
            start = time.monotonic()
            while time.monotonic() < start + seconds:
                looks.look()
        results = {
            name: one.result(60)
            for name, one in {"first": first, "second": second, "third": third}.items()
        }
        slowest = {name: f"{1000 * took:.1f} ms" for name, took in looks.slowest.items()}
        report(f"frozen for {seconds} s: slowest {slowest}; {results}")
        os.close(descriptor)
        code, took = results["third"]
        if seconds < CONTENT_TIMEOUT:
            assert code == 0
            assert took < seconds + LATE
        else:
            assert code == errno.EBUSY
            assert CONTENT_TIMEOUT <= took < CONTENT_TIMEOUT + LATE
            mount.expect_log("the last writes to content/file are lost: EBUSY")
        assert max(looks.slowest.values()) < QUICK
        assert results["first"][0] == 0
        assert results["first"][1] < seconds + LATE
        assert results["second"][0] == errno.EBUSY
        assert NAME_TIMEOUT <= results["second"][1] < NAME_TIMEOUT + LATE
        assert (root / "busy" / "first").is_dir()
        assert not (root / "later" / "second").exists()


def test_heartbeats_go_on_for_a_while_when_the_device_stands_still(
    tmp_path: Path, disk: Ext4, report: Callable[[object], None]
) -> None:
    """The thread that writes to the device what is in memory waits, and nobody who only looks."""
    with (
        mounted(tmp_path, "--test-control", program=Plan(flush=1.0).program()) as mount,
        ThreadPoolExecutor() as pool,
    ):
        root = mount.path
        for name in ("ha", "later", "elsewhere"):
            (root / name).mkdir()
        (root / "elsewhere" / "file").write_bytes(b"content")
        looks = Looks(mount, tmp_path)
        with frozen(mount.state):
            code, took = timed(lambda: replace(root / "ha", "lrm_status", b"1"))
            start = time.monotonic()
            while time.monotonic() < start + FROZEN / 2:
                looks.look()
            later = pool.submit(timed, (root / "later" / "late").mkdir)
            while time.monotonic() < start + FROZEN:
                looks.look()
        results = {"heartbeat": (code, took), "later": later.result(60)}
        report(f"slowest {looks.slowest}; {results}")
        assert code == 0
        assert took < QUICK
        assert max(looks.slowest.values()) < QUICK
        assert results["later"][0] == errno.EBUSY
        assert NAME_TIMEOUT <= results["later"][1] < NAME_TIMEOUT + LATE
        mount.kill()
    with mounted(tmp_path) as mount:
        assert (mount.path / "ha" / "lrm_status").read_bytes() == b"1"


@pytest.mark.parametrize("full", ["segment", "reserved space"])
def test_a_device_that_stands_still_while_it_makes_room_holds_no_change_for_longer(
    tmp_path: Path, disk: Ext4, report: Callable[[object], None], full: str
) -> None:
    """The thread that makes room waits for the device; no change has begun to be written."""
    count = 8 if full == "segment" else 3  # files of half a MiB
    with (
        mounted(tmp_path, "--test-control", program=NEVER_SAVING) as mount,
        ThreadPoolExecutor() as pool,
    ):
        root = mount.path
        for name in ("names", "content", "elsewhere"):
            (root / name).mkdir()
        (root / "elsewhere" / "file").write_bytes(b"content")
        descriptor = os.open(root / "content" / "file", os.O_CREAT | os.O_WRONLY)
        for number in range(count):
            (root / "content" / f"{number}").write_bytes(bytes(1 << 19))
        looks = Looks(mount, tmp_path)

        def write() -> None:
            os.pwrite(descriptor, bytes(1 << 20), 0)  # more than there is room for
            os.fsync(descriptor)

        with frozen(mount.state):
            content = pool.submit(timed, write)
            wait_for(lambda: mount.control("info")["waiting"] > 0, mount)
            names = pool.submit(timed, (root / "names" / "new").mkdir)
            start = time.monotonic()
            while time.monotonic() < start + CONTENT_TIMEOUT + LATE:
                looks.look()
        results = {"names": names.result(60), "content": content.result(60)}
        report(f"{full}: slowest {looks.slowest}; {results}")
        with contextlib.suppress(OSError):  # that the bytes are lost is told already
            os.close(descriptor)
        if full != "segment":  # part of the bytes had room
            mount.expect_log("the last writes to content/file are lost: EBUSY")
        assert max(looks.slowest.values()) < QUICK
        assert results["content"][0] == errno.EBUSY
        assert CONTENT_TIMEOUT <= results["content"][1] < CONTENT_TIMEOUT + LATE
        assert results["names"][0] == errno.EBUSY
        assert NAME_TIMEOUT <= results["names"][1] < NAME_TIMEOUT + LATE
        assert not (root / "names" / "new").exists()
        (root / "names" / "new").mkdir()
        mount.kill()
    with mounted(tmp_path) as mount:
        assert (mount.path / "names" / "new").is_dir()


def test_a_stop_while_the_device_stands_still_ends_after_it(
    tmp_path: Path, disk: Ext4, report: Callable[[object], None]
) -> None:
    with mounted(tmp_path) as mount, ThreadPoolExecutor() as pool:
        (mount.path / "file").write_bytes(b"before")
        with frozen(mount.state):
            change = pool.submit(timed, (mount.path / "directory").mkdir)
            time.sleep(FROZEN / 2)
            mount.process.terminate()
            time.sleep(FROZEN / 2)
        start = time.monotonic()
        mount.process.wait(30)
        seconds = time.monotonic() - start
        report(f"ended {seconds:.2f} s after the thaw; the change: {change.result(30)}")
        assert seconds < STOP_AFTER_THAW
        mount.exit_status = mount.process.returncode
        if mount.exit_status:
            mount.expect_log("the last changes are in")
    with mounted(tmp_path) as mount:
        assert (mount.path / "file").read_bytes() == b"before"


@pytest.mark.long
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["100 MiB", "1 GiB"])
def test_replacing_a_file_without_pause_takes_a_bounded_space(
    tmp_path: Path, report: Callable[[object], None], size: int
) -> None:
    """On a small disk no change may fail either."""
    most = count = 0
    with ext4(tmp_path / "state", size=size), mounted(tmp_path) as mount:
        until = time.monotonic() + WRITING
        while time.monotonic() < until:
            for _ in range(100):
                replace(mount.path, "file", os.urandom(1000))
                count += 1
            most = max(most, sum(blocks_of(mount.state)))
    report(
        f"a disk of {size >> 20} MiB: {count} replacements in {WRITING:.0f} s, none failed; "
        f"journal and log together took at most {most / (1 << 20):.1f} MiB"
    )
    assert most < HISTORY_SIZE + BOUND


def test_private_changes_in_sealed_segments_survive_a_kill(
    tmp_path: Path, report: Callable[[object], None]
) -> None:
    with mounted(tmp_path, program=NEVER_SAVING) as mount:
        (mount.path / "priv").mkdir()
        number = 0
        while len(scan(mount.state / "journal").segments) <= SEALED:
            (mount.path / "priv" / f"{number}").write_bytes(b"%d" % number + BIG)
            number += 1
        mount.kill()
    with mounted(tmp_path) as mount:
        for n in range(number):
            assert (mount.path / "priv" / f"{n}").read_bytes() == b"%d" % n + BIG
    segments = scan(tmp_path / "state" / "journal").segments
    history = [place for place in segments if place.header and place.header.is_history]
    report(f"{number} private files in {SEALED} segments; {len(history)} are history now")
    assert len(history) >= SEALED
    for place in history:
        for located in place.read().records:
            assert BIG[:1000] not in bytes(getattr(located.record, "data", b""))
            assert BIG[:1000] not in bytes(getattr(located.record, "message", b""))
    assert not (tmp_path / "state" / "conflicts").exists()
