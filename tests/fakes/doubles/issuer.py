"""An issuer that applies mutations at once, records them and fails on demand."""

from collections.abc import Callable

from pmxcfs._core import Tree
from pmxcfs.errors import PmxcfsError, Signaled, StoreError
from pmxcfs.host.callers import UNKNOWN, Caller
from pmxcfs.messages import Create, Mtime, Mutation, Unlock
from pmxcfs.replica.tickets import Announcement, Ticket
from pmxcfs.tree.apply import Change, apply
from pmxcfs.tree.guests import Guests


class FakeIssuer:
    """An issuer without a database: each mutation is applied before the call returns."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.guests = Guests()
        self.issued: list[Mutation] = []
        self.saves = self.syncs = 0
        self.failure: PmxcfsError | None = None  # raised by the next calls instead
        self.refuses: PmxcfsError | None = None  # raised by the next changes instead
        self.on_submit: Callable[[], None] = lambda: None  # called where a real issuer waits
        self.on_change: Callable[[Change], None] = lambda change: None
        self.on_applied: Callable[[Change], None] = lambda change: None
        self.is_cluster = False  # which can announce files later
        self.waits = 0
        self.mtime = 1000

    def submit(self, mutation: Mutation) -> Change:
        return self.carry_out(Ticket(mutation))

    def can_announce_later(self) -> bool:
        return self.is_cluster

    def announce(self, ticket: Announcement) -> None:
        self.waits += 1
        self.on_submit()
        failure = self.failure or self.refuses or ticket.objection()
        if failure is not None:
            raise failure
        for part, mutation in enumerate(ticket.parts(lambda whole: [whole])):
            error: PmxcfsError | None = None
            self.issued.append(mutation)
            try:
                self.deliver(mutation, writer=0)
            except PmxcfsError as refused:
                error = refused
            ticket.error = ticket.error or ticket.judge(error, part)
        ticket.finish()
        ticket.check()

    def carry_out(self, ticket: Ticket) -> Change:
        self.waits += 1
        self.on_submit()
        failure = self.failure or self.refuses or ticket.objection()
        if failure is not None:
            raise failure
        mutation = ticket.with_current_path(self.tree)
        change = self.deliver(mutation, writer=0)
        self.issued.append(mutation)
        ticket.change = change
        ticket.finish()
        return change

    def deliver(self, mutation: Mutation, *, writer: int) -> Change:
        """Apply a mutation of this node or of another one."""
        change = apply(self.tree, self.guests, mutation, writer=writer, mtime=self.mtime)
        self.on_applied(change)
        self.on_change(change)
        return change

    def expire_lock(
        self, path: str, checksum: bytes, *, has_expired: bool, caller: Caller = UNKNOWN
    ) -> Change:
        mutation = Unlock(path, checksum) if has_expired else Mtime(path, 0)
        return self.carry_out(Ticket(mutation, caller=caller))

    def wait(self, ticket: Ticket, seconds: float) -> None:
        ticket.check()

    def refusal(self, size: int = 0) -> PmxcfsError | None:
        return self.refuses

    def create(self, mutation: Create, caller: Caller = UNKNOWN) -> Change:
        return self.carry_out(Ticket(mutation, caller=caller))

    def save(self) -> None:
        self.saves += 1
        if isinstance(self.failure, StoreError | Signaled):
            raise self.failure

    def sync(self) -> None:
        self.syncs += 1
