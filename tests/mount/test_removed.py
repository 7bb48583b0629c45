"""Removals: open files and directories without a name have no link, and types are as they were."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness import Daemon, mounted, wait_for

pytestmark = pytest.mark.needs_fuse


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    flags = ("--test-control", "--workers", "6")  # so that two changes may wait
    with mounted(tmp_path_factory.mktemp("removed"), *flags) as daemon:
        yield daemon


def remove(mount: Daemon, path: Path) -> None:
    path.rmdir() if path.is_dir() else path.unlink()


def replace(mount: Daemon, path: Path) -> None:
    other = path.with_name("other")
    other.mkdir() if path.is_dir() else other.touch()
    other.rename(path)


def remove_elsewhere(mount: Daemon, path: Path) -> None:
    mount.control("inject", kind="delete", path=path.name)


def replace_elsewhere(mount: Daemon, path: Path) -> None:
    mount.control("inject", kind="mkdir" if path.is_dir() else "create", path="theirs")
    mount.control("inject", kind="rename", path="theirs", to=path.name)


@pytest.mark.parametrize("take_away", [remove, replace, remove_elsewhere, replace_elsewhere])
@pytest.mark.parametrize("is_directory", [False, True])
def test_what_has_no_name_any_more_has_no_link(
    mount: Daemon, take_away: Callable[[Daemon, Path], None], is_directory: bool
) -> None:
    path = mount.path / f"open-{is_directory:d}"
    path.mkdir() if is_directory else path.write_text("content")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert os.fstat(descriptor).st_nlink == (2 if is_directory else 1)
        take_away(mount, path)
        wait_for(lambda: os.fstat(descriptor).st_nlink == 0, mount)
    finally:
        os.close(descriptor)
    mount.wait_until_notified()  # of the name, too
    if path.exists():
        remove(mount, path)


def test_what_an_adopted_tree_lacks_has_no_link(tmp_path: Path) -> None:
    with mounted(tmp_path / "other") as other:
        (other.path / "other").mkdir()
    with mounted(tmp_path / "mine", "--test-control") as mount:
        (mount.path / "file").touch()
        (mount.path / "directory").mkdir()
        names = ("file", "directory")
        descriptors = [os.open(mount.path / name, os.O_RDONLY) for name in names]
        mount.control("adopt", path=str(other.state / "config.db"))
        wait_for(lambda: {os.fstat(one).st_nlink for one in descriptors} == {0}, mount)
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.mark.parametrize("is_directory", [False, True])
def test_a_removal_is_refused_if_the_name_changes_its_type_meanwhile(
    mount: Daemon, is_directory: bool
) -> None:
    path = mount.path / "name"
    path.mkdir() if is_directory else path.touch()
    mount.control("hold")
    with ThreadPoolExecutor(1) as pool:
        removal = pool.submit(os.rmdir if is_directory else os.unlink, path)
        wait_for(lambda: mount.control("info")["waiting"] == 1, mount)
        mount.control("inject", kind="delete", path="name")
        mount.control("inject", kind="create" if is_directory else "mkdir", path="name")
        mount.control("resume")
        with pytest.raises(NotADirectoryError if is_directory else IsADirectoryError):
            removal.result()
    wait_for(lambda: path.is_dir() is not is_directory and path.exists(), mount)
    remove(mount, path)
