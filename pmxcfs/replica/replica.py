"""Tree, guest registry and database as one thing, and the one place that announces changes.

Nothing else mutates them. A group of mutations is applied in order, saved in one transaction, and
then announced. If saving fails, the *policy* decides. In local mode all of it is taken back and
everyone gets the errno, so the tree in RAM and the file never part. In a cluster other nodes have
applied it, so it stays: the node is degraded, must send no changes of its own, and catches the file
up later. Who wants to know of changes listens; who asked for one gets it from ``LocalIssuer``.

``adopt`` replaces the tree by another node's, all at once.

Threads: everything here runs with the tree's lock held. ``LocalIssuer.submit`` gives it back for
as long as it waits, and while a save takes long: others read then, but whoever wants to change
something waits first, in ``Replica.await_save``.
Contract: docs/spec/storage.md, "Writing"; cluster.md, "State machine", "Delivery to the tree", "Forks".
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Protocol

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import Failed, PmxcfsError, StoreError
from pmxcfs.messages import (
    Create,
    Mutation,
    Record,
    Write,
)
from pmxcfs.replica.tickets import Ticket
from pmxcfs.replica.waiting import Yielding
from pmxcfs.storage import conflicts as forks
from pmxcfs.storage.database import Database
from pmxcfs.tree.adoption import Adoption, Reload, plan, record_of
from pmxcfs.tree.apply import Change, HalfRenamed, apply
from pmxcfs.tree.guests import Guests

_log = logging.getLogger("pmxcfs.dcdb")

LARGE_SAVE = 64 << 10  # bytes whose saving takes so long, some 0.3 ms, that others go on meanwhile


class Policy(Enum):
    """What becomes of changes that can't be saved."""

    TAKE_BACK = "the tree goes back to what is saved, and who asked for them gets the errno"
    KEEP = "they stay in RAM, and who asked for them gets success; for what other nodes have, too"


class Listener(Protocol):
    """Someone who is told of every change, after it has been saved."""

    def __call__(self, change: Change, *, foreign: bool) -> None:
        """*foreign* changes did not come through this node's mount."""


