"""Sending of this node's proposals to the tree's group.

``TreeSource`` hands out the proposals of the outbox. It shares ``Proposals`` with ``TreeContent``:
those that were sent and are not delivered yet.

Threads: only the owner of the group calls these classes. ``TreeSource`` takes the tree's lock to
finish a proposal.

Contract: docs/spec/cluster.md, "A mutation must not block forever".
"""

from contextlib import AbstractContextManager

from pmxcfs import messages
from pmxcfs.errors import Busy, Failed, PmxcfsError
from pmxcfs.replica.outbox import Outbox, Proposal


class Proposals:
    """The proposals that were sent and are not delivered to this node yet, by message number."""

    def __init__(self) -> None:
        self._sent: dict[int, Proposal] = {}

    def add(self, serial: int, proposal: Proposal) -> None:
        """Note that a message of *proposal* was sent with the number *serial*."""
        self._sent[serial] = proposal

    def pop(self, serial: int) -> Proposal | None:
        """Remove and return the proposal of the delivered message *serial*, or None."""
        return self._sent.pop(serial, None)

    def take_all(self) -> list[Proposal]:
        """Remove and return all proposals: the group was left, so their delivery is unknown."""
        sent, self._sent = self._sent, {}
        return list(dict.fromkeys(sent.values()))


class TreeSource:
    """The ``Source`` of the tree's group: the proposals of the outbox."""

    def __init__(
        self, outbox: Outbox, proposals: Proposals, *, lock: AbstractContextManager[object]
    ) -> None:
        self._outbox = outbox
        self._proposals = proposals
        self._lock = lock
        self._current: Proposal | None = None
        self._taken_at = 0.0  # monotonic

    def take(self, now: float) -> messages.Body | None:
        """Return the next body to send, or None. *now* is monotonic.

        Proposals to which there is an objection are finished with it. Only the caller, which owns
        the group, changes the tree, so the objections need no lock.
        """
        self._taken_at = now
        proposal = self._outbox.next(now)
        while proposal is not None:
            self._current = proposal
            objection = None if proposal.is_partly_sent else proposal.ticket.objection()
            if objection is None:
                return proposal.unsent[0]
            self.refused(objection)
            proposal = self._outbox.next(now)
        return None

    def sent(self, serial: int) -> None:
        """Note that the body was sent with the number *serial*."""
        proposal = self._taken()
        self._proposals.add(serial, proposal)
        self._outbox.sent(proposal)

    def not_sent(self) -> None:
        """Keep the proposal as the next one, or finish it if it was withdrawn."""
        proposal = self._taken()
        if not self._outbox.not_sent(proposal):
            refusal = proposal.refusal
            self._finish(proposal, refusal or Busy("corosync accepts no messages"))

    def refused(self, error: PmxcfsError) -> None:
        """Finish the proposal with *error*, or with Failed if a part of it was sent."""
        proposal = self._taken()
        self._outbox.drop(proposal)
        if proposal.is_partly_sent:
            error = Failed(f"only a part of the change was sent: {error}")
        self._finish(proposal, error)

    def _finish(self, proposal: Proposal, error: PmxcfsError) -> None:
        with self._lock:
            if proposal.ticket.is_done:
                return
            proposal.ticket.finish(error)
        if isinstance(error, Busy | Failed):  # else its content is at fault
            self._outbox.progress.failed(error, now=self._taken_at)

    def _taken(self) -> Proposal:
        proposal, self._current = self._current, None
        assert proposal is not None, "the proposal was returned by take"
        return proposal
