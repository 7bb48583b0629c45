"""The request handlers: they turn kernel requests into ``FileSystem`` calls.

Handlers decide about fixed entries and unsupported requests; all rules for entries of the tree are
in ``vfs``. They know no session: their arguments and results are numbers, bytes and ``attributes``.
They raise PmxcfsError; each session passes every exception to ``Handlers.errno_of``, as none may
end its loop, and with it the mount.

Threads: a session calls the handlers with the tree's lock held. A handler may release it while it
waits; ``vfs`` decides when.
Contract: docs/spec/fuse.md; docs/spec/filesystem.md, "Operations".
"""

import contextlib
import errno
import logging
import stat
from collections.abc import Callable, Sequence
from os import O_ACCMODE, O_APPEND, O_EXCL, O_RDONLY, O_TRUNC, O_WRONLY
from typing import TypeAlias

from pmxcfs._core import Entry
from pmxcfs.errors import (
    Denied,
    Exists,
    Failed,
    GuestTaken,
    NotFound,
    NotPermitted,
    PmxcfsError,
    Signaled,
    Stale,
    Unsupported,
)
from pmxcfs.fuse.attributes import Attributes, Requester, Statistics, Wanted
from pmxcfs.fuse.node_ids import ROOT, Handle, Node, NodeIds
from pmxcfs.fuse.request_log import OPENING, RequestLog
from pmxcfs.host.callers import UNKNOWN, Caller, Callers
from pmxcfs.host.outage import Repetitions
from pmxcfs.messages import MAX_ENTRIES, MAX_NEW_NAME, MAX_TOTAL_SIZE
from pmxcfs.status.files import Link, Snapshot, StatusFile, Switch
from pmxcfs.text import to_bytes, to_text
from pmxcfs.tree.modes import mode_of, without_quorum
from pmxcfs.vfs.filesystem import FileSystem
from pmxcfs.vfs.ownership import Ownership
from pmxcfs.vfs.writeback import OpenFile

_log = logging.getLogger("pmxcfs.fuse")

BLOCK = 4096  # bytes per block in statfs
SNAPSHOT_FRESH_NS = 1_000_000_000  # age up to which an outdated snapshot may be opened
TAKEN_AGAIN_NS = 60_000_000_000  # until a path is logged again whose guest number is in use
MAX_LISTED_NAME = 1024  # bytes; the kernel fails a listing with a longer name, such as a peer's
NO_VERSION = -1  # of a listing with pending files, which no version of the directory tells
RECENT_LISTINGS = 64  # directories whose listing is cached until a name in them changes


# Name, node id, type of file as in st_mode, the object; the kernel gets references to the objects
# of a listing with attributes, except to those that are None. A string, as Cython 0.29 can't
# subscript a class.
Listing: TypeAlias = "list[tuple[bytes, int, int, Node | None]]"


class OpenDirectory:
    """An open directory, and its listing of the last read from offset 0."""

    __slots__ = ("entry", "listing", "version")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.listing: Listing | None = None
        self.version = NO_VERSION  # of the directory's names when the listing was taken


