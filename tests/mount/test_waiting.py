"""Changes that wait, as in a cluster that is not synced, do not delay other requests.

The test control holds all changes that come through the mount; injected foreign changes go on.
"""

import errno
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmxcfs.fuse.turns import MAX_WAITING
from pmxcfs.fuse.workers import RESERVED_WORKERS
from pmxcfs.replica.tickets import NAME_TIMEOUT
from tests.harness import Daemon, held, mounted, session_in_use, wait_for
from tests.mount.observed import status

pytestmark = pytest.mark.needs_fuse

WORKERS = 16
IS_NATIVE = session_in_use() != "llfuse"
MOST = MAX_WAITING if IS_NATIVE else WORKERS - RESERVED_WORKERS  # changes that may wait
AT_ONCE = 200
PROMPT = 0.1  # seconds; the contract for everything that does not wait
SLACK = 3  # tolerance for a busy machine
STOP = 3.0  # seconds until the daemon must have gone


class Change(threading.Thread):
    """A change in a thread of its own, and its outcome."""

    def __init__(self, operation: Callable[[], object]) -> None:
        super().__init__()
        self.errno: int | None = 0
        self.seconds = 0.0
        self._operation = operation
        self.start()

    def run(self) -> None:
        begin = time.monotonic()
        try:
            self._operation()
        except OSError as error:
            self.errno = error.errno
        self.seconds = time.monotonic() - begin

    def end(self) -> int | None:
        """Return the errno, 0 for success."""
        self.join(60)
        assert not self.is_alive()
        return self.errno


def waiting(mount: Daemon) -> int:
    """Return how many changes wait."""
    return int(mount.control("info")["waiting"])


def wait_until_waiting(mount: Daemon, count: int) -> None:
    """Wait until *count* changes wait."""
    wait_for(lambda: waiting(mount) == count, mount)


def slowest(operations: list[Callable[[], object]]) -> float:
    """Return the seconds that the slowest of *operations* took."""
    taken = []
    for operation in operations:
        begin = time.monotonic()
        operation()
        taken.append(time.monotonic() - begin)
    return max(taken)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Daemon]:
    with mounted(tmp_path, "--test-control", "--workers", str(WORKERS)) as daemon:
        yield daemon


def make_elsewhere(mount: Daemon, count: int) -> list[Path]:
    """Inject files of another node that no process has looked up."""
    with mount.connect() as control:
        control("inject", kind="mkdir", path="elsewhere")
        for number in range(count):
            control("inject", kind="create", path=f"elsewhere/{number}")
            control("inject", kind="write", path=f"elsewhere/{number}", data="content")
    return [mount.path / "elsewhere" / str(number) for number in range(count)]


def start_changes(mount: Daemon) -> list[Change]:
    """Start 200 changes: closes of files that were written, and new directories."""
    descriptors = []
    for number in range(AT_ONCE):
        (mount.path / f"d{number}").mkdir()
        if number % 2:
            flags = os.O_CREAT | os.O_WRONLY
            descriptors.append(os.open(mount.path / f"d{number}" / "f", flags))
    mount.control("hold")
    for descriptor in descriptors:
        os.write(descriptor, b"x")
    closes = [Change(functools.partial(os.close, descriptor)) for descriptor in descriptors]
    names = [mount.path / f"d{number}" / "new" for number in range(0, AT_ONCE, 2)]
    return closes + [Change(path.mkdir) for path in names]


