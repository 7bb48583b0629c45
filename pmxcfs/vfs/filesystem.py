"""The file system that users of the mount see: what may be done, and when it is published.

Knows nothing of FUSE: objects go in and out, errors are ``PmxcfsError``. Knows nothing of whether a
mutation is local or replicated either: it asks the issuer, which answers when it is done.

Writes collect in RAM and become one message on close (close-to-open publishing). All methods need
the tree's lock; those that mutate give it back while they wait for the issuer.

Contract: docs/spec/filesystem.md and fuse.md.
"""

import contextlib
import errno
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import (
    Busy,
    Denied,
    Exists,
    Failed,
    Invalid,
    NameTooLong,
    NoQuorum,
    NoSpace,
    NotEmpty,
    NotFound,
    NotPermitted,
    PmxcfsError,
    Stale,
    StoreError,
    TooBig,
)
from pmxcfs.messages import (
    MAX_ENTRIES,
    MAX_FILE_SIZE,
    MAX_NEW_NAME,
    MAX_TIME,
    MAX_TOTAL_SIZE,
    Create,
    Delete,
    Kind,
    Mkdir,
    Mtime,
    Mutation,
    Rename,
    Write,
)
from pmxcfs.replica.tickets import CONTENT_TIMEOUT, NAME_TIMEOUT, Ticket
from pmxcfs.text import to_bytes
from pmxcfs.tree.adoption import Reload
from pmxcfs.tree.apply import Change
from pmxcfs.tree.guests import parse_guest_path
from pmxcfs.tree.locks import LOCK_HOME, LockTable, is_below_locks

_log = logging.getLogger("pmxcfs.dcdb")

PUBLISH_AFTER_NS = 1_000_000_000  # how long a write, or a new file, may stay unpublished
RETRY_AFTER_NS = 50_000_000  # until the timer tries again what it could not publish
AT_LEAST = 0.001  # seconds to wait where some of the time is over
OWNER = 0  # uid of everything
_REMOVALS = (Kind.DELETE, Kind.UNLOCK)
_NOTHING = Write("", 0, b"", truncate=False)  # of a flight, before it takes what is unpublished


class Issuer(Protocol):
    """Whoever carries out mutations; ``LocalIssuer`` does it on this node alone."""

    def submit(self, mutation: Mutation) -> Change:
        """Return when it is done, everywhere; raise PmxcfsError if it is refused."""

    def carry_out(self, ticket: Ticket) -> Change:
        """Do the same with a ticket that others can wait for."""

    def expire_lock(self, path: str, checksum: bytes, *, has_expired: bool) -> Change:
        """Ask for the removal of a lock, which *has_expired* on this node or has not."""

    def wait(self, ticket: Ticket, seconds: float) -> Change:
        """Return, or raise, what comes of a ticket that another thread carries out, or Busy."""

    def create(self, mutation: Create) -> Change:
        """Like submit, but on this node's disk it may arrive together with the first content."""

    def save(self) -> None:
        """Save what ``create`` left for later."""

    def sync(self) -> None:
        """Return when all that was saved has reached the device."""


class OpenFile:
    """An open handle of a regular file."""

    def __init__(self, entry: Entry, *, append: bool, has_created: bool) -> None:
        self.entry = entry
        self.append = append  # whatever offset comes with a write, it goes to the end
        self.has_created = has_created  # by the open itself, and none of its descriptors was closed
        self.has_written = False  # since its last publishing
        self.has_truncated = False  # by the open itself
        self.flight: Ticket | None = None  # what publishes its writes; it has not asked how it went
        self.had_written = self.had_truncated = False  # when that began


# What ``statfs`` tells. A call, because Cython 0.29 can't make a class with this base.
Usage = NamedTuple("Usage", [("content_bytes", int), ("entries", int)])  # noqa: UP014


