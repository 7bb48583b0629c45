"""The time at which writes are published: in the database, the counters and on other nodes."""

import errno
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import GRACE, Daemon, mounted, wait_for
from tests.mount.observed import changes, published, status, version

FULL = 65536  # bytes of the longest file, for a while

pytestmark = pytest.mark.needs_fuse

MIB = 1 << 20
DUE = 1.0  # seconds after which what is not closed is published


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with mounted(tmp_path_factory.mktemp("publishing"), "--test-control") as daemon:
        daemon.publish_only_on_request()
        yield daemon


@pytest.fixture
def file(mount: Daemon) -> Iterator[Path]:
    """A published file."""
    path = mount.path / "file"
    path.write_bytes(b"published")
    assert published(mount, "file") == b"published"
    yield path
    path.unlink(missing_ok=True)


def shell(script: str, directory: Path) -> None:
    """Run a script, without a sanitizer: that ends dd, for the way in which dd asks for memory."""
    argv, env = ["sh", "-ec", script], {**os.environ, "LD_PRELOAD": ""}
    subprocess.run(argv, cwd=directory, env=env, check=True, capture_output=True)


def opened(path: Path, flags: int) -> int:
    """Open for writing."""
    return os.open(path, flags | os.O_WRONLY, 0o640)


def test_a_write_is_visible_at_once_on_this_node_and_after_the_close_elsewhere(
    mount: Daemon, file: Path
) -> None:
    with changes(mount, 0):
        before = mount.control("info")["checksum"]
        descriptor = opened(file, 0)
        os.pwrite(descriptor, b"P", 0)
        os.pwrite(descriptor, b"!", 9)
        assert file.read_bytes() == b"Published!"
        assert file.stat().st_size == 10
        assert published(mount, "file") == b"published"
        assert mount.control("info")["checksum"] == before
    with changes(mount, 1):
        os.close(descriptor)
    assert published(mount, "file") == b"Published!"


def test_counters_change_only_with_a_publishing(mount: Daemon) -> None:
    path = mount.path / "storage.cfg"
    path.write_bytes(b"1")
    before = status(mount, ".version")["storage.cfg"]
    with path.open("r+b", buffering=0) as writer:
        writer.write(b"2")
        assert status(mount, ".version")["storage.cfg"] == before
    assert status(mount, ".version")["storage.cfg"] == before + 1


@pytest.mark.parametrize(
    "script",
    [
        "echo new > file",
        "printf 'new\\n' | cat > file",
        "printf 'new\\n' | dd of=file",
        "printf 'new\\n' | dd of=file bs=1 conv=fsync",
        "printf 'new\\n' > file && true",
    ],
)
def test_a_shell_that_rewrites_a_file_makes_one_change(
    mount: Daemon, file: Path, script: str
) -> None:
    with changes(mount, 1):
        shell(script, mount.path)
    assert published(mount, "file") == b"new\n"


def test_small_blocks_are_one_change_in_one_write(mount: Daemon, file: Path) -> None:
    before = mount.control("info")["writes"]
    with changes(mount, 1):
        shell("dd if=/dev/zero of=file bs=512 count=2000", mount.path)
    assert mount.control("info")["writes"] == before + 1
    assert published(mount, "file") == bytes(512 * 2000)


def test_a_new_file_and_its_content_are_two_changes_in_one_write(mount: Daemon) -> None:
    before = mount.control("info")["writes"]
    with changes(mount, 2):
        (mount.path / "new").write_bytes(b"content")
    assert mount.control("info")["writes"] == before + 1


def test_each_close_of_a_shared_descriptor_publishes_the_writes_since_the_last(
    mount: Daemon, file: Path
) -> None:
    with changes(mount, 2):
        shell("(/bin/echo a; /bin/echo b) > file", mount.path)
    assert published(mount, "file") == b"a\nb\n"


