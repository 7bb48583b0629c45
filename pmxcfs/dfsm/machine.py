"""The replication state machine of this node in one group.

The caller feeds events in the order in which the group's handle delivers them. Each method returns
the effects to execute, in order (see ``effects``). Nothing here opens a file, reads a clock, takes
a lock or uses a database or a C library, so any history can be replayed from a transcript.

Modes:   LEFT -> START -> START_SYNC -> (UPDATE ->) SYNCED. A membership change leads back to
         START_SYNC, or to SYNCED if this node is the only member. ``Leave`` leads to LEFT, and
         ``join`` from there to START. VERSION_ERROR is final.
Rounds:  all data of a synchronization round is in one ``_Round``, which the next round replaces as
         a whole, so that no data of an old round can be used in a new one. What is large in it, the
         members' states and the leader's records, is dropped as soon as it is no longer needed.
Queues:  a change delivered while this node is not SYNCED is queued: in the round's ``sync_queue``
         if its sender is synced already, else in ``_message_queue``, which is kept across rounds.
Threads: only the owner of the group's handle calls the methods.
Promise: two nodes that get the same events in the same order end with the same content.
         Examples: tests/scenarios. Random events: tests/unit/scenarios/test_random_bus.py.
Contract: docs/spec/cluster.md, "State machine", "Verification", "Leaving and rejoining".
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from pmxcfs import messages
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
from pmxcfs.tree.index import check

_NO_MEMBER = messages.Member(0, 0)
_LONG_AGO = float("-inf")
_NEVER = float("inf")
_SYNCED = Mode.SYNCED  # Python 3.11 finds members of an Enum slowly


@dataclass
class _Round:
    """The data of one synchronization round."""

    epoch: messages.Epoch
    states: dict[messages.Member, bytes] = field(default_factory=dict)  # until all are here
    is_decided: bool = False  # a STATE of each member was here
    leader_state: bytes = b""  # while this node waits for UPDATEs
    leader: messages.Member = _NO_MEMBER
    synced: Collection[messages.Member] = ()  # members whose changes are delivered first
    agreed: Collection[messages.Member] = ()  # members whose STATE was the leader's content
    records: list[messages.Record] = field(default_factory=list)  # the leader's UPDATEs
    sync_queue: list[QueuedChange] = field(default_factory=list)
    verification: int | None = None  # number of the verification that *checksum* is for
    requester: messages.Member = _NO_MEMBER
    checksum: bytes = b""  # our checksum when the VERIFY_REQUEST was delivered
    is_request_pending: bool = False  # our VERIFY_REQUEST was not answered yet
    verify_at: float = _NEVER  # when a verification is due because UPDATEs were sent; monotonic
    # Of a later round that this node, being SYNCED, does not follow: its epoch, the members that
    # have sent a STATE for it, and since when all others have; monotonic.
    other_epoch: messages.Epoch | None = None
    other_states: set[messages.Member] = field(default_factory=set)
    awaited_since: float = _NEVER


class Dfsm:
    """The state of this node in one group. Counters are never reset, not even by a leave."""

    def __init__(self, group: messages.Group, *, deadlines: Deadlines | None = None) -> None:
        self.deadlines = deadlines or Deadlines()  # can be replaced at any time
        self.me = _NO_MEMBER
        self.mode = Mode.LEFT
        self.members: Sequence[messages.Member] = ()  # in ascending order
        self.verified = 0  # verifications that found this node's content equal
        self._group = group
        self._round = _Round(messages.Epoch(0, 0, 0, 0))
        self._message_queue = MessageQueue()
        self._epochs = 0  # counts the epochs that this node made
        self._serial = 0  # serial of the last change of this node
        self._verifications = 0  # number of the last VERIFY_REQUEST of this node
        self._last_progress = 0.0  # when the round last made progress, monotonic
        self._restarts = 0  # restarts since the last membership change, by this node
        self._last_give_up = _LONG_AGO  # when a deadline last caused a leave, monotonic
        self._last_verification: float | None = None  # last request, or first tick; monotonic

    @property
    def is_synced(self) -> bool:
        """Tell whether this node may send changes. Check before every attempt to send one."""
        return self.mode is _SYNCED

    @property
    def is_common(self) -> bool:
        """Tell whether the leader has sent all UPDATEs, so that all members have one content."""
        return self.mode is Mode.SYNCED and all(m in self._round.synced for m in self.members)

    @property
    def agreed(self) -> Collection[messages.Member]:
        """The members that had the leader's content when the round began; they surely have it."""
        return self._round.agreed

    @property
    def epoch(self) -> messages.Epoch:
        """The epoch of the current round, or of the last one if no round is running."""
        return self._round.epoch

    @property
    def is_lowest(self) -> bool:
        """Tell whether this node is the lowest member, which starts rounds and removes locks."""
        return self.me == min(self.members, default=None)

    @property
    def twins(self) -> Sequence[messages.Member]:
        """The other members with this node's id: a node should run one daemon only."""
        return [m for m in self.members if m.nodeid == self.me.nodeid and m != self.me]

    # Actions of this node.

    def join(self, me: messages.Member) -> None:
        """Prepare to join the group as *me*. Call before the new handle joins."""
        assert self.mode is not Mode.VERSION_ERROR, "this node must be updated before it can join"
        self._reset()
        self.me = me
        self.mode = Mode.START

    def number(self, body: messages.Body, now: int) -> messages.Normal:
        """Return a message with *body* and the next serial. Raises Busy if not SYNCED.

        *now* is in seconds since 1970. Send the message before the next call, so that serials rise
        in sending order. Drop it if ``is_synced`` becomes false; an unused serial is harmless.
        """
        if not self.is_synced:
            raise Busy("this node is not in sync with the cluster")
        self._serial += 1
        return messages.Normal(now, self._serial, body)

    def leave(self, reason: str) -> list[Effect]:
        """Leave the group because of an error that only a new synchronization can repair."""
        if self.mode in (Mode.LEFT, Mode.VERSION_ERROR):
            return []
        self._reset()
        self.mode = Mode.LEFT
        return [Log(f"leaving the group to join again: {reason}", logging.ERROR), Leave(reason)]

    def on_disconnected(self) -> None:
        """Handle the end of the handle, by a leave or a lost connection. ``join`` starts again."""
        if self.mode is not Mode.VERSION_ERROR:
            self._reset()
            self.mode = Mode.LEFT

    # Events of the group.

    def on_membership(
        self, members: Iterable[messages.Member], *, joined: Collection[messages.Member], at: Moment
    ) -> list[Effect]:
        """Handle a membership change; *joined* are the new ones of *members*."""
        if self.mode in (Mode.LEFT, Mode.VERSION_ERROR):
            return []
        self.members = sorted(members)
        listed = ", ".join(map(str, self.members))
        if self.me not in self.members:
            return self.leave(f"a membership change removed this node, members: {listed or 'none'}")
        self._begin_round(self._new_epoch(at.wall), at)
        self._restarts = 0
        effects: list[Effect] = [Log(f"members: {listed}")]
        if self.twins:
            effects.append(Log(_describe_twins(self.twins), logging.ERROR))
        if len(self.members) == 1:
            return effects + self._sync_alone()
        if joined:
            effects += self._resend_own()
        effects.append(self._enter(Mode.START_SYNC))
        if self.is_lowest:
            effects.append(Send(messages.SyncStart(at.wall, self._round.epoch)))
        return effects

    def takes_change(self, sender: messages.Member, message: messages.Normal) -> bool:
        """Handle the delivery of a change of *sender*: tell whether to apply it at once.

        The short form of ``on_message``, as most messages are changes. Changes that wait until this
        node is in sync are delivered by a later effect.
        """
        mode = self.mode
        if mode is _SYNCED:
            return True
        if mode is Mode.UPDATE and sender in self._round.synced:
            self._round.sync_queue.append(QueuedChange(sender, message))
        elif mode is Mode.UPDATE or mode is Mode.START_SYNC:
            self._message_queue.add(QueuedChange(sender, message))
        return False

    def on_message(
        self, sender: messages.Member, message: messages.Message, *, at: Moment
    ) -> list[Effect]:
        """Handle the delivery of a message of *sender*, which can be this node."""
        if self.mode not in (Mode.START_SYNC, Mode.UPDATE, Mode.SYNCED):
            return []
        if isinstance(message, messages.Normal):
            return [Deliver(sender, message)] if self.takes_change(sender, message) else []
        if isinstance(message, messages.SyncStart):
            return self._on_sync_start(sender, message, at)
        if message.epoch != self._round.epoch:
            if self.mode is Mode.SYNCED:
                self._note_other_round(sender, message, at)
            return []
        return self._on_round_message(sender, message, at)

    def on_other_protocol(self, sender: messages.Member, *, is_newer: bool) -> list[Effect]:
        """Handle the delivery of a message with another protocol version."""
        if not is_newer or self.mode in (Mode.LEFT, Mode.VERSION_ERROR):
            return []
        self._reset()
        self.mode = Mode.VERSION_ERROR
        reason = f"member {sender} speaks a newer protocol: update this node"
        return [Log(reason, logging.CRITICAL), Quit(reason)]

    def on_tick(self, at: Moment) -> list[Effect]:
        """Check the deadlines. Call about once a second, and only if no event is pending."""
        if self._last_verification is None:
            self._last_verification = at.monotonic
        if self.mode is Mode.START_SYNC:
            return self._restart(at) if self.is_lowest else self._give_up(at)
        if self.mode is Mode.UPDATE:
            return self._give_up(at)
        if self.mode is Mode.SYNCED:
            return self._join_the_others(at) or self._request_verification(at)
        return []

    # Answers to effects.

    def on_committed(self, *, ok: bool) -> list[Effect]:
        """Handle the result of ``Commit``: *ok* if the tree now equals the leader's."""
        if not ok:
            return self.leave("the leader's tree could not be adopted")
        self._round.synced = self.members
        queue, self._round.sync_queue = self._round.sync_queue, []
        effects: list[Effect] = [self._enter(Mode.SYNCED), Log("all data is up to date")]
        return effects + self._deliver(queue) + self._deliver_all()

    def on_checksum(self, checksum: bytes, *, at: Moment) -> list[Effect]:
        """Handle the result of ``TakeChecksum`` (32 bytes)."""
        current = self._round
        current.checksum = checksum
        if current.verification is None or current.requester != self.me:
            return []
        return [Send(messages.Verify(at.wall, current.epoch, current.verification, checksum))]

    # Rounds.

    def _reset(self) -> None:
        """Drop queues, round and members, because this node is in no group."""
        self._message_queue.take_all()
        self._round = _Round(messages.Epoch(0, 0, 0, 0))
        self.members = ()

    def _new_epoch(self, now: int) -> messages.Epoch:
        self._epochs += 1
        return messages.Epoch(self._epochs, now, *self.me)

    def _begin_round(self, epoch: messages.Epoch, at: Moment) -> None:
        self._round = _Round(epoch)
        self._last_progress = at.monotonic

    def _enter(self, mode: Mode) -> Effect:
        self.mode = mode
        return Enter(mode)

    def _sync_alone(self) -> list[Effect]:
        self._round.synced = self.members
        effects: list[Effect] = [self._enter(Mode.SYNCED), Log("all data is up to date")]
        return effects + self._deliver_all()

    def _resend_own(self) -> list[Effect]:
        """Empty the queue and send this node's own changes in it again.

        All members do so after a join, because new members lack the queued changes.
        """
        own = [queued for queued in self._message_queue.take_all() if queued.sender == self.me]
        return [Send(queued.message) for queued in own]

    def _on_sync_start(
        self, sender: messages.Member, message: messages.SyncStart, at: Moment
    ) -> list[Effect]:
        if sender not in self.members or self.mode is Mode.UPDATE:
            return []
        if self.mode is Mode.SYNCED:
            current = self._round
            current.other_epoch, current.other_states = message.epoch, set()
            current.awaited_since = _NEVER
            return []
        self._begin_round(message.epoch, at)
        return [SendState(at.wall, message.epoch)]

    def _note_other_round(
        self, sender: messages.Member, message: messages.StateMessage, at: Moment
    ) -> None:
        """Note a STATE of a round that this SYNCED node does not follow.

        The restart of a round that has ended meanwhile is answered by nobody. If all other members
        answer, they saw a membership change that this node did not see: corosync can give different
        views if a daemon dies while rings change. They wait for our STATE, and for nothing else.
        """
        current = self._round
        if message.epoch == current.other_epoch and isinstance(message, messages.State):
            current.other_states.add(sender)
            if current.other_states.issuperset(set(self.members) - {self.me}):
                current.awaited_since = min(current.awaited_since, at.monotonic)

    def _on_round_message(
        self, sender: messages.Member, message: messages.StateMessage, at: Moment
    ) -> list[Effect]:
        match message:
            case messages.State():
                return self._on_state(sender, message, at)
            case messages.Update():
                return self._on_update(sender, message, at)
            case messages.UpdateComplete():
                return self._on_update_complete(sender, at)
            case messages.VerifyRequest():
                return self._on_verify_request(sender, message, at)
            case messages.Verify():
                return self._on_verify(sender, message)
            case _:
                return []

    def _on_state(
        self, sender: messages.Member, message: messages.State, at: Moment
    ) -> list[Effect]:
        states = self._round.states
        if sender not in self.members or sender in states or self._round.is_decided:
            return self.leave(f"unexpected state message of member {sender}")
        payload = next((state for state in states.values() if state == message.payload), None)
        if payload is None and self._group is messages.Group.TREE:
            try:
                check(message.payload)
            except BadMessage as error:
                text = f"member {sender} sent an invalid state: {error}"
                return [Log(text, logging.ERROR, kind=f"state of node {sender.nodeid}")]
        states[sender] = message.payload if payload is None else payload  # equal ones are kept once
        self._last_progress = at.monotonic
        if len(states) < len(self.members):
            return []
        return self._decide(at) if self._group is messages.Group.TREE else self._merge()

    def _take_states(self) -> dict[messages.Member, bytes]:
        """Return the states of all members, which the round needs no longer."""
        states, self._round.states = self._round.states, {}
        self._round.is_decided = True
        return states

    def _merge(self) -> list[Effect]:
        """End a round of the status group: merge all states; all members are synced."""
        effects: list[Effect] = [Merge(self._take_states()), self._enter(Mode.SYNCED)]
        self._round.synced = self.members
        return [*effects, Log("all data is up to date"), *self._deliver_all()]

    def _decide(self, at: Moment) -> list[Effect]:
        """Elect the leader of the tree group, when all members have sent their STATE."""
        current, states = self._round, self._take_states()
        current.leader, current.agreed = elect(states)
        current.synced = current.agreed
        listed = ", ".join(map(str, sorted(current.synced)))
        effects: list[Effect] = [Log(f"leader is {current.leader}")]
        effects.append(Log(f"synced members: {listed}"))
        if self.me not in current.synced:
            current.leader_state = states[current.leader]
            current.sync_queue += self._message_queue.take(current.synced)
            return [*effects, Log("waiting for the leader's updates"), self._enter(Mode.UPDATE)]
        if self.me == current.leader:
            effects.append(SendUpdates(at.wall, current.epoch, states[self.me], states))
        effects += [self._enter(Mode.SYNCED), Log("all data is up to date")]
        return effects + self._deliver(self._message_queue.take(current.synced))

    def _on_update(
        self, sender: messages.Member, message: messages.Update, at: Moment
    ) -> list[Effect]:
        if self.mode is Mode.UPDATE and sender == self._round.leader:
            self._round.records.append(message.record)
            self._last_progress = at.monotonic
        return []

    def _on_update_complete(self, sender: messages.Member, at: Moment) -> list[Effect]:
        current = self._round
        if sender != current.leader:
            return []
        if len(current.synced) < len(self.members):
            current.verify_at = at.monotonic + self.deadlines.after_updates
        if self.mode is Mode.UPDATE:
            commit = Commit(sender, current.leader_state, current.records, current.agreed)
            current.leader_state, current.records = b"", []
            return [commit]
        current.synced = self.members
        return self._deliver_all()

    # Changes.

    def _deliver_all(self) -> list[Effect]:
        """Deliver the message queue. Every member drops the changes of senders that left."""
        queue = self._message_queue.take_all()
        return self._deliver(queued for queued in queue if queued.sender in self.members)

    @staticmethod
    def _deliver(queue: Iterable[QueuedChange]) -> list[Effect]:
        return [Deliver(queued.sender, queued.message) for queued in queue]

    # Deadlines.

    def _restart(self, at: Moment) -> list[Effect]:
        """As the lowest member, restart a round in which a STATE is missing.

        The new round begins when the SYNC_START is delivered; until then the missing STATE can
        still end the current round.
        """
        waits = self.deadlines.restarts
        wait = waits[min(self._restarts, len(waits) - 1)]
        if at.monotonic - self._last_progress < wait:
            return []
        self._restarts += 1
        self._last_progress = at.monotonic
        missing = ", ".join(str(m) for m in self.members if m not in self._round.states)
        text = f"no state message for {wait:.0f} s, missing from {missing}: restarting the round"
        return [
            Log(text, logging.WARNING),
            Send(messages.SyncStart(at.wall, self._new_epoch(at.wall))),
        ]

    def _give_up(self, at: Moment) -> list[Effect]:
        """Leave a round without progress, so that the other members start one without us."""
        limits = self.deadlines
        limit = limits.updates if self.mode is Mode.UPDATE else limits.silence
        is_quiet = at.monotonic - self._last_progress >= limit
        if not is_quiet or at.monotonic - self._last_give_up < limits.leave_interval:
            return []
        self._last_give_up = at.monotonic
        return self.leave(f"no progress for {limit:.0f} s in mode {self.mode.value}")

    def _join_the_others(self, at: Moment) -> list[Effect]:
        """Leave if all other members are in a round that this node does not know, and wait."""
        limits = self.deadlines
        is_awaited = at.monotonic - self._round.awaited_since >= limits.other_round
        if not is_awaited or at.monotonic - self._last_give_up < limits.leave_interval:
            return []
        self._last_give_up = at.monotonic
        return self.leave("all other members wait for this node in a round that it does not know")

    # Verification.

    def _request_verification(self, at: Moment) -> list[Effect]:
        current, interval = self._round, self.deadlines.verification
        is_due = at.monotonic >= current.verify_at or (
            self._last_verification is not None
            and at.monotonic - self._last_verification >= interval
        )
        if (
            self._group is not messages.Group.TREE
            or not is_due
            or not self.is_lowest
            or current.is_request_pending
        ):
            return []
        self._last_verification, current.verify_at = at.monotonic, _NEVER
        self._verifications += 1
        current.is_request_pending = True
        return [Send(messages.VerifyRequest(at.wall, current.epoch, self._verifications))]

    def _on_verify_request(
        self, sender: messages.Member, message: messages.VerifyRequest, at: Moment
    ) -> list[Effect]:
        if self.mode is not Mode.SYNCED:
            return []
        self._last_verification = at.monotonic
        self._round.verification, self._round.requester = message.number, sender
        return [TakeChecksum()]

    def _on_verify(self, sender: messages.Member, message: messages.Verify) -> list[Effect]:
        current = self._round
        if sender == self.me:
            current.is_request_pending = False
        if (message.number, sender) != (current.verification, current.requester):
            return []  # its request was delivered before this node was SYNCED
        current.verification = None
        if message.checksum == current.checksum:
            self.verified += 1
            return [Log("data verification successful", kind="verified")]
        return self.leave(
            f"data verification failed: the checksum is {message.checksum.hex()} on member "
            f"{sender}, here it is {current.checksum.hex()}"
        )


def _describe_twins(twins: Sequence[messages.Member]) -> str:
    listed = ", ".join(map(str, twins))
    return (
        f"member {listed} has this node's id: stop the other daemon if it runs on this host, "
        "else give its host an id of its own in corosync.conf"
    )
