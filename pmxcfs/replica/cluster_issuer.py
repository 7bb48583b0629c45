"""The issuer of a cluster: sends this node's mutations to the group and waits for their delivery.

Corosync delivers the messages of all members in one total order, this node's own included. The time
that a request waits is limited. Before its mutation is sent, the limit is 2 s if the kernel locks a
directory meanwhile, else 10 s; after that nothing was changed (Busy). After it is sent, the limit
is 10 s; after that its outcome is unknown (EIO).

While the oldest mutation in flight is overdue, the others wait unsent until it is delivered or
given up; in the latter case they are refused together. From then on this node is stuck and refuses
all mutations at once (``progress``). So the requests that wait for one another in the kernel, as
those in one directory do, are answered within the time of one.

If the program gets a signal before its change is sent, the change is withdrawn (EINTR).

Threads: callers hold the tree's lock. It is released while a request waits.
Contract: docs/spec/cluster.md, "A mutation must not block forever"; fuse.md, "Waiting";
filesystem.md, "When the cluster is stuck".
"""

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

from pmxcfs.errors import Busy, PmxcfsError, Signaled
from pmxcfs.host.callers import UNKNOWN, Caller
from pmxcfs.messages import Create, Mtime, Mutation, UnlockRequest, Write
from pmxcfs.replica.outbox import Outbox, Proposal, Sendable, outcome_unknown
from pmxcfs.replica.progress import ATTEMPT_TIMEOUT
from pmxcfs.replica.replica import Replica
from pmxcfs.replica.tickets import (
    CONTENT_TIMEOUT,
    Announcement,
    Ticket,
    limit_for,
    timeout_for,
)
from pmxcfs.replica.waiting import RequestWatch, WatchfulYielding, await_done
from pmxcfs.text import to_bytes
from pmxcfs.tree.apply import Change
from pmxcfs.tree.modes import loggable_path

_log = logging.getLogger("pmxcfs.dcdb")

# Bytes of the largest message that corosync sends atomically (cpg_max_atomic_msgsize_get).
MAX_MESSAGE = (1 << 20) - 1024
_AROUND_DATA = 16 + 8 + 20 + 1  # bytes of header, counter and lengths, and the NUL after the path
_ROOM = MAX_MESSAGE - _AROUND_DATA  # bytes of one message for a path and data
DELIVERY_TIMEOUT = 10.0  # seconds from sending to delivery
STOP_TIMEOUT = 1.0  # seconds that all changes together may wait once the daemon is stopping