def test_of_200_waiting_changes_most_are_refused_and_reads_go_on(
    mount: Daemon, report: Callable[[object], None]
) -> None:
    paths = make_elsewhere(mount, 50)
    changes = start_changes(mount)
    wait_for(lambda: sum(not change.is_alive() for change in changes) >= AT_ONCE - MOST, mount)
    refused = [change for change in changes if not change.is_alive()]
    assert {change.errno for change in refused} == {errno.EBUSY}
    assert 0 < waiting(mount) <= MOST
    starvation = mount.starvation()
    taken = slowest(
        [
            *(path.stat for path in paths[:25]),
            *(path.read_bytes for path in paths[25:]),
            *(lambda: os.listdir(mount.path / "elsewhere") for _ in range(10)),
            *((mount.path / ".version").read_bytes for _ in range(10)),
            *((mount.path / "elsewhere" / f"missing{number}").exists for number in range(10)),
        ]
    )
    report(
        f"{AT_ONCE} changes at once: {len(refused)} refused, {waiting(mount)} wait; "
        f"slowest look elsewhere {1000 * taken:.1f} ms"
    )
    assert taken < SLACK * PROMPT + starvation.seconds()
    mount.expect_log("the last writes to d.*/f are lost: EBUSY")
    begin = time.monotonic()
    mount.process.send_signal(signal.SIGTERM)
    assert mount.process.wait(STOP) == 0
    report(f"gone {time.monotonic() - begin:.2f} s after SIGTERM")
    assert all(change.end() in (errno.EBUSY, errno.ENOTCONN) for change in changes)


def test_waiting_changes_are_done_after_the_resume(mount: Daemon) -> None:
    paths = [mount.path / f"d{number}" for number in range(MOST)]
    for path in paths:
        path.mkdir()
    with held(mount):
        # These may wait for 10 s, as the kernel holds no directory lock for them.
        changes = [Change(functools.partial(os.utime, path, (5, 5))) for path in paths]
        wait_until_waiting(mount, MOST)
        with pytest.raises(OSError, match="busy"):
            (mount.path / "one_too_many").mkdir()
    assert [change.end() for change in changes] == [0] * MOST
    assert {path.stat().st_mtime for path in paths} == {5}
    assert not (mount.path / "one_too_many").exists()


def test_a_foreign_change_elsewhere_is_seen_although_a_mkdir_waits(mount: Daemon) -> None:
    paths = make_elsewhere(mount, 3)
    (mount.path / "busy").mkdir()
    assert [path.read_bytes() for path in paths] == [b"content"] * 3
    missing = mount.path / "elsewhere" / "missing"
    assert not missing.exists()
    with held(mount), mount.connect() as control:
        change = Change((mount.path / "busy" / "new").mkdir)
        wait_until_waiting(mount, 1)
        # The notification of this change must wait for the mkdir; later ones must not.
        control("inject", kind="create", path="busy/other")
        control("inject", kind="write", path="elsewhere/0", data="changed")
        control("inject", kind="delete", path="elsewhere/1")
        control("inject", kind="rename", path="elsewhere/2", to="elsewhere/missing")
        begin, starvation = time.monotonic(), mount.starvation()
        wait_for(lambda: paths[0].read_bytes() == b"changed", mount)
        wait_for(lambda: not paths[1].exists(), mount)
        wait_for(missing.exists, mount)
        taken = time.monotonic() - begin
        assert change.is_alive()
    assert change.end() == 0
    assert taken < SLACK * PROMPT + starvation.seconds()
    wait_for((mount.path / "busy" / "other").exists, mount)


def test_a_counter_changes_only_after_the_kernel_was_notified(mount: Daemon) -> None:
    path = mount.path / "sdn" / "zones.cfg"
    path.parent.mkdir()
    path.write_text("before")
    (mount.path / "sdn" / "zones.cfg.tmp").write_text("after")
    start = status(mount, ".version")
    with held(mount):
        change = Change((mount.path / "sdn" / "new").mkdir)
        wait_until_waiting(mount, 1)
        # The name is invalidated after the mkdir; until then it leads to the old content.
        mount.control("inject", kind="rename", path="sdn/zones.cfg.tmp", to="sdn/zones.cfg")
        assert path.read_text() == "before"
        assert status(mount, ".version") == start
    assert change.end() == 0
    wait_for(lambda: status(mount, ".version") != start, mount)
    assert path.read_text() == "after"
    assert status(mount, ".version")["sdn/zones.cfg"] == start["sdn/zones.cfg"] + 1


