"""The requests that wait in a cluster issuer, and the outbox whose messages the test delivers."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import Busy, PmxcfsError, StoreError
from pmxcfs.messages import Kind, Mkdir
from pmxcfs.replica.cluster_issuer import ClusterIssuer
from pmxcfs.replica.outbox import Outbox, Proposal
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.replica.replica import Replica
from pmxcfs.tree.apply import Change
from tests.fakes.doubles.yielding import Yielding

DEADLINE = 30.0  # seconds after which a test fails
LONG = 60.0  # seconds; a timeout that never expires in a test


class FakeReplica:
    def __init__(self) -> None:
        self.tree = Tree()
        self.failure: StoreError | None = None
        self.busy: Busy | None = None
        self.writes = 0
        self.can_write = True
        self.has_unwritten = False

    def check_writable(self, size: int = 0, seconds: float = 0.0) -> None:
        if self.failure is not None:
            raise self.failure

    def await_saver(self) -> None:
        if self.busy is not None:
            raise self.busy

    def write_out(self, seconds: float = LONG) -> bool:
        self.writes += 1
        return self.can_write


class World:
    """An issuer with its outbox; the test acts as the group's thread."""

    def __init__(self) -> None:
        self.yielding = Yielding(room=8)
        self.lock = self.yielding.lock
        self.quorum = QuorumFlag(is_quorate=True)
        self.queued = threading.Semaphore(0)
        self.outbox = Outbox(self.quorum, wake=self.queued.release)
        self.replica = FakeReplica()
        self.issuer = ClusterIssuer(
            cast(Replica, self.replica),
            self.outbox,
            yielding=self.yielding,
            dispatch_until=lambda ticket, seconds, watch: self.outbox.wake(),
        )
        self.pool = ThreadPoolExecutor()
        self.first: Proposal  # the overdue one

    def begin(self, call: Callable[[], Change]) -> Future[Change]:
        """Run *call* in a worker thread, and wait until its change is queued."""

        def locked() -> Change:
            with self.lock:
                return call()

        future = self.pool.submit(locked)
        assert self.queued.acquire(timeout=DEADLINE), "nothing was queued"
        return future

    def mkdir(self, path: str = "a") -> Future[Change]:
        return self.begin(lambda: self.issuer.submit(Mkdir(path)))

    def send(self, *, now: float = 0.0) -> Proposal:
        """Send the next message."""
        proposal = self.outbox.next(now or time.monotonic())
        assert proposal is not None
        self.outbox.sent(proposal)
        return proposal

    def arrive(self, proposal: Proposal, error: PmxcfsError | None = None) -> None:
        change = None if error else Change(Kind.MKDIR, "a", cast(Entry, None))
        with self.lock:
            self.outbox.progress.came_back(proposal)
            proposal.arrived(change, error)
