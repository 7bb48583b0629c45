"""The host's corosync.conf: what replaces it, and how."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.cluster.corosync_conf import HostConfig, refusal, replace, version_of
from pmxcfs.errors import Disconnected

PATIENCE = 30.0


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
        (conf("9" * 20), int("9" * 20)),
        (conf("9" * 5000), None),
    ],
)
def test_the_version_is_the_first_that_is_stated(content: bytes, version: int | None) -> None:
    assert version_of(content) == version


@pytest.mark.parametrize(
    ("wanted", "present", "reason"),
    [
        (conf(3), None, ""),
        (conf(3), conf(2), ""),
        (conf(3), conf(3, "# other"), ""),
        (conf(3), b"damaged", ""),
        (conf(3), conf(4), "the cluster's corosync.conf has config_version 3, this host's has 4"),
        (b"damaged", None, "the cluster's corosync.conf has no config_version"),
        (b"", conf(1), "the cluster's corosync.conf has no config_version"),
    ],
)
def test_a_file_is_refused_for_a_reason(wanted: bytes, present: bytes | None, reason: str) -> None:
    assert refusal(wanted, present) == reason


class Host:
    """A host's file with its thread; *reloads* counts what corosync was asked."""

    def __init__(self, path: Path, *, settle: float = 0) -> None:
        self.path = path
        self.reloads = threading.Semaphore(0)
        self.config = HostConfig(path, settle=settle, reload=self.reload)

    def reload(self) -> None:
        self.reloads.release()

    def run(self, content: bytes, *, reload: bool) -> None:
        """Have the file follow, to the end."""
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


def test_a_file_that_was_there_is_replaced_and_reloaded(host: Host) -> None:
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


def test_the_change_of_another_node_is_not_reloaded_here(host: Host) -> None:
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
@pytest.mark.parametrize("wanted", [conf(1), b"no version"])
def test_a_refused_file_is_not_copied_and_says_so(host: Host, wanted: bytes) -> None:
    host.path.write_bytes(conf(2))
    host.run(wanted, reload=True)
    assert host.path.read_bytes() == conf(2)
    assert not host.was_reloaded


def test_of_several_changes_the_last_counts_and_any_reload(host: Host) -> None:
    host.path.write_bytes(conf(1))
    host.config.follow(conf(2), reload=True)
    host.config.follow(conf(3), reload=False)
    host.config.start()
    host.config.close()
    assert host.path.read_bytes() == conf(3)
    assert host.was_reloaded
    assert not host.was_reloaded


def test_the_end_does_not_wait_for_files_to_settle(tmp_path: Path) -> None:
    host = Host(tmp_path / "corosync.conf", settle=PATIENCE * 3)
    host.path.write_bytes(conf(1))
    began = time.monotonic()
    host.run(conf(2), reload=True)
    assert host.reloads.acquire(timeout=PATIENCE)
    assert time.monotonic() - began < PATIENCE


@pytest.mark.expect_log("pmxcfs.confdb ERROR can't update .*: No such file or directory")
def test_a_directory_that_is_not_there_is_reported(tmp_path: Path) -> None:
    Host(tmp_path / "absent" / "corosync.conf").run(conf(1), reload=True)


@pytest.mark.expect_log("pmxcfs.confdb ERROR corosync was not told to reload .*CS_ERR_LIBRARY")
def test_a_failed_reload_is_reported_and_the_thread_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "corosync.conf"
    path.write_bytes(conf(1))
    failed = threading.Semaphore(0)

    def fail() -> None:
        failed.release()
        raise Disconnected("corosync_cfg_initialize", 2, "CS_ERR_LIBRARY")

    config = HostConfig(path, settle=0, reload=fail)
    config.start()
    for version in (2, 3):
        config.follow(conf(version), reload=True)
        assert failed.acquire(timeout=PATIENCE)
    config.close()
    assert path.read_bytes() == conf(3)


def test_a_file_left_by_a_crash_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".corosync.conf.new").write_bytes(b"half")
    replace(tmp_path / "corosync.conf", conf(2))
    assert [path.name for path in tmp_path.iterdir()] == ["corosync.conf"]
    assert (tmp_path / "corosync.conf").read_bytes() == conf(2)
