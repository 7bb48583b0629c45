"""LocalIssuer: what a request is told that waits while others deliver."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pmxcfs.errors import Busy
from pmxcfs.messages import Mkdir
from pmxcfs.replica.local_issuer import LocalIssuer
from pmxcfs.replica.replica import Policy
from pmxcfs.replica.waiting import RequestWatch
from tests.fakes.doubles.device import device
from tests.fakes.doubles.replicas import WAIT, StoredReplica
from tests.fakes.doubles.yielding import Yielding


class Crowded(Yielding):
    """The first thread that wants to wait gets Busy, but only when ``go`` is set."""

    def __init__(self) -> None:
        super().__init__(room=8)
        self.go = threading.Event()
        self.is_crowded = True

    @contextlib.contextmanager
    def waiting_with_watch(self, *, must: bool = False) -> Iterator[RequestWatch]:
        if self.is_crowded:
            self.is_crowded = False
            with self.writing():
                assert self.go.wait(WAIT)
            raise Busy("full")
        with super().waiting_with_watch(must=must) as watch:
            yield watch


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