class ClusterIssuer:
    """Carries out mutations by sending them to all members, this node included.

    All methods need the tree's lock and release it while they wait. *dispatch_until* dispatches for
    the tree's group until the ticket is done, at most the given seconds. If another thread owns the
    group, it only wakes that thread.
    """

    def __init__(
        self,
        replica: Replica,
        outbox: Outbox,
        *,
        yielding: WatchfulYielding,
        dispatch_until: Callable[[Ticket, float, RequestWatch], None],
    ) -> None:
        self._replica = replica
        self._outbox = outbox
        self._progress = outbox.progress
        self._yielding = yielding
        self._dispatch_until = dispatch_until
        self._stops_at = math.inf  # monotonic seconds; all waiting ends then
        self._waiting: dict[Proposal, None] = {}  # proposals with a waiting caller, in order

    def submit(self, mutation: Mutation) -> Change:
        """Apply *mutation* on all members; return the change. Blocks. Raises PmxcfsError."""
        return self.carry_out(Ticket(mutation))

    def refusal(self, size: int = 0) -> PmxcfsError | None:
        """Return the error by which a mutation with *size* bytes is refused now, or None. Blocks.

        Tries to make room for it first.
        """
        return self._refusal(size, CONTENT_TIMEOUT)

    def _refusal(self, size: int, seconds: float) -> PmxcfsError | None:
        if self._progress.is_stuck() and self._progress.refuses(monotonic()):
            return Busy("the cluster delivers no changes of this node, nothing was changed")
        try:
            self._replica.check_writable(size, seconds)
        except PmxcfsError as error:
            return error
        return None

    def create(self, mutation: Create, caller: Caller = UNKNOWN) -> Change:
        """Create a file on all members at once; other nodes see it while it is empty. Blocks."""
        return self.carry_out(Ticket(mutation, caller=caller))

    def can_announce_later(self) -> bool:
        """Tell whether this node could send now, as far as it knows."""
        return self._outbox.may_send(monotonic())

    def announce(self, ticket: Announcement) -> None:
        """Create the file of *ticket* on all members, with its content, and rename it. Blocks.

        Raises the first PmxcfsError; *ticket* tells whether the file itself is announced.
        """
        self._carry(ticket, ticket.parts(split))
        ticket.check()

    def carry_out(self, ticket: Ticket) -> Change:
        """Apply the mutation of *ticket*, whose result other threads can wait for. Blocks."""
        return self._propose(ticket, split(ticket.with_current_path(self._replica.tree)))

    def expire_lock(
        self, path: str, checksum: bytes, *, has_expired: bool, caller: Caller = UNKNOWN
    ) -> Change:
        """Ask the member with the lowest nodeid to remove the lock at *path*. Blocks.

        Returns when the request was delivered; the removal is a later mutation of that member.
        """
        mtime = Mtime(path, 0)
        return self._propose(Ticket(mtime, caller=caller), [UnlockRequest(path, checksum), mtime])

    def wait(self, ticket: Ticket, seconds: float) -> None:
        """Wait for *ticket*, which another thread carries out; raise its error. Blocks.

        Its record is written then. After *seconds* raises Busy, or Failed if only that is missing.
        Raises Signaled.
        """
        until = monotonic() + seconds
        if not await_done(ticket, seconds, self._yielding):
            raise Busy("an earlier change of the same file is still in progress")
        if self._replica.has_unwritten:  # its record waits, or is being written
            with self._yielding.waiting(must=True):
                is_written = self._replica.write_out(max(until - monotonic(), 0.0))
            if not is_written:
                raise _unwritten()
        ticket.check()

    def save(self) -> None:
        """Do nothing: a creation is a change like any other."""

    def sync(self) -> None:
        """Bring all changes to this node's device. Blocks. Raises StoreError and Busy."""
        with self._yielding.waiting():
            self._replica.sync()

    def hold(self) -> None:
        """Send nothing from now on, so that mutations wait. For tests."""
        self._outbox.hold(on=True)

    def resume(self) -> None:
        """Send again after ``hold``. For tests."""
        self._outbox.hold(on=False)

    def refuse(self) -> None:
        """Answer Busy to unsent changes, and limit waiting to STOP_TIMEOUT: the daemon stops."""
        self._stops_at = min(self._stops_at, monotonic() + STOP_TIMEOUT)
        self._refuse_unsent("the daemon is stopping, nothing was changed")
        self._outbox.hold(on=False)

    def abandon(self) -> None:
        """Wait for sent changes until STOP_TIMEOUT is over, then finish them as failed. Blocks."""
        for proposal in list(self._waiting):
            done = proposal.ticket.done()
            with self._yielding.waiting(must=True):
                done.wait(max(0.0, self._stops_at - monotonic()))
            if not proposal.ticket.is_done:
                proposal.ticket.finish(self._give_up(proposal, "the daemon stopped"))
                self._outbox.wake()

    def _propose(self, ticket: Ticket, bodies: Sequence[Sendable]) -> Change:
        self._carry(ticket, bodies)
        return ticket.result()

    def _carry(self, ticket: Ticket, bodies: Sequence[Sendable]) -> None:
        """Send *bodies* for *ticket* and wait until it is done. Blocks."""
        start, proposal = monotonic(), Proposal(ticket, bodies)
        ticket.done()  # creates the signal while the lock is held
        self._waiting[proposal] = None
        try:
            interruption = self._yielding.interruptible(partial(self._answer_signaled, proposal))
            interruption.begin()
            try:
                failure = self._send_and_wait(proposal, start)
            finally:
                interruption.end()
            if failure is not None and not ticket.is_done:
                self._note_failure(failure)
        except PmxcfsError as error:
            failure = error
            if ticket.is_done:
                raise
        finally:
            del self._waiting[proposal]
        if not ticket.is_done:
            ticket.finish(failure)

    def _send_and_wait(self, proposal: Proposal, start: float) -> PmxcfsError | None:
        """Do what ``_await`` does, and write the record; *start* is the monotonic begin. Blocks."""
        ticket = proposal.ticket
        refusal = self._refusal(0, timeout_for(ticket))
        if refusal is not None:
            raise refusal
        self._replica.await_saver()
        watch = self._yielding.begin_waiting()
        try:
            failure = self._await(proposal, watch)
            if isinstance(ticket.error, Signaled):
                return None
            seconds = min(DELIVERY_TIMEOUT, start + limit_for(ticket) - monotonic())
            self._yielding.expect_write(watch)
            is_written = self._replica.write_out(max(seconds, 0.0))
        finally:
            self._yielding.end_waiting(watch)
        if ticket.is_done and ticket.error is None and not is_written:
            raise _unwritten()
        return failure

    def _await(self, proposal: Proposal, watch: RequestWatch) -> PmxcfsError | None:
        """Send *proposal* and wait for its delivery. Blocks. Needs no lock.

        Return the error if it was given up; return None if the ticket is done.
        """
        start, ticket = monotonic(), proposal.ticket
        timeout = timeout_for(ticket)
        if self._progress.is_stuck():
            timeout = min(timeout, ATTEMPT_TIMEOUT)
        until = start + self._limited(timeout, start)
        self._outbox.queue(proposal)
        self._dispatch_until(ticket, until - start, watch)
        if ticket.is_done:
            return None
        watch.stop()
        done = ticket.done()
        left = self._unsent_seconds(proposal, until)
        while left > 0:
            if done.wait(left):
                return None
            left = self._unsent_seconds(proposal, until)
        refusal = Busy("the cluster is not in sync yet, nothing was changed")
        if self._outbox.withdraw(proposal, refusal):
            return refusal
        # It was sent, is being sent, or its ticket is just being finished.
        now = monotonic()
        until = min((proposal.sent_at or now) + DELIVERY_TIMEOUT, start + limit_for(ticket))
        if done.wait(self._limited(until - now, now)):
            return None
        return self._give_up(proposal, "no delivery in time")

    def _unsent_seconds(self, proposal: Proposal, until: float) -> float:
        """Return the seconds that *proposal* may still wait unsent, which is until *until*.

        Behind a mutation that is overdue, it is until that one is given up.
        """
        now, oldest = monotonic(), self._progress.oldest
        if not proposal.sent_at and self._progress.is_overdue(now):
            until = oldest + DELIVERY_TIMEOUT
        return self._limited(until - now, now)

    def _note_failure(self, error: PmxcfsError) -> None:
        """Note that a proposal was given up with *error*.

        If it was in flight for too long, refuse what has waited behind it.
        """
        now = monotonic()
        if now >= self._stops_at - STOP_TIMEOUT:
            return  # the limits are those of the daemon's stop
        self._progress.failed(error, now)
        if self._progress.is_overdue(now):
            self._refuse_unsent("an earlier change was not delivered in time, nothing was changed")

    def _refuse_unsent(self, reason: str) -> None:
        """Answer Busy, for this *reason*, to all callers of which nothing was sent."""
        for proposal in list(self._waiting):
            self._withdraw(proposal, Busy(reason))

    def _answer_signaled(self, proposal: Proposal) -> None:
        """Answer Signaled to the caller of *proposal*, if nothing of it was sent."""
        self._withdraw(proposal, Signaled())

    def _withdraw(self, proposal: Proposal, error: PmxcfsError) -> None:
        """Answer *error* to the caller of *proposal*, if nothing of it was sent."""
        if self._outbox.withdraw(proposal, error):
            proposal.ticket.finish(error)
            self._outbox.wake()  # also a request thread that owns the group and waits for this one

    def _give_up(self, proposal: Proposal, reason: str) -> PmxcfsError:
        """Send no further message of *proposal*; return the error for its caller."""
        self._outbox.drop(proposal)
        now = monotonic()
        seconds = now - (proposal.sent_at or now)
        _log.error(
            "the change of %s was sent but not delivered within %.1f s: its outcome is unknown",
            loggable_path(proposal.ticket.mutation.path),
            seconds,
        )
        return outcome_unknown(reason)

    def _limited(self, seconds: float, now: float) -> float:
        """Return *seconds* from *now*, or less if the daemon is stopping."""
        return max(0.0, min(seconds, self._stops_at - now))


def _unwritten() -> PmxcfsError:
    """Return the error for a change that was delivered, and that this node may not have stored."""
    return outcome_unknown("its record could not begin to be written in time")


def split(mutation: Mutation) -> list[Mutation]:
    """Return the messages for *mutation*: two for a WRITE that is too large for one."""
    if not isinstance(mutation, Write):
        return [mutation]
    room = _ROOM - len(to_bytes(mutation.path))
    if len(mutation.data) <= room:
        return [mutation]
    head, rest = mutation.data[:room], mutation.data[room:]
    return [
        mutation._replace(data=head),
        Write(mutation.path, mutation.offset + room, rest, truncate=False),
    ]
