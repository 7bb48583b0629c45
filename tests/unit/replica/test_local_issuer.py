"""LocalIssuer: what a request is told that waits while others deliver."""

import contextlib
import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pmxcfs.errors import Busy, Signaled, StoreError
from pmxcfs.messages import Create, Mkdir, Mutation, Write
from pmxcfs.replica import tickets
from pmxcfs.replica.local_issuer import LocalIssuer
from pmxcfs.replica.replica import Policy
from pmxcfs.replica.tickets import Ticket
from pmxcfs.replica.waiting import RequestWatch
from tests.conftest import ExpectLog
from tests.fakes.doubles.device import device
from tests.fakes.doubles.replicas import WAIT, StoredReplica, recovered_tree
from tests.fakes.doubles.yielding import Request, SingleYielding, Yielding, writing


class Crowded(Yielding):
    """The first thread that wants to wait gets Busy, but only when ``go`` is set."""

    def __init__(self) -> None:
        super().__init__(room=8)
        self.go = threading.Event()
        self.is_crowded = True

    def begin_waiting(self, *, must: bool = False) -> RequestWatch:
        if self.is_crowded:
            self.is_crowded = False
            with writing(self):
                assert self.go.wait(WAIT)
            raise Busy("full")
        return super().begin_waiting(must=must)


def test_a_change_that_another_thread_has_made_meanwhile_is_not_called_busy(
    tmp_path: Path,
) -> None:
    yielding = Crowded()
    stored = StoredReplica(tmp_path, policy=Policy.ROLL_BACK, yielding=yielding, lock=yielding.lock)
    issuer = LocalIssuer(stored.replica, clock=lambda: 1, yielding=yielding)

    def submit(path: str) -> str:
        with yielding.lock:
            return issuer.submit(Mkdir(path)).path

    with contextlib.closing(stored), device() as below, ThreadPoolExecutor() as pool:
        stored.journal.make_room(1 << 20, version=1)
        below.runs.clear()
        first = pool.submit(submit, "a")
        assert below.stands_still.wait(WAIT)
        waiting = pool.submit(submit, "b")
        yielding.await_away(2)
        below.runs.set()
        assert first.result(WAIT) == "a"
        assert submit("c") == "c"
        assert [version for version, _ in stored.changes()] == [2, 3, 4]
        yielding.go.set()
        assert waiting.result(WAIT) == "b"


class BuggyMkdir(Mkdir):
    """A mutation whose size can't be told."""

    @property
    def path(self) -> str:
        raise ZeroDivisionError


def test_a_bug_before_the_delivery_leaves_no_change_behind(tmp_path: Path) -> None:
    stored = StoredReplica(tmp_path, policy=Policy.ROLL_BACK)
    issuer = LocalIssuer(stored.replica, clock=lambda: 1, yielding=SingleYielding())
    with contextlib.closing(stored):
        ticket = Ticket(BuggyMkdir("a"))
        with pytest.raises(ZeroDivisionError):
            issuer.carry_out(ticket)
        assert ticket.is_done
        issuer.submit(Mkdir("b"))
        assert [mutation for _, mutation in stored.changes()] == [Mkdir("b")]


BRIEF, LONG = 0.2, 1.0  # seconds in place of the limits for names and for content
LARGE = Write("f.x", 0, bytes(1 << 20), truncate=True)


@pytest.mark.parametrize(
    ("at", "change"),
    [
        ("reserving", LARGE),  # only what needs room waits
        ("beginning a segment", Mkdir("d")),
        ("beginning a segment", Write("f.x", 0, b"x", truncate=True)),
        ("a write of the saver", Mkdir("d")),
        ("a write of the saver", Write("f.x", 0, b"x", truncate=True)),
    ],
)
def test_a_change_that_can_not_begin_to_be_written_is_taken_back_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, change: Mutation
) -> None:
    """Whatever the device holds another thread at."""
    limit = BRIEF if isinstance(change, Mkdir) else LONG
    monkeypatch.setattr(tickets, "NAME_TIMEOUT", limit)
    monkeypatch.setattr(tickets, "CONTENT_TIMEOUT", limit)
    yielding = Yielding(room=8)
    stored = StoredReplica(tmp_path, policy=Policy.ROLL_BACK, yielding=yielding, lock=yielding.lock)
    issuer = LocalIssuer(stored.replica, clock=lambda: 1, yielding=yielding)
    with contextlib.closing(stored), device() as below, ThreadPoolExecutor() as pool:
        with yielding.lock:
            issuer.submit(Create("f.x"))
            while at == "beginning a segment" and not stored.journal.is_full():
                issuer.submit(LARGE)
            before = stored.tree.checksum()
        below.runs.clear()
        if at == "a write of the saver":
            pool.submit(stored.replica.saver.save)
            assert below.stands_still.wait(WAIT)
        start = time.monotonic()
        with yielding.lock, pytest.raises(Busy, match="the device takes no changes now"):
            issuer.submit(change)
        assert limit <= time.monotonic() - start < limit + LONG
        assert stored.tree.checksum() == before
        below.runs.set()
        with yielding.lock:
            issuer.submit(change)
        stored.replica.saver.save()
        assert stored.replica.store_error is None
        after = stored.tree.checksum()
    assert recovered_tree(tmp_path).checksum() == after