class Handlers:
    """The handlers of the kernel's requests."""

    def __init__(
        self,
        files: FileSystem,
        node_ids: NodeIds,
        *,
        status_files: dict[str, StatusFile],
        links: Sequence[Link],
        ownership: Ownership,
        callers: Callers,
        on_debug: Callable[[bool], None],
        start_time: int,
        monotonic_ns: Callable[[], int],
    ) -> None:
        self.is_logging_requests = False
        self.node_ids = node_ids
        self._files = files
        self._writeback = files.writeback
        self._pending = files.pending
        self._pending_files = files.pending.files
        self._ownership = ownership
        self._callers = callers
        self._on_debug = on_debug
        self._status_files = status_files
        debug = Switch(".debug", is_on=lambda: self.is_logging_requests, turn=self.turn_debug)
        self._fixed: dict[str, Link | Switch] = {link.name: link for link in links}
        self._fixed[debug.name] = debug
        self._start_time = start_time
        self._now_ns = monotonic_ns
        self._taken = Repetitions(TAKEN_AGAIN_NS)
        self._handles = node_ids.handles
        self._directories: dict[int, OpenDirectory] = {}  # by handle
        self.requests = RequestLog(node_ids.objects, self._handles, self._directories)
        self._recent_listings: dict[int, tuple[int, Listing]] = {}  # by node; (version, listing)
        self._last_handle = 0
        self._absent = Attributes()

    # For sessions

    def errno_of(self, name: str, error: BaseException) -> int:
        """Return what the caller of the request *name* gets; log an error that is a bug."""
        if not isinstance(error, PmxcfsError):
            _log.error("FUSE request %s failed, which is a bug", name, exc_info=error)
            return errno.EIO
        if isinstance(error, GuestTaken) and self._taken.is_due(error.path, now_ns=self._now_ns()):
            _log.info("refused with EEXIST: %s", error)
        return error.errno

    def call(
        self, name: str, arguments: tuple[object, ...], requester: Requester | None = None
    ) -> object:
        """Call the handler *name*; in debug mode log it."""
        handler = getattr(self, name)
        if not self.is_logging_requests:
            return handler(*arguments)
        with self.requests.begin(name, arguments, requester) as logged:
            answer = handler(*arguments)
            if answer is self._absent:
                logged.outcome = "ENOENT"
            elif name in OPENING:
                logged.note_handle(answer[0] if isinstance(answer, tuple) else answer)
            return answer

    def turn_debug(self, on: bool) -> None:
        """Log requests from now on, or no longer."""
        self.is_logging_requests = on
        self.requests.clear()
        self._on_debug(on)

    # Lookup and attributes

    def _special(self, parent: int, name: str) -> Link | Switch | Snapshot | None:
        if parent != ROOT:
            return None
        if name in self._status_files:
            return self._status_files[name].snapshot(self._now_ns())
        return self._fixed.get(name)

    def _directory(self, node: int) -> Entry:
        found = self.node_ids[node]
        if not isinstance(found, Entry):
            raise NotFound(f"node {node} is not a directory")
        return found

    def _find(self, parent: int, name: str) -> Entry:
        """Return the entry *name* for a change. Raises Denied for a special file, or NotFound."""
        if self._special(parent, name) is not None:
            raise Denied(f"{name} can't be changed")
        found = self._child(self._directory(parent), name)
        if found is None:
            raise NotFound(f"there is no {name} any more")
        return found

    def _child(self, directory: Entry, name: str) -> Entry | None:
        """Return the entry *name* of *directory*, which may be a pending file, or None."""
        found = directory.child(name)
        if found is None and self._pending_files:
            return self._pending.find(directory, name)
        return found

    def _caller(self, requester: Requester) -> Caller:
        """Return the process that makes a request."""
        return self._callers.of(requester.pid, requester.uid)

    def lookup(self, parent: int, raw_name: bytes) -> Attributes:
        """Return what *raw_name* is; the kernel gets one more reference to it."""
        name = to_text(raw_name)
        found = self._special(parent, name) or self._child(self._directory(parent), name)
        if found is None:
            self.node_ids.note_absent(parent, raw_name)
            return self._absent
        return self._answer(found)

    def _answer(self, found: Node) -> Attributes:
        """Return the reply of a lookup or creation; the kernel gets one more reference."""
        self.node_ids.reference(found)
        return self._attributes(found)

    def forget(self, node: int, count: int) -> None:
        """Take back references of the kernel. This request has no reply, so nothing is raised."""
        self.node_ids.forget(node, count)

    def getattr(self, node: int) -> Attributes:
        """Return the attributes of *node*."""
        return self._attributes(self.node_ids[node])

    def _attributes(self, found: Node) -> Attributes:
        mode = self._mode_of(found)
        if isinstance(found, Entry):
            return self._entry_attributes(found, mode)
        size = len(found.target if isinstance(found, Link) else found.content)
        result = Attributes(found.node, mode, size, self._start_time, self._ownership.gid)
        if isinstance(found, Switch):
            result.seconds = 0
        elif isinstance(found, Snapshot):
            result.name_seconds = 0
        return result

    def _mode_of(self, found: Node) -> int:
        is_quorate = self._files.quorum.is_quorate
        if isinstance(found, Entry):
            return mode_of(found, is_quorate)
        if isinstance(found, Link):
            mode = stat.S_IFLNK | 0o755
            return mode if is_quorate else without_quorum(mode)
        return stat.S_IFREG | (0o640 if isinstance(found, Switch) else 0o440)

    def _entry_attributes(self, entry: Entry, mode: int) -> Attributes:
        entry.kernel_size = entry.visible_size
        time = self._start_time if entry.node == ROOT else entry.mtime
        result = Attributes(entry.node, mode, entry.visible_size, time, self._ownership.gid)
        if not entry.is_attached:
            result.nlink = 0
        elif entry.is_directory:
            result.nlink = 2
        if entry.has_draft:
            result.seconds = 0  # publishing will change the mtime
        if self._pending_files and entry in self._pending_files:
            result.seconds = result.name_seconds = 0
        return result

    def readlink(self, node: int) -> bytes:
        """Return what a symbolic link leads to."""
        found = self.node_ids[node]
        if not isinstance(found, Link):
            raise NotFound(f"node {node} is not a link")
        return found.target

    def statfs(self) -> Statistics:
        """Return how full the tree is."""
        used = self._files.space.usage()
        blocks = MAX_TOTAL_SIZE // BLOCK
        return Statistics(
            block_size=BLOCK,
            blocks=blocks,
            free_blocks=max(0, blocks - (used.content_bytes + BLOCK - 1) // BLOCK),
            entries=MAX_ENTRIES,
            free_entries=max(0, MAX_ENTRIES - used.entries),
            name_size=MAX_NEW_NAME + 1,
        )

    # Listing

    def opendir(self, node: int) -> int:
        """Open a directory; return the handle."""
        self._last_handle += 1
        self._directories[self._last_handle] = OpenDirectory(self._directory(node))
        return self._last_handle

    def _listing(self, directory: Entry) -> Listing:
        version, listing = self._recent_listings.get(directory.node, (None, []))
        if directory.node == ROOT or version != directory.listing_version:
            listing = self._list(directory)
            if len(self._recent_listings) >= RECENT_LISTINGS:
                self._recent_listings.clear()
            self._recent_listings[directory.node] = (directory.listing_version, listing)
        if self._pending_files:
            shown = self._pending.children(directory)
            return [*listing, *[(to_bytes(one.name), *self._listed(one)) for one in shown]]
        return listing

    def _list(self, directory: Entry) -> Listing:
        above = directory.parent or directory
        found: Listing = [(b".", *self._listed(directory)[:2], None)]
        found.append((b"..", *self._listed(above)[:2], None))
        hidden: set[str] = set()
        if directory.node == ROOT:
            hidden = self._status_files.keys() | self._fixed.keys()
            found += [(name.encode(), *self._listed_special(name)) for name in hidden]
        found += [
            (to_bytes(child.name), *self._listed(child))
            for child in directory.children()
            if child.name not in hidden
        ]
        return [row for row in found if len(row[0]) <= MAX_LISTED_NAME]

    def _listed(self, entry: Entry) -> tuple[int, int, Node]:
        kind = stat.S_IFDIR if entry.is_directory else stat.S_IFREG
        return self.node_ids.number(entry), kind, entry

    def _listed_special(self, name: str) -> tuple[int, int, Node | None]:
        special = self._special(ROOT, name)
        assert special is not None, "all names come from the tables of special files"
        node = self.node_ids.number(special)
        if isinstance(special, Link):
            return node, stat.S_IFLNK, special
        return node, stat.S_IFREG, None  # the kernel looks up again what changes by itself

    def readdir(self, handle: int, offset: int) -> Listing:
        """Return the whole listing; offset 0 makes a new one."""
        opened = self._directories[handle]
        if offset == 0 or opened.listing is None:
            opened.listing = self._listing(opened.entry)
            has_pending = bool(self._pending_files) and opened.entry in self._pending.by_directory
            opened.version = NO_VERSION if has_pending else opened.entry.listing_version
        return opened.listing

    def listed(self, handle: int, raw_name: bytes, found: Node | None) -> Attributes | None:
        """Return the reply of a lookup of a listed name, with a reference for the kernel.

        None if the kernel knows the object already, if the name has changed since, or if it must be
        looked up by itself.
        """
        if found is None or self.node_ids.is_known(found):
            return None
        opened = self._directories[handle]
        is_listed = opened.version == opened.entry.listing_version or (
            self._child(opened.entry, to_text(raw_name)) is found
        )
        return self._answer(found) if is_listed else None

    def releasedir(self, handle: int) -> None:
        """Forget a handle of a directory."""
        self._directories.pop(handle, None)

    def fsyncdir(self, handle: int) -> None:
        """Bring all published changes to the device."""
        self._writeback.sync()

    # Names

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, requester: Requester
    ) -> tuple[int, Attributes]:
        """Create and open a file; return the handle, too."""
        caller = self._caller(requester)
        entry = self._create(
            parent, to_text(name), caller, bool(flags & O_EXCL), _can_be_announced_later(flags)
        )
        if not entry.visible_size and entry not in self._pending_files:
            flags &= ~O_TRUNC
        return self._open(entry, flags, caller, True), self._answer(entry)

    def mknod(
        self, parent: int, name: bytes, mode: int, device: int, requester: Requester
    ) -> Attributes:
        """Create a file, which is saved before the answer."""
        if not stat.S_ISREG(mode):
            raise Unsupported("only regular files can be created")
        caller = self._caller(requester)
        entry = self._create(parent, to_text(name), caller, True, False)
        with contextlib.suppress(Signaled):  # it is there, and the timer saves it
            self._writeback.save_creations()
        return self._answer(entry)

    def _create(
        self, parent: int, name: str, caller: Caller, exclusive: bool, later: bool
    ) -> Entry:
        if self._special(parent, name) is not None:
            raise Denied(f"{name} can't be replaced")
        directory = self._directory(parent)
        return self._files.create(directory, name, exclusive, later, caller)

    def mkdir(self, parent: int, raw_name: bytes, mode: int, requester: Requester) -> Attributes:
        """Create a directory."""
        name = to_text(raw_name)
        if self._special(parent, name) is not None:
            raise Exists(f"{name} can't be replaced")
        caller = self._caller(requester)
        return self._answer(self._files.mkdir(self._directory(parent), name, caller))

    def unlink(self, parent: int, name: bytes, requester: Requester) -> None:
        """Remove a file."""
        self._files.unlink(self._find(parent, to_text(name)), self._caller(requester))

    def rmdir(self, parent: int, name: bytes, requester: Requester) -> None:
        """Remove a directory."""
        self._files.rmdir(self._find(parent, to_text(name)), self._caller(requester))

    def rename(
        self,
        parent: int,
        raw_name: bytes,
        new_parent: int,
        raw_new_name: bytes,
        requester: Requester,
        exclusive: bool = False,
    ) -> None:
        """Move an entry, replacing what is there unless *exclusive*."""
        entry, new_name = self._find(parent, to_text(raw_name)), to_text(raw_new_name)
        if self._special(new_parent, new_name) is not None:
            raise Denied(f"{new_name} can't be replaced")
        caller = self._caller(requester)
        directory = self._directory(new_parent)
        self._files.rename(entry, directory, new_name, exclusive, caller)

    def link(self, node: int, new_parent: int, new_name: bytes) -> None:
        """Refuse a hard link."""
        raise NotPermitted("hard links are not supported")

    # Attributes

    def setattr(
        self, node: int, wanted: Wanted, handle: int | None, requester: Requester
    ) -> Attributes:
        """Set size and times; modes and owners only have to be what they are."""
        found = self.node_ids[node]
        self._check_ownership(found, wanted, requester.pid)
        caller = self._caller(requester)
        if wanted.size is not None:
            self._truncate(found, wanted.size, handle, caller)
        if wanted.mtime is not None:
            if not isinstance(found, Entry):
                raise Denied("the times of a special file can't be changed")
            self._files.utime(found, wanted.mtime, caller=caller)
        return self._attributes(found)

    def _check_ownership(self, found: Node, wanted: Wanted, pid: int) -> None:
        if wanted.mode is not None:
            self._ownership.check_mode(
                stat.S_IMODE(wanted.mode),
                present=stat.S_IMODE(self._mode_of(found)),
                private=isinstance(found, Entry) and found.private,
                pid=pid,
            )
        self._ownership.check_owner(uid=wanted.uid, gid=wanted.gid, pid=pid)

    def _truncate(self, found: Node, size: int, handle: int | None, caller: Caller) -> None:
        if isinstance(found, Entry):
            opened = None if handle is None else self._handles.get(handle)
            self._files.truncate(
                found,
                size,
                handle=opened if isinstance(opened, OpenFile) else None,
                caller=caller,
            )
        elif not isinstance(found, Switch):
            raise Failed("a status file can't be written")

    # Content

    def _new_handle(self, handle: Handle) -> int:
        self._last_handle += 1
        self._handles[self._last_handle] = handle
        return self._last_handle

    def _open(self, entry: Entry, flags: int, caller: Caller, has_created: bool) -> int:
        opened = self._files.open(
            entry,
            writing=(flags & O_ACCMODE) != O_RDONLY,
            truncate=bool(flags & O_TRUNC),
            append=bool(flags & O_APPEND),
            has_created=has_created,
            caller=caller,
        )
        return self._new_handle(opened)

    def open(self, node: int, flags: int, requester: Requester) -> int:
        """Open a file; return the handle."""
        found = self.node_ids[node]
        if isinstance(found, Entry):
            changes = (flags & O_ACCMODE) != O_RDONLY or flags & O_TRUNC
            caller = self._caller(requester) if changes else UNKNOWN
            return self._open(found, flags, caller, False)
        if isinstance(found, Snapshot):
            self._check_snapshot(found, truncate=bool(flags & O_TRUNC))
        elif not isinstance(found, Switch):
            raise NotFound(f"node {node} can't be opened")
        return self._new_handle(found)

    def _check_snapshot(self, snapshot: Snapshot, *, truncate: bool) -> None:
        """Raise Stale for an outdated *snapshot*: the kernel then looks the name up once more."""
        if truncate:
            raise Failed("a status file can't be written")
        is_fresh = self._now_ns() - snapshot.made_ns < SNAPSHOT_FRESH_NS
        if not is_fresh and not snapshot.file.is_current(snapshot):
            raise Stale(f"{snapshot.file.name} has changed")

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Return bytes of an open file."""
        opened = self._handles[handle]
        if isinstance(opened, OpenFile):
            return opened.entry.read(offset, size)
        return opened.content[offset : offset + size]

    def write(self, handle: int, offset: int, data: bytes, append: bool | None = None) -> int:
        """Write to an open file; return how many bytes were used.

        *append*: whatever the offset is, to the end; None: the session does not know.
        """
        opened = self._handles[handle]
        if isinstance(opened, OpenFile):
            self._files.write(opened, offset, data, append)
            return len(data)
        if isinstance(opened, Switch):
            return opened.write(data)
        raise Failed("a status file can't be written")

    def flush(self, handle: int) -> None:
        """Publish what was written, as a descriptor is being closed."""
        opened = self._handles[handle]
        if isinstance(opened, OpenFile):
            self._writeback.flush(opened)

    def fsync(self, handle: int) -> None:
        """Publish what was written, and bring it to the device."""
        opened = self._handles[handle]
        if isinstance(opened, OpenFile):
            self._writeback.fsync(opened)

    def release(self, handle: int) -> None:
        """Forget a handle of a file, after publishing what was written."""
        opened = self._handles.pop(handle)
        if isinstance(opened, OpenFile):
            self._files.release(opened)


def _can_be_announced_later(flags: int) -> bool:
    """Tell whether an open with *flags* that makes a file may wait for its content.

    Not one whose program wants to know now whether it has made the file, or reads and appends.
    """
    if flags & (O_EXCL | O_APPEND):
        return False
    return bool(flags & O_TRUNC) or flags & O_ACCMODE == O_WRONLY
