"""The file system behind the mount: decides which operations are allowed, and their errors.

This module knows no FUSE: arguments and results are entries and handles, errors are
``PmxcfsError``. It does not know whether a mutation is local or replicated: an issuer carries out
the mutation and returns when it is done. Written bytes stay in RAM until ``writeback`` publishes
them as one message on close.

Threads: all methods need the tree's lock. Methods that change the tree release the lock while they
wait for the issuer. Contract: docs/spec/filesystem.md; docs/spec/fuse.md.
"""

import functools
import mmap
from collections.abc import Callable, Mapping
from typing import TypeVar

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import (
    Denied,
    Exists,
    Invalid,
    IsADirectory,
    NameTooLong,
    NoQuorum,
    NoSpace,
    NotADirectory,
    NotEmpty,
    NotFound,
    PmxcfsError,
    Signaled,
    Stale,
    StoreError,
)
from pmxcfs.host.callers import UNKNOWN, Caller
from pmxcfs.messages import (
    MAX_NEW_NAME,
    MAX_TIME,
    Create,
    Delete,
    Kind,
    Mkdir,
    Mtime,
    Rename,
)
from pmxcfs.replica.issuer import Issuer
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.replica.tickets import CONTENT_TIMEOUT, NAME_LIMIT, NAME_TIMEOUT, Ticket
from pmxcfs.text import to_bytes
from pmxcfs.tree.adoption import Reload
from pmxcfs.tree.apply import Change
from pmxcfs.tree.guests import parse_guest_path
from pmxcfs.tree.locks import LOCK_DIRECTORY, LockTable, is_below_locks, renewal_time
from pmxcfs.vfs.pending import PendingFiles, is_dead
from pmxcfs.vfs.space import Space
from pmxcfs.vfs.writeback import OpenFile, Writeback

_Named = TypeVar("_Named", Create, Delete, Mkdir)
_REMOVALS = (Kind.DELETE, Kind.UNLOCK)

# Bytes that a change needs in the journal beside contents, rounded up: without them, a write could
# have room and the close not, which no shell looks at.
AROUND = 4096


