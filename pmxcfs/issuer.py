"""Mutations of this node in a cluster: posted, and answered when they come back in the total order.

The other side of ``filesystem.Issuer``, beside ``replica.LocalIssuer``. A request waits for a
bounded time only: before it is sent 2 s if the kernel holds a directory meanwhile, else 10 s, and
nothing was changed then (Busy); once it is sent 10 s, and nobody knows what becomes of it then
(EIO). It waits with the tree's lock given back, so nothing else waits with it.

Threads: everything here runs with the tree's lock held, and gives it back while it waits.
Contract: spec cluster.md, "A mutation must not block forever"; fuse.md, "Waiting".
"""

import logging
import time
from collections.abc import Sequence

from pmxcfs.delivery import Change
from pmxcfs.errors import Busy, Failed, NoQuorum, PmxcfsError
from pmxcfs.messages import Create, Mtime, Mutation, UnlockRequest, Write, to_bytes
from pmxcfs.outbox import Outbox, Posting, Sendable
from pmxcfs.replica import LONG_PATIENCE, Replica, Yielding, patience_for
from pmxcfs.tickets import Ticket

_log = logging.getLogger("pmxcfs.dcdb")

MAX_MESSAGE = (
    1 << 20
) - 1024  # bytes that corosync sends in one piece (cpg_max_atomic_msgsize_get)
_AROUND_DATA = 16 + 8 + 20 + 1  # bytes of header, counter and lengths, and the NUL behind the path
DELIVERY_PATIENCE = 10.0  # seconds from sending to delivery
STOP_PATIENCE = 0.5  # seconds that a change may wait once the daemon stops


class ClusterIssuer:
    """Carries out mutations by sending them to all members, this node included."""

    def __init__(
        self,
        replica: Replica,
        outbox: Outbox,
        *,
        yielding: Yielding,
    ) -> None:
        self._replica = replica
        self._outbox = outbox
        self._yielding = yielding
        self._is_stopping = False

    def submit(self, mutation: Mutation) -> Change:
        """Have *mutation* applied everywhere; return what changed."""
        return self.carry_out(Ticket(mutation))

    def create(self, mutation: Create) -> Change:
        """Do the same: peers see a new file from its creation on."""
        return self.submit(mutation)

    def carry_out(self, ticket: Ticket) -> Change:
        """Do the same with a ticket that others can wait for."""
        return self._post(ticket, split(ticket.aimed(self._replica.tree)))

    def expire_lock(self, path: str, checksum: bytes, *, has_expired: bool) -> Change:
        """Ask the member with the lowest node id to remove a lock; return as delivered."""
        mtime = Mtime(path, 0)
        return self._post(Ticket(mtime), [UnlockRequest(path, checksum), mtime])

    def wait(self, ticket: Ticket) -> Change:
        """Return, or raise, what comes of *ticket*, which another thread carries out."""
        if not ticket.is_done:
            done = ticket.done()
            with self._yielding.waiting():
                done.wait(LONG_PATIENCE)
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
        self._refuse_unsent(NoQuorum("the quorum is lost, nothing was changed"))

    def refuse(self) -> None:
        """Answer Busy to everyone whose change has not been sent: the daemon stops."""
        self._is_stopping = True
        self._outbox.hold(on=False)
        self._refuse_unsent(Busy("the daemon is stopping, nothing was changed"))

    def _refuse_unsent(self, error: PmxcfsError) -> None:
        for posting in self._outbox.unsent():
            if self._outbox.withdraw(posting):
                posting.ticket.finish(error)

    def _post(self, ticket: Ticket, bodies: Sequence[Sendable]) -> Change:
        try:
            self._replica.check_writable()
            posting = Posting(ticket, bodies)
            ticket.done()  # an event to wait for, made while the lock is held
            with self._yielding.waiting():
                self._outbox.put(posting)
                is_withdrawn = self._await(posting)
        except PmxcfsError as error:
            ticket.finish(error)
            raise
        if not ticket.is_done:
            ticket.finish(self._outcome_of_waiting(is_withdrawn=is_withdrawn))
        return ticket.result()

    def _await(self, posting: Posting) -> bool:
        """Wait for *posting* until its time is over; tell whether it was withdrawn then."""
        done = posting.ticket.done()
        done.wait(STOP_PATIENCE if self._is_stopping else patience_for(posting.ticket.mutation))
        while not done.is_set() and not self._outbox.withdraw(posting):
            limit = STOP_PATIENCE if self._is_stopping else DELIVERY_PATIENCE
            left = posting.sent_at + limit - time.monotonic()
            if posting.sent_at and left <= 0:
                return False
            done.wait(max(left, 0.0))
        return not done.is_set()

    def _outcome_of_waiting(self, *, is_withdrawn: bool) -> PmxcfsError:
        if is_withdrawn:
            return Busy("the cluster is not in sync yet, nothing was changed")
        _log.error("a change was sent but not delivered in time: its outcome is unknown")
        return Failed("it was sent, but not delivered in time: nobody knows what comes of it")


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