class FileSystem:
    """The rules between a request and the messages that carry it out."""

    def __init__(
        self,
        tree: Tree,
        issuer: Issuer,
        *,
        locks: LockTable,
        gid: int,
        monotonic_ns: Callable[[], int],
    ) -> None:
        self.quorate = True
        self.publish_after_ns = PUBLISH_AFTER_NS
        self.gid = gid  # gid of everything
        self._tree = tree
        self._issuer = issuer
        self._locks = locks
        self._now_ns = monotonic_ns
        # Told that something waits to be published, and that bytes are not where the writer
        # believes them to be: they are lost, or were appended elsewhere.
        self.on_unpublished: Callable[[], None] = _nobody_listens
        self.on_displaced: Callable[[Entry], None] = _nobody_listens
        self._flights: dict[Entry, Ticket] = {}  # what is being published
        self._writers: dict[Entry, list[OpenFile]] = {}  # handles to tell of failures
        self._oldest_creation_ns = 0  # of those that are not saved; 0 if there are none

    # Looking

    @property
    def root(self) -> Entry:
        """The root directory."""
        return self._tree.root

    def usage(self) -> Usage:
        """Return what is used of the limits."""
        return Usage(
            self._tree.content_bytes + self._tree.unpublished_growth, self._tree.entry_count
        )

    # Names

    def create(self, parent: Entry, name: str, *, exclusive: bool) -> Entry:
        """Make an empty file; without *exclusive* an existing one will do.

        Raises NoQuorum, NameTooLong, NoSpace, and what delivery refuses.
        """
        path = self._new_path(parent, name)
        try:
            entry = self._issuer.create(Create(path)).entry
        except Exists:
            winner = parent.child(name)
            if exclusive or winner is None or winner.is_directory:
                raise
            return winner
        self._oldest_creation_ns = self._oldest_creation_ns or self._now_ns()
        self.on_unpublished()
        return entry

    def mkdir(self, parent: Entry, name: str) -> Entry:
        """Make a directory. Raises as ``create``; a guest's name is refused with Exists."""
        path = self._new_path(parent, name)
        _refuse_guest_name(path)
        return self._issuer.submit(Mkdir(path)).entry

    def remove(self, entry: Entry) -> None:
        """Remove a file or an empty directory. Raises NoQuorum, NotEmpty, NotFound."""
        self._need_quorum()
        _check_empty(entry)
        self._issuer.submit(Delete(_path(entry)))

    def rename(self, entry: Entry, parent: Entry, name: str) -> None:
        """Move *entry*, replacing what stands there; everything is checked before anything changes.

        Raises NoQuorum, NotEmpty, Denied (a lock), Exists (a guest), and what delivery refuses.
        """
        self._need_quorum()
        _check_name(name)
        target = _join(_path(parent), name)
        if is_below_locks(entry):
            raise Denied(f"the lock {entry.path} can't be renamed")
        _check_empty(entry)
        replaced = parent.child(name)
        if replaced is not None:
            _check_empty(replaced)
        if entry.is_directory:
            _refuse_guest_name(target)
        until_ns = self._now_ns() + int(NAME_TIMEOUT * 1e9)  # for both together
        self._publish_for_another(entry, until_ns)
        self.save_creations()  # or a failure would undo it under a name that the kernel never knew
        source = _path(entry)
        if target == source or target.startswith(f"{source}/"):
            raise NotFound(f"{source} was moved there meanwhile")  # the original would crash on it
        self._issuer.carry_out(Ticket(Rename(source, target), timeout=self._remaining(until_ns)))

    def _new_path(self, parent: Entry, name: str) -> str:
        self._need_quorum()
        _check_name(name)
        if self._tree.entry_count >= MAX_ENTRIES:
            raise NoSpace(f"the tree holds {MAX_ENTRIES} entries already")
        return _join(_path(parent), name)

    def _need_quorum(self) -> None:
        if not self.quorate:
            raise NoQuorum("no quorum, nothing may change")

    # Attributes

    def utime(self, entry: Entry, seconds: int) -> None:
        """Set the modification time; 0 on a lock asks for its removal.

        Raises NoQuorum, Invalid, Denied for the root and for a lock that has not expired, and Stale
        as ``open`` does.
        """
        self._need_quorum()
        _check_current(entry)
        if not 0 <= seconds <= MAX_TIME:
            raise Invalid(f"the time {seconds} can't be stored")
        self._publish_for_another(entry, self._now_ns() + int(CONTENT_TIMEOUT * 1e9))
        path = _path(entry)
        if seconds == 0 and is_below_locks(entry):
            checksum = self._tree.entry_checksum(entry)
            self._issuer.expire_lock(
                path, checksum, has_expired=self.lock_has_expired(path, checksum)
            )
        else:
            self._issuer.submit(Mtime(path, seconds))

    def lock_has_expired(self, path: str, checksum: bytes) -> bool:
        """Tell whether the lock at *path*, in just this version, may be removed."""
        return self._locks.may_unlock(self._tree, path, checksum, now=self._now_ns() / 1e9)

    def check_mode(self, permissions: int, *, private: bool) -> None:
        """Raise NotPermitted unless *permissions* are those that a file has there anyway."""
        if permissions != (0o600 if private else 0o640):
            raise NotPermitted("modes follow from the path and can't be changed")

    def check_owner(self, *, uid: int | None, gid: int | None) -> None:
        """Raise NotPermitted unless *uid* and *gid* are those of everything, or None."""
        if uid not in (None, OWNER) or gid not in (None, self.gid):
            raise NotPermitted("owner and group can't be changed")

    # Content

    def open(
        self,
        entry: Entry,
        *,
        writing: bool,
        truncate: bool,
        append: bool = False,
        has_created: bool = False,
    ) -> OpenFile:
        """Open a file, which *has_created* it.

        For writing raises NoQuorum, and Stale if another node has removed or replaced it: the
        kernel then looks the name up once more, where what is written could only be lost. But not
        if the open has made the file right before: a refusal says that nothing was changed.
        """
        if truncate or (writing and not has_created):
            self._need_quorum()
            _check_current(entry)
        handle = OpenFile(entry, append=append, has_created=has_created)
        if truncate:
            self._tree.truncate_unpublished(entry, 0, now_ns=self._now_ns())
            self.on_unpublished()
            handle.has_truncated = True
        if writing or truncate or has_created:
            self._writers.setdefault(entry, []).append(handle)
        return handle

    def write(self, handle: OpenFile, offset: int, data: bytes) -> None:
        """Write into RAM. Raises NoQuorum, TooBig and NoSpace, which can be known already.

        And why earlier writes of *handle* are lost, until a close or fsync has told it. The kernel
        computes where an append goes; it may not know yet what another node has changed.
        """
        self._need_quorum()
        self._check_unbroken(handle)
        entry = handle.entry
        start = entry.visible_size if handle.append else offset
        self._check_size(entry, start + len(data))
        self._tree.write_unpublished(entry, start, data, now_ns=self._now_ns())
        handle.has_written = True
        self.on_unpublished()
        if start != offset:
            self.on_displaced(entry)

    def truncate(self, entry: Entry, size: int, *, handle: OpenFile | None) -> None:
        """Cut or extend a file; without *handle* it is published at once (truncate(2)).

        Raises as ``write``, and Stale as ``open`` does.
        """
        if handle is None:
            _check_current(entry)
            self._await_flight(entry, CONTENT_TIMEOUT)  # while a refusal still changes nothing
        else:
            self._check_unbroken(handle)
        self._need_quorum()
        self._check_size(entry, size)
        self._tree.truncate_unpublished(entry, size, now_ns=self._now_ns())
        self.on_unpublished()
        if handle is None:
            self.publish(entry)
        else:
            handle.has_written = True

    def _check_unbroken(self, handle: OpenFile) -> None:
        """Refuse to add to what was lost: the pieces would be published as a file."""
        flight = handle.flight
        if flight is not None and flight.error is not None and not handle.entry.is_orphan:
            self._land(handle.entry, flight)
            if handle.flight is flight:
                raise flight.error

    def _check_size(self, entry: Entry, end: int) -> None:
        if end > MAX_FILE_SIZE:
            raise TooBig(f"a file holds at most {MAX_FILE_SIZE} bytes")
        growth = end - entry.visible_size
        used = self._tree.content_bytes + self._tree.unpublished_growth
        if growth > 0 and not entry.is_orphan and used + growth > MAX_TOTAL_SIZE:
            raise NoSpace(f"the tree holds at most {MAX_TOTAL_SIZE} bytes")

    def flush(self, handle: OpenFile) -> None:
        """Publish what *handle* wrote: one of its descriptors is being closed.

        Raises why something it wrote was dropped, also if that happened behind its back.
        """
        if handle.flight is not None:
            self._await_flight(handle.entry, CONTENT_TIMEOUT)  # which may give the bytes back
        try:
            if handle.has_written:
                self.publish(handle.entry)
        finally:
            flight, handle.flight = handle.flight, None
            # The first failure is the cause of later ones, so it is the one to be told.
            if flight is not None and not handle.entry.is_orphan:
                self._issuer.wait(flight, CONTENT_TIMEOUT)
        if handle.has_created:
            handle.has_created = False
            self.save_creations()

    def fsync(self, handle: OpenFile) -> None:
        """Publish what is unpublished of the file, whoever wrote it, and have it on the device."""
        handle.has_written = True
        self.flush(handle)
        handle.has_written = handle.entry.has_unpublished  # by somebody, while this one waited
        self.sync()

    def sync(self) -> None:
        """Have everything that is published on this node's device. Raises StoreError."""
        self.save_creations()
        self._issuer.sync()

    def save_creations(self) -> None:
        """Save new files that wait for their content. Raises StoreError: they are gone then."""
        self._oldest_creation_ns = 0
        self._issuer.save()

    def release(self, handle: OpenFile) -> None:
        """Forget a handle; nobody hears of errors any more."""
        if handle.has_written or handle.has_truncated:
            self._publish_behind(handle.entry)
        self._forget_writer(handle)

    def _forget_writer(self, handle: OpenFile) -> None:
        writers = self._writers.get(handle.entry)
        if writers is not None and handle in writers:
            writers.remove(handle)
            if not writers:
                del self._writers[handle.entry]

    # Publishing

    def publish(self, entry: Entry) -> None:
        """Make the unpublished bytes of *entry* one change. Raises why they were dropped."""
        self._await_flight(entry, CONTENT_TIMEOUT)
        if entry.has_unpublished:
            self._publish(entry, Ticket(_NOTHING, target=entry))

    def _publish_for_another(self, entry: Entry, until_ns: int) -> None:
        """Do the same ahead of what somebody else wants; if they only have to wait, they stay."""
        self._await_flight(entry, self._remaining(until_ns))
        if entry.has_unpublished:
            timeout = self._remaining(until_ns)
            flight = Ticket(_NOTHING, target=entry, timeout=timeout, for_another=True)
            self._publish(entry, flight)

    def _remaining(self, until_ns: int) -> float:
        """Return the seconds until then, at least a little."""
        return max((until_ns - self._now_ns()) / 1e9, AT_LEAST)

    def _publish(self, entry: Entry, flight: Ticket) -> None:
        self._board(entry, flight)
        try:
            self._need_quorum()
            unpublished = self._tree.take_unpublished(entry)
            assert unpublished is not None, "asked for only when there is something unpublished"
            flight.mutation = Write(entry.path, *unpublished)
            self._issuer.carry_out(flight)
        except PmxcfsError as error:
            flight.finish(error)
            if not entry.is_orphan:  # removed here meanwhile: nobody will miss it
                raise
        finally:
            self._land(entry, flight)

    def _await_flight(self, entry: Entry, seconds: float) -> None:
        """Wait until no other worker publishes *entry*; how that went is for its authors."""
        while entry in self._flights:
            flight = self._flights[entry]
            try:
                self._issuer.wait(flight, seconds)
            except PmxcfsError:
                if not flight.is_done:
                    raise
            self._land(entry, flight)

    def _land(self, entry: Entry, flight: Ticket) -> None:
        """Have the draft know how a flight went: once, by whoever learns of it first."""
        if self._flights.get(entry) is not flight:
            return
        del self._flights[entry]
        if not flight.is_done:
            flight.finish(Failed("it could not be published"))  # a bug, told of elsewhere
        if flight.error is None:
            self._tree.finish_unpublished(entry)
        elif flight.for_another and isinstance(flight.error, Busy):
            self._put_back(entry, flight)
        elif not entry.is_orphan:
            self._drop(entry, flight)
        if entry.has_unpublished:  # the timer passes over what is in flight
            self.on_unpublished()

    def _board(self, entry: Entry, flight: Ticket) -> None:
        """From now on *flight* tells how the publishing of *entry* went."""
        self._flights[entry] = flight
        for handle in self._writers.get(entry, ()):
            _board(handle, flight)

    def _put_back(self, entry: Entry, flight: Ticket) -> None:
        """Nothing has happened: those who wrote are still to publish it."""
        self._tree.put_back_unpublished(entry, self._now_ns())
        for handle in self._writers.get(entry, ()):
            if handle.flight is flight:
                handle.flight = None
                handle.has_written |= handle.had_written
                handle.has_truncated |= handle.had_truncated

    def _drop(self, entry: Entry, flight: Ticket) -> None:
        """Lose all unpublished bytes, those too that were written while *flight* failed."""
        self._tree.discard_unpublished(entry)
        self.on_displaced(entry)
        for handle in self._writers.get(entry, ()):
            _board(handle, flight)
        assert flight.error is not None, "only what failed is dropped"
        _log.warning("the last writes to %s are lost: %s", _shown(entry), _name(flight.error))

    def publish_due(self) -> int:
        """Publish what has waited for its time; return the ns until the next is due, 0 if none.

        For the timer's thread. Errors go to the handles that wrote.
        """
        for entry in self._waiting():
            if self._is_due(entry.unpublished_since_ns):
                self._publish_behind(entry)
        if self._oldest_creation_ns and self._is_due(self._oldest_creation_ns):
            self._save_creations_behind()
        since = [entry.unpublished_since_ns for entry in self._waiting()[:1]]
        since += [self._oldest_creation_ns] if self._oldest_creation_ns else []
        if not since:
            return 0
        delay_ns = min(since) + self.publish_after_ns - self._now_ns()
        return delay_ns if delay_ns > 0 else RETRY_AFTER_NS

    def publish_all(self) -> None:
        """Publish everything now: the daemon stops."""
        for entry in self._tree.unpublished():
            self._publish_behind(entry)
        self._save_creations_behind()

    def _is_due(self, since_ns: int) -> bool:
        return self._now_ns() - since_ns >= self.publish_after_ns

    def _waiting(self) -> list[Entry]:
        """Return what nobody publishes yet, oldest first."""
        return [entry for entry in self._tree.unpublished() if entry not in self._flights]

    def _publish_behind(self, entry: Entry) -> None:
        """Publish without anyone who asked for it."""
        with contextlib.suppress(PmxcfsError):
            self.publish(entry)

    def _save_creations_behind(self) -> None:
        try:
            self.save_creations()
        except StoreError as error:
            _log.warning("new files could not be saved and are gone: %s", error)

    # Listening

    def on_change(self, change: Change, *, foreign: bool) -> None:
        """Keep the locks' ages; what this mount itself removed is published no more."""
        self._note_lock(change)
        gone = change.entry if change.kind in _REMOVALS else change.replaced
        if gone is not None and not foreign:
            self._tree.orphan(gone)

    def on_reload(self, reload: Reload) -> None:
        """Keep the ages of the locks that are still there.

        Drafts are the tree's: those of kept entries lie over the new content now, and what is
        written to an entry that is gone fails when it is published.
        """
        self._locks.reload(self._tree, now=self._now_ns() / 1e9)

    def _note_lock(self, change: Change) -> None:
        if not change.path.startswith(LOCK_HOME):
            return
        if change.kind in _REMOVALS:
            self._locks.forget(change.path)
        elif change.entry.is_directory:
            checksum = self._tree.entry_checksum(change.entry)
            self._locks.note(change.path, checksum, now=self._now_ns() / 1e9)

    def on_undone(self, undone: Mapping[Entry, str], error: StoreError) -> None:
        """Tell the open handles of entries that could not be saved and are gone."""
        for entry in undone:
            if not entry.is_attached:
                failed = Ticket(Create(entry.path))
                failed.finish(error)
                for handle in self._writers.get(entry, ()):
                    handle.flight = failed