def test_a_change_of_a_name_is_refused_after_two_seconds(mount: Daemon) -> None:
    mount.publish_only_on_request()
    (mount.path / "f").write_text("x")
    (mount.path / "d").mkdir()
    with (mount.path / "written").open("w") as written:
        written.write("mine")
        written.flush()
        with held(mount):
            changes = [
                Change((mount.path / "d" / "new").mkdir),
                Change((mount.path / "f").unlink),
                Change(lambda: (mount.path / "written").rename(mount.path / "moved")),
            ]
            assert [change.end() for change in changes] == [errno.EBUSY] * 3
        for change in changes:
            assert NAME_TIMEOUT <= change.seconds < SLACK * NAME_TIMEOUT
    assert (mount.path / "f").read_text() == "x"
    assert (mount.path / "written").read_text() == "mine"


def test_a_file_whose_publishing_waits_can_be_read(mount: Daemon) -> None:
    (mount.path / "f").write_text("before")
    with held(mount):
        change = Change(lambda: (mount.path / "f").write_text("after"))
        wait_until_waiting(mount, 1)
        assert (mount.path / "f").read_text() == "after"
        assert (mount.path / "f").stat().st_size == 5
    assert change.end() == 0
    assert (mount.path / "f").read_text() == "after"


def test_a_waiting_write_is_refused_if_its_name_is_another_file(mount: Daemon) -> None:
    mount.expect_log("the last writes to f are lost: ESTALE")
    (mount.path / "f").write_text("before")
    with held(mount), mount.connect() as control:
        change = Change(lambda: (mount.path / "f").write_text("mine"))
        wait_until_waiting(mount, 1)
        control("inject", kind="create", path="g")
        control("inject", kind="write", path="g", data="theirs")
        control("inject", kind="rename", path="g", to="f")
    assert change.end() == errno.ESTALE
    mount.wait_until_notified()
    assert (mount.path / "f").read_text() == "theirs"


def test_a_waiting_write_follows_a_renamed_file(mount: Daemon) -> None:
    (mount.path / "f").write_text("before")
    with held(mount):
        change = Change(lambda: (mount.path / "f").write_text("mine"))
        wait_until_waiting(mount, 1)
        mount.control("inject", kind="rename", path="f", to="g")
    assert change.end() == 0
    mount.wait_until_notified()
    assert not (mount.path / "f").exists()
    assert (mount.path / "g").read_text() == "mine"


def test_a_waiting_write_is_lost_if_another_node_removes_the_file(mount: Daemon) -> None:
    (mount.path / "f").write_text("before")
    with held(mount):
        change = Change(lambda: (mount.path / "f").write_text("mine"))
        wait_until_waiting(mount, 1)
        mount.control("inject", kind="delete", path="f")
        mount.expect_log("the last writes to f are lost: ENOENT")
    assert change.end() == errno.ENOENT


def test_a_change_by_an_outdated_name_hits_the_entry_that_another_node_put_there(
    mount: Daemon,
) -> None:
    (mount.path / "f").write_text("before")
    with held(mount), mount.connect() as control:
        directory = Change((mount.path / "new").mkdir)
        wait_until_waiting(mount, 1)
        # The name is invalidated after the mkdir.
        control("inject", kind="create", path="g")
        control("inject", kind="write", path="g", data="theirs")
        control("inject", kind="rename", path="g", to="f")
        changes = [
            Change(functools.partial(overwrite, mount.path / "f", b"MINE")),
            Change(functools.partial(os.utime, mount.path / "f", (5, 5))),
        ]
    assert [change.end() for change in [directory, *changes]] == [0] * 3
    assert (mount.path / "f").read_bytes() == b"MINErs"


def overwrite(path: Path, start: bytes) -> None:
    """Write the first bytes of a file that is there."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, start)
    finally:
        os.close(descriptor)


def test_an_entry_that_a_failed_rename_has_removed_is_seen_to_be_gone(mount: Daemon) -> None:
    source, target = mount.path / "source", mount.path / "target"
    source.mkdir()
    target.mkdir()
    with held(mount):
        change = Change(functools.partial(source.rename, target))
        wait_until_waiting(mount, 1)
        mount.control("inject", kind="mkdir", path="source/new")
    assert change.end() == errno.ENOTEMPTY
    mount.wait_until_notified()
    assert not target.exists()
    assert source.is_dir()
