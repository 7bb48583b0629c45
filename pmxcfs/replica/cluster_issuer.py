"""Mutations of this node in a cluster: posted, and answered when they come back in the total order.

The other side of ``filesystem.Issuer``, beside ``replica.LocalIssuer``. A request waits for a
bounded time only: before it is sent 2 s if the kernel holds a directory meanwhile, else 10 s, and
nothing was changed then (Busy); once it is sent 10 s, and nobody knows what becomes of it then
(EIO). It waits with the tree's lock given back, so nothing else waits with it.

Threads: everything here runs with the tree's lock held, and gives it back while it waits.
Contract: docs/spec/cluster.md, "A mutation must not block forever"; fuse.md, "Waiting".
"""

import logging
import time
from collections.abc import Sequence

from pmxcfs.errors import Busy, Failed, NoQuorum, PmxcfsError
from pmxcfs.messages import Create, Mtime, Mutation, UnlockRequest, Write
from pmxcfs.replica.outbox import Outbox, Proposal, Sendable
from pmxcfs.replica.replica import Replica
from pmxcfs.replica.tickets import Ticket, timeout_for
from pmxcfs.replica.waiting import RequestWatch, WatchfulYielding
from pmxcfs.text import to_bytes
from pmxcfs.tree.apply import Change

_log = logging.getLogger("pmxcfs.dcdb")

# Bytes that corosync sends in one piece (cpg_max_atomic_msgsize_get).
MAX_MESSAGE = (1 << 20) - 1024
_AROUND_DATA = 16 + 8 + 20 + 1  # bytes of header, counter and lengths, and the NUL behind the path
DELIVERY_TIMEOUT = 10.0  # seconds from sending to delivery
STOP_TIMEOUT = 1.0  # seconds that all changes together may wait once the daemon stops


class ClusterIssuer:
    """Carries out mutations by sending them to all members, this node included."""

    def __init__(self, replica: Replica, outbox: Outbox, *, yielding: WatchfulYielding) -> None:
        self._replica = replica
        self._outbox = outbox
        self._yielding = yielding
        self._stops_at = float("inf")  # monotonic; nothing waits any longer than that
        self._waiting: dict[Proposal, None] = {}  # whose caller waits, in order

    def submit(self, mutation: Mutation) -> Change:
        """Have *mutation* applied everywhere; return what changed."""
        return self.carry_out(Ticket(mutation))

    def create(self, mutation: Create) -> Change:
        """Do the same: peers see a new file from its creation on."""
        return self.submit(mutation)

    def carry_out(self, ticket: Ticket) -> Change:
        """Do the same with a ticket that others can wait for."""
        return self._post(ticket, split(ticket.with_current_path(self._replica.tree)))

    def expire_lock(self, path: str, checksum: bytes, *, has_expired: bool) -> Change:
        """Ask the member with the lowest node id to remove a lock; return as delivered."""
        mtime = Mtime(path, 0)
        return self._post(Ticket(mtime), [UnlockRequest(path, checksum), mtime])

    def wait(self, ticket: Ticket, seconds: float) -> Change:
        """Return, or raise, what comes of *ticket*, which another thread carries out."""
        if not ticket.is_done:
            done = ticket.done()
            with self._yielding.waiting():
                done.wait(seconds)
        if not ticket.is_done:
            raise Busy("an earlier change of the same file is still on its way")
        return ticket.result()

    def save(self) -> None:
        """Nothing: what was delivered has been saved already."""

    def sync(self) -> None:
        """Have all that was saved on this node's device. Raises StoreError."""
        with self._yielding.released():
            self._replica.sync()

    def hold(self) -> None:
        """Send nothing, so that mutations wait: for tests."""
        self._outbox.hold(on=True)

    def resume(self) -> None:
        """Send what has waited."""
        self._outbox.hold(on=False)

    def on_quorum_lost(self) -> None:
        """Refuse what has not been sent: it will not be."""
        for proposal in self._outbox.clear():
            if proposal.sent_at:
                proposal.ticket.finish(_unknown("the quorum was lost meanwhile"))
            else:
                proposal.ticket.finish(NoQuorum("the quorum was lost, nothing was changed"))
        self._outbox.wake()  # and who acts for the group, and waits

    def refuse(self) -> None:
        """The daemon stops: what is not sent yet gets Busy, and new changes little time."""
        self._stops_at = min(self._stops_at, time.monotonic() + STOP_TIMEOUT)
        for proposal in list(self._waiting):
            if self._outbox.withdraw(proposal):
                proposal.ticket.finish(Busy("the daemon is stopping, nothing was changed"))
        self._outbox.hold(on=False)

    def abandon(self) -> None:
        """Give up what is not delivered by now; what was sent lately gets the rest of its time."""
        for proposal in list(self._waiting):
            done = proposal.ticket.done()
            with self._yielding.released():
                done.wait(max(0.0, self._stops_at - time.monotonic()))
            if not proposal.ticket.is_done:
                proposal.ticket.finish(self._give_up(proposal, "the daemon is stopping"))
                self._outbox.wake()

    def _post(self, ticket: Ticket, bodies: Sequence[Sendable]) -> Change:
        proposal = Proposal(ticket, bodies)
        ticket.done()  # made while the lock is held
        self._waiting[proposal] = None
        try:
            self._replica.check_writable()
            with self._yielding.waiting_with_watch() as watch:
                failure = self._await(proposal, watch)
        except PmxcfsError as error:
            failure = error
        finally:
            del self._waiting[proposal]
        if not ticket.is_done:
            ticket.finish(failure)
        return ticket.result()

    def _await(self, proposal: Proposal, watch: RequestWatch) -> PmxcfsError | None:
        """Have *proposal* sent, and wait as long as it may take; return why it failed, if it did so
        here.
        """
        timeout = self._limited(timeout_for(proposal.ticket))
        until = time.monotonic() + timeout
        self._outbox.send_and_wait(proposal, timeout, watch)
        if proposal.ticket.is_done:
            return None
        watch.stop()
        done = proposal.ticket.done()
        if done.wait(max(0.0, until - time.monotonic())):
            return None
        if self._outbox.withdraw(proposal):
            return Busy("the cluster is not in sync yet, nothing was changed")
        # It was sent, or is being sent, or its end is on its way.
        left = (proposal.sent_at or time.monotonic()) + DELIVERY_TIMEOUT - time.monotonic()
        if done.wait(self._limited(left)):
            return None
        return self._give_up(proposal, "it was not delivered in time")

    def _give_up(self, proposal: Proposal, reason: str) -> PmxcfsError:
        """Send nothing more of *proposal*; return what to tell of it."""
        self._outbox.drop(proposal)
        _log.error("a change was sent but not delivered in time: its outcome is unknown")
        return _unknown(reason)

    def _limited(self, seconds: float) -> float:
        """Return how long to wait where nobody stops the daemon *seconds* would do."""
        return max(0.0, min(seconds, self._stops_at - time.monotonic()))


def _unknown(reason: str) -> Failed:
    return Failed(f"{reason}, after it was sent: nobody knows what comes of it")


def split(mutation: Mutation) -> list[Mutation]:
    """Return what to send for *mutation*: a WRITE too large for one message goes out as two."""
    if not isinstance(mutation, Write):
        return [mutation]
    room = MAX_MESSAGE - _AROUND_DATA - len(to_bytes(mutation.path))
    if len(mutation.data) <= room:
        return [mutation]
    head, rest = mutation.data[:room], mutation.data[room:]
    return [
        mutation._replace(data=head),
        Write(mutation.path, mutation.offset + room, rest, truncate=False),
    ]
