"""``Ownership``: which chmod and chown succeed, strictly and leniently, and what is logged."""

import logging

import pytest

from pmxcfs.errors import NotPermitted
from pmxcfs.vfs.ownership import MAX_PROGRAMS, Ownership

GROUP = 33
PID = 42


def ownership(*, lenient: bool) -> Ownership:
    return Ownership(GROUP, lenient=lenient, program_of=lambda pid: f"program {pid}")


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(
    ("wanted", "present", "private"),
    [(0o640, 0o640, False), (0o600, 0o600, True), (0o640, 0o440, False), (0o755, 0o755, False)],
)
def test_a_file_can_get_its_own_mode_and_that_of_every_file_there(
    wanted: int, present: int, private: bool, lenient: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ownership(lenient=lenient).check_mode(wanted, present=present, private=private, pid=PID)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("wanted", "private", "may_be_ignored"),
    [
        (0o644, False, True),
        (0o4755, False, True),
        (0o600, False, False),
        (0o707, False, False),
        (0o640, True, True),
        (0o400, True, True),
    ],
)
def test_another_mode_is_refused_or_leniently_ignored_unless_it_hides_a_public_file(
    wanted: int, private: bool, may_be_ignored: bool
) -> None:
    present = 0o600 if private else 0o640
    with pytest.raises(NotPermitted):
        ownership(lenient=False).check_mode(wanted, present=present, private=private, pid=PID)
    try:
        ownership(lenient=True).check_mode(wanted, present=present, private=private, pid=PID)
        is_ignored = True
    except NotPermitted:
        is_ignored = False
    assert is_ignored is may_be_ignored


def test_other_owners_are_refused_or_leniently_ignored() -> None:
    strict, lenient = ownership(lenient=False), ownership(lenient=True)
    for same in ((0, GROUP), (None, None), (0, None), (None, GROUP)):
        strict.check_owner(uid=same[0], gid=same[1], pid=PID)
    for uid, gid in ((1, None), (None, 0), (1, 1)):
        with pytest.raises(NotPermitted):
            strict.check_owner(uid=uid, gid=gid, pid=PID)
        lenient.check_owner(uid=uid, gid=gid, pid=PID)


def test_what_is_ignored_is_logged_once_for_each_program_and_for_some_of_very_many(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    lenient = ownership(lenient=True)
    for pid in (1, 1, 2):
        lenient.check_owner(uid=7, gid=None, pid=pid)
        lenient.check_mode(0o644, present=0o640, private=False, pid=pid)
    assert [message.partition(":")[0] for message in caplog.messages] == ["program 1", "program 2"]
    for pid in range(2 * MAX_PROGRAMS):
        lenient.check_owner(uid=7, gid=None, pid=pid)
    assert len(caplog.messages) == MAX_PROGRAMS
