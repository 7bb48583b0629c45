"""The choice of the session, and llfuse's number of worker threads."""

import os
from types import SimpleNamespace

import pytest

from pmxcfs.fuse.choice import can_be_native, make_session, workers_for
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
    release: str, user: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert can_be_native() is expected
    if not user:
        wanted = "native" if expected else "llfuse"
        assert make_session(Settings(nodename="a", fuse="auto")).name == wanted


@pytest.mark.parametrize("name", ["native", "llfuse"])
def test_an_option_insists_on_a_session(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="5.3"))
    assert make_session(Settings(nodename="a", fuse=name)).name == name
