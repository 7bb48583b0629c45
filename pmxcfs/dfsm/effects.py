"""What the state machine of a group wants done: the vocabulary between ``dfsm`` and ``cluster``.

``Dfsm`` returns lists of these. Whoever owns the group's handle carries them out in order, before
it hands in the next event. Only two things may be put off: saving what was delivered, to share a
transaction, and sending, as ``Send`` says.

Two ask for an answer and are always the last of their list: ``Commit`` (``on_committed``) and
``TakeChecksum`` (``on_checksum``). ``Leave`` and ``Quit`` are the last of theirs, too.
Contract: docs/spec/cluster.md, "State machine".
"""

import logging
from enum import Enum
from typing import NamedTuple

from pmxcfs.messages import Epoch, Member, Message, Normal, Record


class Mode(Enum):
    """Where this node stands in its group."""

    LEFT = "left"  # in no group, or on the way out (cluster.md: LEAVE)
    START = "start"  # joining; no membership has come yet
    START_SYNC = "start-sync"  # a round is on; everyone tells what it has
    UPDATE = "update"  # not synced; collecting what the leader has otherwise
    SYNCED = "synced"  # changes are delivered as they come; the only mode in which we send any
    VERSION_ERROR = "version-error"  # a member speaks a newer protocol: out for good


class Send(NamedTuple):
    """Multicast *message*, after all that was to be sent before.

    A membership change drops what is unsent of the state messages, because their round is over. A
    ``Normal`` stays: it is a change of ours that must be queued everywhere before our next STATE.
    A ``SyncStart`` that is unsent when START_SYNC ends is dropped, too.
    """

    message: Message


class SendState(NamedTuple):
    """Multicast a STATE with the content as it is now: the tree's index, or the log's ring."""

    time: int
    epoch: Epoch


class SendUpdates(NamedTuple):
    """As the leader, multicast an UPDATE for every inode that another member has otherwise or not.

    Then an UPDATE_COMPLETE, also when nothing differs. The tree is still as *state* says, but the
    effects behind this one change it: take the records before going on.
    """

    time: int
    epoch: Epoch
    state: bytes  # our index
    states: dict[Member, bytes]  # the index of every member, ours included


class Merge(NamedTuple):
    """Merge the rings of all members into ours, and send our own keys again once SYNCED."""

    states: dict[Member, bytes]


class Commit(NamedTuple):
    """Make the tree equal to the leader's, in one transaction, or leave it as it is.

    Delete what *state*, the leader's index, lacks and write *records*; if the index then differs
    from *state* in one byte, take it back. Answer with ``Dfsm.on_committed``.
    """

    leader: Member
    state: bytes
    records: list[Record]


class Deliver(NamedTuple):
    """Apply a change to the content; if *sender* is this node, tell who waits for *message.serial*.

    The tree's changes need quorum: without it call ``Dfsm.leave`` and do what that returns instead
    of the rest of the list.
    """

    sender: Member
    message: Normal


class TakeChecksum(NamedTuple):
    """Compute the state checksum of the tree as it is now. Answer with ``Dfsm.on_checksum``."""


class Enter(NamedTuple):
    """The mode has changed. In SYNCED, who waits to send may go on (after the rest of the list)."""

    mode: Mode


class Leave(NamedTuple):
    """Leave the group and join again with a new handle, when ``Deadlines.rejoin`` allows it.

    Who waits for a message of ours gets EIO; nothing unsent is sent any more.
    """

    reason: str


class Quit(NamedTuple):
    """Leave the group and stay away until this node is updated; otherwise as ``Leave``."""

    reason: str


class Log(NamedTuple):
    """Tell the administrator."""

    text: str
    level: int = logging.INFO


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