class FileSystem:
    """The rules between a request and the messages that carry it out."""

    def __init__(
        self,
        tree: Tree,
        issuer: Issuer,
        *,
        quorum: QuorumFlag,
        locks: LockTable,
        monotonic_ns: Callable[[], int],
        wall_clock: Callable[[], int],
        on_unpublished: Callable[[], None],
        on_displaced: Callable[[Entry], None],
        on_name_gone: Callable[[Entry, str], None],
        is_known: Callable[[Entry], bool],
    ) -> None:
        self.quorum = quorum
        self.pending = PendingFiles(tree, is_known=is_known, on_displaced=on_displaced)
        self._pending_files = self.pending.files
        self.space = Space(tree, self._pending_files)
        self.writeback = Writeback(
            tree,
            issuer,
            quorum,
            pending=self.pending,
            monotonic_ns=monotonic_ns,
            on_unpublished=on_unpublished,
            on_displaced=on_displaced,
            on_name_gone=on_name_gone,
        )
        self._tree = tree
        self._issuer = issuer
        self._locks = locks
        self._now_ns = monotonic_ns
        self._wall_clock = wall_clock  # seconds since 1970
        self._on_unpublished = on_unpublished
        self._on_displaced = on_displaced

    # Looking

    @property
    def root(self) -> Entry:
        """The root directory."""
        return self._tree.root

    # Names

    def create(
        self,
        parent: Entry,
        name: str,
        exclusive: bool,
        later: bool = False,
        caller: Caller = UNKNOWN,
    ) -> Entry:
        """Create an empty file; without *exclusive* an existing file is returned.

        With *later* the file may stay pending until it has content. Raises NoQuorum, NameTooLong,
        NoSpace, why the issuer refuses changes, and what delivery refuses.
        """
        if later and self._issuer.can_announce_later():
            refusal = self._issuer.refusal(AROUND)
            if refusal is not None:
                raise refusal
        path = self._new_path(parent, name)
        found = self.pending.find(parent, name) if self._pending_files else None
        if found is not None:
            if exclusive:
                raise Exists(f"{path} is there already")
            return found
        if later and self._can_be_pending(parent, name, path):
            self._on_unpublished()
            return self.pending.add(
                parent, name, mtime=int(self._wall_clock()), now_ns=self._now_ns()
            )
        try:
            entry = self._issuer.create(_mutation(Create, path), caller).entry
        except Exists:
            winner = parent.child(name)
            if exclusive or winner is None or winner.is_directory:
                raise
            return winner
        self.writeback.note_creation()
        return entry

    def _can_be_pending(self, parent: Entry, name: str, path: str) -> bool:
        """Tell whether a new file can be announced with its first content."""
        return (
            self._issuer.can_announce_later()
            and parent.child(name) is None
            and parse_guest_path(path) is None
        )

    def mkdir(self, parent: Entry, name: str, caller: Caller = UNKNOWN) -> Entry:
        """Create a directory.

        Raises NoQuorum, NameTooLong, NoSpace, Exists for a guest's name, and what delivery refuses.
        """
        path = self._new_path(parent, name)
        _refuse_guest_name(path)
        if self._pending_files and self.pending.find(parent, name) is not None:
            raise Exists(f"{path} is there already")
        return self._issuer.carry_out(Ticket(_mutation(Mkdir, path), caller=caller)).entry

    def unlink(self, entry: Entry, caller: Caller = UNKNOWN) -> None:
        """Remove a file. Raises NoQuorum, IsADirectory, NotFound."""
        self._remove(entry, caller, False)

    def rmdir(self, entry: Entry, caller: Caller = UNKNOWN) -> None:
        """Remove an empty directory. Raises NoQuorum, NotADirectory, NotEmpty, NotFound."""
        self._remove(entry, caller, True)

    def _remove(self, entry: Entry, caller: Caller, is_directory: bool) -> None:
        self._need_quorum()
        if entry in self._pending_files and self._remove_pending(entry, is_directory):
            return
        path = _path(entry)
        objection = functools.partial(self._type_error, path, is_directory)
        error = self._type_error(path, is_directory)
        if error is not None:
            raise error
        self._check_empty(entry)
        self._issuer.carry_out(Ticket(_mutation(Delete, path), objection=objection, caller=caller))

    def _remove_pending(self, entry: Entry, is_directory: bool) -> bool:
        """Remove a pending file; tell whether it still was one after its announcement, if any."""
        if is_directory:
            raise NotADirectory(f"{entry.path} is a file")
        self.writeback.await_end(entry, self.writeback.after(NAME_TIMEOUT))
        if entry not in self._pending_files:
            return False
        self.pending.remove(entry)
        self._tree.orphan(entry)
        return True

    def _type_error(self, path: str, is_directory: bool) -> PmxcfsError | None:
        """Return the error of a removal if another node has put the other type at *path*."""
        found = self._tree.find(path)
        if found is None or found.is_directory == is_directory:
            return None
        if is_directory:
            return NotADirectory(f"{path} has become a file")
        return IsADirectory(f"{path} has become a directory")

    def rename(
        self,
        entry: Entry,
        parent: Entry,
        name: str,
        exclusive: bool = False,
        caller: Caller = UNKNOWN,
    ) -> None:
        """Move *entry* to *name* in *parent*, replacing the entry of that name.

        With *exclusive* raises Exists instead, as far as this node knows when it sends the change.

        What this node can know is checked before anything changes. A guest number that a file can't
        get is found at delivery, when the draft of *entry* is already published. Raises NoQuorum,
        NameTooLong, NotEmpty, Denied (a lock), Exists (a guest), and what delivery refuses.
        """
        self._need_quorum()
        _check_name(name)
        target = _join(_path(parent), name)
        if entry.is_directory and is_below_locks(entry):
            raise Denied(f"the lock {entry.path} can't be renamed")
        self._check_empty(entry)
        replaced = parent.child(name)
        if replaced is None and self._pending_files:
            replaced = self.pending.find(parent, name)
        if replaced is not None:
            if exclusive:
                raise Exists(f"{target} is there already")
            self._check_empty(replaced)
        if entry.is_directory:
            _refuse_guest_name(target)
        # For writeback and rename together.
        until_ns, limit_ns = self.writeback.after(NAME_TIMEOUT), self.writeback.after(NAME_LIMIT)
        objection = functools.partial(self._existing, target) if exclusive else None
        if entry in self._pending_files:
            self.writeback.await_end(entry, until_ns)
        if entry in self._pending_files:
            _check_move(entry.path, target)
            self.writeback.rename_pending(
                entry, target, until_ns, limit_ns, objection=objection, caller=caller
            )
            return
        self.writeback.publish_for_another(entry, until_ns, limit_ns)
        # A creation that fails to be saved later would be undone under a name that the kernel never
        # knew.
        self.writeback.save_creations()
        source = _path(entry)
        _check_move(source, target)
        timeout, limit = self.writeback.remaining(until_ns), self.writeback.remaining(limit_ns)
        self._issuer.carry_out(
            Ticket(
                tuple.__new__(Rename, (source, target)),  # as in ``_mutation``
                timeout=timeout,
                limit=limit,
                objection=objection,
                caller=caller,
            )
        )

    def _check_empty(self, entry: Entry) -> None:
        if entry.child_count or (self._pending_files and entry in self.pending.by_directory):
            raise NotEmpty(f"{entry.path} has entries")

    def _existing(self, path: str) -> PmxcfsError | None:
        """Return the error of a change that must not replace what is at *path*."""
        return None if self._tree.find(path) is None else Exists(f"{path} is there already")

    def _new_path(self, parent: Entry, name: str) -> str:
        self._need_quorum()
        _check_name(name)
        self.space.check_new_entry()
        return _join(_path(parent), name)

    def _need_quorum(self) -> None:
        if not self.quorum.is_quorate:
            raise NoQuorum("no quorum: the file system is read-only")

    def _need_issuer(self, entry: Entry, size: int = 0) -> None:
        """Raise the error by which a change of *entry* with *size* more bytes would be refused.

        A removed file changes nothing that has to be stored.
        """
        if not entry.is_orphan:
            needed = AROUND  # in steps, so that C adds
            needed += entry.size
            needed += entry.visible_size
            needed += size
            refusal = self._issuer.refusal(needed)
            if refusal is not None:
                raise refusal

    def _need_issuer_to_write(self, handle: OpenFile, size: int = 0) -> None:
        """As ``_need_issuer``; a refusal also drops what *handle* has written.

        Not Signaled: the program can write again.
        """
        try:
            self._need_issuer(handle.entry, size)
        except Signaled:
            raise
        except PmxcfsError as refusal:
            self.writeback.refuse(handle, refusal)
            raise

    # Attributes

    def utime(self, entry: Entry, seconds: int, *, caller: Caller = UNKNOWN) -> None:
        """Set the modification time; 0 on a lock asks for its removal.

        Raises NoQuorum, Invalid, Denied for the root and for a lock that has not expired, and Stale
        if another node has removed or replaced the entry.
        """
        self._need_quorum()
        _check_current(entry)
        if not 0 <= seconds <= MAX_TIME:
            raise Invalid(f"the time {seconds} can't be stored")
        until_ns = self.writeback.after(CONTENT_TIMEOUT)
        self.writeback.publish_for_another(entry, until_ns)
        path = _path(entry)
        if seconds == 0 and is_below_locks(entry):
            checksum = self._tree.entry_checksum(entry)
            has_expired = self._lock_has_expired(path, checksum)
            self._issuer.expire_lock(path, checksum, has_expired=has_expired, caller=caller)
        else:
            renewed = renewal_time(entry, seconds, now=self._wall_clock())
            mtime = Mtime(path, renewed)
            timeout = self.writeback.remaining(until_ns)
            self._issuer.carry_out(Ticket(mtime, timeout=timeout, caller=caller))

    def _lock_has_expired(self, path: str, checksum: bytes) -> bool:
        """Tell whether the lock at *path*, if its entry checksum is *checksum*, may be removed."""
        return self._locks.may_unlock(self._tree, path, checksum, now=self._now_ns() / 1e9)

    # Content

    def open(
        self,
        entry: Entry,
        writing: bool,
        truncate: bool,
        append: bool = False,
        has_created: bool = False,
        caller: Caller = UNKNOWN,
    ) -> OpenFile:
        """Open a file; *has_created* if the same request created it.

        With *writing* or *truncate* raises NoQuorum, and Stale if another node has removed or
        replaced the file: the kernel then looks the name up again, and no bytes are written to a
        file that is gone. An open that created the file is not refused: a refusal says that nothing
        was changed. With *truncate* raises Busy if the issuer refuses changes.
        """
        is_new = has_created and entry in self._pending_files  # all was checked just now
        if entry.parent is None and is_dead(entry):
            raise Stale(f"{entry.path} could not be announced")
        if (truncate and not is_new) or (writing and not has_created):
            self._need_quorum()
            _check_current(entry)
        if truncate and not is_new:
            self._need_issuer(entry)
        handle = OpenFile(entry, append=append, has_created=has_created, caller=caller)
        if truncate:
            self.space.reserve(handle, entry)
            self._tree.truncate_unpublished(entry, 0, now_ns=self._now_ns(), opening=True)
            entry.kernel_size = 0
            self._on_unpublished()
        handle.has_truncated = truncate or is_new
        if writing or truncate or has_created:
            self.writeback.add_writer(handle)
        return handle

    def write(self, handle: OpenFile, offset: int, data: bytes, append: bool | None = None) -> None:
        """Write to the file's draft in RAM, at its end if *append*; None: this is found out.

        Raises NoQuorum, TooBig, NoSpace; and why earlier writes of *handle* were lost, until a
        close or fsync has raised that. Raises Busy if the issuer refuses changes. Busy and NoSpace
        drop the unpublished writes of the file: many programs ignore the result of the close. The
        *offset* of an append is ignored: the kernel computed it and may not know yet what another
        node has appended.
        """
        self._need_quorum()
        self.writeback.raise_lost_writes(handle)
        self._need_issuer_to_write(handle, len(data))
        entry, end = handle.entry, offset + len(data)
        if append is None:
            append = handle.append and not _is_of_mapping(handle, offset)
        start = entry.visible_size if append else offset
        self._check_size(handle, start + len(data))
        self._tree.write_unpublished(entry, start, data, now_ns=self._now_ns())
        if append:
            entry.kernel_size = handle.append_end = end
        else:
            entry.kernel_size = max(end, entry.kernel_size)
        self.writeback.note_write(handle)
        self._on_unpublished()
        if start != offset:
            self._on_displaced(entry)

    def truncate(
        self, entry: Entry, size: int, *, handle: OpenFile | None, caller: Caller = UNKNOWN
    ) -> None:
        """Cut or extend a file; without *handle*, for truncate(2), it is published at once.

        Raises NoQuorum, TooBig, NoSpace, why earlier writes of *handle* were lost, Stale if another
        node has removed or replaced the file, and Busy if the issuer refuses changes.
        """
        until_ns = self.writeback.after(CONTENT_TIMEOUT)
        if handle is None:
            _check_current(entry)
            # First of all, while a refusal still means that nothing was changed.
            self.writeback.await_end(entry, until_ns)
        else:
            self.writeback.raise_lost_writes(handle)
        self._need_quorum()
        if handle is None:
            self._need_issuer(entry)
            self.space.check_size(entry, size)
        else:
            self._need_issuer_to_write(handle)
            self._check_size(handle, size)
            self.space.reserve(handle, entry)
        self._tree.truncate_unpublished(entry, size, now_ns=self._now_ns())
        self._on_unpublished()
        if handle is None:
            self.writeback.publish(entry, until_ns, caller)
        else:
            self.writeback.note_write(handle)

    def _check_size(self, handle: OpenFile, end: int) -> None:
        """Check that the file may have *end* bytes; NoSpace drops what *handle* has written."""
        try:
            self.space.check_size(handle.entry, end)
        except NoSpace as refusal:
            self.writeback.refuse(handle, refusal)
            raise

    def release(self, handle: OpenFile) -> None:
        """Publish what *handle* has written, ignoring PmxcfsError, and forget the handle."""
        self.writeback.release(handle)
        self.space.release(handle)

    # Listener of the replica

    def on_change(self, change: Change, foreign: bool) -> None:
        """Keep the locks' ages, and drop the draft of a file that this mount has removed."""
        self._note_lock(change)
        if not foreign:
            self._note_own(change)

    def _note_own(self, change: Change) -> None:
        gone = change.entry if change.kind in _REMOVALS else change.replaced
        if gone is not None:
            self._tree.orphan(gone)

    def on_reload(self, reload: Reload) -> None:
        """Keep the ages of the locks that the new tree has, and put pending files into it.

        Drafts belong to the tree: those of entries that were kept lie over the new content now, and
        the writeback of an entry that is gone fails.
        """
        self._locks.reload(self._tree, now=self._now_ns() / 1e9)
        self.pending.on_reload()

    def _note_lock(self, change: Change) -> None:
        if not change.path.startswith(LOCK_DIRECTORY):
            return
        if change.kind in _REMOVALS:
            self._locks.forget(change.path)
        elif change.entry.is_directory:
            checksum = self._tree.entry_checksum(change.entry)
            self._locks.note(change.path, checksum, now=self._now_ns() / 1e9)

    def on_undone(self, undone: Mapping[Entry, str], error: StoreError) -> None:
        """Report *error* to the open handles of new files that a rollback has removed."""
        self.writeback.report_undone_creations(undone, error)


