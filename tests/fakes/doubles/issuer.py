"""An issuer that applies mutations at once, records them and fails on demand."""

from collections.abc import Callable

from pmxcfs._core import Tree
from pmxcfs.errors import PmxcfsError, Signaled, StoreError
from pmxcfs.host.callers import UNKNOWN, Caller
from pmxcfs.messages import Create, Mtime, Mutation, Unlock
from pmxcfs.replica.tickets import Ticket
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
        self.mtime = 1000

    def submit(self, mutation: Mutation) -> Change:
        return self.carry_out(Ticket(mutation))

    def carry_out(self, ticket: Ticket) -> Change:
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
        self.on_change(change)
        return change

    def expire_lock(
        self, path: str, checksum: bytes, *, has_expired: bool, caller: Caller = UNKNOWN
    ) -> Change:
        mutation = Unlock(path, checksum) if has_expired else Mtime(path, 0)
        return self.carry_out(Ticket(mutation, caller=caller))

    def wait(self, ticket: Ticket, seconds: float) -> Change:
        return ticket.result()

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