class Replica:
    """This node's copy of the configuration."""

    def __init__(
        self,
        tree: Tree,
        guests: Guests,
        database: Database,
        *,
        policy: Policy = Policy.TAKE_BACK,
    ) -> None:
        self.tree = tree
        self.guests = guests
        self.policy = policy
        # Whether what is delivered now reaches any other node, too. What is delivered while it is
        # not set is this node's alone (docs/spec/cluster.md, "Forks").
        self.is_shared = False
        self.listeners: list[Listener] = []
        # Told what is as before, and where each entry was until now.
        self.undo_listeners: list[Callable[[Mapping[Entry, str], StoreError], None]] = []
        self.reload_listeners: list[Callable[[Reload], None]] = []
        self.transactions = 0  # saved since the start
        # How others get the lock while a save takes long; what they see then may be taken back.
        # In a cluster nobody does: a change that is being saved can't be given up meanwhile.
        self.yielding: Yielding | None = None
        self._saving: threading.Event | None = None  # set when that is over
        self._database = database
        # The last version that another node had, too; None while some other has all of the tree.
        self._alone_since = database.diverged_at

    @property
    def has_unsaved(self) -> bool:
        """Tell whether a creation waits to be saved."""
        return self.tree.has_unsaved

    @property
    def is_degraded(self) -> bool:
        """Tell whether the last attempt to write the database failed."""
        return self._database.degraded is not None

    def deliver(self, tickets: Sequence[Ticket]) -> None:
        """Apply *tickets* in order and save them in one transaction."""
        self.await_save()
        done = self._apply(tickets)
        if done and not self._save(tickets):
            done = []
        for ticket in tickets:
            ticket.finish()
        self._announce(done)

    def inject(self, mutation: Mutation, *, writer: int, mtime: int) -> Change:
        """Apply *mutation* as if another node had sent it."""
        ticket = Ticket(mutation, writer=writer, mtime=mtime, foreign=True)
        self.deliver([ticket])
        return ticket.result()

    def defer(self, ticket: Ticket) -> None:
        """Apply *ticket* now and leave it to the next save; what it made can vanish until then."""
        self.await_save()
        self._announce(self._apply([ticket]))

    def save(self) -> None:
        """Save what was deferred. Raise StoreError if that fails; it is taken back then."""
        self.await_save()
        if self.has_unsaved:
            self._write()

    def await_save(self) -> None:
        """Return once nothing is being saved: until then nothing may be changed.

        Gives the lock back meanwhile, so anything can have changed then.
        """
        while self._saving is not None:
            assert self.yielding is not None, "nobody else gets the lock during a save"
            saving = self._saving
            with self.yielding.released():
                saving.wait()

    def sync(self) -> None:
        """Have the database's log on the device; needs no lock. Raises StoreError."""
        if self.policy is Policy.KEEP:
            self.check_writable()  # what was promised is in RAM only
        self._database.sync()

    # Between nodes.

    def state(self) -> bytes:
        """Return the index of the tree, the payload of a STATE message."""
        return self.tree.index()

    def checksum(self) -> bytes:
        """Return the state checksum (32 bytes) for a verification; costs the tree's size."""
        return self.tree.checksum()

    def records_for(self, inodes: Iterable[int]) -> list[Record]:
        """Return what the UPDATE messages for *inodes* carry; all of them must be in the tree."""
        entries = [(inode, self.tree.get(inode)) for inode in inodes]
        missing = [inode for inode, entry in entries if entry is None]
        if missing:
            raise ValueError(f"entry {missing[0]} is not in the tree")
        return [record_of(entry) for _, entry in entries if entry is not None]

    def adopt(
        self,
        leader: bytes,
        records: Iterable[Record],
        *,
        now: int,
        lock: AbstractContextManager[object],
    ) -> None:
        """Become the tree with the index *leader*, of which *records* were sent. Blocks.

        What this node had changed alone is copied first (*now*: seconds since 1970). Raises
        BadMessage if that can't be the leader's tree, and StoreError if the copy can't be made;
        then nothing has changed. Where only the adoption can't be saved, the policy decides.

        Nothing else may be delivered meanwhile. *lock* is the tree's, taken for the swap: requests
        are answered while the plan is made and saved.
        """
        with lock:
            is_current = self.catch_up()
        adoption = plan(self.tree, leader, records)
        lost = forks.lost_by(adoption, self.tree, alone_since=self._alone_since)
        if lost:
            self.check_writable()  # or the copy would lack what is in RAM only
            forks.keep_side(self._database, lost, now=now)
        is_saved = self._save_adoption(adoption, is_current=is_current)
        with lock:
            self._swap(adoption, is_saved=is_saved)

    def _swap(self, adoption: Adoption, *, is_saved: bool) -> None:
        reload = adoption.apply()
        self.guests.rebuild(self.tree)
        self._alone_since = None
        if is_saved:
            self.tree.mark_saved()
        elif not self.is_degraded:  # a timer has brought the file to the tree that is gone now
            self.catch_up()
        for listener in self.reload_listeners:
            listener(reload)

    def _save_adoption(self, adoption: Adoption, *, is_current: bool) -> bool:
        """Save it ahead of the swap; return whether that worked, or raise StoreError."""
        try:
            if not is_current:
                self.check_writable()
            self._database.adopt(adoption)
        except StoreError:
            if self.policy is Policy.TAKE_BACK:
                raise
            return False
        self.transactions += 1
        return True

    def synced(self, *, with_others: bool) -> None:
        """Note that a round has ended, and whether any other member now has this tree. Blocks.

        From now on what is delivered reaches it, or is this node's alone.
        """
        self.is_shared = with_others
        if with_others:
            self._alone_since = None
            if not self.is_degraded:
                self._note_agreement()

    def import_configuration(self, content: bytes, *, now: int) -> None:
        """Make a fresh tree one of a cluster, by the host's ``corosync.conf``. Blocks.

        It must lose against every real cluster, so this is one create and one write by nobody; that
        it then is replaced is no loss. Raises TooBig and StoreError.
        """
        path = "corosync.conf"
        mutations = Create(path), Write(path, 0, content, truncate=True)
        tickets = [Ticket(mutation, mtime=now) for mutation in mutations]
        self.is_shared = True
        self.deliver(tickets)
        self.is_shared = False
        for ticket in tickets:
            ticket.result()

    def check_writable(self) -> None:
        """Raise StoreError if this node is degraded, and must send no changes of its own."""
        if self._database.degraded is not None:
            raise self._database.degraded

    def catch_up(self) -> bool:
        """Have the database hold the tree; return whether it does. Blocks.

        Costs nothing if it does already. For a timer, while the node is degraded.
        """
        self.await_save()
        if not self.has_unsaved and self._database.is_sound:
            return True
        try:
            self._save_all()
        except StoreError as error:
            self._cope(error)
            return False
        return True

    def _apply(self, tickets: Sequence[Ticket]) -> list[tuple[Change, bool]]:
        if self._alone_since is None and not self.is_shared:
            self._alone_since = self.tree.version
        done = []
        for ticket in tickets:
            try:
                mutation = ticket.with_current_path(self.tree)
                ticket.change = apply(
                    self.tree, self.guests, mutation, writer=ticket.writer, mtime=ticket.mtime
                )
                done.append((ticket.change, ticket.foreign))
            except HalfRenamed as error:
                ticket.error = error
                done.append((error.change, True))  # the reply tells of the failure only
            except PmxcfsError as error:
                ticket.error = error
            except Exception:  # noqa: BLE001, as one bad mutation must not take the group with it
                _log.exception("a mutation could not be applied, which is a bug")
                ticket.error = Failed("it could not be applied")
        return done

    def _save(self, tickets: Sequence[Ticket]) -> bool:
        try:
            self._write()
        except StoreError as error:
            for ticket in tickets:
                ticket.error = ticket.error or error
            return False
        return True

    def _write(self) -> None:
        """Save all that is unsaved; raise StoreError if it was taken back instead."""
        if self.policy is Policy.KEEP and self.is_degraded:
            return  # catch_up tries again, at the pace of a timer: it compares every row
        try:
            self._save_all()
        except StoreError as error:
            self._cope(error)
            if self.policy is Policy.TAKE_BACK:
                raise

    def _save_all(self) -> None:
        if self._alone_since is not None and self._database.diverged_at is None:
            self._database.diverge(self._alone_since)
        is_large = self.tree.unsaved_bytes > LARGE_SAVE
        if is_large or not self._database.save(self.tree, patient=False):
            self._save_long()
        self.tree.mark_saved()
        self.guests.mark_saved()
        self.transactions += 1
        self._note_agreement()

    def _save_long(self) -> None:
        """Save while others have the lock; who wants to change something waits for the end."""
        if self.yielding is None:
            self._database.save(self.tree)
            return
        self._saving = saving = threading.Event()
        try:
            self.yielding.aside(functools.partial(self._database.save, self.tree))
        finally:  # with the lock held, until what was saved is settled, or taken back
            self._saving = None
            saving.set()

    def _note_agreement(self) -> None:
        """Have the database know when other nodes have all of the tree again."""
        if self._alone_since is None and self._database.diverged_at is not None:
            with contextlib.suppress(StoreError):  # an old note only makes a copy too many
                self._database.converge()

    def _cope(self, error: StoreError) -> None:
        """Do with what could not be saved as the policy says."""
        if self.policy is Policy.TAKE_BACK:
            self._take_back(error)

    def _take_back(self, error: StoreError) -> None:
        undone = self.tree.rollback()
        self.guests.rollback()
        for listener in self.undo_listeners:
            listener(undone, error)

    def _announce(self, done: Sequence[tuple[Change, bool]]) -> None:
        for change, foreign in done:
            for listener in self.listeners:
                listener(change, foreign=foreign)