def _mutation(kind: type[_Named], path: str) -> _Named:
    """Return ``kind(path)``, without the cost of its own __new__, which is a Python function."""
    return tuple.__new__(kind, (path,))


def _check_name(name: str) -> None:
    if name == "." or name == "..":
        raise Denied(f"an entry named {name!r} can't be created")
    if len(name) > MAX_NEW_NAME // 4 and len(to_bytes(name)) > MAX_NEW_NAME:
        raise NameTooLong(f"a new name has at most {MAX_NEW_NAME} bytes")


def _check_current(entry: Entry) -> None:
    """Raise Stale if another node has removed or replaced *entry*, and the kernel did not know."""
    if not entry.is_attached and not entry.is_orphan:
        raise Stale(f"{entry.path} was removed")


def _is_of_mapping(handle: OpenFile, offset: int) -> bool:
    """Tell whether bytes that come with an O_APPEND handle are those of a shared mapping.

    The kernel may write a mapping's pages through any handle of the file, and llfuse does not tell
    them apart. They are pages of the file as the kernel has it. An append begins at the end of the
    file as the kernel has it, or where the last part of the same write(2) ended.
    """
    if offset == handle.append_end:
        return False
    return offset < handle.entry.kernel_size and offset % mmap.PAGESIZE == 0


def _path(entry: Entry) -> str:
    if not entry.is_attached:
        raise NotFound(f"{entry.path} was removed")
    return entry.path


def _check_move(source: str, target: str) -> None:
    """Refuse a RENAME onto or below itself: the existing implementation uses freed memory on it."""
    if target == source or target.startswith(f"{source}/"):
        raise NotFound(f"another node has moved {source} onto or above the new name")


def _refuse_guest_name(path: str) -> None:
    if parse_guest_path(path) is not None:
        raise Exists(f"{path} can only be a file: its removal would unregister the guest")


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name
