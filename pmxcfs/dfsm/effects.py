"""The effects that the state machine returns and ``cluster`` executes.

Each method of ``Dfsm`` returns a list of effects. The owner of the group's handle executes them in
order before it feeds the next event. It may postpone only two things: saving delivered changes, so
that several share a transaction, and sending, as ``Send`` describes.

``Commit`` and ``TakeChecksum`` need an answer (``on_committed``, ``on_checksum``). These two,
``Leave`` and ``Quit`` are always the last effect of a list.
Contract: docs/spec/cluster.md, "State machine".
"""

import logging
from collections.abc import Collection
from enum import Enum
from typing import NamedTuple

from pmxcfs.messages import Epoch, Member, Message, Normal, Record


class Mode(Enum):
    """The mode of this node in its group."""

    LEFT = "left"  # not in the group, or leaving it (cluster.md: LEAVE)
    START = "start"  # joining; no membership change was delivered yet
    START_SYNC = "start-sync"  # a round is running; collecting the STATE of each member
    UPDATE = "update"  # not synced; collecting the leader's UPDATEs
    SYNCED = "synced"  # changes are delivered at once; the only mode in which we send changes
    VERSION_ERROR = "version-error"  # a member uses a newer protocol: left for good


class Send(NamedTuple):
    """Multicast *message*, after all messages of earlier effects.

    A membership change drops unsent state messages, because their round is over. An unsent
    ``Normal`` is kept: this change of ours must be queued on all members before our next STATE.
    A ``SyncStart`` that is still unsent when START_SYNC ends is dropped, too.
    """

    message: Message


class SendState(NamedTuple):
    """Multicast a STATE with the current content: the tree's index, or the cluster log's ring."""

    time: int
    epoch: Epoch


class SendUpdates(NamedTuple):
    """As the leader, multicast an UPDATE for each inode that differs or is missing elsewhere.

    An UPDATE_COMPLETE follows, even without any UPDATE. Changes of this node may go out between
    these messages. The tree still equals *state*, but later effects change it: collect the records
    before executing those.
    """

    time: int
    epoch: Epoch
    state: bytes  # our index
    states: dict[Member, bytes]  # the index of every member, ours included


class Merge(NamedTuple):
    """Merge the log rings of all members into ours, and send our own keys again once SYNCED."""

    states: dict[Member, bytes]


class Commit(NamedTuple):
    """Adopt the leader's tree in one transaction, or leave the tree unchanged.

    Delete the entries that *state*, the leader's index, lacks, and write *records*. If the
    resulting index is not equal to *state*, roll back. Answer with ``Dfsm.on_committed``.
    """

    leader: Member
    state: bytes
    records: list[Record]
    agreed: Collection[Member]  # the members that had the leader's tree before, itself included


class Deliver(NamedTuple):
    """Apply a change; if this node sent it, wake the request that waits for *message.serial*.

    Changes of the tree need quorum. Without quorum, call ``Dfsm.leave`` and execute its effects
    instead of the rest of the list.
    """

    sender: Member
    message: Normal


class TakeChecksum(NamedTuple):
    """Compute the state checksum of the current tree. Answer with ``Dfsm.on_checksum``."""


class Enter(NamedTuple):
    """The mode changed. If SYNCED, waiting requests may send, after the rest of the list."""

    mode: Mode


class Leave(NamedTuple):
    """Leave the group and join again with a new handle, not sooner than ``Deadlines.rejoin``.

    Requests that wait for a message of this node fail with EIO; unsent messages are dropped.
    """

    reason: str


class Quit(NamedTuple):
    """Leave the group for good, until this node is updated.

    Requests that wait for a message of this node fail with EIO; unsent messages are dropped.
    """

    reason: str


class Log(NamedTuple):
    """Write *text* to the daemon's log.

    Of lines of one *kind*, which a member can cause at will, at most one a minute is written.
    """

    text: str
    level: int = logging.INFO
    kind: str = ""  # empty: always written


Effect = (
    Send
    | SendState
    | SendUpdates
    | Merge
    | Commit
    | Deliver
    | TakeChecksum
    | Enter
    | Leave
    | Quit
    | Log
)
