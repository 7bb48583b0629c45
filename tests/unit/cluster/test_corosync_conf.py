"""Updates of the host's corosync.conf: which contents may replace the file, and the reload."""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmxcfs.cluster.corosync_check import Cancelled
from pmxcfs.cluster.corosync_conf import MODE, HostConfig, refusal, version_of
from pmxcfs.cluster.corosync_reload import NAME, Reload
from pmxcfs.errors import Disconnected
from pmxcfs.host.files import replace_file

TIMEOUT = 30.0  # seconds until a wait fails the test
RETRY = 0.02  # seconds until what has failed is tried again; 30 in the product


def conf(version: int | str, text: str = "") -> bytes:
    return f"totem {{\n  config_version: {version}\n}}\n{text}".encode()


@pytest.mark.parametrize(
    ("content", "version"),
    [
        (conf(3), 3),
        (b"config_version:7", 7),
        (b"config_version \t:\n 7", 7),
        (conf(3) + conf(9), 3),
        (b"", None),
        (b"config_version: x", None),
        (b"config_version 3", None),
        (b"config_version: -3", None),
        (conf((1 << 64) - 1), (1 << 64) - 1),
        (conf(1 << 64), None),  # ends corosync 3.1.7, and so do the next three
        (conf("9" * 20), None),
        (conf("3x"), None),
        (conf("0x10"), None),
        (conf("9" * 5000), None),
        (conf(0), None),
        (conf("000"), None),
        (conf("007"), 7),
        (conf("00000000000000000000007"), None),
        (b"# config_version: 4\n" + conf(3), 4),  # the first match is in a comment
        (b"# config_version: 0\n" + conf(3), None),
        (conf(-3) + conf(9), 9),
    ],
)
def test_the_version_is_the_first_config_version(content: bytes, version: int | None) -> None:
    assert version_of(content) == version


@pytest.mark.parametrize(
    ("wanted", "present", "reason"),
    [
        (conf(3), None, ""),
        (conf(3), conf(2), ""),
        (conf(3), conf(3, "# other"), ""),
        (conf(3), b"damaged", ""),
        (conf(3), conf(0), ""),
        (conf(3), conf(1 << 64), ""),
        (conf(3), conf(4), "has config_version 3, this host's has 4; set config_version to 5"),
        (b"damaged", None, "has no config_version that is a number; set config_version to 1"),
        (b"", conf(1), "has no config_version that is a number; set config_version to 2"),
        (conf(0), conf(7), "has config_version 0, but it must be a number from 1 to"),
        (conf("3x"), None, "has config_version 3x, but it must be a number from 1 to"),
        (conf("9" * 5000), None, f"has config_version {'9' * 21}, but it must be a number from 1"),
    ],
)
def test_refusal_states_the_reason(wanted: bytes, present: bytes | None, reason: str) -> None:
    found = refusal(wanted, present)
    assert found.startswith(reason and f"the cluster's corosync.conf {reason}")
    assert bool(found) == bool(reason)


class Host:
    """A HostConfig on a temporary file; *reloads* counts the reload requests to corosync.

    Its corosync refuses contents with the word "broken", and reloads if *can_reload*.
    """

    def __init__(self, path: Path, *, reload_delay: float = 0, timeout: float = TIMEOUT) -> None:
        self.path = path
        self.previous = path.with_name("corosync.conf.previous")
        self.reloads = threading.Semaphore(0)
        self.can_reload = True
        self.answers = threading.Event()
        self.answers.set()
        reload = Reload(path.parent, call=self.reload, timeout=timeout)
        self.config = HostConfig(
            path, reload, reload_delay=reload_delay, retry=RETRY, check=self.check
        )

    def reload(self) -> None:
        self.reloads.release()
        assert self.answers.wait(TIMEOUT)
        if not self.can_reload:
            raise Disconnected("corosync_cfg_initialize", 2, "CS_ERR_LIBRARY")

    def check(self, content: bytes, *, is_cancelled: Callable[[], bool]) -> str:
        return "line 4 is broken" if b"broken" in content else ""

    def run(self, content: bytes, *, reload: bool) -> None:
        """Start the thread, queue *content* and wait until the thread has written it."""
        self.config.start()
        self.config.follow(content, reload=reload)
        self.config.wait(TIMEOUT)  # its priority is low
        self.config.close()

    @property
    def was_reloaded(self) -> bool:
        return self.reloads.acquire(blocking=False)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "corosync.conf")
    yield host
    host.config.close()
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"corosync.conf", "corosync.conf.previous", NAME}


