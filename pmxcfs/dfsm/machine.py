"""Replication state machine: what this node owes its group, decided without doing any of it.

Feed it events in the order in which the group's handle delivers them. Each method returns the
effects to carry out, in order (``effects`` says how). Nothing here opens a file, reads a clock,
takes a lock or knows a database or a C library, so any history can be replayed from a transcript.

Modes:   LEFT -> START -> START_SYNC -> (UPDATE ->) SYNCED. A membership change leads back to
         START_SYNC, or to SYNCED if we are alone; ``Leave`` to LEFT, from where ``join`` starts
         anew. VERSION_ERROR is left by nothing.
Rounds:  everything that one round gathers is one ``_Round``, replaced as a whole when the next one
         begins, so nothing of an old round can count in a new one.
Queues:  a change that comes while we are not SYNCED waits, in the round's ``sync_queue`` if its
         sender was synced already, else in ``_message_queue``, which outlives rounds.
Threads: one, which owns the group's handle.
Promise: two nodes that see the same events in the same order end with the same content.
         tests/scenarios shows it by example, tests/unit/test_random_bus.py by brute force.
Contract: docs/spec/cluster.md, "State machine" and "Where the existing implementation hurts".
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from pmxcfs.dfsm.effects import (
    Commit,
    Deliver,
    Effect,
    Enter,
    Leave,
    Log,
    Merge,
    Mode,
    Quit,
    Send,
    SendState,
    SendUpdates,
    TakeChecksum,
)
from pmxcfs.dfsm.election import elect
from pmxcfs.dfsm.message_queue import MessageQueue, QueuedChange
from pmxcfs.dfsm.timeouts import Deadlines, Moment
from pmxcfs.errors import BadMessage, Busy
from pmxcfs.messages import (
    Body,
    Epoch,
    Group,
    Member,
    Message,
    Normal,
    Record,
    State,
    StateMessage,
    SyncStart,
    Update,
    UpdateComplete,
    Verify,
    VerifyRequest,
)
from pmxcfs.tree.index import parse

_NOBODY = Member(0, 0)
_LONG_AGO = float("-inf")


@dataclass
class _Round:
    """What is known of one round of synchronization."""

    epoch: Epoch
    states: dict[Member, bytes] = field(default_factory=dict)
    leader: Member = _NOBODY
    synced: Collection[Member] = ()  # those whose changes go before the others'
    records: list[Record] = field(default_factory=list)  # the leader's UPDATEs
    sync_queue: list[QueuedChange] = field(default_factory=list)
    verification: int | None = None  # the number of the one that we remember a checksum for
    requester: Member = _NOBODY
    checksum: bytes = b""  # ours, at the request's place in the order
    is_asking: bool = False  # a request of ours has no answer yet


class Dfsm:
    """This node in one group. Counters go on for the life of the process, whatever happens."""

    def __init__(self, group: Group, *, deadlines: Deadlines | None = None) -> None:
        self.deadlines = deadlines or Deadlines()  # may be replaced at any time
        self.me = _NOBODY
        self.mode = Mode.LEFT
        self.members: Sequence[Member] = ()  # in ascending order
        self._group = group
        self._round = _Round(Epoch(0, 0, 0, 0))
        self._message_queue = MessageQueue()  # the message queue
        self._rounds = 0  # counts the epochs that we made
        self._serial = 0  # counts our changes
        self._verifications = 0  # counts our verify requests
        self._heard_at = 0.0  # when the round last got on, monotonic
        self._restarts = 0  # of this round, by us
        self._gave_up_at = _LONG_AGO  # when a deadline last made us leave, monotonic
        self._verified_at: float | None = None  # last request, or the first tick; monotonic

    @property
    def is_synced(self) -> bool:
        """Tell whether we may send changes. Ask before every attempt to send one."""
        return self.mode is Mode.SYNCED

    @property
    def epoch(self) -> Epoch:
        """The round that counts, also long after it has ended."""
        return self._round.epoch

    @property
    def is_lowest(self) -> bool:
        """Tell whether we are the member that acts for all: starts rounds, removes locks."""
        return self.me == min(self.members, default=None)

    # Our own doings.

    def join(self, me: Member) -> None:
        """A new handle is about to join the group as *me*."""
        assert self.mode is not Mode.VERSION_ERROR, "we are too old for this group"
        self._forget()
        self.me = me
        self.mode = Mode.START

    def number(self, body: Body, now: int) -> Normal:
        """Make a change of ours a message with the next serial. Raises Busy if not SYNCED.

        Send it before the next call, so that serials rise in sending order; give it up when
        ``is_synced`` ends. A serial that was never sent leaves a gap, which is harmless.
        """
        if not self.is_synced:
            raise Busy("this node is not in sync with the cluster")
        self._serial += 1
        return Normal(now, self._serial, body)

    def leave(self, reason: str) -> list[Effect]:
        """Something of ours went wrong that only another synchronization can mend."""
        if self.mode in (Mode.LEFT, Mode.VERSION_ERROR):
            return []
        self._forget()
        self.mode = Mode.LEFT
        return [Log(f"leaving the group to join again: {reason}", logging.ERROR), Leave(reason)]

    def on_disconnected(self) -> None:
        """The handle is gone, with or without our doing; it takes ``join`` to go on."""
        if self.mode is not Mode.VERSION_ERROR:
            self._forget()
            self.mode = Mode.LEFT

    # What the group says.

    def on_membership(
        self, members: Iterable[Member], *, joined: Collection[Member], at: Moment
    ) -> list[Effect]:
        """The group has other members from here on; *joined* are those that are new."""
        if self.mode in (Mode.LEFT, Mode.VERSION_ERROR):
            return []
        self.members = sorted(members)
        listed = ", ".join(map(str, self.members))
        if self.me not in self.members:
            return self.leave(f"without our doing its members are {listed or 'none'}")
        self._begin(self._new_epoch(at.wall), at)
        self._restarts = 0
        effects: list[Effect] = [Log(f"members: {listed}")]
        if len(self.members) == 1:
            return effects + self._be_alone()
        if joined:
            effects += self._send_own_again()
        effects.append(self._enter(Mode.START_SYNC))
        if self.is_lowest:
            effects.append(Send(SyncStart(at.wall, self._round.epoch)))
        return effects

    def on_message(self, sender: Member, message: Message, *, at: Moment) -> list[Effect]:
        """A message of the group was delivered, by *sender*, which can be us."""
        if self.mode not in (Mode.START_SYNC, Mode.UPDATE, Mode.SYNCED):
            return []
        if isinstance(message, Normal):
            return self._on_normal(sender, message)
        if isinstance(message, SyncStart):
            return self._on_sync_start(sender, message, at)
        if message.epoch != self._round.epoch:
            return []  # of another round
        return self._on_round_message(sender, message, at)

    def on_other_protocol(self, sender: Member, *, is_newer: bool) -> list[Effect]:
        """*sender* multicast a message of another protocol version."""
        if not is_newer or self.mode in (Mode.LEFT, Mode.VERSION_ERROR):
            return []
        self._forget()
        self.mode = Mode.VERSION_ERROR
        reason = f"member {sender} speaks a newer protocol: update this node"
        return [Log(reason, logging.CRITICAL), Quit(reason)]

    def on_tick(self, at: Moment) -> list[Effect]:
        """Look at the deadlines, about once a second; only when no message is left to dispatch."""
        if self._verified_at is None:
            self._verified_at = at.monotonic
        if self.mode is Mode.START_SYNC:
            return self._restart(at) if self.is_lowest else self._give_up(at)
        if self.mode is Mode.UPDATE:
            return self._give_up(at)
        if self.mode is Mode.SYNCED:
            return self._request_verification(at)
        return []

    # Answers to effects.

    def on_committed(self, *, ok: bool) -> list[Effect]:
        """Answer to ``Commit``: whether our tree is the leader's now."""
        if not ok:
            return self.leave("the leader's tree could not be taken over")
        self._round.synced = self.members
        effects: list[Effect] = [self._enter(Mode.SYNCED), Log("all data is up to date")]
        return effects + self._deliver(self._round.sync_queue) + self._deliver_all()

    def on_checksum(self, checksum: bytes, *, at: Moment) -> list[Effect]:
        """Answer to ``TakeChecksum``."""
        current = self._round
        current.checksum = checksum
        if current.verification is None or current.requester != self.me:
            return []
        return [Send(Verify(at.wall, current.epoch, current.verification, checksum))]

    # Rounds.

    def _forget(self) -> None:
        """We are in no group: its queues and its members are nothing to us any more."""
        self._message_queue.take_all()
        self._round = _Round(Epoch(0, 0, 0, 0))
        self.members = ()

    def _new_epoch(self, now: int) -> Epoch:
        self._rounds += 1
        return Epoch(self._rounds, now, *self.me)

    def _begin(self, epoch: Epoch, at: Moment) -> None:
        self._round = _Round(epoch)
        self._heard_at = at.monotonic

    def _enter(self, mode: Mode) -> Effect:
        self.mode = mode
        return Enter(mode)

    def _be_alone(self) -> list[Effect]:
        self._round.synced = self.members
        effects: list[Effect] = [self._enter(Mode.SYNCED), Log("all data is up to date")]
        return effects + self._deliver_all()

    def _send_own_again(self) -> list[Effect]:
        """Members that joined lack what is queued: all drop it, and its senders send it again."""
        own = [queued for queued in self._message_queue.take_all() if queued.sender == self.me]
        return [Send(queued.message) for queued in own]

    def _on_sync_start(self, sender: Member, message: SyncStart, at: Moment) -> list[Effect]:
        if self.mode is not Mode.START_SYNC or sender not in self.members:
            return []
        self._begin(message.epoch, at)
        return [SendState(at.wall, message.epoch)]

    def _on_round_message(self, sender: Member, message: StateMessage, at: Moment) -> list[Effect]:
        match message:
            case State():
                return self._on_state(sender, message, at)
            case Update():
                return self._on_update(sender, message, at)
            case UpdateComplete():
                return self._on_update_complete(sender)
            case VerifyRequest():
                return self._on_verify_request(sender, message, at)
            case Verify():
                return self._on_verify(sender, message)
            case _:
                return []

    def _on_state(self, sender: Member, message: State, at: Moment) -> list[Effect]:
        states = self._round.states
        if sender not in self.members or sender in states:
            return self.leave(f"member {sender} told its state out of turn")
        if self._group is Group.TREE and message.payload not in states.values():
            try:
                parse(message.payload)
            except BadMessage as error:
                return [Log(f"member {sender} sent no valid state: {error}", logging.ERROR)]
        states[sender] = message.payload
        self._heard_at = at.monotonic
        if len(states) < len(self.members):
            return []
        return self._decide(at) if self._group is Group.TREE else self._merge()

    def _merge(self) -> list[Effect]:
        """Status: everyone is synced at once."""
        states = self._round.states
        effects: list[Effect] = [Merge(states), self._enter(Mode.SYNCED)]
        self._round.synced = self.members
        return [*effects, Log("all data is up to date"), *self._deliver_all()]

    def _decide(self, at: Moment) -> list[Effect]:
        """Tree: all states are here; see whose copy everybody takes."""
        current = self._round
        current.leader, current.synced = elect(current.states)
        listed = ", ".join(map(str, sorted(current.synced)))
        effects: list[Effect] = [Log(f"leader is {current.leader}")]
        effects.append(Log(f"synced members: {listed}"))
        if self.me not in current.synced:
            current.sync_queue += self._message_queue.take(current.synced)
            return [*effects, Log("waiting for the leader's updates"), self._enter(Mode.UPDATE)]
        if self.me == current.leader:
            mine = current.states[self.me]
            effects.append(SendUpdates(at.wall, current.epoch, mine, current.states))
        effects += [self._enter(Mode.SYNCED), Log("all data is up to date")]
        return effects + self._deliver(self._message_queue.take(current.synced))

    def _on_update(self, sender: Member, message: Update, at: Moment) -> list[Effect]:
        if self.mode is Mode.UPDATE and sender == self._round.leader:
            self._round.records.append(message.record)
            self._heard_at = at.monotonic
        return []

    def _on_update_complete(self, sender: Member) -> list[Effect]:
        current = self._round
        if sender != current.leader:
            return []
        if self.mode is Mode.UPDATE:
            return [Commit(sender, current.states[sender], current.records)]
        current.synced = self.members
        return self._deliver_all()

    # Changes.

    def _on_normal(self, sender: Member, message: Normal) -> list[Effect]:
        if self.mode is Mode.SYNCED:
            return [Deliver(sender, message)]
        queued = QueuedChange(sender, message)
        if self.mode is Mode.UPDATE and sender in self._round.synced:
            self._round.sync_queue.append(queued)
        else:
            self._message_queue.add(queued)
        return []

    def _deliver_all(self) -> list[Effect]:
        """Empty the message queue; what processes sent that are gone is dropped, everywhere."""
        queue = self._message_queue.take_all()
        return self._deliver(queued for queued in queue if queued.sender in self.members)

    @staticmethod
    def _deliver(queue: Iterable[QueuedChange]) -> list[Effect]:
        return [Deliver(queued.sender, queued.message) for queued in queue]

    # Deadlines.

    def _restart(self, at: Moment) -> list[Effect]:
        """As the lowest member, begin a round again from which a STATE is missing.

        It counts when it comes back: until then the missing STATE may still end the present one.
        """
        waits = self.deadlines.restarts
        wait = waits[min(self._restarts, len(waits) - 1)]
        if at.monotonic - self._heard_at < wait:
            return []
        self._restarts += 1
        self._heard_at = at.monotonic
        missing = ", ".join(str(m) for m in self.members if m not in self._round.states)
        text = f"no state came for {wait:.0f} s, {missing} missing: starting the round again"
        return [Log(text, logging.WARNING), Send(SyncStart(at.wall, self._new_epoch(at.wall)))]

    def _give_up(self, at: Moment) -> list[Effect]:
        """Leave a round that does not get on, so that the others get a new one without us."""
        limits = self.deadlines
        limit = limits.updates if self.mode is Mode.UPDATE else limits.silence
        is_quiet = at.monotonic - self._heard_at >= limit
        if not is_quiet or at.monotonic - self._gave_up_at < limits.leave_interval:
            return []
        self._gave_up_at = at.monotonic
        return self.leave(f"nothing came for {limit:.0f} s in mode {self.mode.value}")

    # Verification.

    def _request_verification(self, at: Moment) -> list[Effect]:
        current, interval = self._round, self.deadlines.verification
        is_due = self._verified_at is not None and at.monotonic - self._verified_at >= interval
        if self._group is not Group.TREE or not is_due or not self.is_lowest or current.is_asking:
            return []
        self._verified_at = at.monotonic
        self._verifications += 1
        current.is_asking = True
        return [Send(VerifyRequest(at.wall, current.epoch, self._verifications))]

    def _on_verify_request(
        self, sender: Member, message: VerifyRequest, at: Moment
    ) -> list[Effect]:
        if self.mode is not Mode.SYNCED:
            return []
        self._verified_at = at.monotonic
        self._round.verification, self._round.requester = message.number, sender
        return [TakeChecksum()]

    def _on_verify(self, sender: Member, message: Verify) -> list[Effect]:
        current = self._round
        if sender == self.me:
            current.is_asking = False
        if (message.number, sender) != (current.verification, current.requester):
            return []  # it was asked for before we were SYNCED
        current.verification = None
        if message.checksum == current.checksum:
            return [Log("data verification successful")]
        return self.leave(
            f"data verification failed: the checksum is {message.checksum.hex()} on member "
            f"{sender}, here it is {current.checksum.hex()}"
        )
