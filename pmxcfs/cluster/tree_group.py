"""The tree's group: the rounds in which the members agree on one tree.

Threads: only the owner of the group calls these classes; ``copy_error`` is for any thread.
Contract: docs/spec/cluster.md, "State machine".
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pmxcfs import messages
from pmxcfs._cpg import Cpg
from pmxcfs.cluster.group import Connect, GroupThread
from pmxcfs.cluster.loop import Content
from pmxcfs.cluster.sender import Clock, Source
from pmxcfs.dfsm.effects import Commit, Enter, Log, Mode, SendUpdates, TakeChecksum
from pmxcfs.errors import NoCopy, PmxcfsError
from pmxcfs.host.outage import Outage
from pmxcfs.host.threads import Wakeup

# Seconds out of the group after the first and after a later failure to copy this node's changes;
# the wait doubles each time. It ends as soon as an attempt to store a copy succeeds.
FIRST_COPY_WAIT, LONGEST_COPY_WAIT = 5.0, 300.0
TRIAL_INTERVAL = 5.0  # seconds between these attempts


class Replicated(Content, Protocol):
    """A group's content of which the leader's copy replaces the other members' copies."""

    def updates(self, effect: SendUpdates) -> Sequence[messages.Record]:
        """Return the records that the other members need to get the leader's copy."""

    def commit(self, effect: Commit) -> None:
        """Adopt the leader's copy. Raises PmxcfsError and changes nothing then.

        NoCopy means that this node's own changes would be lost, and could not be copied.
        """

    def may_lead(self) -> bool:
        """Tell whether other members can adopt the copy that this node has announced."""

    def can_keep_copy(self) -> bool:
        """Try whether this node's changes could be copied now."""

    def checksum(self) -> bytes:
        """Return the checksum (32 bytes) that a verification compares."""

    def on_tick(self, *, is_common: bool) -> None:
        """Note that time has passed; *is_common*: all members have the leader's copy."""


class TreeGroup(GroupThread):
    """This node's membership in the tree's group."""

    def __init__(
        self,
        content: Replicated,
        source: Source,
        *,
        wakeup: Wakeup,
        connect: Connect = Cpg,
        clock: Clock | None = None,
        explain: Callable[[], str] = lambda: "",
    ) -> None:
        log = logging.getLogger("pmxcfs.dcdb")
        super().__init__(
            messages.Group.TREE,
            content,
            source,
            log=log,
            wakeup=wakeup,
            connect=connect,
            clock=clock,
            explain=explain,
        )
        self._tree = content
        self._copying: Outage[NoCopy] = Outage(log, describe=_describe_no_copy)
        self._copy_wait = 0.0  # seconds out of the group after the last failure to copy
        self._executors |= {
            SendUpdates: self._send_updates,
            Commit: self._commit,
            TakeChecksum: self._take_checksum,
        }

    @property
    def copy_error(self) -> str:
        """Why this node's own changes can't be copied, so that it stays out of the group; or ""."""
        return str(self._copying.cause or "")

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + self._copy_wait
        super()._rest(seconds)
        while self._copying.cause is not None and (left := until - time.monotonic()) > 0:
            if self.pause(min(left, TRIAL_INTERVAL)) or self._tree.can_keep_copy():
                return

    def _enter(self, effect: Enter) -> None:
        if effect.mode is Mode.SYNCED:
            self._copying.works()
            self._copy_wait = 0.0
        super()._enter(effect)

    def on_tick(self) -> None:
        """Check the deadlines, and tell the content whether all members have one tree."""
        super().on_tick()
        self._tree.on_tick(is_common=self.dfsm.is_common)

    def _send_updates(self, effect: SendUpdates) -> None:
        if len(effect.states) > 1 and not self._tree.may_lead():
            reason = "no member has a tree with all its entries, so this node's is to lead"
            self._loop.carry_out(self.dfsm.leave(reason))
        for record in self._tree.updates(effect):
            self._sender.put(messages.Update(effect.time, effect.epoch, record))
        self._sender.put(messages.UpdateComplete(effect.time, effect.epoch))

    def _commit(self, effect: Commit) -> None:
        try:
            self._tree.commit(effect)
        except NoCopy as error:
            self._copying.fails(error)
            self._copy_wait = min(2 * self._copy_wait or FIRST_COPY_WAIT, LONGEST_COPY_WAIT)
            effects = self.dfsm.on_committed(ok=False)  # its lines would come every time
            self._loop.carry_out(effect for effect in effects if not isinstance(effect, Log))
        except PmxcfsError as error:
            self._log.error("the tree of member %s could not be adopted: %s", effect.leader, error)
            self._loop.carry_out(self.dfsm.on_committed(ok=False))
        else:
            self._loop.carry_out(self.dfsm.on_committed(ok=True))

    def _take_checksum(self, effect: TakeChecksum) -> None:
        self._loop.carry_out(self.dfsm.on_checksum(self._tree.checksum(), at=self._loop.now()))


def _describe_no_copy(error: NoCopy) -> str:
    return (
        "the cluster's tree would replace changes that only this node has, and they can't be "
        f"copied: {error}; staying out of the cluster until they can"
    )