def test_an_existing_file_is_replaced_and_reloaded(host: Host) -> None:
    host.path.write_bytes(conf(1))
    host.path.chmod(0o600)
    before = host.path.stat().st_ino
    host.run(conf(2), reload=True)
    assert host.path.read_bytes() == conf(2)
    assert host.path.stat().st_mode & 0o7777 == 0o644
    assert host.path.stat().st_ino != before
    assert host.was_reloaded


def test_a_first_file_is_written_but_not_reloaded(host: Host) -> None:
    host.run(conf(2), reload=True)
    assert host.path.read_bytes() == conf(2)
    assert not host.was_reloaded


def test_a_change_of_another_node_is_not_reloaded_here(host: Host) -> None:
    host.path.write_bytes(conf(1))
    host.run(conf(2), reload=False)
    assert host.path.read_bytes() == conf(2)
    assert not host.was_reloaded


def test_an_equal_file_is_left_alone(host: Host) -> None:
    host.path.write_bytes(conf(2))
    before = host.path.stat()
    host.run(conf(2), reload=True)
    after = host.path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not host.previous.exists()
    assert not host.was_reloaded


@pytest.mark.expect_log("pmxcfs.confdb ERROR .*corosync.conf is not replaced: the cluster's")
@pytest.mark.parametrize("wanted", [conf(1), conf(0), conf(1 << 64), b"no version"])
def test_refused_content_is_logged_and_not_written(host: Host, wanted: bytes) -> None:
    host.path.write_bytes(conf(2))
    host.run(wanted, reload=True)
    assert host.path.read_bytes() == conf(2)
    assert not host.was_reloaded


def test_the_last_of_several_contents_is_written_and_any_reload_counts(host: Host) -> None:
    host.path.write_bytes(conf(1))
    host.config.follow(conf(2), reload=True)
    host.config.follow(conf(3), reload=False)
    host.config.start()
    host.config.close()
    assert host.path.read_bytes() == conf(3)
    assert host.was_reloaded
    assert not host.was_reloaded


def test_close_does_not_wait_for_the_reload_delay(tmp_path: Path) -> None:
    host = Host(tmp_path / "corosync.conf", reload_delay=TIMEOUT * 3)
    host.path.write_bytes(conf(1))
    began = time.monotonic()
    host.run(conf(2), reload=True)
    assert host.reloads.acquire(timeout=TIMEOUT)
    assert time.monotonic() - began < TIMEOUT


@pytest.mark.expect_log("pmxcfs.confdb ERROR can't update .*: No such file or directory")
def test_a_missing_directory_is_logged(tmp_path: Path) -> None:
    Host(tmp_path / "absent" / "corosync.conf").run(conf(1), reload=True)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.expect_log("pmxcfs.confdb ERROR can.t ask corosync to reload .*CS_ERR_LIBRARY")
