"""Directories opened step by step: which symbolic links are followed, and what is refused."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pmxcfs.host.directories import (
    MAX_LINKS,
    make_new_file,
    open_below,
    open_directory,
    open_file,
    opened,
)
from pmxcfs.host.files import make_private_directory, replace_file
from tests.fakes.doubles.attacker import make_foreign_link

ANOTHER_USER = 4242


@pytest.fixture
def foreign_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A link of another user to a directory with a file."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_text("kept")
    make_foreign_link(tmp_path / "link", tmp_path / "victim")
    monkeypatch.setattr(os, "geteuid", lambda: ANOTHER_USER)
    return tmp_path / "link"


def is_same(descriptor: int, path: Path) -> bool:
    return os.path.samestat(os.fstat(descriptor), path.stat())


@pytest.mark.parametrize("target", ["{}/a/b", "b", "../a/./b", "/proc/../{}/a/b"])
def test_own_links_are_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "link").symlink_to(target.format(tmp_path))
    with opened(open_directory(tmp_path / "a" / "link" / "c")) as descriptor:
        assert is_same(descriptor, tmp_path / "a" / "b" / "c")


def test_links_of_other_users_are_not_followed(foreign_link: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for path in (foreign_link, foreign_link / "below"):
        with pytest.raises(PermissionError, match=r"a symbolic link of the user .*link"):
            open_directory(path, make=0o700)
    assert len(os.listdir("/proc/self/fd")) == len(before)  # no descriptor is left
    with pytest.raises(PermissionError):
        make_private_directory(foreign_link)
    with pytest.raises(PermissionError):
        replace_file(foreign_link / "file", b"replaced", mode=0o644)
    assert os.listdir(foreign_link) == ["file"]


def test_below_a_directory_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "top" / "b").mkdir(parents=True)
    (tmp_path / "top" / "link").symlink_to("b")
    with opened(open_directory(tmp_path / "top")) as top:
        with opened(open_below(top, b"b")) as descriptor:
            assert is_same(descriptor, tmp_path / "top" / "b")
        with opened(open_below(top, b"")) as descriptor:
            assert is_same(descriptor, tmp_path / "top")
        with pytest.raises(NotADirectoryError):
            open_below(top, b"link")


def test_missing_directories_are_made_on_request(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "a" / "b")):
        open_directory(tmp_path / "a" / "b")
    with opened(open_directory(tmp_path / "a" / "b", make=0o750)) as descriptor:
        assert is_same(descriptor, tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o750


def test_a_file_is_no_directory_and_links_may_not_go_round_in_circles(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        open_directory(tmp_path / "file")
    (tmp_path / "link0").symlink_to("link1")
    (tmp_path / "link1").symlink_to("link0")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        open_directory(tmp_path / "link0")
    for number in range(MAX_LINKS - 1):
        (tmp_path / f"long{number}").symlink_to(f"long{number + 1}")
    (tmp_path / f"long{MAX_LINKS - 1}").symlink_to(".")
    os.close(open_directory(tmp_path / "long0"))


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [Path.mkdir, make_pipe, lambda path: path.symlink_to("file")])
def test_only_regular_files_are_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "file").write_text("content")
    make(tmp_path / "other")
    with opened(open_directory(tmp_path)) as directory:
        os.close(open_file("file", os.O_RDWR, directory=directory))
        with pytest.raises(OSError, match=r"regular file|symbolic links"):
            open_file("other", os.O_RDONLY, directory=directory)
        with pytest.raises(FileExistsError):
            make_new_file("other", 0o600, directory=directory)
    assert (tmp_path / "file").read_text() == "content"


def test_a_replaced_file_is_complete_and_a_link_in_its_place_is_not_followed(
    tmp_path: Path,
) -> None:
    (tmp_path / "target").write_text("kept")
    (tmp_path / "file").symlink_to("target")
    (tmp_path / ".file.new").symlink_to("target")  # as if left behind by a crash
    replace_file(tmp_path / "file", b"new", mode=0o644)
    assert (tmp_path / "target").read_text() == "kept"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "file").lstat().st_mode) == 0o644
    assert sorted(os.listdir(tmp_path)) == ["file", "target"]
