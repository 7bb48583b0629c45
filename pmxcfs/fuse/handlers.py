"""The FUSE request handlers: they turn kernel requests into ``FileSystem`` calls, errors to errnos.

Handlers decide about fixed entries and unsupported requests; all rules for entries of the tree are
in ``vfs``. Every exception leaves a handler as a FUSEError, because any other exception would end
llfuse's main loop, and with it the mount.

Threads: llfuse's workers call the handlers, with llfuse's lock held, which is the tree's lock
(``session.LOCK``). A handler may release it while it waits; ``vfs`` decides when.
Contract: docs/spec/fuse.md; docs/spec/filesystem.md, "Operations".
"""

import errno
import functools
import logging
import stat
import time
from collections.abc import Callable, Sequence
from os import O_ACCMODE, O_APPEND, O_EXCL, O_RDONLY, O_TRUNC
from typing import TypeAlias, TypeVar

import llfuse

from pmxcfs._core import Entry
from pmxcfs.errors import (
    Denied,
    Exists,
    Failed,
    GuestTaken,
    NotFound,
    NotPermitted,
    PmxcfsError,
    Stale,
    Unsupported,
)
from pmxcfs.fuse.node_ids import ROOT, Node, NodeIds
from pmxcfs.fuse.request_log import RequestLog
from pmxcfs.fuse.workers import Workers
from pmxcfs.host.callers import UNKNOWN, Caller, Callers
from pmxcfs.host.outage import Repetitions
from pmxcfs.messages import MAX_ENTRIES, MAX_NEW_NAME, MAX_TOTAL_SIZE
from pmxcfs.status.files import Link, Snapshot, StatusFile, Switch
from pmxcfs.text import to_bytes, to_text
from pmxcfs.tree import modes
from pmxcfs.tree.modes import PRIVATE
from pmxcfs.vfs.filesystem import FileSystem
from pmxcfs.vfs.ownership import Ownership
from pmxcfs.vfs.writeback import OpenFile

_log = logging.getLogger("pmxcfs.fuse")

_NS = 10**9  # nanoseconds per second; a Python integer, as a C int would overflow
FOREVER = 365 * 86400.0  # seconds, as a cache timeout; changes are invalidated explicitly
BLOCK = 4096  # bytes per block in statfs
SNAPSHOT_FRESH_NS = 1_000_000_000  # age up to which an outdated snapshot may be opened
TAKEN_AGAIN_NS = 60_000_000_000  # until a path is logged again whose guest number is in use
MAX_LISTED_NAME = 1024  # bytes; the kernel fails a listing with a longer name, such as a peer's
LISTED_AT_ONCE = 256  # names per readdir; more than fit into the kernel's one-page buffer
RECENT_LISTINGS = 64  # directories whose listing is cached until a name in them changes


Handle = OpenFile | Switch | Snapshot
# Name, attributes, offset of the next entry. A string, as Cython 0.29 can't subscript a class.
Listing: TypeAlias = "list[tuple[bytes, llfuse.EntryAttributes, int]]"


class OpenDirectory:
    """An open directory, and its listing of the last read from offset 0."""

    __slots__ = ("entry", "listing")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.listing: Listing | None = None


_Answer = TypeVar("_Answer")


def _handler(function: Callable[..., _Answer]) -> Callable[..., _Answer]:
    """Wrap a handler so that it raises only FUSEError and logs its requests in debug mode."""

    @functools.wraps(function)
    def guarded(self: "Handlers", *arguments: object) -> _Answer:
        try:
            if self.is_logging_requests:
                return _logged(self, function, arguments)
            return function(self, *arguments)
        except PmxcfsError as error:
            if isinstance(error, GuestTaken):
                self.note_taken(error)
            raise llfuse.FUSEError(error.errno) from None
        except BaseException:  # noqa: BLE001, as a bug in a handler must not end the mount
            _log.exception("FUSE request %s failed, which is a bug", function.__name__)
            raise llfuse.FUSEError(errno.EIO) from None

    return guarded