def test_closing_a_duplicate_before_anything_was_written_publishes_nothing(
    mount: Daemon, file: Path
) -> None:
    descriptor = opened(file, os.O_TRUNC)
    with changes(mount, 0):
        os.close(os.dup(descriptor))
        assert file.read_bytes() == b""
        assert published(mount, "file") == b"published"
    os.write(descriptor, b"new")
    with changes(mount, 1):
        os.close(descriptor)
    assert published(mount, "file") == b"new"


def test_a_truncation_by_open_alone_is_published_on_release(mount: Daemon, file: Path) -> None:
    with changes(mount, 1):
        shell(": > file", mount.path)
        wait_for(lambda: published(mount, "file") == b"", mount)


def test_a_truncation_by_open_alone_is_published_by_fsync(mount: Daemon, file: Path) -> None:
    descriptor = opened(file, os.O_TRUNC)
    with changes(mount, 1):
        os.fsync(descriptor)
    assert published(mount, "file") == b""
    os.close(descriptor)


def by_opening(path: Path) -> int:
    return opened(path, os.O_TRUNC)


def by_writing(path: Path) -> int:
    descriptor = opened(path, 0)
    os.write(descriptor, b"PUB")
    return descriptor


def test_a_close_after_an_fsync_publishes_nothing(mount: Daemon, file: Path) -> None:
    descriptor = opened(file, os.O_TRUNC)
    os.write(descriptor, b"synced")
    with changes(mount, 1):
        os.fsync(descriptor)
    assert published(mount, "file") == b"synced"
    with changes(mount, 0):
        os.close(descriptor)


def test_truncate_by_path_is_published_at_once(mount: Daemon, file: Path) -> None:
    with changes(mount, 1):
        os.truncate(file, 3)
    assert published(mount, "file") == b"pub"
    with changes(mount, 1):
        os.truncate(file, 5)
    assert published(mount, "file") == b"pub\0\0"


def test_truncate_by_descriptor_waits_for_the_close(mount: Daemon, file: Path) -> None:
    descriptor = opened(file, 0)
    with changes(mount, 0):
        os.ftruncate(descriptor, 3)
        os.ftruncate(descriptor, 4)
        assert file.read_bytes() == b"pub\0"
    with changes(mount, 1):
        os.close(descriptor)
    assert published(mount, "file") == b"pub\0"


def test_a_rename_publishes_the_writes_to_the_file_first(mount: Daemon, file: Path) -> None:
    descriptor = by_writing(file)
    with changes(mount, 2):
        file.rename(mount.path / "renamed")
    assert published(mount, "renamed") == b"PUBlished"
    with changes(mount, 0):
        os.close(descriptor)
    (mount.path / "renamed").unlink()


def test_the_mtime_is_right_after_a_rename_for_a_stat_alone(mount: Daemon, file: Path) -> None:
    os.utime(file, (5, 5))
    renamed = file.rename(mount.path / "renamed")
    mount.wait_until_notified()
    shown = subprocess.check_output(["stat", "--format=%Y", renamed])
    assert time.time() - int(shown) < 60
    renamed.unlink()


def test_setting_the_mtime_publishes_the_writes_to_the_file_first(
    mount: Daemon, file: Path
) -> None:
    descriptor = by_writing(file)
    with changes(mount, 2):
        os.utime(file, (5, 5))
    assert published(mount, "file") == b"PUBlished"
    assert file.stat().st_mtime == 5
    with changes(mount, 0):
        os.close(descriptor)
    assert file.stat().st_mtime == 5


def test_the_mtime_is_the_time_of_publishing(mount: Daemon, file: Path) -> None:
    os.utime(file, (5, 5))
    descriptor = by_writing(file)
    file.stat()
    os.close(descriptor)
    assert time.time() - file.stat().st_mtime < 60


def test_setting_the_access_time_alone_changes_nothing(mount: Daemon, file: Path) -> None:
    with changes(mount, 0):
        shell("touch -a file", mount.path)


def test_one_close_publishes_the_writes_of_other_handles_too(mount: Daemon, file: Path) -> None:
    first, second = by_writing(file), opened(file, 0)
    os.pwrite(second, b"2", 8)
    with changes(mount, 1):
        os.close(first)
    assert published(mount, "file") == b"PUBlishe2"
    with changes(mount, 0):
        os.close(second)


