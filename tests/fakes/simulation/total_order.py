"""Several file systems on one total order of messages, each of which may lag behind it.

A node that waits for its own change lets other things happen first: actions on any node, and the
delivery of what others have sent. All of it is chosen by numbers, so any numbers make a legal
history.
"""

from collections.abc import Callable, Sequence

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import Busy, Failed, PmxcfsError, Signaled
from pmxcfs.host.callers import UNKNOWN, Caller
from pmxcfs.messages import Create, Mtime, Mutation, Write
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.replica.tickets import Announcement, Ticket
from pmxcfs.tree.apply import Change, apply
from pmxcfs.tree.guests import Guests
from pmxcfs.tree.locks import LockTable
from pmxcfs.vfs.filesystem import FileSystem

# By what was chosen: why a change is not sent, and that it is not delivered in time.
FAILURES: dict[int, PmxcfsError] = {1: Busy("not sent in time"), 2: Signaled()}
GIVEN_UP = 3


class Sent:
    """A message in the total order."""

    def __init__(self, sender: "Member", mutation: Mutation, ticket: Ticket, part: int) -> None:
        self.sender = sender
        self.mutation = mutation
        self.ticket = ticket
        self.part = part


class Order:
    """The total order, its members, and a reference tree that has all of it."""

    def __init__(self, size: int, choices: Sequence[int]) -> None:
        self.sent: list[Sent] = []
        self.written: set[bytes] = set()  # data of WRITEs that were not refused
        self.tree, self._guests = Tree(), Guests()
        self._choices = list(reversed(choices))
        self.members = [Member(self, number) for number in range(1, size + 1)]
        self.on_wait: Callable[[Member], None] = lambda member: None

    def choose(self, count: int) -> int:
        """Return a number below *count*; 0 once all choices are used up."""
        return self._choices.pop() % count if self._choices else 0

    def send(self, sent: Sent) -> None:
        """Put a message behind all others."""
        self.sent.append(sent)
        try:
            apply(self.tree, self._guests, sent.mutation, writer=sent.sender.number, mtime=5)
        except PmxcfsError:
            return
        if isinstance(sent.mutation, Write):
            self.written.add(sent.mutation.data)


class Member:
    """A node: its tree, its file system, and an issuer that sends to the order."""

    def __init__(self, order: Order, number: int) -> None:
        self.number = number
        self.order = order
        self.tree, self.guests = Tree(), Guests()
        self.now_ns = 10**12
        self.known: set[Entry] = set()
        self.is_in_sync = True
        self.depth = 0  # of waits
        self._delivered = 0
        self.files = FileSystem(
            self.tree,
            self,
            quorum=QuorumFlag(is_quorate=True),
            locks=LockTable(),
            monotonic_ns=lambda: self.now_ns,
            wall_clock=lambda: 7,
            on_unpublished=lambda: None,
            on_displaced=lambda entry: None,
            on_name_gone=lambda directory, name: None,
            is_known=lambda entry: entry in self.known,
        )

    # Delivery

    def deliver(self, count: int) -> None:
        """Deliver the next *count* messages, if there are so many."""
        for _ in range(min(count, len(self.order.sent) - self._delivered)):
            sent = self.order.sent[self._delivered]
            self._delivered += 1
            self._apply(sent)

    def catch_up(self) -> None:
        """Deliver all that was sent."""
        self.deliver(len(self.order.sent))

    def _apply(self, sent: Sent) -> None:
        ticket, error = sent.ticket, None
        foreign = sent.sender is not self or ticket.is_done  # or given up
        change: Change | None = None
        try:
            change = apply(
                self.tree, self.guests, sent.mutation, writer=sent.sender.number, mtime=5
            )
            self.files.pending.on_applied(change, foreign=foreign)
            self.files.on_change(change, foreign=foreign)
        except PmxcfsError as refused:
            error = refused
        if not foreign:
            ticket.error = ticket.error or ticket.judge(error, sent.part)
            ticket.change = change
        self.tree.mark_written()

    # The issuer

    def _send(self, ticket: Ticket, mutations: Sequence[Mutation]) -> None:
        """Send *mutations* back to back, and wait until they are delivered here."""
        self.depth += 1
        try:
            self.order.on_wait(self)
            fate = self.order.choose(20)
            if fate in FAILURES:
                raise FAILURES[fate]
            objection = ticket.objection()
            if objection is not None:
                raise objection
            for part, mutation in enumerate(mutations):
                self.order.send(Sent(self, mutation, ticket, part))
                if part < len(mutations) - 1 and self.order.choose(3) == 1:
                    self._let_others_act()
            self.order.on_wait(self)
            if fate == GIVEN_UP:
                raise Failed("not delivered in time")
            self.catch_up()
        except PmxcfsError as error:
            ticket.finish(error)
            raise
        finally:
            self.depth -= 1
        ticket.finish()

    def _let_others_act(self) -> None:
        others = [one for one in self.order.members if one is not self and not one.depth]
        if others:
            self.order.on_wait(others[self.order.choose(len(others))])

    def submit(self, mutation: Mutation) -> Change:
        """Send *mutation*."""
        return self.carry_out(Ticket(mutation))

    def carry_out(self, ticket: Ticket) -> Change:
        """Send the mutation of *ticket*."""
        self._send(ticket, [ticket.with_current_path(self.tree)])
        return ticket.result()

    def can_announce_later(self) -> bool:
        """Tell what the test wants."""
        return self.is_in_sync

    def announce(self, ticket: Announcement) -> None:
        """Send a new file."""
        self._send(ticket, ticket.parts(lambda whole: [whole]))
        ticket.check()

    def create(self, mutation: Create, caller: Caller = UNKNOWN) -> Change:
        """Send *mutation*."""
        return self.carry_out(Ticket(mutation, caller=caller))

    def expire_lock(
        self, path: str, checksum: bytes, *, has_expired: bool, caller: Caller = UNKNOWN
    ) -> Change:
        """Send the change of the time."""
        return self.carry_out(Ticket(Mtime(path, 0), caller=caller))

    def wait(self, ticket: Ticket, seconds: float) -> None:
        """Give up unless *ticket* is done: whoever carries it out waits for this call."""
        if not ticket.is_done:
            raise Busy("an earlier change of the same file is still in progress")
        ticket.check()

    def refusal(self, size: int = 0) -> PmxcfsError | None:
        """Refuse nothing."""
        return None

    def save(self) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""
