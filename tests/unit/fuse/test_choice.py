"""The choice of the session, and llfuse's number of worker threads."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pmxcfs.errors import StartError
from pmxcfs.fuse import choice
from pmxcfs.fuse.choice import can_be_native, make_session, make_uring_session, workers_for
from pmxcfs.fuse.uring import possible_cpus
from pmxcfs.settings import Settings
from tests.conftest import ExpectLog


@pytest.mark.parametrize(("wanted", "expected"), [(None, 16), (5, 5), (40, 40)])
def test_the_number_of_workers_is_the_option_or_a_default(
    wanted: int | None, expected: int
) -> None:
    assert workers_for(Settings(nodename="a", workers=wanted)) == expected


def test_a_change_can_always_wait(expect_log: ExpectLog) -> None:
    expect_log("--workers 4 is too few: using 5")
    assert workers_for(Settings(nodename="a", workers=4)) == 5


@pytest.mark.parametrize(
    ("release", "user", "expected"),
    [
        ("5.3.18-pve", 0, False),
        ("5.4.0", 0, True),
        ("6.18.44", 0, True),
        ("6.2-rc1", 0, True),
        ("10.0.1", 0, True),
        ("6.8.12-4-pve", 1000, False),
        ("unknown", 0, False),
    ],
)
def test_the_native_session_needs_root_and_linux_5_4(
    release: str, user: int, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "URING_SWITCH", tmp_path / "missing")
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert can_be_native() is expected
    if not user:
        wanted = "native" if expected else "llfuse"
        assert make_session(Settings(nodename="a", fuse="auto")).name == wanted


@pytest.mark.parametrize(
    ("switch", "user", "expected"),
    [("Y\n", 0, "uring"), ("N\n", 0, "native"), ("Y\n", 1000, "llfuse")],
)
def test_auto_takes_io_uring_where_it_is_switched_on(
    switch: str, user: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "URING_SWITCH", tmp_path / "switch")
    (tmp_path / "switch").write_text(switch)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert make_session(Settings(nodename="a", fuse="auto")).name == expected


@pytest.mark.expect_log("built without liburing")
def test_without_liburing_only_the_option_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pmxcfs.fuse.uring", None)
    assert make_uring_session(must=False).name == "native"
    with pytest.raises(StartError, match="built without liburing: use --fuse native"):
        make_uring_session(must=True)


@pytest.mark.parametrize(
    ("text", "count"), [("0\n", 1), ("0-1\n", 2), ("0-127\n", 128), ("0,2-3\n", 3)]
)
def test_the_possible_cpus_are_counted(text: str, count: int) -> None:
    assert possible_cpus(text) == count


@pytest.mark.parametrize("name", ["native", "llfuse", "uring"])
def test_an_option_insists_on_a_session(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="5.3"))
    assert make_session(Settings(nodename="a", fuse=name)).name == name