def test_a_group_is_undone_as_a_whole_if_no_new_segment_can_begin(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    """A creation waits for the next change, as the full segment that goes on becomes due."""
    expect_log(r"can't be written: No space left on device.*; changes are refused")
    stored = StoredReplica(tmp_path, policy=Policy.ROLL_BACK)
    issuer = LocalIssuer(stored.replica, clock=lambda: 1, yielding=SingleYielding())
    with contextlib.closing(stored), device() as below:
        issuer.submit(Create("f.x"))
        while not stored.journal.is_full():
            issuer.submit(LARGE)
        below.failures["reserve"] = errno.ENOSPC
        with pytest.raises(StoreError):
            issuer.submit(Mkdir("refused"))
        issuer.create(Create("g.x"))  # to the full segment, as no new one can begin just now
        until = time.monotonic() + WAIT
        while not stored.journal.is_full():
            assert time.monotonic() < until
            time.sleep(0.001)
        with contextlib.suppress(StoreError):
            issuer.submit(Mkdir("a"))
        del below.failures["reserve"]
        issuer.submit(Mkdir("b"))
        before = stored.tree.checksum()
    assert recovered_tree(tmp_path).checksum() == before


@pytest.mark.parametrize(
    ("at", "change"),
    [
        ("reserving", LARGE),
        ("beginning a segment", Mkdir("d")),
        ("another group", Mkdir("d")),
        ("another group", Write("f.x", 0, b"x", truncate=True)),
    ],
)
def test_a_change_that_has_not_begun_to_be_written_is_taken_back_by_a_signal(
    tmp_path: Path, at: str, change: Mutation
) -> None:
    yielding = Yielding(room=8)
    stored = StoredReplica(tmp_path, policy=Policy.ROLL_BACK, yielding=yielding, lock=yielding.lock)
    issuer = LocalIssuer(stored.replica, clock=lambda: 1, yielding=yielding)

    def submit(mutation: Mutation) -> str:
        with yielding.lock:
            requests.append(yielding.handling())
            return issuer.submit(mutation).path

    requests: list[Request] = []
    with contextlib.closing(stored), device() as below, ThreadPoolExecutor() as pool:
        with yielding.lock:
            issuer.submit(Create("f.x"))
            while at == "beginning a segment" and not stored.journal.is_full():
                issuer.submit(LARGE)
        below.runs.clear()
        others = [pool.submit(submit, Mkdir("first"))] if at == "another group" else []
        if others:
            assert below.stands_still.wait(WAIT)
        interrupted = pool.submit(submit, change)
        yielding.await_away(len(others) + 1)
        with yielding.lock:
            for request in requests:  # of the other group, too: it goes on
                request.interrupt()
        with pytest.raises(Signaled):
            interrupted.result(WAIT)
        assert [other.done() for other in others] == [False] * len(others)
        below.runs.set()
        assert [other.result(WAIT) for other in others] == ["first"] * len(others)
        before = stored.tree.checksum()
        assert stored.tree.find("d") is None
    assert recovered_tree(tmp_path).checksum() == before


def test_a_change_on_hold_ends_by_a_signal(tmp_path: Path) -> None:
    yielding = Yielding(room=8)
    stored = StoredReplica(tmp_path, policy=Policy.ROLL_BACK, yielding=yielding, lock=yielding.lock)
    issuer = LocalIssuer(stored.replica, clock=lambda: 1, yielding=yielding)
    requests: list[Request] = []

    def submit() -> str:
        with yielding.lock:
            requests.append(yielding.handling())
            return issuer.submit(Mkdir("d")).path

    issuer.hold()
    with contextlib.closing(stored), ThreadPoolExecutor() as pool:
        waiting = pool.submit(submit)
        yielding.await_away(1)
        with yielding.lock:
            requests[0].interrupt()
        with pytest.raises(Signaled):
            waiting.result(WAIT)
        issuer.resume()
        assert stored.tree.find("d") is None