def test_a_file_holds_at_most_one_mib(mount: Daemon, file: Path) -> None:
    with file.open("r+b", buffering=0) as writer:
        os.pwrite(writer.fileno(), b"x", MIB - 1)
        with pytest.raises(OSError, match="too large"):
            os.pwrite(writer.fileno(), b"x", MIB)
        with pytest.raises(OSError, match="too large"):
            os.ftruncate(writer.fileno(), MIB + 1)
        assert file.stat().st_size == MIB
    with pytest.raises(OSError, match="too large"):
        os.truncate(file, MIB + 1)
    assert file.stat().st_size == MIB


def test_exactly_one_of_many_exclusive_creations_succeeds(mount: Daemon) -> None:
    outcomes = []
    barrier = threading.Barrier(8)

    def create() -> None:
        barrier.wait(GRACE)
        try:
            os.close(opened(mount.path / "contested", os.O_CREAT | os.O_EXCL))
            outcomes.append(0)
        except OSError as error:
            outcomes.append(error.errno or 0)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [0] + [errno.EEXIST] * 7


def test_a_creation_that_loses_a_race_opens_the_winners_file(mount: Daemon) -> None:
    path = mount.path / "raced"
    assert not path.exists()  # so that the kernel creates it without a lookup
    with mount.connect() as control:
        control("inject", kind="create", path="raced")
        control("inject", kind="write", path="raced", data="theirs")
        descriptor = opened(path, os.O_CREAT)
        with pytest.raises(FileExistsError):
            opened(path, os.O_CREAT | os.O_EXCL)
    assert path.read_bytes() == b"theirs"
    os.close(descriptor)


def forbid_growth(mount: Daemon) -> None:
    """Limit the file size so that the journal can't grow, but the log can."""
    (mount.path / "padding").write_bytes(bytes(2 * FULL))
    resource.prlimit(mount.process.pid, resource.RLIMIT_FSIZE, (FULL, resource.RLIM_INFINITY))


def allow_growth(mount: Daemon) -> None:
    """Remove the limit, and wait until the daemon has recovered."""
    limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(mount.process.pid, resource.RLIMIT_FSIZE, limit)
    (mount.path / "padding").write_bytes(b"written again")
    assert published(mount, "padding") == b"written again"


def check_dropped(mount: Daemon, file: Path) -> None:
    mount.wait_until_notified()
    assert file.read_bytes() == b"published"
    assert file.stat().st_size == 9
    assert published(mount, "file") == b"published"


class TestTimer:
    """A file that stays open is published by the timer."""

    @pytest.fixture
    def mount(self, tmp_path: Path) -> Iterator[Daemon]:
        with mounted(tmp_path, "--test-control") as daemon:
            yield daemon

    @pytest.mark.parametrize(("begin", "content"), [(by_opening, b""), (by_writing, b"PUBlished")])
    def test_a_file_that_stays_open_is_published_after_a_second(
        self, mount: Daemon, file: Path, begin: Callable[[Path], int], content: bytes
    ) -> None:
        start = time.monotonic()
        with changes(mount, 1):
            descriptor = begin(file)
            assert file.read_bytes() == content
            wait_for(lambda: published(mount, "file") == content, mount)
        assert time.monotonic() - start > 0.9 * DUE
        with changes(mount, 0):
            os.close(descriptor)

    def test_the_second_begins_with_the_first_write(self, mount: Daemon, file: Path) -> None:
        descriptor = opened(file, 0)
        start = time.monotonic()
        before = version(mount)
        while version(mount) == before:
            os.pwrite(descriptor, b"x", 0)
            assert time.monotonic() - start < GRACE
        os.close(descriptor)

    def test_a_new_file_is_saved_within_a_second_though_it_stays_open(self, mount: Daemon) -> None:
        descriptor = opened(mount.path / "created", os.O_CREAT | os.O_EXCL)
        wait_for(lambda: published(mount, "created") == b"", mount)
        os.close(descriptor)

    def test_a_failure_of_the_timer_is_reported_by_the_close(
        self, mount: Daemon, file: Path
    ) -> None:
        mount.expect_log("the last writes to file are lost: EACCES")
        mount.control("publish-after", seconds=3 * DUE)  # not before the quorum is lost
        descriptor = by_writing(file)
        mount.control("quorum", on=False)
        mount.wait_for_log("are lost")
        mount.control("quorum", on=True)
        check_dropped(mount, file)
        with pytest.raises(PermissionError):
            os.close(descriptor)

    def test_a_creation_that_can_not_be_saved_is_gone(self, mount: Daemon) -> None:
        mount.expect_log("new files could not be saved and were removed")
        mount.expect_log(r"(journal|config.db)\S* can't be written")
        forbid_growth(mount)
        descriptor = opened(mount.path / "new", os.O_CREAT)
        wait_for(lambda: not (mount.path / "new").exists(), mount)
        with pytest.raises(OSError, match=r"Input/output|No space"):
            os.close(descriptor)
        allow_growth(mount)


