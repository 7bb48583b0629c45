"""Updates of the host's corosync.conf: which contents may replace the file, and the reload."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.cluster.corosync_conf import HostConfig, refusal, version_of
from pmxcfs.errors import Disconnected

TIMEOUT = 30.0  # seconds until a wait fails the test


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
    """A HostConfig on a temporary file; *reloads* counts the reload requests to corosync."""

    def __init__(self, path: Path, *, reload_delay: float = 0) -> None:
        self.path = path
        self.reloads = threading.Semaphore(0)
        self.config = HostConfig(path, reload_delay=reload_delay, reload=self.reload)

    def reload(self) -> None:
        self.reloads.release()

    def run(self, content: bytes, *, reload: bool) -> None:
        """Start the thread, queue *content* and wait until the thread has written it."""
        self.config.start()
        self.config.follow(content, reload=reload)
        self.config.close()

    @property
    def was_reloaded(self) -> bool:
        return self.reloads.acquire(blocking=False)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "corosync.conf")
    yield host
    assert [path.name for path in tmp_path.iterdir()] in ([], ["corosync.conf"])


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
    assert host.path.stat() == before
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


@pytest.mark.expect_log("pmxcfs.confdb ERROR can.t ask corosync to reload .*CS_ERR_LIBRARY")
def test_a_failed_reload_is_logged_and_the_thread_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "corosync.conf"
    path.write_bytes(conf(1))
    failed = threading.Semaphore(0)

    def fail() -> None:
        failed.release()
        raise Disconnected("corosync_cfg_initialize", 2, "CS_ERR_LIBRARY")

    config = HostConfig(path, reload_delay=0, reload=fail)
    config.start()
    for version in (2, 3):
        config.follow(conf(version), reload=True)
        assert failed.acquire(timeout=TIMEOUT)
    config.close()
    assert path.read_bytes() == conf(3)