def _logged(
    handlers: "Handlers", function: Callable[..., _Answer], arguments: tuple[object, ...]
) -> _Answer:
    """Call a handler and log the request, its outcome and its duration in microseconds."""
    outcome, start_ns = "EIO", time.perf_counter_ns()
    name, requests = function.__name__, handlers.requests
    subject, caller = requests.describe(name, arguments)
    try:
        answer = function(handlers, *arguments)
        outcome = "ENOENT" if handlers.is_absent(answer) else "ok"
        requests.note(name, answer, caller)
        return answer
    except PmxcfsError as error:
        outcome = f"{errno.errorcode.get(error.errno, error.errno)}: {error}"
        raise
    finally:
        elapsed = (time.perf_counter_ns() - start_ns) // 1000
        if subject == PRIVATE:
            outcome = outcome.partition(":")[0]
        _log.debug("%s %s [%s] -> %s (%d us)", name, subject, caller, outcome, elapsed)


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
        workers: Workers,
    ) -> None:
        self.is_logging_requests = False
        self.node_ids = node_ids
        self._files = files
        self._writeback = files.writeback
        self._ownership = ownership
        self._callers = callers
        self._on_debug = on_debug
        self._status_files = status_files
        debug = Switch(".debug", is_on=lambda: self.is_logging_requests, turn=self.turn_debug)
        self._fixed: dict[str, Link | Switch] = {link.name: link for link in links}
        self._fixed[debug.name] = debug
        self._start_ns = start_time * _NS
        self._now_ns = monotonic_ns
        self._workers = workers
        self._taken = Repetitions(TAKEN_AGAIN_NS)
        self._handles: dict[int, Handle] = {}
        self._directories: dict[int, OpenDirectory] = {}  # by handle
        self.requests = RequestLog(node_ids.objects, self._handles, self._directories)
        self._recent_listings: dict[int, tuple[int, Listing]] = {}  # by node; (version, listing)
        self._last_handle = 0
        self._absent = llfuse.EntryAttributes()  # st_ino 0: a negative entry
        self._absent.entry_timeout = FOREVER

    # Lookup and attributes

    def note_taken(self, error: GuestTaken) -> None:
        """Log where a guest's number is in use: the caller gets an errno only."""
        if self._taken.is_due(error.path, now_ns=self._now_ns()):
            _log.info("refused with EEXIST: %s", error)

    def turn_debug(self, on: bool) -> None:
        """Log requests from now on, or no longer."""
        self.is_logging_requests = on
        self.requests.clear()
        self._on_debug(on)

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
        found = self._directory(parent).child(name)
        if found is None:
            raise NotFound(f"there is no {name} any more")
        return found

    def _caller(self, context: llfuse.RequestContext) -> Caller:
        """Return the process that makes a request."""
        return self._callers.of(context.pid, context.uid)

    @_handler
    def lookup(self, parent: int, raw_name: bytes, context: object) -> llfuse.EntryAttributes:
        name = to_text(raw_name)
        found = self._special(parent, name) or self._directory(parent).child(name)
        if found is None:
            self.node_ids.note_absent(parent, raw_name)
            return self._absent
        return self._answer(found)

    def _answer(self, found: Node) -> llfuse.EntryAttributes:
        """Return the reply of a lookup or creation; the kernel gets one more reference."""
        self.node_ids.reference(found)
        return self._attributes(found)

    def forget(self, forgotten: list[tuple[int, int]]) -> None:
        """Take back references of the kernel. This request has no reply, so nothing is raised."""
        for node, count in forgotten:
            self.node_ids.forget(node, count)

    @_handler
    def getattr(self, node: int, context: object) -> llfuse.EntryAttributes:
        return self._attributes(self.node_ids[node])

    def _attributes(self, found: Node) -> llfuse.EntryAttributes:
        if isinstance(found, Entry):
            return self._entry_attributes(found)
        mode = self._mode_of(found)
        if isinstance(found, Link):
            return self._new_attributes(found.node, mode, len(found.target), self._start_ns)
        result = self._new_attributes(found.node, mode, len(found.content), self._start_ns)
        if isinstance(found, Switch):
            result.attr_timeout = 0
        else:
            result.entry_timeout = 0
        return result

    def _mode_of(self, found: Node) -> int:
        is_quorate = self._files.quorum.is_quorate
        if isinstance(found, Entry):
            return modes.mode_of(found, quorate=is_quorate)
        if isinstance(found, Link):
            mode = stat.S_IFLNK | 0o755
            return mode if is_quorate else modes.without_quorum(mode)
        return stat.S_IFREG | (0o640 if isinstance(found, Switch) else 0o440)

    def _entry_attributes(self, entry: Entry) -> llfuse.EntryAttributes:
        mode = self._mode_of(entry)
        entry.kernel_size = entry.visible_size
        time_ns = self._start_ns if entry.node == ROOT else _NS * entry.mtime
        result = self._new_attributes(entry.node, mode, entry.visible_size, time_ns)
        if not entry.is_attached:
            result.st_nlink = 0
        elif entry.is_directory:
            result.st_nlink = 2
        if entry.has_draft:
            result.attr_timeout = 0  # publishing will change the mtime
        return result

    def _new_attributes(
        self, node: int, mode: int, size: int, time_ns: int
    ) -> llfuse.EntryAttributes:
        result = llfuse.EntryAttributes()
        result.st_ino = node
        result.st_mode = mode
        result.st_gid = self._ownership.gid
        result.st_size = size
        result.st_blocks = (size + 511) // 512
        result.st_atime_ns = result.st_mtime_ns = result.st_ctime_ns = time_ns
        result.entry_timeout = result.attr_timeout = FOREVER
        return result

    @_handler
    def readlink(self, node: int, context: object) -> bytes:
        found = self.node_ids[node]
        if not isinstance(found, Link):
            raise NotFound(f"node {node} is not a link")
        return found.target

    @_handler
    def statfs(self, context: object) -> llfuse.StatvfsData:
        used = self._files.space.usage()
        result = llfuse.StatvfsData()
        result.f_bsize = result.f_frsize = BLOCK
        result.f_blocks = MAX_TOTAL_SIZE // BLOCK
        free = max(0, result.f_blocks - (used.content_bytes + BLOCK - 1) // BLOCK)
        result.f_bfree = result.f_bavail = free
        result.f_files = MAX_ENTRIES
        result.f_ffree = result.f_favail = max(0, MAX_ENTRIES - used.entries)
        result.f_namemax = MAX_NEW_NAME + 1
        return result

    # Listing

    @_handler
    def opendir(self, node: int, context: object) -> int:
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
        return listing

    def _list(self, directory: Entry) -> Listing:
        above = directory.parent or directory
        found = [(b".", self._dirent(directory)), (b"..", self._dirent(above))]
        hidden: set[str] = set()
        if directory.node == ROOT:
            hidden = self._status_files.keys() | self._fixed.keys()
            found += [(name.encode(), self._special_dirent(name)) for name in hidden]
        found += [
            (to_bytes(child.name), self._dirent(child))
            for child in directory.children()
            if child.name not in hidden
        ]
        listable = [pair for pair in found if len(pair[0]) <= MAX_LISTED_NAME]
        return [
            (name, attributes, position)
            for position, (name, attributes) in enumerate(listable, start=1)
        ]

    def _dirent(self, entry: Entry) -> llfuse.EntryAttributes:
        result = llfuse.EntryAttributes()
        result.st_ino = self.node_ids.number(entry)
        if entry.is_directory:
            result.st_mode = stat.S_IFDIR
        return result

    def _special_dirent(self, name: str) -> llfuse.EntryAttributes:
        result = llfuse.EntryAttributes()
        special = self._special(ROOT, name)
        assert special is not None, "all names come from the tables of special files"
        result.st_ino = self.node_ids.number(special)
        if isinstance(special, Link):
            result.st_mode = stat.S_IFLNK
        return result

    @_handler
    def readdir(self, handle: int, offset: int) -> Listing:
        """Return the entries after the first *offset* ones; offset 0 makes a new listing."""
        opened = self._directories[handle]
        if offset == 0 or opened.listing is None:
            opened.listing = self._listing(opened.entry)
        return opened.listing[offset : offset + LISTED_AT_ONCE]

    @_handler
    def releasedir(self, handle: int) -> None:
        self._directories.pop(handle, None)

    @_handler
    def fsyncdir(self, handle: int, datasync: bool) -> None:
        self._writeback.sync()

    # Names

    @_handler
    def create(
        self, parent: int, name: bytes, mode: int, flags: int, context: llfuse.RequestContext
    ) -> tuple[int, llfuse.EntryAttributes]:
        caller = self._caller(context)
        entry = self._create(parent, to_text(name), caller, exclusive=bool(flags & O_EXCL))
        flags = flags if entry.visible_size else flags & ~O_TRUNC
        return self._open(entry, flags, caller, True), self._answer(entry)

    @_handler
    def mknod(
        self, parent: int, name: bytes, mode: int, device: int, context: llfuse.RequestContext
    ) -> llfuse.EntryAttributes:
        if not stat.S_ISREG(mode):
            raise Unsupported("only regular files can be created")
        caller = self._caller(context)
        entry = self._create(parent, to_text(name), caller, exclusive=True)
        self._writeback.save_creations()
        return self._answer(entry)

    def _create(self, parent: int, name: str, caller: Caller, *, exclusive: bool) -> Entry:
        if self._special(parent, name) is not None:
            raise Denied(f"{name} can't be replaced")
        directory = self._directory(parent)
        return self._files.create(directory, name, exclusive=exclusive, caller=caller)

    @_handler
    def mkdir(
        self, parent: int, raw_name: bytes, mode: int, context: llfuse.RequestContext
    ) -> llfuse.EntryAttributes:
        name = to_text(raw_name)
        if self._special(parent, name) is not None:
            raise Exists(f"{name} can't be replaced")
        caller = self._caller(context)
        return self._answer(self._files.mkdir(self._directory(parent), name, caller=caller))

    @_handler
    def unlink(self, parent: int, name: bytes, context: llfuse.RequestContext) -> None:
        caller = self._caller(context)
        self._files.unlink(self._find(parent, to_text(name)), caller)

    @_handler
    def rmdir(self, parent: int, name: bytes, context: llfuse.RequestContext) -> None:
        caller = self._caller(context)
        self._files.rmdir(self._find(parent, to_text(name)), caller)

    @_handler
    def rename(
        self,
        parent: int,
        raw_name: bytes,
        new_parent: int,
        raw_new_name: bytes,
        context: llfuse.RequestContext,
    ) -> None:
        entry, new_name = self._find(parent, to_text(raw_name)), to_text(raw_new_name)
        if self._special(new_parent, new_name) is not None:
            raise Denied(f"{new_name} can't be replaced")
        caller = self._caller(context)
        self._files.rename(entry, self._directory(new_parent), new_name, caller=caller)

    @_handler
    def link(self, node: int, new_parent: int, new_name: bytes, context: object) -> None:
        raise NotPermitted("hard links are not supported")

    # Attributes

    @_handler
    def setattr(
        self,
        node: int,
        wanted: llfuse.EntryAttributes,
        fields: llfuse.SetattrFields,
        handle: int | None,
        context: llfuse.RequestContext,
    ) -> llfuse.EntryAttributes:
        found = self.node_ids[node]
        self._check_ownership(found, wanted, fields, context.pid)
        caller = self._caller(context)
        if fields.update_size:
            self._truncate(found, wanted.st_size, handle, caller)
        if fields.update_mtime:
            if not isinstance(found, Entry):
                raise Denied("the times of a special file can't be changed")
            self._files.utime(found, wanted.st_mtime_ns // _NS, caller=caller)
        return self._attributes(found)

    def _check_ownership(
        self, found: Node, wanted: llfuse.EntryAttributes, fields: llfuse.SetattrFields, pid: int
    ) -> None:
        if fields.update_mode:
            self._ownership.check_mode(
                stat.S_IMODE(wanted.st_mode),
                present=stat.S_IMODE(self._mode_of(found)),
                private=isinstance(found, Entry) and found.private,
                pid=pid,
            )
        self._ownership.check_owner(
            uid=wanted.st_uid if fields.update_uid else None,
            gid=wanted.st_gid if fields.update_gid else None,
            pid=pid,
        )

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

    @_handler
    def open(self, node: int, flags: int, context: llfuse.RequestContext) -> int:
        found = self.node_ids[node]
        if isinstance(found, Entry):
            changes = (flags & O_ACCMODE) != O_RDONLY or flags & O_TRUNC
            caller = self._caller(context) if changes else UNKNOWN
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

    @_handler
    def read(self, handle: int, offset: int, size: int) -> bytes:
        opened = self._handles[handle]
        if isinstance(opened, OpenFile):
            return opened.entry.read(offset, size)
        return opened.content[offset : offset + size]

    @_handler
    def write(self, handle: int, offset: int, data: bytes) -> int:
        opened = self._handles[handle]
        if isinstance(opened, OpenFile):
            self._files.write(opened, offset, data)
            return len(data)
        if isinstance(opened, Switch):
            return opened.write(data)
        raise Failed("a status file can't be written")

    @_handler
    def flush(self, handle: int) -> None:
        opened = self._handles[handle]
        if isinstance(opened, OpenFile):
            self._writeback.flush(opened)

    @_handler
    def fsync(self, handle: int, datasync: bool) -> None:
        opened = self._handles[handle]
        if isinstance(opened, OpenFile):
            self._writeback.fsync(opened)

    @_handler
    def release(self, handle: int) -> None:
        opened = self._handles.pop(handle)
        if isinstance(opened, OpenFile):
            self._files.release(opened)

    def is_absent(self, answer: object) -> bool:
        """Tell whether *answer* is that of a look-up of nothing, which the kernel may cache."""
        return answer is self._absent


class Operations(Handlers, llfuse.Operations):
    """All handlers, as llfuse wants them; llfuse answers other requests with ENOSYS."""

    def stacktrace(self) -> None:
        """Refuse llfuse's attribute for debugging, as every extended attribute."""
        raise llfuse.FUSEError(errno.ENOSYS)

    # No process waits for the replies to these two, so their worker may be parked.

    def release(self, handle: int) -> None:
        super().release(handle)
        self._workers.park()

    def releasedir(self, handle: int) -> None:
        super().releasedir(handle)
        self._workers.park()