class TestFailure:
    """Bytes that can't be published are dropped, and the close reports it."""

    @pytest.fixture
    def mount(self, tmp_path: Path) -> Iterator[Daemon]:
        with mounted(tmp_path, "--test-control") as daemon:
            daemon.publish_only_on_request()
            yield daemon

    def test_writes_are_lost_with_the_quorum(self, mount: Daemon, file: Path) -> None:
        mount.expect_log("the last writes to file are lost: EACCES")
        descriptor = by_writing(file)
        assert file.read_bytes() == b"PUBlished"
        mount.control("quorum", on=False)
        with pytest.raises(PermissionError):
            os.write(descriptor, b"more")
        with pytest.raises(PermissionError):
            os.close(descriptor)
        check_dropped(mount, file)
        mount.control("quorum", on=True)

    def test_writes_are_lost_if_the_database_can_not_be_written(
        self, mount: Daemon, file: Path
    ) -> None:
        mount.expect_log("the last writes to file are lost")
        mount.expect_log(r"(journal|config.db)\S* can't be written")
        descriptor = by_writing(file)
        forbid_growth(mount)
        with pytest.raises(OSError, match=r"Input/output|No space"):
            os.close(descriptor)
        check_dropped(mount, file)
        allow_growth(mount)

    def test_a_descriptor_reports_a_failure_once(self, mount: Daemon, file: Path) -> None:
        mount.expect_log("the last writes to file are lost: EACCES")
        descriptor = by_writing(file)
        duplicate = os.dup(descriptor)
        mount.control("quorum", on=False)
        with pytest.raises(PermissionError):
            os.fsync(descriptor)
        mount.control("quorum", on=True)
        os.close(duplicate)
        os.close(descriptor)

    def test_a_failure_is_reported_to_each_handle_that_wrote(
        self, mount: Daemon, file: Path
    ) -> None:
        mount.expect_log("the last writes to file are lost: EACCES")
        first, second, idle = by_writing(file), by_writing(file), opened(file, 0)
        mount.control("quorum", on=False)
        with pytest.raises(PermissionError):
            os.close(first)
        mount.control("quorum", on=True)
        with pytest.raises(PermissionError):
            os.close(second)
        os.close(idle)

    def test_a_rename_that_can_not_be_saved_leaves_no_stale_name(self, mount: Daemon) -> None:
        mount.expect_log(r"(journal|config.db)\S* can't be written")
        forbid_growth(mount)
        descriptor = opened(mount.path / "new", os.O_CREAT)
        with pytest.raises(OSError, match=r"Input/output|No space"):
            (mount.path / "new").rename(mount.path / "renamed")
        wait_for(lambda: not (mount.path / "new").exists(), mount)
        assert not (mount.path / "renamed").exists()
        with pytest.raises(OSError, match=r"Input/output|No space"):
            os.close(descriptor)
        allow_growth(mount)