def test_a_failed_reload_is_an_error_until_one_succeeds(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.path.write_bytes(conf(1))
    host.can_reload = False
    host.config.start()
    host.config.follow(conf(2), reload=True)
    assert host.reloads.acquire(timeout=TIMEOUT)
    wait_until(lambda: "trying again" in host.config.error)
    host.config.follow(conf(2), reload=False)  # as after a synchronization
    for _ in range(3):
        assert host.reloads.acquire(timeout=TIMEOUT)
    assert "corosync-cfgtool -R" in host.config.error
    host.config.follow(conf(3), reload=False)  # the thread goes on
    wait_until(lambda: host.path.read_bytes() == conf(3))
    host.can_reload = True
    wait_until(lambda: not host.config.error)
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1


@pytest.mark.expect_log("pmxcfs.confdb ERROR can.t ask corosync to reload .*CS_ERR_LIBRARY")
def test_a_reload_that_is_due_is_not_forgotten_by_a_restart(host: Host) -> None:
    host.path.write_bytes(conf(1))
    host.can_reload = False
    host.run(conf(2), reload=True)
    assert host.was_reloaded
    for can_reload in (False, True):
        again = Host(host.path)
        again.can_reload = can_reload
        again.run(conf(2), reload=False)  # equal to the host's
        assert again.was_reloaded
    last = Host(host.path)
    last.run(conf(2), reload=False)
    assert not last.was_reloaded


def test_a_reload_is_not_forgotten_by_a_crash_right_after_the_replacement(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.path.write_bytes(conf(1))
    found: list[bool] = []

    def replace(path: Path, content: bytes, *, mode: int) -> None:
        replace_file(path, content, mode=mode)
        if path == host.path:
            found.append(Reload(host.path.parent).is_due)

    monkeypatch.setattr("pmxcfs.cluster.corosync_conf.replace_file", replace)
    host.run(conf(2), reload=True)
    assert found == [True]


@pytest.mark.expect_log("ERROR can.t ask corosync to reload .*: corosync does not answer; see")
def test_a_reload_that_hangs_delays_no_later_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(tmp_path / "corosync.conf", timeout=RETRY)
    host.path.write_bytes(conf(1))
    host.answers.clear()
    host.config.start()
    host.config.follow(conf(2), reload=True)
    wait_until(lambda: "corosync does not answer" in host.config.error)
    host.config.follow(conf(3), reload=True)
    wait_until(lambda: host.path.read_bytes() == conf(3))
    assert host.was_reloaded
    assert not host.was_reloaded  # one call at a time
    host.answers.set()
    wait_until(lambda: not host.config.error)
    assert host.was_reloaded  # the first call may have read the file before the last change
    assert not host.was_reloaded
    host.config.close()
    assert not Reload(tmp_path).is_due
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1


def test_a_check_that_the_stop_cancels_refuses_nothing(host: Host) -> None:
    """The next start finds the same difference, and has the time for the check."""
    begun = threading.Event()

    def check(content: bytes, *, is_cancelled: Callable[[], bool]) -> str:
        begun.set()
        wait_until(is_cancelled)
        raise Cancelled

    host.path.write_bytes(conf(1))
    config = HostConfig(host.path, Reload(host.path.parent), retry=RETRY, check=check)
    config.start()
    config.follow(conf(2), reload=True)
    assert begun.wait(TIMEOUT)
    config.close(TIMEOUT)
    assert (config.is_alive, config.error) == (False, "")
    assert host.path.read_bytes() == conf(1)
    host.run(conf(2), reload=True)
    assert host.path.read_bytes() == conf(2)
    assert host.was_reloaded


@pytest.mark.expect_log("ERROR .*corosync.conf is not replaced: corosync refuses the cluster's")
def test_what_corosync_refuses_is_not_written_until_a_good_version_comes(host: Host) -> None:
    host.path.write_bytes(conf(2))
    host.config.start()
    host.config.follow(conf(3, "broken"), reload=True)
    wait_until(lambda: "line 4 is broken" in host.config.error)
    host.config.follow(conf(3, "broken"), reload=False)
    host.config.follow(conf(3, "also broken"), reload=False)
    assert not host.was_reloaded
    assert host.path.read_bytes() == conf(2)
    assert not host.previous.exists()
    host.config.follow(conf(3), reload=False)
    wait_until(lambda: not host.config.error)
    assert (host.path.read_bytes(), host.previous.read_bytes()) == (conf(3), conf(2))
    wait_until(lambda: host.was_reloaded)  # this node has asked for it with the first version


@pytest.mark.expect_log("ERROR .*corosync.conf is not replaced: corosync refuses the cluster's")
def test_what_this_host_could_not_run_is_tried_again(host: Host) -> None:
    refused = threading.Event()
    answers = iter(["the network is down"])

    def check(content: bytes, *, is_cancelled: Callable[[], bool]) -> str:
        refused.set()
        return next(answers, "")

    config = HostConfig(host.path, Reload(host.path.parent), retry=RETRY, check=check)
    config.start()
    config.follow(conf(2), reload=False)
    assert refused.wait(TIMEOUT)
    wait_until(host.path.exists)
    wait_until(lambda: not config.error)
    config.close()


def test_a_wait_ends_when_the_file_is_written_or_the_time_is_over(tmp_path: Path) -> None:
    path, proceed = tmp_path / "corosync.conf", threading.Event()

    def check(content: bytes, *, is_cancelled: Callable[[], bool]) -> str:
        return "" if proceed.wait(TIMEOUT) else "nobody let it proceed"

    config = HostConfig(path, Reload(tmp_path), check=check)
    config.wait(TIMEOUT)  # nothing is queued
    config.follow(conf(1), reload=False)
    config.start()
    config.wait(RETRY)
    assert not path.exists()
    proceed.set()
    config.wait(TIMEOUT)
    assert path.read_bytes() == conf(1)
    config.close()


@pytest.mark.parametrize(
    ("before", "kept"),
    [(conf(1), conf(1)), (b"garbage", b"garbage"), (b"", b"older"), (b" \n", b"older")],
    ids=["good", "garbage", "empty", "blank"],
)
def test_the_file_that_is_replaced_is_kept_unless_it_is_empty(
    host: Host, before: bytes, kept: bytes
) -> None:
    host.previous.write_bytes(b"older")
    host.path.write_bytes(before)
    host.path.chmod(0o600)
    host.run(conf(2), reload=False)
    assert (host.path.read_bytes(), host.previous.read_bytes()) == (conf(2), kept)
    if kept == before:
        assert host.previous.stat().st_mode & 0o7777 == 0o600


@pytest.mark.expect_log("ERROR can.t update .*: No space left")
def test_a_crash_before_the_replacement_loses_neither_file(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second write fails, and the next daemon finds what the first one has left."""
    host.path.write_bytes(conf(1))
    host.path.chmod(MODE)
    written = []

    def crash(path: Path, content: bytes, *, mode: int) -> None:
        written.append(path)
        if path == host.path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace_file(path, content, mode=mode)

    with monkeypatch.context() as patch:
        patch.setattr("pmxcfs.cluster.corosync_conf.replace_file", crash)
        host.run(conf(2), reload=False)
    assert written == [host.previous, host.path]
    assert (host.path.read_bytes(), host.previous.read_bytes()) == (conf(1), conf(1))
    kept = host.previous.stat().st_ino
    Host(host.path).run(conf(2), reload=False)
    assert (host.path.read_bytes(), host.previous.read_bytes()) == (conf(2), conf(1))
    assert host.previous.stat().st_ino == kept  # an equal one is not written again


@pytest.mark.expect_log("ERROR can.t update .*: Is a directory")
def test_without_a_copy_of_the_file_it_is_not_replaced(host: Host) -> None:
    host.path.write_bytes(conf(1))
    host.previous.mkdir()
    host.run(conf(2), reload=False)
    assert host.path.read_bytes() == conf(1)


def test_the_version_of_a_file_that_corosync_refuses_does_not_count(host: Host) -> None:
    host.path.write_bytes(conf(9, "broken"))
    host.run(conf(2), reload=False)
    assert (host.path.read_bytes(), host.previous.read_bytes()) == (conf(2), conf(9, "broken"))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "is missing"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"broken", "is refused by it: line 4 is broken"),
        (conf(1), ""),
    ],
)
def test_an_examination_says_why_corosync_can_not_start(
    host: Host, content: bytes | None, fault: str
) -> None:
    host.path.write_bytes(b"broken")
    host.config.start()
    wait_until(lambda: host.config.examine())
    if content is None:
        host.path.unlink()
    else:
        host.path.write_bytes(content)
    told = fault and f"corosync can't start, because {host.path} {fault}; put a good file there"
    wait_until(
        lambda: host.config.examine().startswith(told) and bool(host.config.fault) == bool(told)
    )


@pytest.mark.expect_log("ERROR .*corosync.conf is not replaced: corosync refuses the cluster's")
def test_an_examination_names_only_files_that_may_be_good(host: Host) -> None:
    host.path.write_bytes(b"broken")
    host.config.start()
    wait_until(lambda: "such as the cluster's corosync.conf, then" in host.config.examine())
    host.config.follow(conf(2, "broken"), reload=False)
    wait_until(lambda: "such as a copy from another node, then" in host.config.examine())
    host.previous.write_bytes(conf(1))
    wait_until(lambda: f"such as {host.previous}, then" in host.config.examine())


def test_what_an_examination_has_found_is_not_told_of_a_later_outage(host: Host) -> None:
    host.path.write_bytes(b"broken")
    host.config.start()
    wait_until(lambda: host.config.examine())
    time.sleep(2 * RETRY)
    assert host.config.examine() == ""