def _board(handle: OpenFile, flight: Ticket) -> None:
    """What *handle* has done since its last publishing goes with *flight*, which it will ask."""
    has_changed = handle.has_written or handle.has_truncated
    if has_changed and (handle.flight is None or handle.flight.error is None):
        handle.flight = flight  # else there is a failure that it has not been told of
        handle.had_written, handle.had_truncated = handle.has_written, handle.has_truncated
    handle.has_written = handle.has_truncated = False


def _check_name(name: str) -> None:
    if name in (".", ".."):
        raise Denied(f"{name!r} can't be made")
    if len(name) > MAX_NEW_NAME // 4 and len(to_bytes(name)) > MAX_NEW_NAME:
        raise NameTooLong(f"a new name has at most {MAX_NEW_NAME} bytes")


def _check_current(entry: Entry) -> None:
    """Raise Stale if another node has removed or replaced *entry*, and the kernel did not know."""
    if not entry.is_attached and not entry.is_orphan:
        raise Stale(f"{entry.path} is gone")


def _path(entry: Entry) -> str:
    if not entry.is_attached:
        raise NotFound(f"{entry.path} was removed")
    return entry.path


def _check_empty(entry: Entry) -> None:
    if entry.child_count:
        raise NotEmpty(f"{entry.path} has entries")


def _refuse_guest_name(path: str) -> None:
    if parse_guest_path(path) is not None:
        raise Exists(f"{path} can only be a file: its removal would unregister the guest")


def _nobody_listens(*_: object) -> None:
    """Until somebody does."""


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name


def _name(error: PmxcfsError) -> str:
    """What went wrong, without the path that the error's text may tell."""
    return errno.errorcode.get(error.errno, str(error.errno))


def _shown(entry: Entry) -> str:
    """The path as it may appear in a log."""
    return "a private file" if entry.private else entry.path
