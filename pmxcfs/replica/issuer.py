"""The protocol of an issuer, which carries out mutations: ``LocalIssuer`` and ``ClusterIssuer``.

All methods need the tree's lock and release it while they wait.
Contract: docs/spec/cluster.md, "A mutation must not block forever".
"""

from typing import Protocol

from pmxcfs.errors import PmxcfsError
from pmxcfs.host.callers import UNKNOWN, Caller
from pmxcfs.messages import Create, Mutation
from pmxcfs.replica.tickets import Announcement, Ticket
from pmxcfs.tree.apply import Change


class Issuer(Protocol):
    """Carries out mutations on this node alone, or on all nodes of a cluster."""

    def submit(self, mutation: Mutation) -> Change:
        """Carry out *mutation* on every node; return its change. Blocks. Raises PmxcfsError."""

    def carry_out(self, ticket: Ticket) -> Change:
        """Carry out the mutation of *ticket*; other threads can ``wait`` for it. Blocks."""

    def expire_lock(
        self, path: str, checksum: bytes, *, has_expired: bool, caller: Caller = UNKNOWN
    ) -> Change:
        """Request the removal of the lock at *path*; *has_expired* is this node's view. Blocks."""

    def wait(self, ticket: Ticket, seconds: float) -> None:
        """Wait until a ticket that another thread carries out is done.

        Raises the ticket's error, or Busy after *seconds*.
        """

    def refusal(self, size: int = 0) -> PmxcfsError | None:
        """Return the error by which a mutation with *size* bytes is refused now, or None. Blocks.

        Tries first to make room for it.
        """

    def create(self, mutation: Create, caller: Caller = UNKNOWN) -> Change:
        """Carry out *mutation*; it may be written later, together with the file's first content."""

    def can_announce_later(self) -> bool:
        """Tell whether a new file can be announced later, together with its content."""

    def announce(self, ticket: Announcement) -> None:
        """Carry out an announcement. Blocks.

        Raises the first PmxcfsError; *ticket* tells whether the file itself is announced.
        """

    def save(self) -> None:
        """Write what ``create`` has not written yet. Blocks.

        Raises StoreError; Busy and Signaled, after which that waits on.
        """

    def sync(self) -> None:
        """Bring all changes to the device. Blocks. Raises StoreError and Busy."""


class StoppableIssuer(Issuer, Protocol):
    """An issuer with the methods for the daemon and for tests."""

    def refuse(self) -> None:
        """Answer Busy to callers whose mutation was not sent: the daemon stops."""

    def abandon(self) -> None:
        """Answer all callers that still wait with an error: the daemon stops."""

    def hold(self) -> None:
        """Make mutations wait, as a cluster that is not in sync does. For tests."""

    def resume(self) -> None:
        """Carry out the mutations that ``hold`` made wait. For tests."""
