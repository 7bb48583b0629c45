"""The claim on a mountpoint: what is refused, and whose mount it is."""

import dataclasses
import errno
import os
import time
from pathlib import Path

import pytest

from pmxcfs.errors import StartError
from pmxcfs.host import mountpoint
from pmxcfs.host.mountpoint import check_places, claimed, clear_mountpoint
from pmxcfs.settings import Settings

PLACES = Settings(nodename="n")


def test_a_missing_mountpoint_is_created(tmp_path: Path) -> None:
    clear_mountpoint(tmp_path / "deep" / "pve")
    assert (tmp_path / "deep" / "pve").is_dir()


@pytest.mark.expect_log(r"pve is not empty: mounting over 2 entries")
def test_files_below_the_mountpoint_cause_a_warning(tmp_path: Path) -> None:
    (tmp_path / "pve" / "a").mkdir(parents=True)
    (tmp_path / "pve" / "b").touch()
    clear_mountpoint(tmp_path / "pve")


def test_a_mountpoint_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pve").touch()
    with pytest.raises(StartError, match=r"can't mount on .*/pve: "):
        clear_mountpoint(tmp_path / "pve")


@pytest.mark.expect_log("removing the stale mount")
def test_a_stale_mount_that_can_not_be_removed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mountpoint, "stat_error", lambda path: errno.ENOTCONN)
    monkeypatch.setattr(mountpoint, "detach", lambda path: None)
    (tmp_path / "file").touch()  # it can't be listed, which is what shows that a mount is stale
    with pytest.raises(StartError, match="unmount them with umount"):
        clear_mountpoint(tmp_path / "file")


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/", "the root directory"),
        ("/var/lib", "the state directory /var/lib/pve-cluster"),
        ("/run/pve-cluster", "the run directory /run/pve-cluster"),
        ("/run/pve-cluster.pid", "the pid file"),
    ],
)
def test_a_mount_that_would_cover_the_daemons_own_files_is_refused(path: str, what: str) -> None:
    with pytest.raises(
        StartError, match=f"can't mount on {path}: it would cover {what}.*--mountpoint"
    ):
        check_places(dataclasses.replace(PLACES, mountpoint=Path(path)))
    check_places(PLACES)


def test_a_mountpoint_that_leads_to_the_root_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(StartError, match="the root directory"):
        check_places(dataclasses.replace(PLACES, mountpoint=tmp_path / "link"))


def test_a_mountpoint_is_claimed_once(tmp_path: Path) -> None:
    path = tmp_path / "pve"
    with claimed(path):
        started = time.monotonic()
        pattern = f"another pmxcfs is about to be mounted on {path}"
        with pytest.raises(StartError, match=pattern), claimed(path, timeout=0.2):
            pass
        assert time.monotonic() - started >= 0.2
    before = os.listdir("/proc/self/fd")
    with claimed(path, timeout=0):  # the first claim is over
        pass
    assert len(os.listdir("/proc/self/fd")) == len(before)
