"""The list of mounts: parsing, and which mount of a stack is on top."""

from pathlib import Path
from typing import Any

import pytest

from pmxcfs.host import mounts
from pmxcfs.host.mounts import await_unmount, is_listed, listed, mounts_on, topmost_on

LINES = r"""
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
40 22 0:50 / /etc/pve rw,nosuid,nodev,relatime shared:9 - fuse /dev/fuse rw,user_id=0
41 40 0:51 / /etc/pve rw,relatime - tmpfs tmpfs rw
42 22 0:52 / /mnt/with\040blank rw - fuse.sshfs host: rw
"""


@pytest.fixture
def mountinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(LINES.lstrip())
    monkeypatch.setattr(mounts, "_LIST", path)
    return path


@pytest.mark.usefixtures("mountinfo")
def test_the_mounts_of_a_path_are_found() -> None:
    assert [mount.id for mount in listed()] == [22, 40, 41, 42]
    assert [mount.id for mount in mounts_on(Path("/etc/pve"))] == [40, 41]
    (blank,) = mounts_on(Path("/mnt/with blank"))
    assert (blank.device, blank.kind, blank.is_fuse) == ("0:52", b"fuse.sshfs", True)
    assert is_listed(blank)
    assert not is_listed(blank._replace(id=1))


@pytest.mark.usefixtures("mountinfo")
@pytest.mark.parametrize("other", [{"path": b"/mnt/elsewhere"}, {"device": "0:99"}])
def test_a_mount_is_not_one_that_has_got_its_id(other: dict[str, Any]) -> None:
    assert not is_listed(listed()[-1]._replace(**other))


@pytest.mark.usefixtures("mountinfo")
def test_the_topmost_mount_covers_the_others_in_whatever_order_they_are_listed() -> None:
    top = topmost_on(Path("/etc/pve"))
    assert top is not None
    assert (top.id, top.is_fuse) == (41, False)
    assert topmost_on(Path("/etc")) is None


def test_the_order_of_the_list_does_not_matter(mountinfo: Path) -> None:
    mountinfo.write_text("\n".join(reversed(LINES.strip().splitlines())) + "\n")
    top = topmost_on(Path("/etc/pve"))
    assert top is not None
    assert top.id == 41


def test_a_mount_that_stays_is_awaited_for_a_limited_time() -> None:
    present, *_ = listed()  # in a chroot, "/" need not be one of them
    assert not await_unmount(present, 0.01)
    assert await_unmount(present._replace(id=-1), 0.0)


def test_a_path_with_links_leads_to_the_mount(mountinfo: Path, tmp_path: Path) -> None:
    place = tmp_path / "directory" / "mountpoint"
    place.mkdir(parents=True)
    mountinfo.write_text(f"40 22 0:50 / {place} rw - fuse /dev/fuse rw\n")
    (tmp_path / "link").symlink_to("directory")
    (tmp_path / "directory" / "other").symlink_to("mountpoint")
    for path in (place, tmp_path / "link" / "mountpoint", tmp_path / "link" / "other"):
        assert [mount.id for mount in mounts_on(path)] == [40]
